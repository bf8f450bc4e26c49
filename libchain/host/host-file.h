// SPDX-License-Identifier: LGPL-2.1-or-later
// A file or block device of the host. For libchain/host. On the file's loop.
#pragma once

#include "host/host-device.h"
#include "host/host-loop.h"
#include "host/warm-map.h"

// How a transfer is tried before it goes to the ring or a worker.
typedef enum HostFileInline {
    HOST_FILE_INLINE_NEVER,  // the file system knows no RWF_NOWAIT
    HOST_FILE_INLINE_CACHED, // RWF_NOWAIT: what the page cache can do at once
    HOST_FILE_INLINE_ALWAYS, // memory-backed: nothing there blocks
} HostFileInline;

struct HostFile {
    File file;
    HostLoop *host;
    HostDevice *device;
    int fd;
    HostFileInline inline_reads, inline_writes;
    bool misses_block; // reads that miss the page cache: they ask a program or another machine
    bool has_own_map;  // a file system's, which it may have to read first
    WarmMap warm;      // for files with such a map
    atomic_bool has_no_punch, has_no_zero_range; // the file system said so; set by any worker
    _Atomic(dev_t) no_sharing_with;              // files of that device; 0: none was tried in vain
    unsigned locks_held; // bits: FilePerm, and FilePerm << LOCK_UNSHARED_SHIFT
    // Buffered writes, each list latest first: of this turn; handed to the job, which takes them
    // while it runs; and done by it (results in backend_data).
    FileTransfer *first_new_write, *last_new_write;
    _Atomic(FileTransfer *) writes, written;
    LoopCall written_call;
    atomic_bool is_written_call_posted;
    DeviceJob write_job;
    bool is_job_under_way;
    DeviceJob write_out_job;
    bool is_writing_out;
    FiberQueue job_ended; // file_close(): either of them
    uint8_t *copy_buffer; // of host_file_copy(), for the write job; NULL until it is needed
    bool is_dirty;        // on host->dirty_files
    HostFile *next_dirty;
};

// host-file-range.c: FileOps.write_tail, zero, discard, truncate, find_extent, get_size,
// get_allocated
int host_file_write_tail(Fiber *self, File *file, uint64_t off, const void *buf, size_t len);
int host_file_zero(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags);
int host_file_reserve(Fiber *self, File *file, uint64_t off, uint64_t len);
int host_file_discard(Fiber *self, File *file, uint64_t off, uint64_t len);
int host_file_truncate(Fiber *self, File *file, uint64_t size);
int host_file_find_extent(Fiber *self, File *file, uint64_t off, uint64_t len, bool *ret_is_data,
                          uint64_t *ret_len);
int host_file_get_size(Fiber *self, File *file, uint64_t *ret_size);
int host_file_get_stamp(Fiber *self, File *file, FileStamp *ret_stamp);
int host_file_get_allocated(Fiber *self, File *file, uint64_t *ret_bytes);
int host_file_get_free(Fiber *self, File *file, uint64_t *ret_bytes, bool *ret_can_share);
// Size of an open descriptor; blocking.
int host_file_measure(int fd, bool is_block_device, uint64_t *ret_size);
// `len` bytes or -errno; blocking.
int host_file_write_all(int fd, const uint8_t *buf, size_t len, uint64_t off);
// host-file-copy.c: FileOps.copy, may_copy
int host_file_copy(Fiber *self, File *from, uint64_t from_off, File *to, uint64_t to_off,
                   uint64_t len);
bool host_file_may_copy(const File *from, uint64_t from_off, const File *to, uint64_t len);
// A transfer with `is_copy`: in the write job, and after it. Bytes, or -errno.
ssize_t host_file_copy_run(FileTransfer *x);
void host_file_copy_end(FileTransfer *x, int result);
// host-file.c
void host_file_init_writes(HostFile *h);
void host_file_add_write(HostFile *h, FileTransfer *x);
// Whether the page cache has all of a range, as far as the kernel can tell without starting
// anything (cachestat, 6.5 and newer).
bool host_file_is_cached(const HostFile *h, uint64_t off, size_t len);
extern const FileOps host_file_ops;
// host-file-open.c
int host_file_set_direct(Fiber *self, File *file, bool is_direct, GError **error);
// host-file-lock.c
int host_file_make_writable(Fiber *self, File *file, GError **error);
int host_file_lock(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error);

// Runs a call that blocks on a disk but not on memory: inline or on one of the device's workers.
static inline int host_file_call(Fiber *self, HostFile *h, LoopWorkFn *fn, void *arg)
{
    if (h->inline_reads == HOST_FILE_INLINE_ALWAYS)
        return fn(arg);
    return host_device_work(self, h->device, fn, arg);
}
