// SPDX-License-Identifier: LGPL-2.1-or-later
// Decoding the header. Everything in it may be hostile: each number is compared with its bound
// before it takes part in arithmetic or sizes an allocation, and what cannot be right is refused
// with one sentence that says what, why and what to do. Pure: bytes in, values out; any thread.

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "format/qcow2-header-layout.h"
#include "format/qcow2-header.h"
#include "format/qcow2-snapshot.h"
#include "format/qcow2-table.h"

// Kept unknown extensions are of any length, also 0; their number is bounded too.
enum { MAX_UNKNOWN_EXTENSIONS = 4096, MAX_FORMAT_NAME_BYTES = 63, PROBE_BYTES = 512 };

// What the steps of a decode share.
typedef struct Decoder {
    const uint8_t *data;
    size_t len;
    uint64_t file_bytes;
    size_t extensions_end; // first byte that belongs to no extension
    Qcow2Header *h;
    GError **error;
} Decoder;

void qcow2_header_clear(Qcow2Header *header)
{
    g_free(header->backing_name);
    g_free(header->backing_format);
    g_free(header->data_file_name);
    g_free(header->feature_names);
    g_free(header->unknown_fields);
    if (header->unknown_extensions) {
        for (guint i = 0; i < header->unknown_extensions->len; i++)
            g_free(g_array_index(header->unknown_extensions, Qcow2Extension, i).data);
        g_array_unref(header->unknown_extensions);
    }
    *header = (Qcow2Header){0};
}

void qcow2_header_copy(const Qcow2Header *header, Qcow2Header *ret_copy)
{
    Qcow2Header copy = *header;
    copy.backing_name = g_strdup(header->backing_name);
    copy.backing_format = g_strdup(header->backing_format);
    copy.data_file_name = g_strdup(header->data_file_name);
    copy.feature_names = g_memdup2(header->feature_names, header->feature_names_bytes);
    copy.unknown_fields = g_memdup2(header->unknown_fields, header->unknown_fields_bytes);
    if (header->unknown_extensions) {
        copy.unknown_extensions = g_array_new(FALSE, FALSE, sizeof(Qcow2Extension));
        for (guint i = 0; i < header->unknown_extensions->len; i++) {
            Qcow2Extension x = g_array_index(header->unknown_extensions, Qcow2Extension, i);
            x.data = g_memdup2(x.data, x.len);
            g_array_append_val(copy.unknown_extensions, x);
        }
    }
    *ret_copy = copy;
}

bool qcow2_header_has_magic(const void *data, size_t len)
{
    const HeaderLayout *raw = data;
    return len >= sizeof(raw->magic) && be32_get(raw->magic) == QCOW2_MAGIC;
}

// A copy of a string of the image, which must hold no NUL, except that some writers count the NULs
// behind it. Nothing but NULs is what a lost write leaves, and must not pass for "no name".
static int take_string(const uint8_t *bytes, size_t len, const char *what, char **ret_string,
                       GError **error)
{
    size_t used = strnlen((const char *)bytes, len);
    bool inside = len && !used;
    for (size_t i = used; i < len; i++)
        inside = inside || bytes[i];
    if (inside)
        return error_set(error, -EINVAL,
                         "%s contains a NUL byte; the header is broken, restore it from a copy",
                         what);
    if (used)
        *ret_string = g_strndup((const char *)bytes, used);
    return 0;
}

// --- The fixed fields

static int decode_identity(Decoder *d)
{
    const HeaderLayout *raw = (const HeaderLayout *)d->data;
    Qcow2Header *h = d->h;
    if (d->len < QCOW2_HEADER_V2_BYTES)
        return error_set(d->error, -EINVAL,
                         "the file is too short for a qcow2 header (%zu of %d bytes); it is cut "
                         "off, restore it from a copy",
                         d->len, QCOW2_HEADER_V2_BYTES);
    if (!qcow2_header_has_magic(d->data, d->len))
        return error_set(d->error, -EINVAL,
                         "the file does not begin with the qcow2 magic; it is of another format, "
                         "name it (for example --format raw)");
    h->version = be32_get(raw->version);
    if (h->version < 2)
        return error_set(d->error, -ENOTSUP,
                         "version %" PRIu32 " of the format is not supported; convert the image "
                         "with qemu-img convert -O qcow2",
                         h->version);
    if (h->version > 3)
        return error_set(d->error, -ENOTSUP,
                         "version %" PRIu32 " of the format is newer than this program; use a "
                         "newer one, or convert the image to version 3 with qemu-img",
                         h->version);
    h->cluster_bits = be32_get(raw->cluster_bits);
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return error_set(d->error, -EINVAL,
                         "the cluster size 2^%" PRIu32 " is outside 2^%d to 2^%d bytes; the header "
                         "is broken, restore it from a copy",
                         h->cluster_bits, QCOW2_MIN_CLUSTER_BITS, QCOW2_MAX_CLUSTER_BITS);
    return 0;
}

