// SPDX-License-Identifier: LGPL-2.1-or-later
// Direct I/O of any alignment: who waits for whom, on a back end whose transfers end when the test
// says so; and how much of it bounces at a time, on a file of the host.
#include "../loop/in-fiber.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chain-core/sim.h"
#include "host/host-file.h"

enum { BLOCK = 512, FAKE_BYTES = 64 * BLOCK, UNIT = 64 * 1024 };

typedef struct FakeFile {
    File file;
    uint8_t data[FAKE_BYTES];
    FileTransfer *first; // under way, the latest first
    unsigned n_under_way, max_under_way;
    size_t max_bytes; // of one transfer
    unsigned n_tails;
    bool is_tail_held;
    int tail_error;
    FiberQueue tail_waiters;
    uint64_t host_size;
    unsigned n_events;
    FileEvent event; // the last
} FakeFile;

static ssize_t fake_try_read(File *file, uint64_t off, void *buf, size_t len)
{
    g_assert_not_reached();
}

static void fake_submit(FileTransfer *x)
{
    FakeFile *f = (FakeFile *)x->file;
    x->next = f->first;
    f->first = x;
    f->n_under_way++;
    f->max_under_way = MAX(f->max_under_way, f->n_under_way);
}

static int fake_write_tail(Fiber *self, File *file, uint64_t off, const void *buf, size_t len)
{
    FakeFile *f = (FakeFile *)file;
    f->host_size = MAX(f->host_size, off + len);
    while (f->is_tail_held)
        fiber_queue_wait(self, &f->tail_waiters, false, "tail");
    memcpy(f->data + off, buf, len);
    f->n_tails++;
    return f->tail_error;
}

static void let_tail_go(FakeFile *f)
{
    f->is_tail_held = false;
    fiber_queue_wake_all(&f->tail_waiters);
}

static int fake_get_size(Fiber *self, File *file, uint64_t *ret_size)
{
    *ret_size = ((FakeFile *)file)->host_size;
    return 0;
}

// A hole until a tail is written.
static int fake_find_extent(Fiber *self, File *file, uint64_t off, uint64_t len, bool *ret_is_data,
                            uint64_t *ret_len)
{
    *ret_is_data = ((FakeFile *)file)->n_tails;
    *ret_len = len;
    return 0;
}

static void note_event(File *file, const FileEvent *event, void *arg)
{
    FakeFile *f = arg;
    f->n_events++;
    f->event = *event;
}

static int fake_truncate(Fiber *self, File *file, uint64_t size)
{
    FakeFile *f = (FakeFile *)file;
    memset(f->data + size, 0, FAKE_BYTES - size);
    return 0;
}

static const FileOps fake_ops = {
    .try_read = fake_try_read,
    .submit = fake_submit,
    .write_tail = fake_write_tail,
    .truncate = fake_truncate,
    .get_size = fake_get_size,
    .find_extent = fake_find_extent,
};

static void fake_init(Fiber *self, FakeFile *f, uint64_t size)
{
    memset(f, 0, sizeof(*f));
    file_init(&f->file, &fake_ops, fiber_loop(self), "fake", FILE_WRITABLE);
    f->file.alignment = BLOCK;
    f->file.size = f->host_size = size;
    file_set_event_fn(&f->file, note_event, f);
}

// The transfer under way at `off`, NULL without one.
static FileTransfer *find(const FakeFile *f, bool is_write, uint64_t off)
{
    for (FileTransfer *x = f->first; x; x = x->next)
        if (x->is_write == is_write && x->off == off)
            return x;
    return NULL;
}

static void let_others_run(Fiber *self)
{
    for (int i = 0; i < 8; i++)
        fiber_yield(self);
}

