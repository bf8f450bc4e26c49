// SPDX-License-Identifier: LGPL-2.1-or-later
// Any bytes as the first cluster of an image: refused with a sentence, or decoded to values inside
// their bounds that survive an encoding.
#include <errno.h>
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "format/qcow2-header.h"
#include "format/qcow2-table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static void require_bounds(const Qcow2Header *h, uint64_t file_bytes)
{
    uint64_t cluster_bytes = UINT64_C(1) << h->cluster_bits;
    REQUIRE(h->version == 2 || h->version == 3);
    REQUIRE(h->cluster_bits >= QCOW2_MIN_CLUSTER_BITS && h->cluster_bits <= QCOW2_MAX_CLUSTER_BITS);
    REQUIRE(h->refcount_order <= 6 && h->crypt_method == 0);
    REQUIRE((h->incompatible & ~(uint64_t)QCOW2_INCOMPAT_KNOWN) == 0);
    REQUIRE((uint64_t)h->l1_entries * 8 <= QCOW2_MAX_L1_BYTES);
    REQUIRE(h->refcount_table_clusters * cluster_bytes <= QCOW2_MAX_REFCOUNT_TABLE_BYTES);
    REQUIRE(h->n_snapshots <= QCOW2_MAX_SNAPSHOTS);
    REQUIRE(!h->l1_entries || (h->l1.v && h->l1.v % cluster_bytes == 0 && h->l1.v < file_bytes));
    REQUIRE(h->refcount_table.v && h->refcount_table.v % cluster_bytes == 0 &&
            h->refcount_table.v < file_bytes);
    Qcow2Geometry g;
    qcow2_geometry_init(&g, h->cluster_bits, h->refcount_order,
                        h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2, false, h->size_bytes);
    REQUIRE(qcow2_l1_entries_for(&g, h->size_bytes) <= h->l1_entries);
}

static bool same_string(const char *a, const char *b)
{
    return g_strcmp0(a, b) == 0;
}

// What an encoding and a decoding give must be what went in, and stay so.
static void require_round_trip(const Qcow2Header *h, uint64_t file_bytes)
{
    size_t cluster_bytes = (size_t)1 << h->cluster_bits;
    g_autofree uint8_t *first = g_malloc(cluster_bytes), *second = g_malloc(cluster_bytes);
    int used = qcow2_header_encode(h, first, cluster_bytes);
    if (used < 0)
        return; // no room for the longest header, or version 2 with what it cannot say
    Qcow2Header again;
    REQUIRE(qcow2_header_decode(first, cluster_bytes, file_bytes, &again, NULL) == 0);
    REQUIRE(again.size_bytes == h->size_bytes && again.l1.v == h->l1.v &&
            again.l1_entries == h->l1_entries && again.refcount_table.v == h->refcount_table.v);
    REQUIRE(same_string(again.backing_name, h->backing_name) &&
            same_string(again.backing_format, h->backing_format) &&
            same_string(again.data_file_name, h->data_file_name));
    REQUIRE(again.has_bitmaps_extension == h->has_bitmaps_extension);
    REQUIRE(qcow2_header_encode(&again, second, cluster_bytes) == used);
    REQUIRE(memcmp(first, second, cluster_bytes) == 0);
    qcow2_header_clear(&again);
}

// A decode of no more than what is needed finds the same as one of all there is.
static void require_enough(const uint8_t *data, size_t size, const Qcow2Header *h, int result,
                           const char *message)
{
    size_t len = MIN(size, 4096), needed = qcow2_header_needed_bytes(data, len);
    if (needed > len || size < 512)
        return;
    g_autofree uint8_t *start = g_memdup2(data, needed);
    Qcow2Header again;
    g_autoptr(GError) error = NULL;
    REQUIRE(qcow2_header_decode(start, needed, INT64_MAX, &again, &error) == result);
    REQUIRE(same_string(error ? error->message : NULL, message));
    REQUIRE(same_string(again.backing_name, h->backing_name) &&
            same_string(again.backing_format, h->backing_format) &&
            same_string(again.data_file_name, h->data_file_name) &&
            again.feature_names_bytes == h->feature_names_bytes);
    qcow2_header_clear(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    // The header is read into an aligned buffer of exactly its length, so that a read past the end
    // is seen.
    g_autofree uint8_t *copy = g_memdup2(data, size);
    const uint64_t file_sizes[] = {size, UINT64_C(1) << 30, INT64_MAX};
    REQUIRE(qcow2_header_needed_bytes(copy, size) <= (2 << 20));
    for (size_t i = 0; i < G_N_ELEMENTS(file_sizes); i++) {
        Qcow2Header h;
        GError *error = NULL;
        int r = qcow2_header_decode(copy, size, file_sizes[i], &h, &error);
        REQUIRE((r == 0) == (error == NULL));
        if (file_sizes[i] == INT64_MAX)
            require_enough(copy, size, &h, r, error ? error->message : NULL);
        if (r < 0) {
            REQUIRE(r == -EINVAL || r == -ENOTSUP);
            REQUIRE(!strchr(error->message, '\n') && strlen(error->message) < 8192);
            g_error_free(error);
            continue;
        }
        require_bounds(&h, file_sizes[i]);
        require_round_trip(&h, file_sizes[i]);
        qcow2_header_clear(&h);
    }
    return 0;
}
