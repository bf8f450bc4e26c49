// SPDX-License-Identifier: LGPL-2.1-or-later
// copy-before-write and snapshot-access in the simulation: whatever guests write, and whatever
// fails in the scratch image, who reads the snapshot reads the disk of the moment at which it was
// made, or gets an error; guests wait for no reader.
//
// Nothing of the source is changed before the scratch image has what it showed, so what holds at
// every moment holds after a cut of the power at that moment.
#include "slow-disk.h"

#include "../node/driver-node.h"
#include "chain-core/dirty-bitmap.h"
#include "chain-core/port.h"
#include "jobs/node-drivers.h"

enum {
    N_GUESTS = 4,
    N_READERS = 3,
    N_REQUESTS = 40,
    TIMEOUT_S = 3,
};

typedef struct Scene {
    GRand *rand;
    Disk *source, *scratch;
    uint8_t before[SIZE];
    Node *filter, *view;
    Port guests, readers;
    FiberWaitGroup running;
    bool may_break;            // reads may fail from some moment on
    bool is_broken;            // that a reader has seen
    bool is_let_go[N_SECTORS]; // by a reader
    unsigned n_failed, n_notices;
    NodeEvents events; // told to the scene
} Scene;

static Scene *the_scene; // of the test that runs

static void count_notice(const NodeEvents *events, const char *sentence)
{
    the_scene->n_notices++;
}

// Old data is in the scratch image first (docs/ordering.md §20).
static void look_before_change(void *arg, uint64_t off, uint64_t len)
{
    const Scene *s = arg;
    for (uint64_t i = off; i < off + len && !s->may_break; i++)
        if (!s->is_let_go[i / SECTOR] && s->source->data[i] == s->before[i] &&
            s->scratch->data[i] != s->before[i])
            g_error("byte %u of sector %u is changed before it was saved", (unsigned)(i % SECTOR),
                    (unsigned)(i / SECTOR));
}

static Node *bitmap_node(void *arg, const char *name)
{
    return g_str_equal(name, "source") ? &((Scene *)arg)->source->node : NULL;
}

static int try_filter(Fiber *self, Scene *s, const char *text, Node **ret_node, GError **error)
{
    DriverOptions options = {
        .name = "cbw",
        .is_writable = true,
        .target = &s->scratch->node,
        .events = &s->events,
        .find_node = bitmap_node,
        .find_arg = s,
    };
    return driver_node_try(self, text, &options, &s->source->node, ret_node, error);
}

static void make_nodes(Fiber *self, Scene *s, const char *options)
{
    g_autofree char *text =
        g_strconcat("{'driver': 'copy-before-write', 'target': 't'", options, "}", NULL);
    g_autoptr(GError) error = NULL;
    if (try_filter(self, s, text, &s->filter, &error) < 0)
        g_error("%s", error->message);
    s->view = driver_node_make(self, "{'driver': 'snapshot-access'}", s->filter);
    port_init(&s->guests, s->filter, "guests");
    port_init(&s->readers, s->view, "readers");
    memcpy(s->before, s->source->data, SIZE);
    s->source->about_to_change = look_before_change;
    s->source->arg = s;
}

static Scene *scene_new_bare(Fiber *self)
{
    static guint32 seed;
    Scene *s = g_new0(Scene, 1);
    s->rand = g_rand_new_with_seed(++seed);
    s->source = disk_new(self, s->rand);
    s->scratch = disk_new(self, s->rand);
    s->events.notice = count_notice;
    memset(s->source->data + 40 * SECTOR, 0, 99 * SECTOR);
    the_scene = s;
    return s;
}

static Scene *scene_new(Fiber *self, const char *options)
{
    Scene *s = scene_new_bare(self);
    make_nodes(self, s, options);
    return s;
}

static void scene_free(Fiber *self, Scene *s)
{
    if (s->view) {
        port_done(self, &s->readers);
        port_done(self, &s->guests);
    }
    node_unref_close(self, s->view);
    node_unref_close(self, s->filter);
    node_unref_close(self, &s->source->node);
    node_unref_close(self, &s->scratch->node);
    g_rand_free(s->rand);
    g_free(s);
}