static int decode_version3(Decoder *d)
{
    const HeaderLayout *raw = (const HeaderLayout *)d->data;
    Qcow2Header *h = d->h;
    h->header_bytes = QCOW2_HEADER_V2_BYTES;
    h->refcount_order = 4;
    if (h->version == 2)
        return 0;
    if (d->len < QCOW2_HEADER_V3_MIN_BYTES)
        return error_set(d->error, -EINVAL,
                         "the file is too short for a version 3 header (%zu of %d bytes); it is "
                         "cut off, restore it from a copy",
                         d->len, QCOW2_HEADER_V3_MIN_BYTES);
    h->header_bytes = be32_get(raw->header_bytes);
    if (h->header_bytes < QCOW2_HEADER_V3_MIN_BYTES || h->header_bytes % 8 ||
        h->header_bytes > (UINT32_C(1) << h->cluster_bits) || h->header_bytes > d->len)
        return error_set(d->error, -EINVAL,
                         "the header length %" PRIu32 " is not a multiple of 8 between %d and the "
                         "first cluster's end; the header is broken, restore it from a copy",
                         h->header_bytes, QCOW2_HEADER_V3_MIN_BYTES);
    h->incompatible = be64_get(raw->incompatible);
    h->compatible = be64_get(raw->compatible);
    h->autoclear = be64_get(raw->autoclear);
    h->refcount_order = be32_get(raw->refcount_order);
    if (h->header_bytes > sizeof(*raw)) {
        h->unknown_fields_bytes = h->header_bytes - sizeof(*raw);
        h->unknown_fields = g_memdup2(d->data + sizeof(*raw), h->unknown_fields_bytes);
    }
    return 0;
}

static int decode_refcount_order(Decoder *d)
{
    if (d->h->refcount_order > 6)
        return error_set(d->error, -EINVAL,
                         "refcounts of 2^%" PRIu32 " bits are wider than 64 bits; the header is "
                         "broken, restore it from a copy",
                         d->h->refcount_order);
    return 0;
}

static int decode_encryption(Decoder *d)
{
    Qcow2Header *h = d->h;
    h->crypt_method = be32_get(((const HeaderLayout *)d->data)->crypt_method);
    if (h->crypt_method > 2)
        return error_set(d->error, -EINVAL,
                         "the encryption method %" PRIu32 " does not exist; the header is broken, "
                         "restore it from a copy",
                         h->crypt_method);
    if (h->crypt_method)
        return error_set(d->error, -ENOTSUP,
                         "the image is encrypted (%s), which is not supported; convert it to an "
                         "unencrypted one with qemu-img convert",
                         h->crypt_method == 1 ? "AES" : "LUKS");
    return 0;
}

static int decode_compression(Decoder *d)
{
    const HeaderLayout *raw = (const HeaderLayout *)d->data;
    Qcow2Header *h = d->h;
    bool present = h->header_bytes > G_STRUCT_OFFSET(HeaderLayout, compression);
    unsigned type = h->version >= 3 && present ? raw->compression : QCOW2_COMPRESSION_ZLIB;
    bool flagged = h->incompatible & QCOW2_INCOMPAT_COMPRESSION;
    if (type > QCOW2_COMPRESSION_ZSTD)
        return error_set(d->error, -ENOTSUP,
                         "the compression type %u is not known to this program; use a newer one, "
                         "or convert the image with qemu-img",
                         type);
    if (flagged != (type != QCOW2_COMPRESSION_ZLIB))
        return error_set(d->error, -EINVAL,
                         "the compression type %u and the compression feature bit contradict each "
                         "other; the header is broken, restore it from a copy",
                         type);
    h->compression = type;
    return 0;
}

// --- Tables

