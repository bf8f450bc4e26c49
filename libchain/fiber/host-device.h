// SPDX-License-Identifier: LGPL-2.1-or-later
// Workers in use per device. Files of one device (st_dev, or the block device itself) share a few
// places in the worker pool, so that a disk that hangs cannot take all workers from the others.
// Loop thread.
#pragma once

#include "host-loop.h"

typedef struct DeviceJob DeviceJob;
struct DeviceJob {
    WorkerJob job; // the caller sets job.run
    HostDevice *device;
    void (*start)(DeviceJob *job); // on the loop, when it got its place; or NULL
    void (*done)(DeviceJob *job);  // on the loop; the storage is the caller's again
    DeviceJob *next;
};

HostDevice *host_device_ref(HostLoop *host, dev_t number);
void host_device_unref(HostDevice *device);

void host_device_submit(HostDevice *device, DeviceJob *job);
// loop_work() on one of the device's places.
int host_device_work(Fiber *self, HostDevice *device, LoopWorkFn *fn, void *arg);