// -- guests ---------------------------------------------------------------------------------------

static int request(Fiber *self, Scene *s, RequestKind kind, uint64_t off, uint64_t len)
{
    return port_change(self, &s->guests, s->rand, kind, off, len);
}

static void pick_range(const Scene *s, uint64_t *ret_off, uint64_t *ret_len)
{
    *ret_off = (uint64_t)g_rand_int_range(s->rand, 0, N_SECTORS - 40) * SECTOR;
    *ret_len = (uint64_t)g_rand_int_range(s->rand, 1, 40) * SECTOR;
}

static void guest(Fiber *self, void *arg)
{
    static const RequestKind kinds[] = {REQUEST_WRITE, REQUEST_WRITE, REQUEST_WRITE, REQUEST_ZERO,
                                        REQUEST_DISCARD};
    Scene *s = arg;
    for (unsigned i = 0; i < N_REQUESTS; i++) {
        uint64_t off, len;
        RequestKind kind = kinds[g_rand_int_range(s->rand, 0, G_N_ELEMENTS(kinds))];
        take_time(self, s->rand);
        pick_range(s, &off, &len);
        s->n_failed += request(self, s, kind, off, len) < 0;
    }
    fiber_wait_group_done(&s->running);
}

// -- readers --------------------------------------------------------------------------------------

static int read_view(Fiber *self, Scene *s, uint64_t off, uint8_t *buf, uint64_t len)
{
    Node *node = port_enter(self, &s->readers, REQUEST_READ);
    int r = node_read(self, node, guest_off(off), buf, len);
    port_leave(&s->readers, REQUEST_READ);
    return r;
}

static void check_bytes(const Scene *s, uint64_t off, const uint8_t *buf, uint64_t len)
{
    for (uint64_t i = 0; i < len; i++)
        if (buf[i] != s->before[off + i])
            g_error("byte %u of sector %u reads as %u, was %u", (unsigned)((off + i) % SECTOR),
                    (unsigned)((off + i) / SECTOR), buf[i], s->before[off + i]);
}

static int read_and_check(Fiber *self, Scene *s, uint64_t off, uint64_t len)
{
    g_autofree uint8_t *buf = g_malloc(len);
    int r = read_view(self, s, off, buf, len);
    if (r == 0)
        check_bytes(s, off, buf, len);
    return r;
}

static void check_status(Fiber *self, Scene *s, uint64_t off, uint64_t len)
{
    static const uint8_t zeros[SIZE];
    NodeExtent extent;
    Node *node = port_enter(self, &s->readers, REQUEST_READ);
    int r = node_status(self, node, guest_off(off), len, &extent);
    port_leave(&s->readers, REQUEST_READ);
    fiber_assert(r == 0 || (r == -EACCES && s->may_break));
    if (r < 0)
        return;
    fiber_assert(extent.len > 0 && extent.len <= len);
    fiber_assert(extent.kind == NODE_EXTENT_ZERO || extent.kind == NODE_EXTENT_OPAQUE);
    if (extent.kind == NODE_EXTENT_ZERO)
        check_bytes(s, off, zeros, extent.len);
}

static void reader(Fiber *self, void *arg)
{
    Scene *s = arg;
    for (unsigned i = 0; i < N_REQUESTS; i++) {
        uint64_t off, len;
        take_time(self, s->rand);
        pick_range(s, &off, &len);
        int r = read_and_check(self, s, off, len);
        if (r < 0 && !s->may_break)
            g_error("a read fails: %s", g_strerror(-r));
        fiber_assert(r == 0 || r == -EACCES);
        fiber_assert(r < 0 || !s->is_broken);
        s->is_broken |= r < 0;
        check_status(self, s, off, len);
    }
    fiber_wait_group_done(&s->running);
}

static void run_all(Fiber *self, Scene *s)
{
    fiber_wait_group_add(&s->running, N_GUESTS + N_READERS);
    for (unsigned i = 0; i < N_GUESTS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", guest, s, NULL), 0);
    for (unsigned i = 0; i < N_READERS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "reader", reader, s, NULL), 0);
    fiber_wait_group_wait(self, &s->running);
}