static void end(Fiber *self, FakeFile *f, FileTransfer *x)
{
    FileTransfer **link = &f->first;
    while (*link != x)
        link = &(*link)->next;
    *link = x->next;
    f->n_under_way--;
    size_t done = 0, len = x->iov[x->first_iov].iov_len;
    f->max_bytes = MAX(f->max_bytes, len);
    if (x->is_write || x->off < f->file.size) {
        done = x->is_write ? len : MIN(len, f->file.size - x->off);
        if (x->off + done <= FAKE_BYTES && x->is_write)
            memcpy(f->data + x->off, x->iov[x->first_iov].iov_base, done);
        else if (x->off + done <= FAKE_BYTES)
            memcpy(x->iov[x->first_iov].iov_base, f->data + x->off, done);
    }
    file_transfer_done(x, (ssize_t)done);
    let_others_run(self);
}

static void end_all(Fiber *self, FakeFile *f, IoBatch *batch)
{
    while (f->first)
        end(self, f, f->first);
    fiber_assert_equal(batch->pending, 0);
    fiber_assert_equal(io_batch_wait(self, batch), 0);
    file_done(&f->file);
}

static void write_at(Fiber *self, FakeFile *f, uint64_t off, const void *data, size_t len,
                     IoBatch *batch)
{
    struct iovec iov = {(void *)data, len};
    file_write_start(&f->file, host_off(off), &iov, 1, batch);
    let_others_run(self);
}

FIBER_TEST(an_aligned_write_does_not_overtake_a_rewrite_of_its_block_that_waits)
{
    static const uint8_t a[BLOCK] = {1}, b[1] = {2}, c[BLOCK] = {3}, d[BLOCK] = {4};
    FakeFile f;
    IoBatch batch;
    fake_init(self, &f, FAKE_BYTES);
    io_batch_init(&batch, self);
    write_at(self, &f, 0, a, BLOCK, &batch);
    write_at(self, &f, 1, b, 1, &batch); // waits for the first
    write_at(self, &f, 0, c, BLOCK, &batch);
    write_at(self, &f, BLOCK, d, BLOCK, &batch); // has nothing to wait for
    fiber_assert_equal(f.n_under_way, 2);
    fiber_assert(find(&f, true, BLOCK));
    end(self, &f, find(&f, true, 0));
    fiber_assert(find(&f, false, 0)); // the block to be changed, before the third write
    end(self, &f, find(&f, false, 0));
    end(self, &f, find(&f, true, 0));
    fiber_assert(f.data[0] == 1 && f.data[1] == 2);
    end(self, &f, find(&f, true, 0));
    fiber_assert(f.data[0] == 3 && f.data[1] == 0);
    end_all(self, &f, &batch);
}

static void truncates(Fiber *self, void *arg)
{
    FakeFile *f = arg;
    fiber_assert_equal(file_truncate(self, &f->file, BLOCK), 0);
}

FIBER_TEST(a_truncation_is_not_kept_waiting_by_writes_that_come_after_it)
{
    static const uint8_t data[BLOCK] = {7};
    FakeFile f;
    IoBatch batch;
    fake_init(self, &f, FAKE_BYTES);
    io_batch_init(&batch, self);
    write_at(self, &f, 0, data, BLOCK, &batch);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "truncates", truncates, &f, NULL), 0);
    write_at(self, &f, BLOCK, data, BLOCK, &batch);
    write_at(self, &f, 2 * BLOCK, data, BLOCK, &batch);
    fiber_assert_equal(f.n_under_way, 1);
    end(self, &f, f.first);
    fiber_assert_equal(f.file.size, BLOCK);
    fiber_assert_equal(f.n_under_way, 2);
    end_all(self, &f, &batch);
    fiber_assert_equal(f.file.size, 3 * BLOCK);
}

FIBER_TEST(an_unaligned_write_that_ends_with_a_block_past_the_end_stops_no_other)
{
    static const uint8_t data[2 * BLOCK];
    FakeFile f;
    IoBatch batch;
    fake_init(self, &f, 0);
    io_batch_init(&batch, self);
    write_at(self, &f, 100, data, 2 * BLOCK - 100, &batch);
    write_at(self, &f, 4 * BLOCK, data, BLOCK, &batch);
    fiber_assert(find(&f, true, 4 * BLOCK));
    end_all(self, &f, &batch);
    fiber_assert_equal(f.file.size, 5 * BLOCK);
}

