// SPDX-License-Identifier: LGPL-2.1-or-later
// Encoding the header: a whole first cluster for new images and rewrites, or single fields in the
// first sector, which one synced write then changes. What the decoder did not understand (fields,
// extensions, feature names) is written back as it was. Pure; any thread.

#include <errno.h>
#include <string.h>

#include "format/qcow2-header-layout.h"
#include "format/qcow2-header.h"

// The specification's features and their names for people.
static const struct {
    uint8_t type, bit;
    const char *name;
} known_features[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"},
};

// A buffer that fills up; `failed` once something did not fit.
typedef struct Encoder {
    uint8_t *buf;
    size_t size, used;
    bool failed;
} Encoder;

static void put(Encoder *e, const void *data, size_t len, size_t padded_len)
{
    if (e->failed || padded_len > e->size - e->used) {
        e->failed = true;
        return;
    }
    if (len)
        memcpy(e->buf + e->used, data, len);
    e->used += padded_len;
}

static void put_extension(Encoder *e, uint32_t type, const void *data, uint32_t len)
{
    ExtensionLayout raw = {.type = be32_make(type), .len = be32_make(len)};
    put(e, &raw, sizeof(raw), sizeof(raw));
    put(e, data, len, ((size_t)len + 7) & ~(size_t)7);
}

static void put_string_extension(Encoder *e, uint32_t type, const char *string)
{
    if (string)
        put_extension(e, type, string, strlen(string));
}

static void put_bitmaps(Encoder *e, const Qcow2Header *h)
{
    if (!h->has_bitmaps_extension)
        return;
    BitmapsLayout raw = {
        .n_bitmaps = be32_make(h->bitmaps.n_bitmaps),
        .directory_bytes = be64_make(h->bitmaps.directory_bytes),
        .directory = be64_make(h->bitmaps.directory.v),
    };
    put_extension(e, EXTENSION_BITMAPS, &raw, sizeof(raw));
}

static bool is_known_feature(const FeatureLayout *feature)
{
    for (size_t i = 0; i < G_N_ELEMENTS(known_features); i++)
        if (known_features[i].type == feature->type && known_features[i].bit == feature->bit)
            return true;
    return false;
}

// Our names, then the names of features that only the image knows. The table helps people and
// nobody else, so where clusters are too small for it and the rest, first the image's own names are
// left out, then all of it.
static void put_feature_names(Encoder *e, const Qcow2Header *h, size_t needed_after)
{
    g_autoptr(GByteArray) table = g_byte_array_new();
    for (size_t i = 0; i < G_N_ELEMENTS(known_features); i++) {
        FeatureLayout raw = {.type = known_features[i].type, .bit = known_features[i].bit};
        memcpy(raw.name, known_features[i].name, strlen(known_features[i].name));
        g_byte_array_append(table, (const guint8 *)&raw, sizeof(raw));
    }
    size_t ours = table->len;
    for (size_t i = 0; i < h->feature_names_bytes / sizeof(FeatureLayout); i++) {
        const FeatureLayout *own = (const FeatureLayout *)h->feature_names + i;
        if (!is_known_feature(own))
            g_byte_array_append(table, (const guint8 *)own, sizeof(*own));
    }
    if (e->failed)
        return;
    size_t room = e->size - e->used;
    if (sizeof(ExtensionLayout) + table->len + needed_after > room)
        g_byte_array_set_size(table, ours);
    if (sizeof(ExtensionLayout) + table->len + needed_after <= room)
        put_extension(e, EXTENSION_FEATURE_NAMES, table->data, table->len);
}

static size_t unknown_extensions_bytes(const Qcow2Header *h)
{
    size_t bytes = 0;
    for (guint i = 0; h->unknown_extensions && i < h->unknown_extensions->len; i++) {
        size_t len = g_array_index(h->unknown_extensions, Qcow2Extension, i).len;
        bytes += sizeof(ExtensionLayout) + ((len + 7) & ~(size_t)7);
    }
    return bytes;
}

static HeaderLayout encode_fields(const Qcow2Header *h, uint32_t header_bytes)
{
    return (HeaderLayout){
        .magic = be32_make(QCOW2_MAGIC),
        .version = be32_make(h->version),
        .cluster_bits = be32_make(h->cluster_bits),
        .size_bytes = be64_make(h->size_bytes),
        .crypt_method = be32_make(h->crypt_method),
        .l1_entries = be32_make(h->l1_entries),
        .l1 = be64_make(h->l1.v),
        .refcount_table = be64_make(h->refcount_table.v),
        .refcount_table_clusters = be32_make(h->refcount_table_clusters),
        .n_snapshots = be32_make(h->n_snapshots),
        .snapshot_table = be64_make(h->snapshot_table.v),
        .incompatible = be64_make(h->incompatible),
        .compatible = be64_make(h->compatible),
        .autoclear = be64_make(h->autoclear),
        .refcount_order = be32_make(h->refcount_order),
        .header_bytes = be32_make(header_bytes),
        .compression = h->compression,
    };
}

static bool can_be_written(const Qcow2Header *h)
{
    bool version2_can = !h->incompatible && !h->compatible && !h->autoclear &&
                        h->refcount_order == 4 && !h->compression && !h->unknown_fields_bytes;
    bool compression_flagged = h->incompatible & QCOW2_INCOMPAT_COMPRESSION;
    return (h->version == 3 || (h->version == 2 && version2_can)) &&
           compression_flagged == (h->compression != QCOW2_COMPRESSION_ZLIB) &&
           h->unknown_fields_bytes % 8 == 0 &&
           (!h->backing_name || strlen(h->backing_name) <= QCOW2_MAX_BACKING_NAME_BYTES);
}

