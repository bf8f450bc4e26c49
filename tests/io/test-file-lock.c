// SPDX-License-Identifier: LGPL-2.1-or-later
// The byte locks, with QEMU's own programs as the other side.
#include "../loop/in-fiber.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/host-file.h"

static const char path[] = "test-lock.tmp";

enum {
    TOP = FILE_PERM_CONSISTENT_READ | FILE_PERM_WRITE | FILE_PERM_RESIZE,
    TOP_UNSHARED = FILE_PERM_WRITE | FILE_PERM_RESIZE,
    BACKING = FILE_PERM_CONSISTENT_READ,
};

static File *open_image(Fiber *self, FileOpenFlags flags)
{
    File *file;
    GError *error = NULL;
    if (file_open(self, path, flags, &file, &error) < 0)
        g_error("%s", error->message);
    return file;
}

static void make_image(void)
{
    unlink(path);
    fiber_assert_equal(system("qemu-img create -q -f qcow2 test-lock.tmp 1M"), 0);
}

// Exit status of `qemu-io COMMAND` on the image.
static int qemu_io(const char *options, const char *command)
{
    g_autofree char *line =
        g_strdup_printf("qemu-io -f qcow2 %s -c '%s' %s >/dev/null 2>&1", options, command, path);
    return WEXITSTATUS(system(line));
}

static void have_qemu(void)
{
    if (system("command -v qemu-io >/dev/null") != 0) {
        print_message("# SKIP qemu-io is not installed\n");
        skip();
    }
}

static void qemu_refuses_fiber(Fiber *self, void *arg)
{
    GError *error = NULL;
    make_image();
    File *file = open_image(self, FILE_WRITABLE);
    fiber_assert_equal(qemu_io("", "write 0 512"), 0);
    fiber_assert_equal(file_lock(self, file, TOP, TOP_UNSHARED, &error), 0);
    fiber_assert(qemu_io("", "write 0 512") != 0);
    fiber_assert(qemu_io("-r", "read 0 512") != 0);
    fiber_assert_equal(qemu_io("-r -U", "read 0 512"), 0);
    // As a backing file: others may read, none may write.
    fiber_assert_equal(file_lock(self, file, BACKING, TOP_UNSHARED, &error), 0);
    fiber_assert_equal(qemu_io("-r", "read 0 512"), 0);
    fiber_assert(qemu_io("", "write 0 512") != 0);
    fiber_assert_equal(file_lock(self, file, 0, 0, &error), 0);
    fiber_assert_equal(qemu_io("", "write 0 512"), 0);
    fiber_assert_equal(file_lock(self, file, TOP, TOP_UNSHARED, &error), 0);
    file_close(self, file);
    fiber_assert_equal(qemu_io("", "write 0 512"), 0); // closing releases
    unlink(path);
}

static void qemu_is_kept_out_of_what_we_hold(void **state)
{
    have_qemu();
    run_in_fiber(qemu_refuses_fiber, NULL);
}

// qemu-io that has the image open until its standard input ends; returns when it has its locks.
typedef struct Holder {
    pid_t pid;
    int in, out;
} Holder;

