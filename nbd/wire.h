// SPDX-License-Identifier: LGPL-2.1-or-later
// The NBD protocol as it lies on the wire: its constants and the only place where bytes become
// numbers and back. Source: the NBD project's doc/proto.md with its extended-headers extension.
// Pure; any thread. Nothing here reads beyond the lengths it is given.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Bounds of the protocol ("Conventions", "Size constraints").
enum {
    NBDS_MAX_STRING = 4096,
    NBDS_MAX_PAYLOAD = 32 << 20, // the default every client may count on
    NBDS_MAX_EXTENTS = 1 << 20,  // per BLOCK_STATUS chunk
};

// Ours. Options up to the first bound are executed: enough for 16 queries of the longest bitmap
// names (1,023 bytes) or 15 of the longest strings. Up to the second their data is dropped and they
// are answered TOO_BIG; above, the client is.
enum {
    NBDS_MAX_OPTION_BYTES = 64 << 10,
    NBDS_MAX_DROPPED_OPTION_BYTES = 256 << 10,
};

// --- Handshake ---

typedef enum NbdsOption {
    NBDS_OPT_EXPORT_NAME = 1,
    NBDS_OPT_ABORT = 2,
    NBDS_OPT_LIST = 3,
    NBDS_OPT_STARTTLS = 5,
    NBDS_OPT_INFO = 6,
    NBDS_OPT_GO = 7,
    NBDS_OPT_STRUCTURED_REPLY = 8,
    NBDS_OPT_LIST_META_CONTEXT = 9,
    NBDS_OPT_SET_META_CONTEXT = 10,
    NBDS_OPT_EXTENDED_HEADERS = 11,
} NbdsOption;

#define NBDS_REP_ERROR(n) (0x80000000u | (n))
typedef enum NbdsRep {
    NBDS_REP_ACK = 1,
    NBDS_REP_SERVER = 2,
    NBDS_REP_INFO = 3,
    NBDS_REP_META_CONTEXT = 4,
    NBDS_REP_ERR_UNSUP = NBDS_REP_ERROR(1),
    NBDS_REP_ERR_POLICY = NBDS_REP_ERROR(2),
    NBDS_REP_ERR_INVALID = NBDS_REP_ERROR(3),
    NBDS_REP_ERR_TLS_REQD = NBDS_REP_ERROR(5),
    NBDS_REP_ERR_UNKNOWN = NBDS_REP_ERROR(6),
    NBDS_REP_ERR_SHUTDOWN = NBDS_REP_ERROR(7),
    NBDS_REP_ERR_TOO_BIG = NBDS_REP_ERROR(9),
    NBDS_REP_ERR_EXT_HEADER_REQD = NBDS_REP_ERROR(10),
} NbdsRep;

typedef enum NbdsInfo {
    NBDS_INFO_EXPORT = 0,
    NBDS_INFO_NAME = 1,
    NBDS_INFO_DESCRIPTION = 2,
    NBDS_INFO_BLOCK_SIZE = 3,
} NbdsInfo;

enum { // client flags of the handshake
    NBDS_C_FIXED_NEWSTYLE = 1 << 0,
    NBDS_C_NO_ZEROES = 1 << 1,
};

enum { // transmission flags
    NBDS_FLAG_HAS_FLAGS = 1 << 0,
    NBDS_FLAG_READ_ONLY = 1 << 1,
    NBDS_FLAG_SEND_FLUSH = 1 << 2,
    NBDS_FLAG_SEND_FUA = 1 << 3,
    NBDS_FLAG_SEND_TRIM = 1 << 5,
    NBDS_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBDS_FLAG_SEND_DF = 1 << 7,
    NBDS_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBDS_FLAG_SEND_CACHE = 1 << 10,
    NBDS_FLAG_SEND_FAST_ZERO = 1 << 11,
    NBDS_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12,
};

enum {
    NBDS_GREETING_BYTES = 18,
    NBDS_CLIENT_FLAGS_BYTES = 4,
    NBDS_OPTION_HEAD_BYTES = 16,
    NBDS_OPTION_REPLY_HEAD_BYTES = 20,
    NBDS_EXPORT_NAME_REPLY_BYTES = 10, // then 124 zeroes unless NO_ZEROES
    NBDS_EXPORT_NAME_PADDING = 124,
};

// Magic numbers and FIXED_NEWSTYLE | NO_ZEROES.
void nbds_wire_put_greeting(uint8_t p[static NBDS_GREETING_BYTES]);
uint32_t nbds_wire_get_client_flags(const uint8_t p[static NBDS_CLIENT_FLAGS_BYTES]);
// False when the magic number is wrong.
bool nbds_wire_get_option_head(const uint8_t p[static NBDS_OPTION_HEAD_BYTES], uint32_t *ret_option,
                               uint32_t *ret_length);
void nbds_wire_put_option_reply_head(uint8_t p[static NBDS_OPTION_REPLY_HEAD_BYTES],
                                     uint32_t option, uint32_t type, uint32_t length);
void nbds_wire_put_export_name_reply(uint8_t p[static NBDS_EXPORT_NAME_REPLY_BYTES], uint64_t size,
                                     uint16_t flags);
