// SPDX-License-Identifier: LGPL-2.1-or-later
// Any bytes in the bitmap directory, the tables, the bits and the header's extension of an image
// with three bitmaps. It is opened for writing on the simulation, what is inconsistent is removed,
// the rest is stored anew: what is written reads back, and no metadata is damaged or given away.
// (The image has no guest data at first: a table that names some gives it away, here as with QEMU.)
// The input is a list of patches: two bytes of place, one of value.
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "chain-core/dirty-bitmap.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"
#include "format/qcow2-snapshot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)
#define PATH "/image.qcow2"
enum { SIZE = 1 << 20, CLUSTER = 4096, N_BITMAPS = 3, HEADER_BYTES = 512 };

static struct {
    uint8_t *data;
    uint64_t len;
    uint64_t places[2 + 2 * N_BITMAPS]; // clusters that may be patched: all of them
    unsigned n_places;
} image;

static Node *open_head(Fiber *self, MapMemory *memory)
{
    Qcow2OpenOptions options = {.memory = memory};
    File *file;
    Qcow2Image *opened;
    Node *node = NULL;
    REQUIRE(file_open(self, PATH, FILE_WRITABLE, &file, NULL) == 0);
    if (qcow2_image_open(self, file, &options, &opened, NULL) < 0)
        return NULL;
    if (qcow2_view_new(self, opened, NULL, &node, NULL) < 0)
        node = NULL;
    qcow2_image_unref_close(self, opened);
    return node;
}

static void make_image(Fiber *self, void *arg)
{
    static const char *const names[N_BITMAPS] = {"a", "b", "c"};
    MapMemory *memory = map_memory_new(1 << 20);
    Qcow2CreateOptions options = {.size_bytes = SIZE, .cluster_bytes = CLUSTER};
    REQUIRE(qcow2_create(self, PATH, &options, NULL) == 0);
    Node *node = open_head(self, memory);
    for (unsigned i = 0; i < N_BITMAPS; i++) {
        DirtyBitmapSpec spec = {.name = names[i],
                                .node_name = "n",
                                .granularity_bits = 9 + i,
                                .is_persistent = true,
                                .is_disabled = i == 1};
        DirtyBitmap *bitmap;
        REQUIRE(dirty_bitmap_add(node, &spec, &bitmap, NULL) == 0);
        bitmap_set((Bitmap *)dirty_bitmap_bits(bitmap), 5000, 70000);
    }
    REQUIRE(node_zero(self, node, guest_off(0), CLUSTER, 0) == 0); // an L2 table
    node_unref_close(self, node);
    map_memory_free(memory);
}

static void find_places(void)
{
    Qcow2Header h;
    REQUIRE(qcow2_header_decode(image.data, image.len, image.len, &h, NULL) == 0);
    uint64_t off = h.bitmaps.directory.v;
    image.places[image.n_places++] = 0;
    image.places[image.n_places++] = off;
    for (unsigned i = 0; i < N_BITMAPS; i++) {
        Qcow2BitmapEntry e;
        off += qcow2_bitmap_entry_decode(image.data + off, image.len - off, &e, NULL);
        Be64 raw;
        HostOff bits;
        memcpy(&raw, image.data + e.table.v, sizeof raw);
        image.places[image.n_places++] = e.table.v;
        if (qcow2_bitmap_table_entry_decode(be64_get(raw), &bits) && bits.v)
            image.places[image.n_places++] = bits.v;
        qcow2_bitmap_entry_clear(&e);
    }
    qcow2_header_clear(&h);
}

static void set_up(void)
{
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    REQUIRE(sim_run(sim, make_image, NULL));
    REQUIRE(sim_read_file(sim, PATH, (void **)&image.data, &image.len) == 0);
    sim_free(sim);
    find_places();
}

// Whole blocks are compared: the fuzzer notes each comparison here that is not the library's.
static void assert_content(Fiber *self, Node *node)
{
    uint8_t block[CLUSTER], wanted[CLUSTER];
    for (uint64_t off = 0; off < SIZE; off += CLUSTER) {
        memset(wanted, off == SIZE / 2 ? 7 : 0, CLUSTER);
        REQUIRE(node_read(self, node, guest_off(off), block, CLUSTER) == 0);
        REQUIRE(memcmp(block, wanted, CLUSTER) == 0);
    }
}

static void live(Fiber *self, void *arg)
{
    MapMemory *memory = map_memory_new(1 << 20);
    Node *node = open_head(self, memory);
    bool *ret_is_open = arg;
    *ret_is_open = node;
    if (node) {
        uint8_t block[CLUSTER];
        memset(block, 7, sizeof block);
        REQUIRE(node_write(self, node, guest_off(SIZE / 2), block, CLUSTER, 0) == 0);
        const GPtrArray *bitmaps = dirty_bitmaps_of(node);
        for (guint i = bitmaps ? bitmaps->len : 0; i-- > 0;)
            if (dirty_bitmap_reason(bitmaps->pdata[i]))
                REQUIRE(dirty_bitmap_remove(self, bitmaps->pdata[i], NULL) == 0);
        assert_content(self, node);
        node_unref_close(self, node);
    }
    map_memory_free(memory);
}

static void check(Fiber *self, void *arg)
{
    File *file;
    Qcow2CheckResult counts = {0};
    REQUIRE(file_open(self, PATH, 0, &file, NULL) == 0);
    REQUIRE(qcow2_check(self, file, 0, &counts, NULL) == 0);
    REQUIRE(counts.n_corruptions == 0); // leaks there may be
    qcow2_check_result_clear(&counts);
    file_close(self, file);
}

// The header's fields are another target's; here only its extensions change.
static bool may_patch(uint64_t place)
{
    return place >= HEADER_BYTES || (place >= 112 && place < 112 + 32);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!image.data)
        set_up();
    if (size > 300)
        return 0;
    g_autofree uint8_t *patched = g_memdup2(image.data, image.len);
    for (; size >= 3; size -= 3, data += 3) {
        unsigned at = (data[0] << 8 | data[1]) % (image.n_places * HEADER_BYTES);
        uint64_t place = image.places[at / HEADER_BYTES] + at % HEADER_BYTES;
        if (may_patch(place))
            patched[place] = data[2];
    }
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    bool is_open;
    REQUIRE(sim_write_file(sim, PATH, patched, image.len) == 0);
    REQUIRE(sim_run(sim, live, &is_open));
    if (is_open)
        REQUIRE(sim_run(sim, check, NULL));
    sim_free(sim);
    return 0;
}
