// SPDX-License-Identifier: LGPL-2.1-or-later
// Files of the host, on memory, on a disk's page cache, and with direct I/O: the same reads and
// writes at odd places must give the same bytes. Disk files lie in the current directory.
#include "../loop/in-fiber.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/file.h"

typedef struct Place {
    const char *path;
    FileOpenFlags flags;
} Place;

static char memory_path[64]; // of this process: others may run the same test
static const Place places[] = {
    {memory_path, 0},
    {"chaind-test-file.tmp", 0},
    {"chaind-test-file-direct.tmp", FILE_DIRECT},
};

static File *create(Fiber *self, const Place *place)
{
    File *file;
    GError *error = NULL;
    unlink(place->path);
    if (file_open(self, place->path, place->flags | FILE_WRITABLE | FILE_CREATE, &file, &error) < 0)
        g_error("%s", error->message);
    return file;
}

static void destroy(Fiber *self, File *file)
{
    fiber_assert_equal(unlink(file_path(file)), 0);
    file_close(self, file);
}

// Runs the test once for each place.
#define FILE_TEST(name)                                                                            \
    static void name##_at(Fiber *self, File *file);                                                \
    FIBER_TEST(name)                                                                               \
    {                                                                                              \
        for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {                                        \
            File *file = create(self, &places[i]);                                                 \
            name##_at(self, file);                                                                 \
            destroy(self, file);                                                                   \
        }                                                                                          \
    }                                                                                              \
    static void name##_at(Fiber *self, File *file)

enum { AREA = 256 * 1024, MAX_LEN = 40000 };

static size_t fill_iov(GRand *rand, struct iovec *iov, unsigned n_iov, uint8_t *data, size_t len)
{
    size_t done = 0;
    for (unsigned i = 0; i < n_iov; i++) {
        size_t n = i + 1 == n_iov ? len - done : g_rand_int(rand) % (len - done + 1);
        iov[i] = (struct iovec){data + done, n};
        done += n;
    }
    return done;
}

FILE_TEST(random_reads_and_writes_match_a_copy_in_memory)
{
    enum { SEED = 42, ROUNDS = 600 };
    GRand *rand = g_rand_new_with_seed(SEED);
    uint8_t *shadow = g_malloc0(AREA + MAX_LEN), *data = g_malloc(MAX_LEN + 64);
    uint64_t size = 0;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t off = g_rand_int(rand) % AREA;
        size_t len = 1 + g_rand_int(rand) % (i % 3 ? 700 : MAX_LEN);
        uint8_t *buf = data + g_rand_int(rand) % 64;
        if (g_rand_boolean(rand)) {
            struct iovec iov[FILE_MAX_IOV];
            unsigned n_iov = 1 + g_rand_int(rand) % FILE_MAX_IOV;
            IoBatch batch;
            for (size_t j = 0; j < len; j++)
                buf[j] = (uint8_t)g_rand_int(rand);
            memcpy(shadow + off, buf, len);
            size = MAX(size, off + len);
            fill_iov(rand, iov, n_iov, buf, len);
            io_batch_init(&batch, self);
            file_write_start(file, host_off(off), iov, n_iov, &batch);
            fiber_assert_equal(io_batch_wait(self, &batch), 0);
        } else {
            memset(buf, 0xee, len);
            fiber_assert_equal(file_read(self, file, host_off(off), buf, len), 0);
            fiber_assert(!memcmp(buf, shadow + off, len));
        }
        fiber_assert_equal(file_size(file), size);
    }
    // What the host sees is the same.
    int fd = open(file_path(file), O_RDONLY | O_CLOEXEC);
    uint8_t *seen = g_malloc(size);
    fiber_assert_equal(pread(fd, seen, size, 0), size);
    fiber_assert(!memcmp(seen, shadow, size));
    struct stat st;
    fiber_assert(fstat(fd, &st) == 0 && (uint64_t)st.st_size == size);
    close(fd);
    g_free(seen);
    g_free(shadow);
    g_free(data);
    g_rand_free(rand);
}

