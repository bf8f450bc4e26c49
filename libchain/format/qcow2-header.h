// SPDX-License-Identifier: LGPL-2.1-or-later
// The qcow2 header, its extensions and its bounds (qcow2 specification, "Header" and "Header
// extensions"). Pure: bytes in, decoded values or one clear sentence out; no I/O.
#pragma once

#include <glib.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chain-core/units.h"

enum {
    QCOW2_MAGIC = 0x514649fb,
    QCOW2_HEADER_V2_BYTES = 72,
    QCOW2_HEADER_V3_MIN_BYTES = 104,
    QCOW2_MIN_CLUSTER_BITS = 9,
    QCOW2_MAX_CLUSTER_BITS = 21,
    QCOW2_MAX_REFCOUNT_TABLE_BYTES = 8 << 20,
    QCOW2_MAX_L1_BYTES = 32 << 20,
    QCOW2_MAX_SNAPSHOTS = 65536,
    QCOW2_MAX_SNAPSHOT_TABLE_BYTES = 64 << 20,
    QCOW2_MAX_SNAPSHOT_EXTRA_BYTES = 1024,
    QCOW2_MAX_BACKING_NAME_BYTES = 1023,
};

typedef enum Qcow2Incompatible {
    QCOW2_INCOMPAT_DIRTY = 1 << 0,
    QCOW2_INCOMPAT_CORRUPT = 1 << 1,
    QCOW2_INCOMPAT_DATA_FILE = 1 << 2,
    QCOW2_INCOMPAT_COMPRESSION = 1 << 3,
    QCOW2_INCOMPAT_EXTENDED_L2 = 1 << 4,
    QCOW2_INCOMPAT_KNOWN = 0x1f,
} Qcow2Incompatible;
enum { QCOW2_COMPAT_LAZY_REFCOUNTS = 1 << 0 };
enum { QCOW2_AUTOCLEAR_BITMAPS = 1 << 0, QCOW2_AUTOCLEAR_RAW_DATA = 1 << 1 };

typedef enum Qcow2Compression {
    QCOW2_COMPRESSION_ZLIB = 0,
    QCOW2_COMPRESSION_ZSTD = 1
} Qcow2Compression;

// How far [off, off+bytes) reaches past the end of a file of `file_bytes`: so much of the file is
// missing at least. 0: it lies inside.
static inline uint64_t qcow2_missing_bytes(uint64_t file_bytes, uint64_t off, uint64_t bytes)
{
    uint64_t end = bytes > UINT64_MAX - off ? UINT64_MAX : off + bytes;
    return end > file_bytes ? end - file_bytes : 0;
}

// The end of a sentence about a file of which something is missing; takes those bytes (PRIu64).
#define QCOW2_CUT_OFF                                                                              \
    "the file is cut off, at least %" PRIu64 " bytes are missing at its end; restore it from a "   \
    "copy, 'qemu-img check -r all' cannot bring them back"

// One header extension that this code does not interpret, kept byte for byte on rewrite.
typedef struct Qcow2Extension {
    uint32_t type;
    uint32_t len;
    uint8_t *data;
} Qcow2Extension;

// The bitmaps extension (spec "Bitmaps extension").
typedef struct Qcow2BitmapsExtension {
    uint32_t n_bitmaps;
    uint64_t directory_bytes;
    HostOff directory;
} Qcow2BitmapsExtension;

// A decoded header. Strings are NUL-terminated copies, NULL when absent.
typedef struct Qcow2Header {
    uint32_t version; // 2 or 3
    uint32_t cluster_bits;
    uint64_t size_bytes;
    uint32_t crypt_method; // always 0 after a successful decode: others are refused
    uint32_t l1_entries;
    HostOff l1;
    HostOff refcount_table;
    uint32_t refcount_table_clusters;
    uint32_t n_snapshots;
    HostOff snapshot_table;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order; // refcount width = 1 << order bits
    uint32_t header_bytes;   // v2: 72
    Qcow2Compression compression;
    char *backing_name;
    char *backing_format;
    char *data_file_name;
    bool has_bitmaps_extension;
    Qcow2BitmapsExtension bitmaps;
    uint8_t *feature_names; // feature name table as found, or NULL
    uint32_t feature_names_bytes;
    GArray *unknown_extensions; // of Qcow2Extension, or NULL
    uint8_t *unknown_fields; // header bytes past the known ones (v3, header_bytes > 112), or NULL
    uint32_t unknown_fields_bytes;
} Qcow2Header;

