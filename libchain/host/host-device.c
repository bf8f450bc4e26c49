// SPDX-License-Identifier: LGPL-2.1-or-later
// A device: how many of its jobs are on workers, and the queue of those that wait for a place; the
// same for reads that block a worker of the kernel. Loop thread.
#include "host/host-device.h"

enum { MAX_BLOCKING_READS = 16, MAX_MISSES = 64 };

struct HostDevice {
    HostLoop *host;
    dev_t number;
    unsigned n_refs;
    unsigned n_running;
    DeviceJob *first, *last; // wait for a place
    unsigned n_misses;
    unsigned n_reads;
    FileTransfer *first_read, *last_read; // wait for others to end
    HostDevice *next;
};

static unsigned places(const HostLoop *host)
{
    return MAX(1, host->max_workers / 4);
}

// Were all devices to hang, half of the workers would be left to everything else.
static void size_pool(HostLoop *host)
{
    unsigned n = 0;
    for (HostDevice *d = host->devices; d; d = d->next)
        n++;
    worker_pool_set_max(host->pool,
                        MAX(host->max_workers, n * places(host) + host->max_workers / 2));
}

HostDevice *host_device_ref(HostLoop *host, dev_t number)
{
    HostDevice *d = host->devices;
    while (d && d->number != number)
        d = d->next;
    if (!d) {
        d = g_new0(HostDevice, 1);
        d->host = host;
        d->number = number;
        d->next = host->devices;
        host->devices = d;
        size_pool(host);
    }
    d->n_refs++;
    return d;
}

void host_device_unref(HostDevice *device)
{
    if (!device || --device->n_refs)
        return;
    HostDevice **link = &device->host->devices;
    while (*link != device)
        link = &(*link)->next;
    *link = device->next;
    size_pool(device->host);
    g_free(device);
}

static void job_done(LoopCall *call);

static void start(HostDevice *device, DeviceJob *job)
{
    device->n_running++;
    job->job.call.fn = job_done;
    // Without a single thread there is no other way than to block here.
    if (worker_pool_submit(device->host->pool, &job->job) < 0) {
        job->job.run(&job->job);
        loop_post(&device->host->io.loop, &job->job.call);
    }
}

static void job_done(LoopCall *call)
{
    DeviceJob *job = (DeviceJob *)call;
    HostDevice *device = job->device;
    device->n_running--;
    device->n_refs++; // `done` may drop the last one
    job->done(job);
    while (device->first && device->n_running < places(device->host)) {
        DeviceJob *next = device->first;
        device->first = next->next;
        start(device, next);
    }
    host_device_unref(device);
}

void host_device_submit(HostDevice *device, DeviceJob *job)
{
    job->device = device;
    job->next = NULL;
    // A job that submits itself again as soon as it is done does not overtake those that wait.
    if (!device->first && device->n_running < places(device->host)) {
        start(device, job);
        return;
    }
    if (device->first)
        device->last->next = job;
    else
        device->first = job;
    device->last = job;
}

void host_device_begin_miss(HostDevice *device)
{
    device->n_misses++;
}

void host_device_end_miss(HostDevice *device)
{
    device->n_misses--;
}

bool host_device_is_congested(const HostDevice *device)
{
    return device->n_misses >= MAX_MISSES;
}

bool host_device_take_read(HostDevice *device, FileTransfer *x)
{
    if (device->n_reads < MAX_BLOCKING_READS) {
        device->n_reads++;
        return true;
    }
    x->next = NULL;
    if (device->first_read)
        device->last_read->next = x;
    else
        device->first_read = x;
    device->last_read = x;
    return false;
}

FileTransfer *host_device_end_read(HostDevice *device)
{
    FileTransfer *x = device->first_read;
    if (x)
        device->first_read = x->next;
    else
        device->n_reads--;
    return x;
}

typedef struct Work {
    DeviceJob job;
    LoopWorkFn *fn;
    void *arg;
    int result;
    bool is_done;
    Fiber *fiber;
} Work;

static void work_run(WorkerJob *job)
{
    Work *w = (Work *)job;
    w->result = w->fn(w->arg);
}

static void work_done(DeviceJob *job)
{
    Work *w = (Work *)job;
    w->is_done = true;
    fiber_wake(w->fiber);
}

int host_device_work(Fiber *self, HostDevice *device, LoopWorkFn *fn, void *arg)
{
    Work w = {.job.job.run = work_run, .job.done = work_done, .fn = fn, .arg = arg, .fiber = self};
    host_device_submit(device, &w.job);
    while (!w.is_done)
        fiber_suspend(self, "worker");
    return w.result;
}