FIBER_TEST(a_write_that_ends_within_a_block_past_the_end_stops_none_further_on)
{
    static const uint8_t data[BLOCK] = {7};
    FakeFile f;
    IoBatch batch;
    fake_init(self, &f, 0);
    io_batch_init(&batch, self);
    write_at(self, &f, 10, data, 10, &batch);
    write_at(self, &f, UNIT, data, BLOCK, &batch);
    fiber_assert(find(&f, true, UNIT));
    end_all(self, &f, &batch);
    fiber_assert_equal(f.file.size, UNIT + BLOCK);
    fiber_assert(f.data[10] == 7);
}

// The page cache writes back the whole page, with what it held of the neighbour before.
FIBER_TEST(no_direct_write_changes_a_page_while_the_last_block_is_written_through_it)
{
    static const uint8_t data[BLOCK] = {7};
    FakeFile f;
    IoBatch batch;
    fake_init(self, &f, 3 * BLOCK + 100);
    io_batch_init(&batch, self);
    f.is_tail_held = true;
    write_at(self, &f, 3 * BLOCK + 10, data, 10, &batch);
    write_at(self, &f, 2 * BLOCK, data, BLOCK, &batch);
    write_at(self, &f, UNIT, data, BLOCK, &batch);
    fiber_assert(!find(&f, true, 2 * BLOCK) && find(&f, true, UNIT));
    let_tail_go(&f);
    let_others_run(self);
    fiber_assert(find(&f, true, 2 * BLOCK));
    end_all(self, &f, &batch);
}

FIBER_TEST(only_what_lies_in_the_last_block_past_the_end_goes_through_the_page_cache)
{
    uint8_t data[4 * BLOCK];
    FakeFile f;
    IoBatch batch;
    memset(data, 9, sizeof data);
    fake_init(self, &f, 3 * BLOCK + 100);
    io_batch_init(&batch, self);
    write_at(self, &f, BLOCK - 1, data, 2 * BLOCK + 51, &batch); // one byte, two blocks, 50 bytes
    fiber_assert_equal(f.n_tails, 0);                            // reads the edges
    while (f.first) {
        fiber_assert(!f.first->is_write || f.first->off + f.first->iov[0].iov_len <= 3 * BLOCK);
        end(self, &f, f.first);
    }
    fiber_assert_equal(f.n_tails, 1);
    fiber_assert(!f.data[BLOCK - 2] && f.data[BLOCK - 1] == 9 && f.data[3 * BLOCK + 49] == 9);
    fiber_assert(!f.data[3 * BLOCK + 50]);
    fiber_assert_equal(f.file.size, 3 * BLOCK + 100);
    write_at(self, &f, 3 * BLOCK + 20, data, 200, &batch); // within one block, past the end
    fiber_assert_equal(f.n_tails, 2);
    fiber_assert_equal(f.file.size, 3 * BLOCK + 220);
    write_at(self, &f, 3 * BLOCK + 300, data, BLOCK - 300, &batch); // fills it
    end_all(self, &f, &batch);
    fiber_assert_equal(f.n_tails, 2);
    fiber_assert_equal(f.file.size, 4 * BLOCK);
    fiber_assert(!f.data[3 * BLOCK + 219 + 1] && f.data[3 * BLOCK + 219] == 9);
}

FIBER_TEST(a_file_that_its_own_last_block_makes_longer_was_not_resized_from_outside)
{
    static const uint8_t data[BLOCK] = {7};
    FakeFile f;
    IoBatch batch;
    fake_init(self, &f, BLOCK + 100);
    io_batch_init(&batch, self);
    f.is_tail_held = true;
    write_at(self, &f, BLOCK + 100, data, 20, &batch);
    fiber_assert_equal(file_check_size(self, &f.file), 0);
    fiber_assert_equal(f.n_events, 0);
    let_tail_go(&f);
    let_others_run(self);
    fiber_assert_equal(f.file.size, BLOCK + 120);
    fiber_assert_equal(file_check_size(self, &f.file), 0);
    fiber_assert_equal(f.n_events, 0);
    end_all(self, &f, &batch);
}

