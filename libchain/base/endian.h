// SPDX-License-Identifier: LGPL-2.1-or-later
// Big-endian integers as they lie on disk and on the wire. One-field structs, so that a value
// cannot be used without being decoded. Pure.
#pragma once

#include <endian.h>
#include <stdint.h>

typedef struct {
    uint16_t raw;
} Be16;
typedef struct {
    uint32_t raw;
} Be32;
typedef struct {
    uint64_t raw;
} Be64;

static inline uint16_t be16_get(Be16 b)
{
    return be16toh(b.raw);
}
static inline uint32_t be32_get(Be32 b)
{
    return be32toh(b.raw);
}
static inline uint64_t be64_get(Be64 b)
{
    return be64toh(b.raw);
}
static inline Be16 be16_make(uint16_t v)
{
    return (Be16){htobe16(v)};
}
static inline Be32 be32_make(uint32_t v)
{
    return (Be32){htobe32(v)};
}
static inline Be64 be64_make(uint64_t v)
{
    return (Be64){htobe64(v)};
}
