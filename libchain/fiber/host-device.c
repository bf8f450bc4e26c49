// SPDX-License-Identifier: LGPL-2.1-or-later
// A device: how many of its jobs are on workers, and the queue of those that wait for a place.
// Loop thread.
#include "host-device.h"

struct HostDevice {
    HostLoop *host;
    dev_t number;
    unsigned n_refs;
    unsigned n_running;
    DeviceJob *first, *last; // wait for a place
    HostDevice *next;
};

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
    g_free(device);
}

static unsigned places(const HostDevice *device)
{
    return MAX(1, device->host->max_workers / 4);
}

static void job_done(LoopCall *call);

static void start(HostDevice *device, DeviceJob *job)
{
    device->n_running++;
    if (job->start)
        job->start(job);
    job->job.call.fn = job_done;
    // Without a single thread there is no other way than to block here.
    if (worker_pool_submit(device->host->pool, &job->job) < 0) {
        job->job.run(&job->job);
        loop_post(&device->host->loop, &job->job.call);
    }
}

static void job_done(LoopCall *call)
{
    DeviceJob *job = (DeviceJob *)call;
    HostDevice *device = job->device;
    device->n_running--;
    device->n_refs++; // `done` may drop the last one
    job->done(job);
    DeviceJob *next = device->first;
    if (next && device->n_running < places(device)) {
        device->first = next->next;
        start(device, next);
    }
    host_device_unref(device);
}

void host_device_submit(HostDevice *device, DeviceJob *job)
{
    job->device = device;
    job->next = NULL;
    if (device->n_running < places(device)) {
        start(device, job);
        return;
    }
    if (device->first)
        device->last->next = job;
    else
        device->first = job;
    device->last = job;
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