// Fields and extensions. Without room for a backing name of `name_bytes` behind them some of the
// feature names are left out; without `with_feature_names` all are.
static void put_all_but_name(Encoder *e, const Qcow2Header *header, bool with_feature_names,
                             size_t name_bytes)
{
    bool v3 = header->version >= 3;
    uint32_t header_bytes =
        v3 ? sizeof(HeaderLayout) + header->unknown_fields_bytes : QCOW2_HEADER_V2_BYTES;
    HeaderLayout raw = encode_fields(header, header_bytes);
    put(e, &raw, MIN(sizeof(raw), header_bytes), MIN(sizeof(raw), header_bytes));
    put(e, header->unknown_fields, header->unknown_fields_bytes, header->unknown_fields_bytes);
    put_string_extension(e, EXTENSION_BACKING_FORMAT, header->backing_format);
    put_string_extension(e, EXTENSION_DATA_FILE, header->data_file_name);
    put_bitmaps(e, header);
    if (v3 && with_feature_names)
        put_feature_names(e, header,
                          unknown_extensions_bytes(header) + sizeof(ExtensionLayout) + name_bytes);
    for (guint i = 0; header->unknown_extensions && i < header->unknown_extensions->len; i++) {
        const Qcow2Extension *x = &g_array_index(header->unknown_extensions, Qcow2Extension, i);
        put_extension(e, x->type, x->data, x->len);
    }
    put_extension(e, EXTENSION_END, NULL, 0);
}

static void put_name(Encoder *e, const char *name)
{
    size_t off = e->used, bytes = name ? strlen(name) : 0;
    put(e, name, bytes, bytes);
    if (e->failed || !bytes)
        return;
    HeaderLayout *first = (HeaderLayout *)e->buf;
    first->backing_offset = be64_make(off);
    first->backing_bytes = be32_make(bytes);
}

int qcow2_header_encode(const Qcow2Header *header, void *buf, size_t buf_bytes)
{
    if (!can_be_written(header))
        return -EINVAL;
    memset(buf, 0, buf_bytes);
    Encoder e = {.buf = buf, .size = buf_bytes};
    put_all_but_name(&e, header, true, header->backing_name ? strlen(header->backing_name) : 0);
    put_name(&e, header->backing_name);
    return e.failed ? -EINVAL : (int)e.used;
}

int qcow2_header_encode_apart(const Qcow2Header *header, uint32_t name_at, void *buf,
                              size_t buf_bytes)
{
    if (!can_be_written(header))
        return -EINVAL;
    memset(buf, 0, buf_bytes);
    Encoder e = {.buf = buf, .size = MIN(name_at, buf_bytes)};
    put_all_but_name(&e, header, false, 0);
    size_t extensions_end = e.used;
    e.used = e.size;
    e.size = buf_bytes;
    put_name(&e, header->backing_name);
    return e.failed ? -EINVAL : (int)extensions_end;
}

static bool has_same_extensions(const GArray *a, const GArray *b)
{
    guint n = a ? a->len : 0;
    if (n != (b ? b->len : 0))
        return false;
    for (guint i = 0; i < n; i++) {
        const Qcow2Extension *x = &g_array_index(a, Qcow2Extension, i);
        const Qcow2Extension *y = &g_array_index(b, Qcow2Extension, i);
        if (x->type != y->type || x->len != y->len ||
            (x->len && memcmp(x->data, y->data, x->len) != 0))
            return false;
    }
    return true;
}

static bool has_same_bytes(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    return a_bytes == b_bytes && (!a_bytes || memcmp(a, b, a_bytes) == 0);
}

bool qcow2_header_differs_in_fields_only(const Qcow2Header *a, const Qcow2Header *b)
{
    return a->version == b->version && a->header_bytes == b->header_bytes &&
           a->compression == b->compression && !g_strcmp0(a->backing_name, b->backing_name) &&
           !g_strcmp0(a->backing_format, b->backing_format) &&
           !g_strcmp0(a->data_file_name, b->data_file_name) &&
           a->has_bitmaps_extension == b->has_bitmaps_extension &&
           a->bitmaps.n_bitmaps == b->bitmaps.n_bitmaps &&
           a->bitmaps.directory_bytes == b->bitmaps.directory_bytes &&
           a->bitmaps.directory.v == b->bitmaps.directory.v &&
           has_same_bytes(a->feature_names, a->feature_names_bytes, b->feature_names,
                          b->feature_names_bytes) &&
           has_same_bytes(a->unknown_fields, a->unknown_fields_bytes, b->unknown_fields,
                          b->unknown_fields_bytes) &&
           has_same_extensions(a->unknown_extensions, b->unknown_extensions);
}

void qcow2_header_patch_fields(void *sector, const Qcow2Header *h)
{
    HeaderLayout *raw = sector;
    raw->size_bytes = be64_make(h->size_bytes);
    raw->l1_entries = be32_make(h->l1_entries);
    raw->l1 = be64_make(h->l1.v);
    raw->refcount_table = be64_make(h->refcount_table.v);
    raw->refcount_table_clusters = be32_make(h->refcount_table_clusters);
    raw->n_snapshots = be32_make(h->n_snapshots);
    raw->snapshot_table = be64_make(h->snapshot_table.v);
    if (h->version < 3) // extensions lie there
        return;
    raw->incompatible = be64_make(h->incompatible);
    raw->compatible = be64_make(h->compatible);
    raw->autoclear = be64_make(h->autoclear);
}