// Can the refcount table, as large as it is, count the cluster at `off`? What it cannot count was
// never a part of the image: who names it is damaged.
static inline bool qcow2_header_could_hold(const Qcow2Header *h, uint64_t off)
{
    uint64_t n_blocks = (uint64_t)h->refcount_table_clusters << (h->cluster_bits - 3);
    return off >> h->cluster_bits >> (h->cluster_bits + 3 - h->refcount_order) < n_blocks;
}

void qcow2_header_clear(Qcow2Header *header); // frees what decode allocated; zeroes

// Does `data` begin with the qcow2 magic?
bool qcow2_header_has_magic(const void *data, size_t len);

// Decodes the first cluster of a file. `data` holds its first `len` bytes: as much of what
// qcow2_header_needed_bytes() says as the file has. `file_bytes` bounds table positions. Every
// number is held against its bound before arithmetic. Returns 0; -EINVAL for a broken header;
// -ENOTSUP for unknown incompatible features (named from the image's own table), encryption or a
// higher version. Errors are one sentence without the file's name. On failure `ret_header` is
// cleared.
int qcow2_header_decode(const void *data, size_t len, uint64_t file_bytes, Qcow2Header *ret_header,
                        GError **error);
// How many of a file's first bytes a decode needs, by its first `len`: not more than those where
// the header, its extensions and the backing file's name end in them, else the first cluster; 512
// where the magic, version or cluster_bits make no sense.
size_t qcow2_header_needed_bytes(const void *data, size_t len);

// Encodes header, extensions (known, then kept unknown ones, feature names always present for v3)
// and backing name into one cluster-sized, zeroed buffer. Returns bytes used, or -EINVAL when it
// does not fit into the cluster (`buf_bytes`).
int qcow2_header_encode(const Qcow2Header *header, void *buf, size_t buf_bytes);

// The same without the feature names, which only help people, and with the backing file's name at
// `name_at`, behind all extensions. Returns where the extensions end; `name_at` if they do not end
// before it is -EINVAL.
int qcow2_header_encode_apart(const Qcow2Header *header, uint32_t name_at, void *buf,
                              size_t buf_bytes);

// Where the last of the fields, the extensions and the backing file's name ends, in the first `len`
// bytes of a file whose header was decoded.
size_t qcow2_header_used_bytes(const void *data, size_t len);

// Changes of a header that is on disk. The fields patched in the first 512 bytes are the size, what
// says where tables lie, and (version 3) the features; do `a` and `b` differ in nothing else?
bool qcow2_header_differs_in_fields_only(const Qcow2Header *a, const Qcow2Header *b);
void qcow2_header_patch_fields(void *sector, const Qcow2Header *header);
// A copy that owns all of its own.
void qcow2_header_copy(const Qcow2Header *header, Qcow2Header *ret_copy);

// Byte offsets of single header fields.
enum {
    QCOW2_HEADER_OFF_SIZE = 24,
    QCOW2_HEADER_OFF_L1_ENTRIES = 36,
    QCOW2_HEADER_OFF_L1 = 40,
    QCOW2_HEADER_OFF_REFCOUNT_TABLE = 48,
    QCOW2_HEADER_OFF_REFCOUNT_TABLE_CLUSTERS = 56,
    QCOW2_HEADER_OFF_N_SNAPSHOTS = 60,
    QCOW2_HEADER_OFF_SNAPSHOT_TABLE = 64,
    QCOW2_HEADER_OFF_INCOMPATIBLE = 72,
    QCOW2_HEADER_OFF_COMPATIBLE = 80,
    QCOW2_HEADER_OFF_AUTOCLEAR = 88,
};