FIBER_TEST(a_hole_seen_while_the_last_block_was_written_is_not_remembered)
{
    static const uint8_t data[BLOCK] = {7};
    FakeFile f;
    IoBatch batch;
    bool is_data;
    uint64_t len;
    fake_init(self, &f, BLOCK + 100);
    io_batch_init(&batch, self);
    f.is_tail_held = true;
    write_at(self, &f, BLOCK + 10, data, 20, &batch);
    fiber_assert_equal(file_find_extent(self, &f.file, host_off(0), 50, &is_data, &len), 0);
    fiber_assert(!is_data);
    let_tail_go(&f);
    let_others_run(self);
    fiber_assert_equal(file_find_extent(self, &f.file, host_off(BLOCK), 50, &is_data, &len), 0);
    fiber_assert(is_data);
    end_all(self, &f, &batch);
}

FIBER_TEST(a_last_block_that_cannot_be_written_is_told_as_any_write)
{
    static const uint8_t data[BLOCK] = {7};
    FakeFile f;
    IoBatch batch;
    fake_init(self, &f, BLOCK + 100);
    io_batch_init(&batch, self);
    f.tail_error = -EDQUOT;
    write_at(self, &f, BLOCK + 100, data, 20, &batch);
    fiber_assert_equal(io_batch_wait(self, &batch), -ENOSPC);
    fiber_assert_equal(f.n_events, 1);
    fiber_assert(f.event.kind == FILE_EVENT_WRITE_FAILED && f.event.off == BLOCK + 100);
    fiber_assert_equal(f.file.size, BLOCK + 100);
    file_done(&f.file);
}

FIBER_TEST(so_many_unaligned_transfers_bounce_at_a_time_and_the_rest_wait)
{
    enum { N = 300, MAX_BOUNCES = 32 };
    uint8_t out[N], in[N];
    FakeFile f;
    IoBatch batch;
    fake_init(self, &f, FAKE_BYTES);
    io_batch_init(&batch, self);
    for (int i = 0; i < N; i++) {
        out[i] = (uint8_t)(i + 1);
        write_at(self, &f, (uint64_t)i * 100, &out[i], 1, &batch);
    }
    fiber_assert_equal(batch.pending, N);
    while (f.first)
        end(self, &f, f.first);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    for (int i = 0; i < N; i++)
        file_read_start(&f.file, host_off((uint64_t)i * 100), &in[i], 1, &batch);
    fiber_assert_equal(batch.pending, N);
    fiber_assert_equal(f.max_under_way, MAX_BOUNCES);
    end_all(self, &f, &batch);
    fiber_assert_equal(f.max_under_way, MAX_BOUNCES);
    fiber_assert(!memcmp(in, out, N));
}

FIBER_TEST(a_large_unaligned_transfer_is_bounced_in_pieces)
{
    enum { LEN = 5000000 };
    FakeFile f;
    IoBatch batch;
    uint8_t *buf = g_malloc0(LEN);
    fake_init(self, &f, LEN * 2);
    io_batch_init(&batch, self);
    write_at(self, &f, 1, buf, LEN, &batch);
    while (f.first)
        end(self, &f, f.first);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    memset(buf, 1, LEN);
    file_read_start(&f.file, host_off(FAKE_BYTES / 2 + 1), buf, 100, &batch);
    file_read_start(&f.file, host_off(LEN + 1), buf + 100, LEN - 100, &batch);
    end_all(self, &f, &batch);
    fiber_assert_equal(f.max_bytes, 1024 * 1024);
    fiber_assert(!buf[0] && !buf[99]);
    g_free(buf);
}

// --- on the host ---------------------------------------------------------------------------------