SIM_TEST(readers_see_the_moment_whatever_guests_do)
{
    Scene *s = scene_new(self, "");
    run_all(self, s);
    fiber_assert_equal(s->n_failed, 0);
    fiber_assert_equal(read_and_check(self, s, 0, SIZE), 0);
    scene_free(self, s);
}

SIM_TEST(granules_may_be_larger_than_asked_for)
{
    Scene *s = scene_new(self, ", 'min-cluster-size': 16384");
    run_all(self, s);
    fiber_assert_equal(read_and_check(self, s, 0, SIZE), 0);
    scene_free(self, s);
}

// -- guests wait for no reader --------------------------------------------------------------------

static void read_some(Fiber *self, void *arg)
{
    Scene *s = arg;
    fiber_assert_equal(read_and_check(self, s, 200 * SECTOR, 100 * SECTOR), 0);
    fiber_wait_group_done(&s->running);
}

static void let_go(Disk *disk)
{
    disk->hangs = false;
    fiber_queue_wake_all(&disk->hanging);
}

SIM_TEST(a_reader_that_hangs_in_the_source_holds_no_guest_up)
{
    Scene *s = scene_new(self, "");
    s->source->next_read_hangs = true;
    fiber_wait_group_add(&s->running, 1);
    fiber_spawn(fiber_loop(self), "reader", read_some, s, NULL);
    while (s->source->next_read_hangs)
        fiber_sleep(self, 1000);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 210 * SECTOR, 20 * SECTOR), 0);
    fiber_assert_equal(request(self, s, REQUEST_DISCARD, 240 * SECTOR, 30 * SECTOR), 0);
    fiber_assert_equal(s->running.count, 1);
    let_go(s->source);
    fiber_wait_group_wait(self, &s->running);
    scene_free(self, s);
}

SIM_TEST(a_guest_that_has_changed_a_granule_changes_it_at_once_from_then_on)
{
    Scene *s = scene_new(self, "");
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 200 * SECTOR, SECTOR), 0);
    unsigned n_writes = s->scratch->n_writes;
    s->scratch->hangs = true;
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 201 * SECTOR, 2 * SECTOR), 0);
    fiber_assert_equal(s->scratch->n_writes, n_writes);
    s->scratch->hangs = false;
    fiber_assert_equal(read_and_check(self, s, 0, SIZE), 0);
    scene_free(self, s);
}

// -- a scratch image that fails -------------------------------------------------------------------

SIM_TEST(a_scratch_image_that_fails_breaks_the_snapshot_and_no_guest)
{
    static const int errors[] = {-EIO, -ENOSPC};
    for (unsigned i = 0; i < G_N_ELEMENTS(errors); i++) {
        Scene *s = scene_new(self, ", 'on-cbw-error': 'break-snapshot'");
        fiber_assert_equal(request(self, s, REQUEST_WRITE, 0, SECTOR), 0);
        fiber_assert_equal(read_and_check(self, s, 0, SIZE), 0);
        s->scratch->write_error = errors[i];
        s->may_break = true;
        run_all(self, s);
        fiber_assert_equal(s->n_failed, 0);
        fiber_assert_equal(s->n_notices, 1);
        fiber_assert_equal(read_and_check(self, s, 0, SECTOR), -EACCES);
        scene_free(self, s);
    }
}

SIM_TEST(unless_said_it_is_the_snapshot_that_breaks)
{
    Scene *s = scene_new(self, "");
    s->scratch->write_error = -ENOSPC;
    s->may_break = true;
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 0, SECTOR), 0);
    fiber_assert_equal(read_and_check(self, s, 100 * SECTOR, SECTOR), -EACCES);
    scene_free(self, s);
}

SIM_TEST(where_guests_are_to_fail_the_snapshot_stays)
{
    Scene *s = scene_new(self, ", 'on-cbw-error': 'break-guest-write'");
    s->scratch->fail_percent = 20;
    run_all(self, s);
    fiber_assert(s->n_failed > 0);
    fiber_assert_equal(s->n_notices, 0);
    fiber_assert_equal(read_and_check(self, s, 0, SIZE), 0);
    scene_free(self, s);
}