FILE_TEST(a_read_past_the_end_gives_zeros)
{
    uint8_t buf[10000];
    memset(buf, 7, sizeof(buf));
    fiber_assert_equal(file_write(self, file, host_off(0), buf, 5000), 0);
    memset(buf, 0xee, sizeof(buf));
    fiber_assert_equal(file_read(self, file, host_off(4000), buf, sizeof(buf)), 0);
    for (size_t i = 0; i < sizeof(buf); i++)
        fiber_assert_equal(buf[i], i < 1000 ? 7 : 0);
    memset(buf, 0xee, sizeof(buf));
    fiber_assert_equal(file_read(self, file, host_off(1 << 20), buf, 100), 0);
    fiber_assert(buf[0] == 0 && buf[99] == 0 && buf[100] == 0xee);
}

FILE_TEST(many_transfers_in_one_batch)
{
    enum { N = 200 };
    IoBatch batch;
    io_batch_init(&batch, self);
    uint16_t numbers[N], back[N];
    for (uint16_t i = 0; i < N; i++) {
        struct iovec iov = {&numbers[i], 2};
        numbers[i] = i;
        file_write_start(file, host_off(i * 3000u), &iov, 1, &batch);
    }
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    for (uint16_t i = 0; i < N; i++)
        file_read_start(file, host_off(i * 3000u), &back[i], 2, &batch);
    fiber_assert_equal(io_batch_wait(self, &batch), 0);
    fiber_assert(!memcmp(numbers, back, sizeof(numbers)));
}

typedef struct Neighbour {
    File *file;
    unsigned number;
    FiberWaitGroup *group;
} Neighbour;

enum { N_NEIGHBOURS = 64, NEIGHBOUR_BYTES = 100 };

static void writes_its_part(Fiber *self, void *arg)
{
    Neighbour *n = arg;
    uint8_t buf[NEIGHBOUR_BYTES];
    for (unsigned round = 0; round < 5; round++) {
        memset(buf, (int)(n->number + round), sizeof(buf));
        uint64_t off = n->number * NEIGHBOUR_BYTES;
        fiber_assert_equal(file_write(self, n->file, host_off(off), buf, sizeof(buf)), 0);
    }
    fiber_wait_group_done(n->group);
}

FILE_TEST(neighbours_in_one_block_do_not_undo_each_other)
{
    Neighbour n[N_NEIGHBOURS];
    FiberWaitGroup group = {0};
    fiber_wait_group_add(&group, N_NEIGHBOURS);
    for (unsigned i = 0; i < N_NEIGHBOURS; i++) {
        n[i] = (Neighbour){file, i, &group};
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "neighbour", writes_its_part, &n[i], NULL),
                           0);
    }
    fiber_wait_group_wait(self, &group);
    uint8_t buf[N_NEIGHBOURS * NEIGHBOUR_BYTES];
    fiber_assert_equal(file_read(self, file, host_off(0), buf, sizeof(buf)), 0);
    for (unsigned i = 0; i < sizeof(buf); i++)
        fiber_assert_equal(buf[i], i / NEIGHBOUR_BYTES + 4);
    fiber_assert_equal(file_size(file), sizeof(buf));
}

static void check_zeros(Fiber *self, File *file, uint64_t from, uint64_t to, uint64_t end)
{
    uint8_t *buf = g_malloc(end);
    fiber_assert_equal(file_read(self, file, host_off(0), buf, end), 0);
    for (uint64_t i = 0; i < end; i++)
        fiber_assert_equal(buf[i], i >= from && i < to ? 0 : 7);
    g_free(buf);
}

FILE_TEST(zeroing_at_odd_places)
{
    enum { END = 100000 };
    static const FileZeroFlags flags[] = {0, FILE_ZERO_UNMAP, FILE_ZERO_UNMAP | FILE_ZERO_FAST};
    uint8_t *buf = g_malloc(END);
    memset(buf, 7, END);
    for (size_t i = 0; i < G_N_ELEMENTS(flags); i++) {
        fiber_assert_equal(file_write(self, file, host_off(0), buf, END), 0);
        fiber_assert_equal(file_zero(self, file, host_off(1001), 50003, flags[i]), 0);
        check_zeros(self, file, 1001, 51004, END);
        fiber_assert_equal(file_size(file), MAX(END, i * 4096 + END));
        // Past the end: the file grows.
        uint64_t end = file_size(file) + 4096;
        fiber_assert_equal(file_zero(self, file, host_off(END), end - END, flags[i]), 0);
        fiber_assert_equal(file_size(file), end);
        struct stat st;
        fiber_assert(stat(file_path(file), &st) == 0 && (uint64_t)st.st_size == end);
    }
    g_free(buf);
}