static File *create(Fiber *self)
{
    static const char path[] = "test-file-direct.tmp";
    File *file;
    GError *error = NULL;
    unlink(path);
    if (file_open(self, path, FILE_WRITABLE | FILE_CREATE | FILE_DIRECT, &file, &error) < 0)
        g_error("%s", error->message);
    fiber_assert_equal(unlink(path), 0);
    return file;
}

// One fiber with 5000 of them, on a loop for eight.
static void flood_fiber(Fiber *self, void *arg)
{
    enum { N = 5000, STEP = 100, ODD = 3 };
    File *file = create(self);
    uint8_t *out = g_malloc(N), *in = g_malloc0(N);
    IoBatch batch;
    io_batch_init(&batch, self);
    for (unsigned i = 0; i < N; i++) {
        out[i] = (uint8_t)(1 + i % 255);
        struct iovec iov = {&out[i], 1};
        file_write_start(file, host_off(i * STEP + ODD), &iov, 1, &batch);
    }
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    for (unsigned i = 0; i < N; i++)
        file_read_start(file, host_off(i * STEP + ODD), &in[i], 1, &batch);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    fiber_assert(!memcmp(in, out, N));
    fiber_assert_equal(file_size(file), (N - 1) * STEP + ODD + 1);
    file_close(self, file);
    g_free(in);
    g_free(out);
}

static void thousands_of_unaligned_transfers_at_once_find_enough_memory(void **state)
{
    LoopConfig config = {.max_fibers = 8};
    run_in_fiber_of(&config, flood_fiber, NULL);
}

FIBER_TEST(offsets_and_memory_have_alignments_of_their_own)
{
    File *file = create(self);
#ifdef STATX_DIOALIGN
    struct statx stx;
    int fd = ((HostFile *)file)->fd;
    fiber_assert_equal(statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx), 0);
    if (file->alignment > 1 && (stx.stx_mask & STATX_DIOALIGN) && stx.stx_dio_offset_align) {
        fiber_assert_equal(file->alignment, stx.stx_dio_offset_align);
        fiber_assert_equal(file->address_alignment, MAX(1, stx.stx_dio_mem_align));
    }
#endif
    file_close(self, file);
}

FIBER_TEST(memory_that_is_aligned_enough_is_not_bounced)
{
    static _Alignas(BLOCK) const uint8_t data[2 * BLOCK];
    FakeFile f;
    IoBatch batch;
    fake_init(self, &f, FAKE_BYTES);
    f.file.address_alignment = 4;
    io_batch_init(&batch, self);
    write_at(self, &f, 0, data + 4, BLOCK, &batch);
    fiber_assert(f.first->iov[0].iov_base == data + 4);
    write_at(self, &f, BLOCK, data + 5, BLOCK, &batch);
    fiber_assert(f.first->iov[0].iov_base != data + 5);
    end_all(self, &f, &batch);
}

// --- files whose last block is not whole
// ---------------------------------------------------------------------------

enum { ODD_BYTES = 3 * BLOCK + 100 };
static const char odd_path[] = "/odd.raw";

// Whoever kills us at an operation finds the file as it is then.
typedef struct Watch {
    SimHook hook;
    Sim *sim;
    unsigned n_looks;
} Watch;

static void assert_odd(Sim *sim)
{
    g_autofree void *data = NULL;
    uint64_t len;
    fiber_assert_equal(sim_read_file(sim, odd_path, &data, &len), 0);
    fiber_assert_equal(len, ODD_BYTES);
}

static int look(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off, uint64_t len)
{
    Watch *w = (Watch *)hook;
    assert_odd(w->sim);
    for (uint64_t seed = 0; seed < 8; seed++) {
        Sim *after = sim_clone_after_power_cut(w->sim, n * 8 + seed);
        assert_odd(after);
        sim_free(after);
    }
    w->n_looks++;
    return 0;
}

