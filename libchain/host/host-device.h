// SPDX-License-Identifier: LGPL-2.1-or-later
// Workers in use per device. Files of one device (st_dev, or the block device itself) share a few
// places in the worker pool, which grows with the devices, and a few of the kernel's workers, so
// that disks that hang cannot take all workers from the others. Loop thread.
#pragma once

#include "host/host-loop.h"

typedef struct DeviceJob DeviceJob;
struct DeviceJob {
    WorkerJob job; // the caller sets job.run
    HostDevice *device;
    void (*done)(DeviceJob *job); // on the loop; the storage is the caller's again
    DeviceJob *next;
};

HostDevice *host_device_ref(HostLoop *host, dev_t number);
void host_device_unref(HostDevice *device);

void host_device_submit(HostDevice *device, DeviceJob *job);
// Reads through the ring that may keep a worker of the kernel each. False: it is queued, and
// returned by a later host_device_end_read().
bool host_device_take_read(HostDevice *device, FileTransfer *x);
// One that was taken ended. The next to start, which is taken by that; or NULL.
FileTransfer *host_device_end_read(HostDevice *device);
// Reads that the kernel only starts on the loop's thread. With many of those under way even that
// may block (a device takes so many requests, and no more): further ones shall go to its workers.
void host_device_begin_miss(HostDevice *device);
void host_device_end_miss(HostDevice *device);
bool host_device_is_congested(const HostDevice *device);
// loop_work() on one of the device's places.
int host_device_work(Fiber *self, HostDevice *device, LoopWorkFn *fn, void *arg);