// One sentence for every position that cannot be right, and one for what is not there.
static int check_table(Decoder *d, const char *what, uint64_t off, uint64_t bytes)
{
    uint32_t cluster_bytes = UINT32_C(1) << d->h->cluster_bits;
    const char *why = NULL;
    if (off % cluster_bytes)
        why = "is not aligned to a cluster";
    else if (off == 0)
        why = "is the header's own";
    else if (off > INT64_MAX)
        why = "is in no file";
    if (why)
        return error_set(d->error, -EINVAL,
                         "the position of the %s (offset %#" PRIx64 ", %" PRIu64 " bytes) %s; the "
                         "header is broken, restore it from a copy",
                         what, off, bytes, why);
    uint64_t missing = qcow2_missing_bytes(d->file_bytes, off, bytes);
    if (missing)
        return error_set(d->error, -EINVAL,
                         "the %s (offset %#" PRIx64 ", %" PRIu64
                         " bytes) does not lie inside the file: " QCOW2_CUT_OFF,
                         what, off, bytes, missing);
    return 0;
}

static int decode_refcount_table(Decoder *d)
{
    const HeaderLayout *raw = (const HeaderLayout *)d->data;
    Qcow2Header *h = d->h;
    h->refcount_table = host_off(be64_get(raw->refcount_table));
    h->refcount_table_clusters = be32_get(raw->refcount_table_clusters);
    uint32_t max_clusters = QCOW2_MAX_REFCOUNT_TABLE_BYTES >> h->cluster_bits;
    if (h->refcount_table_clusters == 0 || h->refcount_table_clusters > max_clusters)
        return error_set(d->error, -EINVAL,
                         "a refcount table of %" PRIu32 " clusters is outside 1 to %" PRIu32
                         " clusters; the header is broken, restore it from a copy",
                         h->refcount_table_clusters, max_clusters);
    // Its last cluster may be the file's last, written only in part: reads give zeros there.
    uint64_t bytes = ((uint64_t)(h->refcount_table_clusters - 1) << h->cluster_bits) + 8;
    return check_table(d, "refcount table", h->refcount_table.v, bytes);
}

static int decode_l1(Decoder *d)
{
    const HeaderLayout *raw = (const HeaderLayout *)d->data;
    Qcow2Header *h = d->h;
    h->size_bytes = be64_get(raw->size_bytes);
    h->l1 = host_off(be64_get(raw->l1));
    h->l1_entries = be32_get(raw->l1_entries);
    Qcow2Geometry g;
    qcow2_geometry_init(&g, h->cluster_bits, h->refcount_order,
                        h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2, false, h->size_bytes);
    uint64_t needed = qcow2_l1_entries_for(&g, h->size_bytes);
    uint32_t max_entries = QCOW2_MAX_L1_BYTES / sizeof(Be64);
    if (h->size_bytes > INT64_MAX || needed > max_entries)
        return error_set(d->error, -EINVAL,
                         "the guest size %" PRIu64 " is too large for clusters of %" PRIu32
                         " bytes; the header is broken, restore it from a copy",
                         h->size_bytes, g.cluster_bytes);
    if (h->l1_entries > max_entries)
        return error_set(d->error, -EINVAL,
                         "an L1 table of %" PRIu32 " entries is larger than the limit of %" PRIu32
                         "; the header is broken, restore it from a copy",
                         h->l1_entries, max_entries);
    if (h->l1_entries < needed)
        return error_set(d->error, -EINVAL,
                         "the L1 table has %" PRIu32 " entries, but a guest size of %" PRIu64
                         " needs %" PRIu64 "; the header is broken, restore it from a copy",
                         h->l1_entries, h->size_bytes, needed);
    if (h->l1_entries == 0)
        return 0;
    return check_table(d, "L1 table", h->l1.v, (uint64_t)h->l1_entries * sizeof(Be64));
}

static int decode_snapshot_table(Decoder *d)
{
    const HeaderLayout *raw = (const HeaderLayout *)d->data;
    Qcow2Header *h = d->h;
    h->n_snapshots = be32_get(raw->n_snapshots);
    h->snapshot_table = host_off(be64_get(raw->snapshot_table));
    if (h->n_snapshots == 0)
        return 0;
    if (h->n_snapshots > QCOW2_MAX_SNAPSHOTS)
        return error_set(d->error, -EINVAL,
                         "%" PRIu32 " snapshots are more than the limit of %d; the header is "
                         "broken, restore it from a copy",
                         h->n_snapshots, QCOW2_MAX_SNAPSHOTS);
    uint64_t least = (uint64_t)h->n_snapshots * QCOW2_MIN_SNAPSHOT_ENTRY_BYTES;
    return check_table(d, "snapshot table", h->snapshot_table.v, least);
}

