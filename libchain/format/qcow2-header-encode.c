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

int qcow2_header_encode(const Qcow2Header *header, void *buf, size_t buf_bytes)
{
    if (!can_be_written(header))
        return -EINVAL;
    memset(buf, 0, buf_bytes);
    Encoder e = {.buf = buf, .size = buf_bytes};
    bool v3 = header->version >= 3;
    uint32_t header_bytes =
        v3 ? sizeof(HeaderLayout) + header->unknown_fields_bytes : QCOW2_HEADER_V2_BYTES;
    size_t name_bytes = header->backing_name ? strlen(header->backing_name) : 0;

    HeaderLayout raw = encode_fields(header, header_bytes);
    put(&e, &raw, MIN(sizeof(raw), header_bytes), MIN(sizeof(raw), header_bytes));
    put(&e, header->unknown_fields, header->unknown_fields_bytes, header->unknown_fields_bytes);
    put_string_extension(&e, EXTENSION_BACKING_FORMAT, header->backing_format);
    put_string_extension(&e, EXTENSION_DATA_FILE, header->data_file_name);
    put_bitmaps(&e, header);
    if (v3)
        put_feature_names(&e, header,
                          unknown_extensions_bytes(header) + sizeof(ExtensionLayout) + name_bytes);
    for (guint i = 0; header->unknown_extensions && i < header->unknown_extensions->len; i++) {
        const Qcow2Extension *x = &g_array_index(header->unknown_extensions, Qcow2Extension, i);
        put_extension(&e, x->type, x->data, x->len);
    }
    put_extension(&e, EXTENSION_END, NULL, 0);
    size_t name_off = e.used;
    put(&e, header->backing_name, name_bytes, name_bytes);
    if (e.failed)
        return -EINVAL;
    if (name_bytes) {
        HeaderLayout *first = buf;
        first->backing_offset = be64_make(name_off);
        first->backing_bytes = be32_make(name_bytes);
    }
    return e.used;
}

void qcow2_header_patch_features(void *sector, uint64_t incompatible, uint64_t autoclear)
{
    HeaderLayout *raw = sector;
    raw->incompatible = be64_make(incompatible);
    raw->autoclear = be64_make(autoclear);
}

void qcow2_header_patch_refcount_table(void *sector, HostOff table, uint32_t clusters)
{
    HeaderLayout *raw = sector;
    raw->refcount_table = be64_make(table.v);
    raw->refcount_table_clusters = be32_make(clusters);
}

void qcow2_header_patch_l1(void *sector, HostOff l1, uint32_t entries)
{
    HeaderLayout *raw = sector;
    raw->l1 = be64_make(l1.v);
    raw->l1_entries = be32_make(entries);
}

void qcow2_header_patch_snapshots(void *sector, HostOff table, uint32_t n)
{
    HeaderLayout *raw = sector;
    raw->snapshot_table = be64_make(table.v);
    raw->n_snapshots = be32_make(n);
}