FILE_TEST(reserved_space_changes_nothing_but_the_size)
{
    enum { END = 100000, MORE = 30000 };
    uint8_t *buf = g_malloc(END + MORE);
    memset(buf, 7, END);
    fiber_assert_equal(file_write(self, file, host_off(0), buf, END), 0);
    fiber_assert_equal(file_discard(self, file, host_off(8192), 16384), 0);
    uint64_t before, after;
    fiber_assert_equal(file_allocated_bytes(self, file, &before), 0);
    int r = file_reserve(self, file, host_off(0), END + MORE);
    if (r == 0) { // else the host has no such call
        fiber_assert_equal(file_size(file), END + MORE);
        fiber_assert_equal(file_allocated_bytes(self, file, &after), 0);
        fiber_assert(after >= before && after >= END + MORE);
    }
    fiber_assert(r == 0 || r == -ENOTSUP);
    fiber_assert_equal(file_read(self, file, host_off(0), buf, END + MORE), 0);
    fiber_assert(buf[8191] == 7 && buf[8192 + 16384] == 7 && buf[END - 1] == 7);
    fiber_assert(buf[8192] == 0 && buf[END] == 0 && buf[END + MORE - 1] == 0);
    fiber_assert_equal(file_reserve(self, file, host_off(UINT64_MAX - 5), 50), -EFBIG);
    g_free(buf);
}

FILE_TEST(discard_leaves_the_rest_and_truncate_sets_the_size)
{
    enum { END = 100000 };
    uint8_t *buf = g_malloc(END);
    memset(buf, 7, END);
    fiber_assert_equal(file_write(self, file, host_off(0), buf, END), 0);
    fiber_assert_equal(file_discard(self, file, host_off(8192), 4096), 0);
    fiber_assert_equal(file_read(self, file, host_off(0), buf, END), 0);
    fiber_assert(buf[8191] == 7 && buf[8192 + 4096] == 7);
    fiber_assert(buf[8192] == 0 || buf[8192] == 7);
    fiber_assert_equal(file_truncate(self, file, 5001), 0);
    fiber_assert_equal(file_size(file), 5001);
    fiber_assert_equal(file_truncate(self, file, 70000), 0);
    fiber_assert_equal(file_read(self, file, host_off(0), buf, 70000), 0);
    fiber_assert(buf[5000] == 7 && buf[5001] == 0 && buf[69999] == 0);
    g_free(buf);
}

FILE_TEST(extents_are_found_and_forgotten_when_they_change)
{
    bool is_data;
    uint64_t len, hole = 1 << 20;
    uint8_t byte = 7;
    fiber_assert_equal(file_write(self, file, host_off(2 * hole), &byte, 1), 0);
    fiber_assert_equal(file_find_extent(self, file, host_off(0), hole, &is_data, &len), 0);
    fiber_assert(!is_data && len == hole); // capped
    fiber_assert_equal(file_find_extent(self, file, host_off(4096), 4 * hole, &is_data, &len), 0);
    fiber_assert(!is_data && len == 2 * hole - 4096);
    fiber_assert_equal(file_write(self, file, host_off(4096), &byte, 1), 0);
    fiber_assert_equal(file_find_extent(self, file, host_off(4096), 1, &is_data, &len), 0);
    fiber_assert(is_data && len == 1);
    fiber_assert_equal(file_find_extent(self, file, host_off(2 * hole), hole, &is_data, &len), 0);
    fiber_assert(is_data && len == 1);
}