SIM_TEST(a_scratch_image_that_hangs_breaks_the_snapshot_after_the_timeout)
{
    Scene *s = scene_new(self, ", 'cbw-timeout': 3");
    s->scratch->hangs = true;
    s->may_break = true;
    uint64_t begun_ns = loop_now_ns(fiber_loop(self));
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 200 * SECTOR, SECTOR), 0);
    fiber_assert(loop_now_ns(fiber_loop(self)) - begun_ns >= UINT64_C(1000000000) * TIMEOUT_S);
    fiber_assert_equal(read_and_check(self, s, 0, SECTOR), -EACCES);
    fiber_assert_equal(s->n_notices, 1);
    let_go(s->scratch);
    scene_free(self, s);
}

SIM_TEST(a_filter_that_is_closed_waits_for_what_timed_out)
{
    Scene *s = scene_new(self, ", 'cbw-timeout': 1, 'on-cbw-error': 'break-guest-write'");
    s->scratch->hangs = true;
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 200 * SECTOR, SECTOR), -ETIMEDOUT);
    let_go(s->scratch);
    scene_free(self, s);
}

// -- what is let go of, or was never kept ---------------------------------------------------------

static int discard_view(Fiber *self, Scene *s, uint64_t first, uint64_t n)
{
    Node *node = port_enter(self, &s->readers, REQUEST_DISCARD);
    int r = node_discard(self, node, guest_off(first * SECTOR), n * SECTOR, 0);
    port_leave(&s->readers, REQUEST_DISCARD);
    return r;
}

SIM_TEST(what_a_reader_discards_is_neither_readable_nor_saved)
{
    Scene *s = scene_new(self, "");
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 200 * SECTOR, SECTOR), 0);
    memset(s->is_let_go + 200, true, 16);
    fiber_assert_equal(discard_view(self, s, 196, 24), 0); // two whole granules
    fiber_assert_equal(read_and_check(self, s, 192 * SECTOR, 8 * SECTOR), 0);
    fiber_assert_equal(read_and_check(self, s, 216 * SECTOR, 8 * SECTOR), 0);
    fiber_assert_equal(read_and_check(self, s, 199 * SECTOR, 2 * SECTOR), -EACCES);
    fiber_assert_equal(read_and_check(self, s, 215 * SECTOR, SECTOR), -EACCES);
    fiber_assert_equal(s->scratch->data[200 * SECTOR], 0); // given back
    unsigned n_writes = s->scratch->n_writes;
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 208 * SECTOR, 8 * SECTOR), 0);
    fiber_assert_equal(s->scratch->n_writes, n_writes);
    scene_free(self, s);
}

SIM_TEST(nothing_else_of_a_snapshot_can_be_changed)
{
    Scene *s = scene_new(self, "");
    uint8_t buf[SECTOR] = {0};
    fiber_assert_equal(node_write(self, s->view, guest_off(0), buf, SECTOR, 0), -ENOTSUP);
    fiber_assert_equal(node_zero(self, s->view, guest_off(0), SECTOR, 0), -ENOTSUP);
    fiber_assert_equal(discard_view(self, s, 200, 7), 0); // no whole granule
    fiber_assert_equal(read_and_check(self, s, 0, SIZE), 0);
    scene_free(self, s);
}

SIM_TEST(of_a_bitmap_only_what_is_dirty_is_kept)
{
    Scene *s = scene_new_bare(self);
    DirtyBitmap *bitmap;
    DirtyBitmapSpec spec = {.name = "b", .node_name = "source", .granularity_bits = 12};
    fiber_assert_equal(dirty_bitmap_add(&s->source->node, &spec, &bitmap, NULL), 0);
    Bitmap *bits = bitmap_new(SIZE, 12);
    bitmap_set(bits, 200 * SECTOR, 16 * SECTOR);
    bitmap_free(dirty_bitmap_swap_bits(bitmap, bits));
    memset(s->is_let_go, true, 200);
    memset(s->is_let_go + 216, true, N_SECTORS - 216);
    make_nodes(self, s, ", 'bitmap': {'node': 'source', 'name': 'b'}");
    s->scratch->hangs = true;
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 0, 200 * SECTOR), 0);
    s->scratch->hangs = false;
    fiber_assert_equal(s->scratch->n_writes, 0);
    fiber_assert_equal(request(self, s, REQUEST_WRITE, 190 * SECTOR, 20 * SECTOR), 0);
    fiber_assert_equal(read_and_check(self, s, 200 * SECTOR, 16 * SECTOR), 0);
    fiber_assert_equal(read_and_check(self, s, 199 * SECTOR, 2 * SECTOR), -EACCES);
    fiber_assert_equal(read_and_check(self, s, 215 * SECTOR, 2 * SECTOR), -EACCES);
    dirty_bitmap_drop(bitmap);
    scene_free(self, s);
}

