// SPDX-License-Identifier: LGPL-2.1-or-later
// A device that hangs takes only its own places among the workers.
#include "../loop/in-fiber.h"

#include <errno.h>
#include <unistd.h>

#include "host/host-device.h"

enum { N_HANGING = 30, N_OTHERS = 5 };

typedef struct Disk {
    HostDevice *device;
    int gate[2]; // calls end when it can be read
    atomic_uint n_running, n_max, n_done;
    FiberWaitGroup group;
} Disk;

static int hang(void *arg)
{
    Disk *d = arg;
    char c;
    unsigned n = atomic_fetch_add(&d->n_running, 1) + 1;
    unsigned max = atomic_load(&d->n_max);
    while (n > max && !atomic_compare_exchange_weak(&d->n_max, &max, n))
        ;
    ssize_t r = read(d->gate[0], &c, 1);
    atomic_fetch_sub(&d->n_running, 1);
    atomic_fetch_add(&d->n_done, 1);
    return r == 1 ? 0 : -EIO;
}

static void calls_hang(Fiber *self, void *arg)
{
    Disk *d = arg;
    fiber_assert_equal(host_device_work(self, d->device, hang, d), 0);
    fiber_wait_group_done(&d->group);
}

static int answer(void *arg)
{
    return 42;
}

static void hanging_fiber(Fiber *self, void *arg)
{
    HostLoop *host = (HostLoop *)fiber_loop(self);
    HostDevice *good = host_device_ref(host, 2);
    Disk bad = {.device = host_device_ref(host, 1)};
    fiber_assert(host_device_ref(host, 1) == bad.device);
    host_device_unref(bad.device);
    fiber_assert_equal(pipe(bad.gate), 0);
    fiber_wait_group_add(&bad.group, N_HANGING);
    for (int i = 0; i < N_HANGING; i++)
        fiber_assert_equal(fiber_spawn(fiber_loop(self), "hangs", calls_hang, &bad, NULL), 0);
    // Would not return if the hanging calls had all eight workers.
    for (int i = 0; i < N_OTHERS; i++)
        fiber_assert_equal(host_device_work(self, good, answer, NULL), 42);
    fiber_assert_equal(atomic_load(&bad.n_done), 0);
    char go[N_HANGING] = {0};
    fiber_assert_equal(write(bad.gate[1], go, sizeof(go)), sizeof(go));
    fiber_wait_group_wait(self, &bad.group);
    fiber_assert_equal(atomic_load(&bad.n_done), N_HANGING);
    fiber_assert(atomic_load(&bad.n_max) <= 2); // a quarter of them
    close(bad.gate[0]);
    close(bad.gate[1]);
    host_device_unref(bad.device);
    host_device_unref(good);
}

static void a_device_that_hangs_does_not_take_the_workers_of_another(void **state)
{
    LoopConfig config = {.max_workers = 8};
    run_in_fiber_of(&config, hanging_fiber, NULL);
}

typedef struct Again {
    DeviceJob job;
    unsigned n_runs;
    bool may_end;
    Fiber *fiber;
} Again;

static void run_nothing(WorkerJob *job)
{
}

static void submit_again(DeviceJob *job)
{
    Again *a = (Again *)job;
    a->n_runs++;
    if (!a->may_end)
        host_device_submit(a->job.device, &a->job);
    else
        fiber_wake(a->fiber);
}

static void again_fiber(Fiber *self, void *arg)
{
    HostDevice *device = host_device_ref((HostLoop *)fiber_loop(self), 1);
    Again again = {{.job.run = run_nothing, .done = submit_again}, .fiber = self};
    host_device_submit(device, &again.job);
    for (int i = 0; i < N_OTHERS; i++)
        fiber_assert_equal(host_device_work(self, device, answer, NULL), 42);
    fiber_assert(again.n_runs <= N_OTHERS + 1); // each had its turn
    again.may_end = true;
    fiber_suspend(self, "the last run");
    host_device_unref(device);
}

static void a_job_that_submits_itself_again_does_not_overtake_others(void **state)
{
    LoopConfig config = {.max_workers = 4}; // one place for a device
    run_in_fiber_of(&config, again_fiber, NULL);
}

static void many_hanging_fiber(Fiber *self, void *arg)
{
    enum { N_BAD = 10, N_EACH = 4 };
    HostLoop *host = (HostLoop *)fiber_loop(self);
    HostDevice *good = host_device_ref(host, 100);
    Disk bad[N_BAD];
    for (unsigned i = 0; i < N_BAD; i++) {
        bad[i] = (Disk){.device = host_device_ref(host, i)};
        fiber_assert_equal(pipe(bad[i].gate), 0);
        fiber_wait_group_add(&bad[i].group, N_EACH);
        for (unsigned j = 0; j < N_EACH; j++)
            fiber_assert_equal(fiber_spawn(fiber_loop(self), "hangs", calls_hang, &bad[i], NULL),
                               0);
    }
    for (int i = 0; i < N_OTHERS; i++) {
        fiber_assert_equal(host_device_work(self, good, answer, NULL), 42);
        fiber_assert_equal(loop_work(self, answer, NULL), 42);
    }
    for (unsigned i = 0; i < N_BAD; i++) {
        char go[N_EACH] = {0};
        fiber_assert_equal(atomic_load(&bad[i].n_done), 0);
        fiber_assert_equal(write(bad[i].gate[1], go, sizeof(go)), sizeof(go));
        fiber_wait_group_wait(self, &bad[i].group);
        close(bad[i].gate[0]);
        close(bad[i].gate[1]);
        host_device_unref(bad[i].device);
    }
    host_device_unref(good);
}

static void ten_devices_that_hang_do_not_take_the_workers_of_another(void **state)
{
    run_in_fiber(many_hanging_fiber, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_hangs_does_not_take_the_workers_of_another),
        cmocka_unit_test(a_job_that_submits_itself_again_does_not_overtake_others),
        cmocka_unit_test(ten_devices_that_hang_do_not_take_the_workers_of_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
