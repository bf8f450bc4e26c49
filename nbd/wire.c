// SPDX-License-Identifier: LGPL-2.1-or-later
// All byte-order conversion of the NBD server. Fields are loaded and stored at their wire offsets,
// which the protocol text draws as tables; nothing is cast to a packed struct, so alignment never
// matters. Pure.
#include "wire.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

static const uint64_t MAGIC_INIT = 0x4e42444d41474943;   // "NBDMAGIC"
static const uint64_t MAGIC_OPTION = 0x49484156454f5054; // "IHAVEOPT"
static const uint64_t MAGIC_OPTION_REPLY = 0x0003e889045565a9;
static const uint32_t MAGIC_REQUEST = 0x25609513;
static const uint32_t MAGIC_SIMPLE_REPLY = 0x67446698;
static const uint32_t MAGIC_STRUCTURED_REPLY = 0x668e33ef;
static const uint32_t MAGIC_EXTENDED_REQUEST = 0x21e41c71;
static const uint32_t MAGIC_EXTENDED_REPLY = 0x6e8a278c;

uint16_t nbds_wire_get_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return be16toh(v);
}

uint32_t nbds_wire_get_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return be32toh(v);
}

uint64_t nbds_wire_get_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return be64toh(v);
}

void nbds_wire_put_u16(uint8_t *p, uint16_t v)
{
    v = htobe16(v);
    memcpy(p, &v, sizeof v);
}

void nbds_wire_put_u32(uint8_t *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, sizeof v);
}

void nbds_wire_put_u64(uint8_t *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof v);
}

void nbds_wire_put_greeting(uint8_t p[static NBDS_GREETING_BYTES])
{
    nbds_wire_put_u64(p, MAGIC_INIT);
    nbds_wire_put_u64(p + 8, MAGIC_OPTION);
    nbds_wire_put_u16(p + 16, NBDS_C_FIXED_NEWSTYLE | NBDS_C_NO_ZEROES); // same bits both ways
}

uint32_t nbds_wire_get_client_flags(const uint8_t p[static NBDS_CLIENT_FLAGS_BYTES])
{
    return nbds_wire_get_u32(p);
}

bool nbds_wire_get_option_head(const uint8_t p[static NBDS_OPTION_HEAD_BYTES], uint32_t *ret_option,
                               uint32_t *ret_length)
{
    if (nbds_wire_get_u64(p) != MAGIC_OPTION)
        return false;
    *ret_option = nbds_wire_get_u32(p + 8);
    *ret_length = nbds_wire_get_u32(p + 12);
    return true;
}

void nbds_wire_put_option_reply_head(uint8_t p[static NBDS_OPTION_REPLY_HEAD_BYTES],
                                     uint32_t option, uint32_t type, uint32_t length)
{
    nbds_wire_put_u64(p, MAGIC_OPTION_REPLY);
    nbds_wire_put_u32(p + 8, option);
    nbds_wire_put_u32(p + 12, type);
    nbds_wire_put_u32(p + 16, length);
}

void nbds_wire_put_export_name_reply(uint8_t p[static NBDS_EXPORT_NAME_REPLY_BYTES], uint64_t size,
                                     uint16_t flags)
{
    nbds_wire_put_u64(p, size);
    nbds_wire_put_u16(p + 8, flags);
}

NbdsErrorCode nbds_error_from_errno(int result)
{
    switch (-result) {
    case 0:
        return NBDS_OK;
    case EPERM:
    case EROFS:
    case EACCES:
        return NBDS_EPERM;
    case ENOMEM:
        return NBDS_ENOMEM;
    case EINVAL:
        return NBDS_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBDS_ENOSPC;
    case EOVERFLOW:
        return NBDS_EOVERFLOW;
    case EOPNOTSUPP: // the same number as ENOTSUP
        return NBDS_ENOTSUP;
    case ESHUTDOWN:
        return NBDS_ESHUTDOWN;
    default:
        return NBDS_EIO;
    }
}

bool nbds_wire_get_request_head(const uint8_t *p, NbdsStyle style, NbdsRequestHead *ret_head)
{
    bool extended = style == NBDS_STYLE_EXTENDED;
    if (nbds_wire_get_u32(p) != (extended ? MAGIC_EXTENDED_REQUEST : MAGIC_REQUEST))
        return false;
    ret_head->flags = nbds_wire_get_u16(p + 4);
    ret_head->type = nbds_wire_get_u16(p + 6);
    ret_head->cookie = nbds_wire_get_u64(p + 8);
    ret_head->offset = nbds_wire_get_u64(p + 16);
    ret_head->length = extended ? nbds_wire_get_u64(p + 24) : nbds_wire_get_u32(p + 24);
    return true;
}

void nbds_wire_put_simple_reply(uint8_t p[static NBDS_SIMPLE_REPLY_BYTES], NbdsErrorCode error,
                                uint64_t cookie)
{
    nbds_wire_put_u32(p, MAGIC_SIMPLE_REPLY);
    nbds_wire_put_u32(p + 4, error);
    nbds_wire_put_u64(p + 8, cookie);
}

void nbds_wire_put_chunk_head(uint8_t *p, NbdsStyle style, const NbdsChunkHead *head)
{
    assert(style != NBDS_STYLE_SIMPLE);
    bool extended = style == NBDS_STYLE_EXTENDED;
    nbds_wire_put_u32(p, extended ? MAGIC_EXTENDED_REPLY : MAGIC_STRUCTURED_REPLY);
    nbds_wire_put_u16(p + 4, head->flags);
    nbds_wire_put_u16(p + 6, head->type);
    nbds_wire_put_u64(p + 8, head->cookie);
    if (extended) {
        nbds_wire_put_u64(p + 16, head->request_offset);
        nbds_wire_put_u64(p + 24, head->length);
    } else {
        assert(head->length <= UINT32_MAX);
        nbds_wire_put_u32(p + 16, head->length);
    }
}

void nbds_wire_put_status_start(uint8_t *p, NbdsStyle style, uint32_t context_id, uint32_t count)
{
    nbds_wire_put_u32(p, context_id);
    if (style == NBDS_STYLE_EXTENDED)
        nbds_wire_put_u32(p + 4, count);
}

void nbds_wire_put_status_extent(uint8_t *p, NbdsStyle style, uint64_t length, uint64_t flags)
{
    if (style == NBDS_STYLE_EXTENDED) {
        nbds_wire_put_u64(p, length);
        nbds_wire_put_u64(p + 8, flags);
    } else {
        assert(length <= UINT32_MAX && flags <= UINT32_MAX);
        nbds_wire_put_u32(p, length);
        nbds_wire_put_u32(p + 4, flags);
    }
}