SIM_TEST(what_makes_no_sense_is_refused)
{
    static const char *const wrong[] = {
        ", 'min-cluster-size': 3",
        ", 'cbw-timeout': 4294967296",
        ", 'bitmap': {'node': 'nope', 'name': 'b'}",
        ", 'bitmap': {'node': 'source', 'name': 'nope'}",
    };
    Scene *s = scene_new_bare(self);
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autofree char *text =
            g_strconcat("{'driver': 'copy-before-write', 'target': 't'", wrong[i], "}", NULL);
        g_autoptr(GError) error = NULL;
        Node *node;
        fiber_assert(try_filter(self, s, text, &node, &error) < 0);
        fiber_assert(error);
    }
    g_autoptr(GError) error = NULL;
    Node *node;
    s->scratch->node.size_bytes -= SECTOR;
    fiber_assert_equal(
        try_filter(self, s, "{'driver': 'copy-before-write', 'target': 't'}", &node, &error),
        -EINVAL);
    scene_free(self, s);
}

// -- drains ---------------------------------------------------------------------------------------

SIM_TEST(a_drain_of_the_scratch_image_waits_for_guests_and_readers)
{
    Scene *s = scene_new(self, "");
    fiber_wait_group_add(&s->running, N_GUESTS + N_READERS);
    for (unsigned i = 0; i < N_GUESTS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "guest", guest, s, NULL), 0);
    for (unsigned i = 0; i < N_READERS; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "reader", reader, s, NULL), 0);
    for (unsigned i = 0; i < 10; i++) {
        take_time(self, s->rand);
        node_drain_begin(self, &s->scratch->node, REQUESTS_ALL);
        unsigned n_writes = s->scratch->n_writes;
        fiber_sleep(self, 1000000);
        fiber_assert_equal(s->scratch->n_writes, n_writes);
        fiber_assert_equal(s->readers.n_in_flight[REQUEST_READ], 0);
        node_drain_end(&s->scratch->node, REQUESTS_ALL);
    }
    fiber_wait_group_wait(self, &s->running);
    fiber_assert_equal(read_and_check(self, s, 0, SIZE), 0);
    scene_free(self, s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_see_the_moment_whatever_guests_do),
        cmocka_unit_test(granules_may_be_larger_than_asked_for),
        cmocka_unit_test(a_reader_that_hangs_in_the_source_holds_no_guest_up),
        cmocka_unit_test(a_guest_that_has_changed_a_granule_changes_it_at_once_from_then_on),
        cmocka_unit_test(a_scratch_image_that_fails_breaks_the_snapshot_and_no_guest),
        cmocka_unit_test(unless_said_it_is_the_snapshot_that_breaks),
        cmocka_unit_test(where_guests_are_to_fail_the_snapshot_stays),
        cmocka_unit_test(a_scratch_image_that_hangs_breaks_the_snapshot_after_the_timeout),
        cmocka_unit_test(a_filter_that_is_closed_waits_for_what_timed_out),
        cmocka_unit_test(what_a_reader_discards_is_neither_readable_nor_saved),
        cmocka_unit_test(nothing_else_of_a_snapshot_can_be_changed),
        cmocka_unit_test(of_a_bitmap_only_what_is_dirty_is_kept),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(a_drain_of_the_scratch_image_waits_for_guests_and_readers),
    };
    drivers_add(&copy_before_write_driver);
    drivers_add(&snapshot_access_driver);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