static void write_at_the_end_of(Fiber *self, const char *path)
{
    static const struct {
        unsigned off, len;
    } writes[] = {{ODD_BYTES - 1, 1},
                  {3 * BLOCK, 100},
                  {2 * BLOCK, BLOCK + 100},
                  {BLOCK, 2 * BLOCK},
                  {BLOCK + 7, ODD_BYTES - BLOCK - 7},
                  {0, ODD_BYTES}};
    uint8_t out[ODD_BYTES], in[ODD_BYTES], expected[ODD_BYTES] = {0};
    File *file;
    GError *error = NULL;
    if (file_open(self, path, FILE_WRITABLE | FILE_DIRECT, &file, &error) < 0)
        g_error("%s", error->message);
    for (unsigned i = 0; i < G_N_ELEMENTS(writes); i++) {
        memset(out, (int)i + 1, sizeof out);
        memset(expected + writes[i].off, (int)i + 1, writes[i].len);
        HostOff off = host_off(writes[i].off);
        fiber_assert_equal(file_write(self, file, off, out, writes[i].len), 0);
        fiber_assert_equal(file_read(self, file, host_off(0), in, ODD_BYTES), 0);
        fiber_assert(!memcmp(in, expected, ODD_BYTES));
    }
    fiber_assert_equal(file_flush(self, file), 0);
    file_close(self, file);
}

static void write_at_the_end(Fiber *self, void *arg)
{
    write_at_the_end_of(self, odd_path);
}

FIBER_TEST(a_file_of_an_odd_size_keeps_it_on_the_host_too)
{
    static const char path[] = "test-file-direct-odd.tmp";
    static const char data[ODD_BYTES];
    struct stat st;
    fiber_assert(g_file_set_contents(path, data, ODD_BYTES, NULL));
    write_at_the_end_of(self, path);
    fiber_assert_equal(stat(path, &st), 0);
    fiber_assert_equal(st.st_size, ODD_BYTES);
    unlink(path);
}

static void a_file_of_an_odd_size_is_never_longer_whoever_is_killed_when(void **state)
{
    static const uint8_t data[ODD_BYTES];
    for (uint64_t seed = 1; seed <= 20; seed++) {
        Watch w = {{look}, sim_new(&(SimConfig){.seed = seed, .short_transfers = true}), 0};
        assert_int_equal(sim_write_file(w.sim, odd_path, data, ODD_BYTES), 0);
        sim_set_hook(w.sim, &w.hook);
        assert_true(sim_run(w.sim, write_at_the_end, NULL));
        assert_true(w.n_looks > 12);
        sim_free(w.sim);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_aligned_write_does_not_overtake_a_rewrite_of_its_block_that_waits),
        cmocka_unit_test(a_truncation_is_not_kept_waiting_by_writes_that_come_after_it),
        cmocka_unit_test(an_unaligned_write_that_ends_with_a_block_past_the_end_stops_no_other),
        cmocka_unit_test(a_write_that_ends_within_a_block_past_the_end_stops_none_further_on),
        cmocka_unit_test(no_direct_write_changes_a_page_while_the_last_block_is_written_through_it),
        cmocka_unit_test(only_what_lies_in_the_last_block_past_the_end_goes_through_the_page_cache),
        cmocka_unit_test(a_file_that_its_own_last_block_makes_longer_was_not_resized_from_outside),
        cmocka_unit_test(a_hole_seen_while_the_last_block_was_written_is_not_remembered),
        cmocka_unit_test(a_last_block_that_cannot_be_written_is_told_as_any_write),
        cmocka_unit_test(so_many_unaligned_transfers_bounce_at_a_time_and_the_rest_wait),
        cmocka_unit_test(a_large_unaligned_transfer_is_bounced_in_pieces),
        cmocka_unit_test(thousands_of_unaligned_transfers_at_once_find_enough_memory),
        cmocka_unit_test(offsets_and_memory_have_alignments_of_their_own),
        cmocka_unit_test(memory_that_is_aligned_enough_is_not_bounced),
        cmocka_unit_test(a_file_of_an_odd_size_is_never_longer_whoever_is_killed_when),
        cmocka_unit_test(a_file_of_an_odd_size_keeps_it_on_the_host_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
