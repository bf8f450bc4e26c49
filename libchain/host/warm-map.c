// SPDX-License-Identifier: LGPL-2.1-or-later
// The bits of a warm map. It grows as parts behind its end are added.
#include "host/warm-map.h"

#include <glib.h>
#include <string.h>

enum {
    PART_BITS_MIN = 20,
    PARTS_AT_FIRST = 1 << 20,
    PARTS_MAX = 16 << 20, // 2 MiB of bits: a file that has grown sixteen times beyond 1 TiB
};

void warm_map_init(WarmMap *map, uint64_t size)
{
    *map = (WarmMap){.part_bits = PART_BITS_MIN};
    while (size >> map->part_bits > PARTS_AT_FIRST)
        map->part_bits++;
}

void warm_map_done(WarmMap *map)
{
    g_clear_pointer(&map->bits, g_free);
    map->n_parts = 0;
}

static bool grow(WarmMap *map, uint64_t n_parts)
{
    if (n_parts > PARTS_MAX)
        return false;
    n_parts = (MAX(n_parts, 2 * map->n_parts) + 63) / 64 * 64;
    uint64_t *bits = g_try_realloc_n(map->bits, n_parts / 64, sizeof(uint64_t));
    if (!bits)
        return false;
    memset(bits + map->n_parts / 64, 0, (n_parts - map->n_parts) / 8);
    map->bits = bits;
    map->n_parts = n_parts;
    return true;
}

void warm_map_add(WarmMap *map, uint64_t off, uint64_t len)
{
    uint64_t part = off >> map->part_bits, last = (off + len - 1) >> map->part_bits;
    if (last >= map->n_parts && !grow(map, last + 1))
        return;
    for (; part <= last; part++)
        map->bits[part / 64] |= UINT64_C(1) << part % 64;
}

void warm_map_forget(WarmMap *map)
{
    if (map->bits)
        memset(map->bits, 0, map->n_parts / 8);
}