uint16_t nbds_wire_get_u16(const uint8_t *p);
uint32_t nbds_wire_get_u32(const uint8_t *p);
uint64_t nbds_wire_get_u64(const uint8_t *p);
void nbds_wire_put_u16(uint8_t *p, uint16_t v);
void nbds_wire_put_u32(uint8_t *p, uint32_t v);
void nbds_wire_put_u64(uint8_t *p, uint64_t v);

// --- Transmission ---

typedef enum NbdsCommand {
    NBDS_CMD_READ = 0,
    NBDS_CMD_WRITE = 1,
    NBDS_CMD_DISC = 2,
    NBDS_CMD_FLUSH = 3,
    NBDS_CMD_TRIM = 4,
    NBDS_CMD_CACHE = 5,
    NBDS_CMD_WRITE_ZEROES = 6,
    NBDS_CMD_BLOCK_STATUS = 7,
} NbdsCommand;

enum { // command flags
    NBDS_CMD_FLAG_FUA = 1 << 0,
    NBDS_CMD_FLAG_NO_HOLE = 1 << 1,
    NBDS_CMD_FLAG_DF = 1 << 2,
    NBDS_CMD_FLAG_REQ_ONE = 1 << 3,
    NBDS_CMD_FLAG_FAST_ZERO = 1 << 4,
    NBDS_CMD_FLAG_PAYLOAD_LEN = 1 << 5,
};

typedef enum NbdsErrorCode {
    NBDS_OK = 0,
    NBDS_EPERM = 1,
    NBDS_EIO = 5,
    NBDS_ENOMEM = 12,
    NBDS_EINVAL = 22,
    NBDS_ENOSPC = 28,
    NBDS_EOVERFLOW = 75,
    NBDS_ENOTSUP = 95,
    NBDS_ESHUTDOWN = 108,
} NbdsErrorCode;
// The one translation of our results (0 or negative errno).
NbdsErrorCode nbds_error_from_errno(int result);

// What was negotiated decides the headers of both directions.
typedef enum NbdsStyle {
    NBDS_STYLE_SIMPLE,     // compact requests, simple replies
    NBDS_STYLE_STRUCTURED, // compact requests, structured chunks (simple ones where allowed)
    NBDS_STYLE_EXTENDED,   // extended requests and replies
} NbdsStyle;

typedef struct NbdsRequestHead {
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint64_t offset;
    uint64_t length;
} NbdsRequestHead;

enum { NBDS_COMPACT_HEAD_BYTES = 28, NBDS_EXTENDED_HEAD_BYTES = 32 };
static inline size_t nbds_wire_request_head_bytes(NbdsStyle style)
{
    return style == NBDS_STYLE_EXTENDED ? NBDS_EXTENDED_HEAD_BYTES : NBDS_COMPACT_HEAD_BYTES;
}
// False when the magic number is wrong. `p` holds nbds_wire_request_head_bytes().
bool nbds_wire_get_request_head(const uint8_t *p, NbdsStyle style, NbdsRequestHead *ret_head);

enum { NBDS_REPLY_FLAG_DONE = 1 << 0 };
typedef enum NbdsChunkType {
    NBDS_CHUNK_NONE = 0,
    NBDS_CHUNK_OFFSET_DATA = 1,
    NBDS_CHUNK_OFFSET_HOLE = 2,
    NBDS_CHUNK_BLOCK_STATUS = 5,
    NBDS_CHUNK_BLOCK_STATUS_EXT = 6,
    NBDS_CHUNK_ERROR = 0x8001,
} NbdsChunkType;

enum {
    NBDS_SIMPLE_REPLY_BYTES = 16,
    NBDS_MAX_CHUNK_HEAD_BYTES = 32,
    NBDS_DATA_CHUNK_BYTES = 8,  // offset, before the data
    NBDS_HOLE_CHUNK_BYTES = 12, // whole payload
    NBDS_ERROR_CHUNK_BYTES = 6, // before the message
};
static inline size_t nbds_wire_chunk_head_bytes(NbdsStyle style)
{
    return style == NBDS_STYLE_EXTENDED ? 32 : 20;
}
void nbds_wire_put_simple_reply(uint8_t p[static NBDS_SIMPLE_REPLY_BYTES], NbdsErrorCode error,
                                uint64_t cookie);

typedef struct NbdsChunkHead {
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint64_t request_offset; // echoed by extended replies only
    uint64_t length;         // of the payload; structured: < 2^32
} NbdsChunkHead;
// Writes nbds_wire_chunk_head_bytes(style), STRUCTURED or EXTENDED.
void nbds_wire_put_chunk_head(uint8_t *p, NbdsStyle style, const NbdsChunkHead *head);

// BLOCK_STATUS payload: its start (context, and with extended headers the count), and one
// descriptor.
static inline size_t nbds_wire_status_start_bytes(NbdsStyle style)
{
    return style == NBDS_STYLE_EXTENDED ? 8 : 4;
}
static inline size_t nbds_wire_status_extent_bytes(NbdsStyle style)
{
    return style == NBDS_STYLE_EXTENDED ? 16 : 8;
}
void nbds_wire_put_status_start(uint8_t *p, NbdsStyle style, uint32_t context_id, uint32_t count);
void nbds_wire_put_status_extent(uint8_t *p, NbdsStyle style, uint64_t length, uint64_t flags);