FILE_TEST(a_hole_takes_no_space_of_the_host)
{
    uint64_t before, after;
    uint8_t *buf = g_malloc0(1 << 20);
    fiber_assert_equal(file_truncate(self, file, 1 << 30), 0);
    fiber_assert_equal(file_allocated_bytes(self, file, &before), 0);
    fiber_assert(before < 1 << 20);
    fiber_assert_equal(file_write(self, file, host_off(1 << 20), buf, 1 << 20), 0);
    fiber_assert_equal(file_flush(self, file), 0);
    fiber_assert_equal(file_allocated_bytes(self, file, &after), 0);
    fiber_assert(after >= before + (1 << 20) && after < 1 << 30);
    g_free(buf);
}

// From one file of the place to another, inside and past its end. Who can copy says so, and where
// nobody can nothing is done.
FIBER_TEST(copies_within_the_host_are_writes_or_nothing)
{
    enum { LEN = 64 * 1024, AT = 3 * LEN };
    static const uint64_t offs[][3] = {{0, 0, LEN}, {4096, AT, LEN - 4096}, {3, 5, 1000}};
    g_autofree uint8_t *from = g_malloc(LEN), *to = g_malloc(LEN);
    for (size_t i = 0; i < LEN; i++)
        from[i] = (uint8_t)(i * 31 + i / 251);
    for (size_t i = 0; i < G_N_ELEMENTS(places); i++) {
        Place other = {"chaind-test-file-from.tmp", places[i].flags};
        g_autofree char *in_memory = g_strdup_printf("%s-from", memory_path);
        if (i == 0)
            other.path = in_memory;
        File *source = create(self, &other), *file = create(self, &places[i]);
        fiber_assert(file_is_in_memory(file) == (i == 0));
        fiber_assert_equal(file_write(self, source, host_off(0), from, LEN), 0);
        fiber_assert_equal(file_write(self, file, host_off(0), "other", 5), 0);
        for (size_t n = 0; n < G_N_ELEMENTS(offs); n++) {
            uint64_t from_off = offs[n][0], to_off = offs[n][1], len = offs[n][2];
            uint64_t size = file_size(file);
            int r = file_copy(self, source, host_off(from_off), file, host_off(to_off), len);
            fiber_assert(i == 0 ? r == 0 : r >= 0 || r == -ENOTSUP);
            fiber_assert_equal(file_size(file), r < 0 ? size : MAX(size, to_off + len));
            fiber_assert_equal(file_read(self, file, host_off(to_off), to, len), 0);
            if (r >= 0)
                fiber_assert(!memcmp(to, from + from_off, len));
            else
                fiber_assert(n || !memcmp(to, "other", 6));
        }
        // What lies past the end of the source is for reads only.
        fiber_assert_equal(file_copy(self, source, host_off(LEN - 1), file, host_off(0), 2),
                           -ENOTSUP);
        destroy(self, source);
        destroy(self, file);
    }
}

FILE_TEST(the_size_follows_another_program_on_request)
{
    fiber_assert_equal(file_size(file), 0);
    fiber_assert_equal(truncate(file_path(file), 12345), 0);
    fiber_assert_equal(file_size(file), 0);
    fiber_assert_equal(file_refresh_size(self, file), 0);
    fiber_assert_equal(file_size(file), 12345);
}

// A limit on file sizes gives real short and failing transfers.
FILE_TEST(a_write_that_the_host_refuses_fails_with_its_errno)
{
    enum { LIMIT = 64 * 1024 };
    struct rlimit before, limit;
    uint8_t *buf = g_malloc0(2 * LIMIT);
    signal(SIGXFSZ, SIG_IGN);
    fiber_assert_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = LIMIT;
    fiber_assert_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    fiber_assert_equal(file_write(self, file, host_off(0), buf, 2 * LIMIT), -EFBIG);
    fiber_assert_equal(file_write(self, file, host_off(LIMIT), buf, 10), -EFBIG);
    fiber_assert_equal(file_write(self, file, host_off(0), buf, LIMIT), 0);
    fiber_assert_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    fiber_assert_equal(file_write(self, file, host_off(LIMIT), buf, 10), 0);
    g_free(buf);
}