// --- Header extensions and the backing name

static int take_once(Decoder *d, bool seen, const char *what)
{
    if (seen)
        return error_set(d->error, -EINVAL,
                         "the header extension '%s' appears twice; the header is broken, restore "
                         "it from a copy",
                         what);
    return 0;
}

static int take_bitmaps(Decoder *d, const uint8_t *body)
{
    const BitmapsLayout *raw = (const BitmapsLayout *)body;
    Qcow2BitmapsExtension *b = &d->h->bitmaps;
    b->n_bitmaps = be32_get(raw->n_bitmaps);
    b->directory_bytes = be64_get(raw->directory_bytes);
    b->directory = host_off(be64_get(raw->directory));
    d->h->has_bitmaps_extension = true;
    // Without the autoclear bit nobody follows these numbers.
    if (!(d->h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    if (be32_get(raw->reserved) || b->n_bitmaps == 0 || b->n_bitmaps > QCOW2_MAX_BITMAPS ||
        b->directory_bytes > QCOW2_MAX_BITMAP_DIRECTORY_BYTES ||
        b->directory_bytes < (uint64_t)b->n_bitmaps * QCOW2_MIN_BITMAP_ENTRY_BYTES)
        return error_set(d->error, -EINVAL,
                         "the bitmaps extension is broken (%" PRIu32 " bitmaps in a directory of "
                         "%" PRIu64 " bytes); restore the image from a copy",
                         b->n_bitmaps, b->directory_bytes);
    return check_table(d, "bitmap directory", b->directory.v, b->directory_bytes);
}

static int take_unknown(Decoder *d, uint32_t type, uint32_t len, const uint8_t *body)
{
    Qcow2Header *h = d->h;
    if (!h->unknown_extensions)
        h->unknown_extensions = g_array_new(FALSE, FALSE, sizeof(Qcow2Extension));
    if (h->unknown_extensions->len == MAX_UNKNOWN_EXTENSIONS)
        return error_set(d->error, -EINVAL,
                         "the header has more than %d unknown extensions; it is broken, restore "
                         "it from a copy",
                         MAX_UNKNOWN_EXTENSIONS);
    Qcow2Extension e = {.type = type, .len = len, .data = g_memdup2(body, len)};
    g_array_append_val(h->unknown_extensions, e);
    return 0;
}

static int take_extension(Decoder *d, uint32_t type, uint32_t len, const uint8_t *body)
{
    Qcow2Header *h = d->h;
    int r;
    switch (type) {
    case EXTENSION_BACKING_FORMAT:
        r = take_once(d, h->backing_format, "backing file format");
        if (r < 0)
            return r;
        if (len > MAX_FORMAT_NAME_BYTES)
            return error_set(d->error, -EINVAL,
                             "the name of the backing file's format is %" PRIu32 " bytes long, "
                             "more than %d; the header is broken, restore it from a copy",
                             len, MAX_FORMAT_NAME_BYTES);
        return take_string(body, len, "the name of the backing file's format", &h->backing_format,
                           d->error);
    case EXTENSION_DATA_FILE:
        r = take_once(d, h->data_file_name, "external data file name");
        if (r < 0)
            return r;
        if (len > QCOW2_MAX_BACKING_NAME_BYTES)
            return error_set(d->error, -EINVAL,
                             "the name of the external data file is %" PRIu32 " bytes long, more "
                             "than %d; the header is broken, restore it from a copy",
                             len, QCOW2_MAX_BACKING_NAME_BYTES);
        return take_string(body, len, "the name of the external data file", &h->data_file_name,
                           d->error);
    case EXTENSION_FEATURE_NAMES:
        r = take_once(d, h->feature_names, "feature name table");
        if (r < 0)
            return r;
        h->feature_names = g_memdup2(body, len);
        h->feature_names_bytes = len;
        return 0;
    case EXTENSION_BITMAPS:
        r = take_once(d, h->has_bitmaps_extension, "bitmaps");
        if (r < 0)
            return r;
        if (len == sizeof(BitmapsLayout))
            return take_bitmaps(d, body);
        if (h->autoclear & QCOW2_AUTOCLEAR_BITMAPS)
            return error_set(d->error, -EINVAL,
                             "the bitmaps extension is %" PRIu32 " bytes long instead of %zu; the "
                             "header is broken, restore it from a copy",
                             len, sizeof(BitmapsLayout));
        return take_unknown(d, type, len, body);
    case EXTENSION_ENCRYPTION:
        return error_set(d->error, -EINVAL,
                         "the header describes an encryption header, but the image is not "
                         "encrypted; the header is broken, restore it from a copy");
    default:
        return take_unknown(d, type, len, body);
    }
}

// Steps to the next extension: true with its parts, false at the end of the area, or, with
// *ret_broken, where one reaches past it. *pos is 8-aligned throughout, as header_bytes is.
static bool next_extension(const Decoder *d, size_t *pos, uint32_t *ret_type, uint32_t *ret_len,
                           const uint8_t **ret_body, bool *ret_broken)
{
    *ret_broken = false;
    if (*pos > d->extensions_end || d->extensions_end - *pos < sizeof(ExtensionLayout))
        return false;
    const ExtensionLayout *raw = (const ExtensionLayout *)(d->data + *pos);
    *ret_type = be32_get(raw->type);
    *ret_len = be32_get(raw->len);
    *pos += sizeof(*raw);
    if (*ret_type == EXTENSION_END)
        return false;
    if (*ret_len > d->extensions_end - *pos) {
        *ret_broken = true;
        return false;
    }
    *ret_body = d->data + *pos;
    *pos += ((size_t)*ret_len + 7) & ~(size_t)7;
    return true;
}

// Does all that qcow2_header_decode() looks at lie in the first `len` bytes? The fixed fields do up
// to header_bytes; then come the extensions, up to their end mark or the backing file's name.
static bool is_header_within(const void *data, size_t len)
{
    const HeaderLayout *raw = data;
    bool is_v2 = be32_get(raw->version) == 2;
    if (!is_v2 && len < QCOW2_HEADER_V3_MIN_BYTES)
        return false;
    size_t pos = is_v2 ? QCOW2_HEADER_V2_BYTES : be32_get(raw->header_bytes);
    uint64_t name = be64_get(raw->backing_offset);
    // What cannot be right is left to the decode.
    if (pos > len || pos % 8 || name > len || be32_get(raw->backing_bytes) > len - name)
        return false;
    Decoder d = {.data = data, .extensions_end = name ? (size_t)name : len};
    uint32_t type = EXTENSION_BITMAPS, bytes; // any but the end mark
    const uint8_t *body;
    bool broken;
    while (next_extension(&d, &pos, &type, &bytes, &body, &broken)) {
    }
    return type == EXTENSION_END || name;
}

size_t qcow2_header_needed_bytes(const void *data, size_t len)
{
    const HeaderLayout *raw = data;
    if (len < QCOW2_HEADER_V2_BYTES || !qcow2_header_has_magic(data, len))
        return PROBE_BYTES;
    uint32_t version = be32_get(raw->version), bits = be32_get(raw->cluster_bits);
    if (version < 2 || version > 3 || bits < QCOW2_MIN_CLUSTER_BITS ||
        bits > QCOW2_MAX_CLUSTER_BITS)
        return PROBE_BYTES;
    size_t cluster_bytes = (size_t)1 << bits;
    return is_header_within(data, MIN(len, cluster_bytes)) ? MIN(len, cluster_bytes)
                                                           : cluster_bytes;
}

size_t qcow2_header_used_bytes(const void *data, size_t len)
{
    const HeaderLayout *raw = data;
    bool is_v2 = be32_get(raw->version) == 2;
    size_t pos = is_v2 ? QCOW2_HEADER_V2_BYTES : be32_get(raw->header_bytes);
    uint64_t name = be64_get(raw->backing_offset);
    Decoder d = {.data = data, .extensions_end = name ? MIN(name, len) : len};
    uint32_t type, bytes;
    const uint8_t *body;
    bool broken;
    while (next_extension(&d, &pos, &type, &bytes, &body, &broken)) {
    }
    return MIN(MAX(pos, name + be32_get(raw->backing_bytes)), len);
}

static int decode_extensions(Decoder *d)
{
    size_t pos = d->h->header_bytes;
    uint32_t type, len;
    const uint8_t *body;
    bool broken;
    while (next_extension(d, &pos, &type, &len, &body, &broken)) {
        int r = take_extension(d, type, len, body);
        if (r < 0)
            return r;
    }
    if (broken)
        return error_set(d->error, -EINVAL,
                         "the header extension %#" PRIx32 " at offset %#zx (%" PRIu32 " bytes) "
                         "reaches past the end of the extension area; the header is broken, "
                         "restore it from a copy",
                         type, pos - sizeof(ExtensionLayout), len);
    return 0;
}

static int decode_backing_name(Decoder *d)
{
    const HeaderLayout *raw = (const HeaderLayout *)d->data;
    Qcow2Header *h = d->h;
    uint64_t off = be64_get(raw->backing_offset);
    uint32_t bytes = be32_get(raw->backing_bytes);
    uint64_t cluster_bytes = UINT64_C(1) << h->cluster_bits;
    d->extensions_end = MIN(d->len, cluster_bytes);
    if (off == 0)
        return 0;
    if (bytes > QCOW2_MAX_BACKING_NAME_BYTES)
        return error_set(d->error, -EINVAL,
                         "the backing file's name is %" PRIu32 " bytes long, more than %d; the "
                         "header is broken, restore it from a copy",
                         bytes, QCOW2_MAX_BACKING_NAME_BYTES);
    if (off < h->header_bytes || off > d->extensions_end || bytes > d->extensions_end - off)
        return error_set(d->error, -EINVAL,
                         "the backing file's name (offset %#" PRIx64 ", %" PRIu32 " bytes) does "
                         "not lie between the header and the end of the first cluster; the header "
                         "is broken, restore it from a copy",
                         off, bytes);
    d->extensions_end = off;
    return take_string(d->data + off, bytes, "the backing file's name", &h->backing_name, d->error);
}

// --- Features

// The image's own name for an incompatible feature: a copy in printable form, or NULL. Looks at the
// raw extensions, because they are decoded only once the features are known.
static char *find_feature_name(const Decoder *d, unsigned bit)
{
    size_t pos = d->h->header_bytes;
    uint32_t type, len;
    const uint8_t *body;
    bool broken;
    while (next_extension(d, &pos, &type, &len, &body, &broken)) {
        if (type != EXTENSION_FEATURE_NAMES)
            continue;
        const FeatureLayout *features = (const FeatureLayout *)body;
        for (size_t i = 0; i < len / sizeof(*features); i++) {
            if (features[i].type != 0 || features[i].bit != bit || !features[i].name[0])
                continue;
            g_autofree char *name = g_strndup(features[i].name, FEATURE_NAME_BYTES);
            return g_strescape(name, NULL);
        }
    }
    return NULL;
}

static int check_features(Decoder *d)
{
    Qcow2Header *h = d->h;
    uint64_t unknown = h->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN;
    if (unknown) {
        g_autoptr(GString) names = g_string_new(NULL);
        for (unsigned bit = 0; bit < 64; bit++) {
            if (!(unknown >> bit & 1))
                continue;
            g_autofree char *name = find_feature_name(d, bit);
            g_string_append(names, names->len ? ", " : "");
            if (name)
                g_string_append_printf(names, "'%s' (bit %u)", name, bit);
            else
                g_string_append_printf(names, "bit %u", bit);
        }
        return error_set(d->error, -ENOTSUP,
                         "unknown incompatible feature %s; the image needs a program that knows "
                         "it",
                         names->str);
    }
    if ((h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2) && h->cluster_bits < 14)
        return error_set(d->error, -EINVAL,
                         "extended L2 entries need clusters of at least 16 KiB, but these have "
                         "2^%" PRIu32 " bytes; the header is broken, restore it from a copy",
                         h->cluster_bits);
    return 0;
}

int qcow2_header_decode(const void *data, size_t len, uint64_t file_bytes, Qcow2Header *ret_header,
                        GError **error)
{
    static int (*const steps[])(Decoder *) = {
        decode_identity,   decode_version3,       decode_backing_name, check_features,
        decode_encryption, decode_refcount_order, decode_compression,  decode_refcount_table,
        decode_l1,         decode_snapshot_table, decode_extensions,
    };
    *ret_header = (Qcow2Header){0};
    Decoder d = {
        .data = data, .len = len, .file_bytes = file_bytes, .h = ret_header, .error = error};
    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
        int r = steps[i](&d);
        if (r < 0) {
            qcow2_header_clear(ret_header);
            return r;
        }
    }
    return 0;
}