static Holder start_holder(bool is_writable)
{
    int in[2], out[2];
    fiber_assert(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        execlp("qemu-io", "qemu-io", "-f", "qcow2", path, is_writable ? NULL : "-r", NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    fiber_assert_equal(write(in[1], "length\n", 7), 7);
    // The prompt and the answer come once the image is open.
    char buf[256] = "";
    size_t n = 0;
    while (!strstr(buf, "MiB") && n < sizeof(buf) - 1) {
        ssize_t r = read(out[0], buf + n, sizeof(buf) - 1 - n);
        fiber_assert(r > 0);
        n += (size_t)r;
        buf[n] = '\0';
    }
    return (Holder){pid, in[1], out[0]};
}

static void end_holder(Holder *h)
{
    int status;
    close(h->in);
    waitpid(h->pid, &status, 0);
    close(h->out);
}

static void we_refuse_fiber(Fiber *self, void *arg)
{
    GError *error = NULL;
    make_image();
    File *file = open_image(self, FILE_WRITABLE);
    Holder h = start_holder(true);
    fiber_assert_equal(file_lock(self, file, TOP, TOP_UNSHARED, &error), -EAGAIN);
    g_autofree char *who =
        g_strdup_printf("test-lock.tmp is in use by qemu-io (pid %d), which ", (int)h.pid);
    if (!g_str_has_prefix(error->message, who) ||
        !strstr(error->message, ": stop it, or open read-only with --force-share"))
        g_error("got '%s'", error->message);
    g_clear_error(&error);
    fiber_assert_equal(file_lock(self, file, BACKING, TOP_UNSHARED, &error), -EAGAIN);
    g_clear_error(&error);
    end_holder(&h);
    fiber_assert_equal(file_lock(self, file, TOP, TOP_UNSHARED, &error), 0);
    file_close(self, file);

    file = open_image(self, 0);
    h = start_holder(false);
    fiber_assert_equal(file_lock(self, file, BACKING, TOP_UNSHARED, &error), 0);
    fiber_assert_equal(file_lock(self, file, TOP, TOP_UNSHARED, &error), -EAGAIN);
    g_clear_error(&error);
    // The state before is kept: still a backing file, so no writer may come.
    fiber_assert(qemu_io("", "write 0 512") != 0);
    fiber_assert_equal(qemu_io("-r", "read 0 512"), 0);
    end_holder(&h);
    file_close(self, file);
    unlink(path);
}

static void we_keep_out_of_what_qemu_holds_and_name_it(void **state)
{
    have_qemu();
    run_in_fiber(we_refuse_fiber, NULL);
}

// A read-only file under another name by now becomes writable without giving up its locks.
static void reopen_fiber(Fiber *self, void *arg)
{
    GError *error = NULL;
    make_image();
    File *file = open_image(self, 0);
    fiber_assert_equal(file_lock(self, file, BACKING, TOP_UNSHARED, &error), 0);
    Holder h = start_holder(false);
    fiber_assert_equal(file_reopen(self, file, true, &error), -EAGAIN);
    g_clear_error(&error);
    fiber_assert(!file_is_writable(file));
    end_holder(&h);
    fiber_assert_equal(rename(path, "test-lock-renamed.tmp"), 0);
    make_image();
    for (int i = 0; i < 2; i++) {
        fiber_assert_equal(file_reopen(self, file, true, &error), 0);
        fiber_assert_equal(file_write(self, file, host_off(1 << 20), "hello", 5), 0);
        fiber_assert_equal(qemu_io("-r", "read 0 512"), 0); // another file
        fiber_assert_equal(rename("test-lock-renamed.tmp", path), 0);
        fiber_assert(qemu_io("-r", "read 0 512") != 0);
        fiber_assert_equal(file_reopen(self, file, false, &error), 0);
        fiber_assert_equal(qemu_io("-r", "read 0 512"), 0);
        fiber_assert(qemu_io("", "write 0 512") != 0);
        fiber_assert_equal(rename(path, "test-lock-renamed.tmp"), 0);
        make_image();
    }
    file_close(self, file);
    unlink(path);
    unlink("test-lock-renamed.tmp");
}

static void a_file_is_made_writable_and_back_under_its_locks(void **state)
{
    have_qemu();
    run_in_fiber(reopen_fiber, NULL);
}

static void without_locks_fiber(Fiber *self, void *arg)
{
    GError *error = NULL;
    make_image();
    File *file = open_image(self, 0);
    fiber_assert_equal(file_reopen(self, file, true, &error), 0);
    fiber_assert_equal(file_write(self, file, host_off(1 << 20), "hello", 5), 0);
    fiber_assert_equal(qemu_io("", "write 0 512"), 0);
    file_close(self, file);
    fiber_assert_equal(chmod(path, 0400), 0);
    if (geteuid() != 0) { // whom nothing is refused
        file = open_image(self, 0);
        fiber_assert_equal(file_lock(self, file, BACKING, TOP_UNSHARED, &error), 0);
        fiber_assert_equal(file_reopen(self, file, true, &error), -EACCES);
        g_clear_error(&error);
        fiber_assert_equal(qemu_io("-r", "read 0 512"), 0); // its locks are those of a reader
        file_close(self, file);
    }
    unlink(path);
}

static void a_file_without_locks_gets_none_by_becoming_writable(void **state)
{
    have_qemu();
    run_in_fiber(without_locks_fiber, NULL);
}

static void two_files_fiber(Fiber *self, void *arg)
{
    GError *error = NULL;
    make_image();
    File *a = open_image(self, FILE_WRITABLE), *b = open_image(self, FILE_WRITABLE);
    fiber_assert_equal(file_lock(self, a, TOP, TOP_UNSHARED, &error), 0);
    fiber_assert_equal(file_lock(self, a, TOP, TOP_UNSHARED, &error), 0); // again: no change
    fiber_assert_equal(file_lock(self, b, TOP, TOP_UNSHARED, &error), -EAGAIN);
    fiber_assert(strstr(error->message, "this process"));
    g_clear_error(&error);
    fiber_assert_equal(file_lock(self, b, 0, 0, &error), 0);
    fiber_assert_equal(file_lock(self, a, BACKING, TOP_UNSHARED, &error), 0);
    fiber_assert_equal(file_lock(self, b, BACKING, TOP_UNSHARED, &error), 0);
    file_close(self, a);
    fiber_assert_equal(file_lock(self, b, TOP, TOP_UNSHARED, &error), 0);
    file_close(self, b);
    unlink(path);
}

static void two_files_of_one_process_conflict_too(void **state)
{
    have_qemu();
    run_in_fiber(two_files_fiber, NULL);
}

static void lock_of(int socket, int byte)
{
    struct flock l = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int fd = open(path, O_RDWR | O_CLOEXEC);
    fiber_assert_equal(fcntl(fd, F_OFD_SETLK, &l), 0);
    char control[CMSG_SPACE(sizeof(int))] = {0}, byte_sent = 0;
    struct iovec iov = {&byte_sent, 1};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    fiber_assert_equal(sendmsg(socket, &m, 0), 1);
    close(fd);
}

typedef struct Locking {
    File *file;
    int n_done;
    FiberWaitGroup group;
} Locking;

static void locks(Fiber *self, void *arg)
{
    Locking *l = arg;
    GError *error = NULL;
    if (file_lock(self, l->file, TOP, TOP_UNSHARED, &error) < 0)
        g_error("%s", error->message);
    l->n_done++;
    fiber_wait_group_done(&l->group);
}

static int answer(void *arg)
{
    return 42;
}

// A descriptor on its way through a socket is no process's.
static void dying_holder_fiber(Fiber *self, void *arg)
{
    int pair[2];
    unlink(path);
    close(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    fiber_assert_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    lock_of(pair[0], 201);
    Locking l = {.file = open_image(self, FILE_WRITABLE)};
    fiber_wait_group_add(&l.group, 1);
    fiber_assert_equal(fiber_spawn(fiber_loop(self), "locks", locks, &l, NULL), 0);
    fiber_assert_equal(host_device_work(self, ((HostFile *)l.file)->device, answer, NULL), 42);
    fiber_assert_equal(host_device_work(self, ((HostFile *)l.file)->device, answer, NULL), 42);
    fiber_assert(!l.n_done);
    close(pair[0]);
    close(pair[1]);
    fiber_wait_group_wait(self, &l.group);
    file_close(self, l.file);
    unlink(path);
}

static void the_lock_of_a_process_that_is_gone_is_waited_for_without_a_worker(void **state)
{
    LoopConfig config = {.max_workers = 4}; // one place for a device
    run_in_fiber_of(&config, dying_holder_fiber, NULL);
}

static void closed_meanwhile_fiber(Fiber *self, void *arg)
{
    unlink(path);
    close(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    Locking l = {.file = open_image(self, FILE_WRITABLE)};
    fiber_wait_group_add(&l.group, 2);
    for (int i = 0; i < 2; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "locks", locks, &l, NULL), 0);
    fiber_yield(self); // both have begun
    fiber_assert(!l.n_done);
    file_close(self, l.file);
    fiber_assert_equal(l.n_done, 2);
    fiber_wait_group_wait(self, &l.group);
    unlink(path);
}

static void a_file_is_closed_after_those_who_change_its_locks_are_through(void **state)
{
    run_in_fiber(closed_meanwhile_fiber, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qemu_is_kept_out_of_what_we_hold),
        cmocka_unit_test(we_keep_out_of_what_qemu_holds_and_name_it),
        cmocka_unit_test(a_file_is_made_writable_and_back_under_its_locks),
        cmocka_unit_test(a_file_without_locks_gets_none_by_becoming_writable),
        cmocka_unit_test(two_files_of_one_process_conflict_too),
        cmocka_unit_test(the_lock_of_a_process_that_is_gone_is_waited_for_without_a_worker),
        cmocka_unit_test(a_file_is_closed_after_those_who_change_its_locks_are_through),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