FIBER_TEST(opening_says_what_is_wrong)
{
    static const struct {
        const char *path;
        FileOpenFlags flags;
        int result;
        const char *text;
    } cases[] = {
        {"missing-file", 0, -ENOENT, "cannot open missing-file: No such file"},
        {"missing-file", FILE_WRITABLE, -ENOENT, "cannot open missing-file for writing: "},
        {"/tmp", 0, -EINVAL, "neither a regular file nor a block device"},
        {"/dev/null", 0, -EINVAL, "neither a regular file nor a block device"},
        {"test-fifo.tmp", 0, -EINVAL, "neither a regular file nor a block device"},
        {"test-link.tmp", FILE_NO_FOLLOW_FINAL, -ELOOP, "it is a symbolic link"},
        {"test-there.tmp", FILE_CREATE | FILE_WRITABLE, -EEXIST, "cannot create test-there.tmp: "},
    };
    unlink("test-fifo.tmp");
    unlink("test-link.tmp");
    fiber_assert_equal(mkfifo("test-fifo.tmp", 0600), 0);
    fiber_assert_equal(symlink("/dev/null", "test-link.tmp"), 0);
    close(open("test-there.tmp", O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        File *file = NULL;
        GError *error = NULL;
        int r = file_open(self, cases[i].path, cases[i].flags, &file, &error);
        fiber_assert_equal(r, cases[i].result);
        fiber_assert(file == NULL);
        if (!strstr(error->message, cases[i].text))
            g_error("'%s' lacks '%s'", error->message, cases[i].text);
        g_error_free(error);
    }
    unlink("test-fifo.tmp");
    unlink("test-link.tmp");
    unlink("test-there.tmp");
}

FIBER_TEST(names_are_renamed_and_removed)
{
    GError *error = NULL;
    uint64_t id[2], other[2];
    File *file = create(self, &places[1]), *again;
    fiber_assert_equal(file_rename(self, file_path(file), "test-renamed.tmp", &error), 0);
    fiber_assert_equal(file_sync_dir(self, "test-renamed.tmp", &error), 0);
    fiber_assert_equal(file_open(self, "./test-renamed.tmp", 0, &again, &error), 0);
    file_identity(file, id);
    file_identity(again, other);
    fiber_assert(!memcmp(id, other, sizeof(id)));
    fiber_assert(!file_is_writable(again) && file_is_writable(file));
    file_close(self, again);
    file_close(self, file);
    fiber_assert_equal(file_unlink(self, "test-renamed.tmp", &error), 0);
    fiber_assert_equal(file_unlink(self, "test-renamed.tmp", &error), -ENOENT);
    fiber_assert(strstr(error->message, "cannot remove test-renamed.tmp: "));
    g_clear_error(&error);
    fiber_assert_equal(file_rename(self, "test-renamed.tmp", "b", &error), -ENOENT);
    g_clear_error(&error);
    fiber_assert_equal(file_sync_dir(self, "missing-dir/file", &error), -ENOENT);
    g_clear_error(&error);
}

int main(void)
{
    g_snprintf(memory_path, sizeof memory_path, "/dev/shm/chaind-test-file-%d", (int)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_reads_and_writes_match_a_copy_in_memory),
        cmocka_unit_test(a_read_past_the_end_gives_zeros),
        cmocka_unit_test(many_transfers_in_one_batch),
        cmocka_unit_test(neighbours_in_one_block_do_not_undo_each_other),
        cmocka_unit_test(zeroing_at_odd_places),
        cmocka_unit_test(reserved_space_changes_nothing_but_the_size),
        cmocka_unit_test(discard_leaves_the_rest_and_truncate_sets_the_size),
        cmocka_unit_test(extents_are_found_and_forgotten_when_they_change),
        cmocka_unit_test(a_hole_takes_no_space_of_the_host),
        cmocka_unit_test(copies_within_the_host_are_writes_or_nothing),
        cmocka_unit_test(the_size_follows_another_program_on_request),
        cmocka_unit_test(a_write_that_the_host_refuses_fails_with_its_errno),
        cmocka_unit_test(opening_says_what_is_wrong),
        cmocka_unit_test(names_are_renamed_and_removed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
