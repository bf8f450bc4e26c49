// SPDX-License-Identifier: LGPL-2.1-or-later
// The head of every File and the operations its back end provides. file.c does, for all back ends
// alike: continuing short transfers, zeros past the end, bouncing and block locks of direct I/O,
// sharing of flushes, the sticky flush error, writing zeros where there is no faster way, and the
// memo of the last extent. For libchain/io and the back ends. On the file's loop.
#pragma once

#include "chain-core/debug-event.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/file.h"
#include "loop/loop-op.h"

typedef struct FileOps FileOps;
typedef struct FileTransfer FileTransfer;

// A range of a direct file with a write (or zeroing, …) under way, or waiting for ranges that came
// before it. An exclusive range holds blocks that are read, changed and written back; nothing else
// may change those meanwhile.
typedef struct FileRange FileRange;
struct FileRange {
    uint64_t start, end; // multiples of the alignment
    bool is_exclusive;
    bool is_waiting;
    Fiber *fiber; // to wake when it need not wait any more; NULL: submits the transfer it lies in
    FileRange *previous, *next; // in order of arrival
};

// A transfer of a direct file that is not aligned (file-direct.c).
typedef struct Bounce Bounce;

// A read or write that did not complete inline. From the loop's free list (io-loop.h).
struct FileTransfer {
    LoopOp op; // the back end ends it with file_transfer_done()
    File *file;
    IoBatch *batch; // hears of the end; NULL: `bounce`, a read, does
    Bounce *bounce;
    uint64_t off; // of the next byte to transfer; iov[first_iov] is where it goes
    uint32_t n_left_iov;
    uint32_t first_iov;
    uint32_t n_retries; // since bytes were last transferred
    bool is_write;
    bool is_copy;       // the back end's own, of another file's bytes; neither iov nor batch
    FileRange range;    // direct writes
    FileTransfer *next; // free list; the back end's while under way
    void *backend_data; // the back end's while under way
    struct iovec iov[FILE_MAX_IOV];
};

// How a file is at a moment.
typedef struct FileStamp {
    uint64_t size;
    int64_t mtime_ns; // 0: there is no such time
    uint64_t head;    // a hash over its first bytes
} FileStamp;

struct FileOps {
    // Transfers at once what can be transferred without blocking. Bytes (may be short; 0 from a
    // read: at or past the end), -EAGAIN: nothing was done, use submit(); other -errno.
    // Never called for a File with alignment > 1.
    ssize_t (*try_read)(File *file, uint64_t off, void *buf, size_t len);
    ssize_t (*try_write)(File *file, uint64_t off, const struct iovec *iov, unsigned n_iov);
    // Starts what is left of `x` (off, iov[first_iov …]); then, in any order and at any time, also
    // before submit() returns, file_transfer_done(x, bytes or -errno). May be short. On a File with
    // alignment > 1 offset and length are multiples of it, addresses of address_alignment (except
    // at a short read).
    void (*submit)(FileTransfer *x);
    // Writes these bytes, of any alignment, all or -errno; the file does not end later than they do
    // or than it did, at no moment. For Files with alignment > 1; may suspend.
    int (*write_tail)(Fiber *self, File *file, uint64_t off, const void *buf, size_t len);

    // 0 or -errno each; may suspend.
    int (*flush)(Fiber *self, File *file);
    // Like file_write_out(), of a File whose alignment is 1. NULL: nothing. Does not suspend.
    void (*write_out)(File *file);
    // Like file_zero() but never writes zeros out: -ENOTSUP instead. May leave File.size to file.c.
    int (*zero)(Fiber *self, File *file, uint64_t off, uint64_t len, FileZeroFlags flags);
    int (*reserve)(Fiber *self, File *file, uint64_t off, uint64_t len); // -ENOTSUP is fine
    int (*discard)(Fiber *self, File *file, uint64_t off, uint64_t len); // -ENOTSUP is fine
    int (*truncate)(Fiber *self, File *file, uint64_t size);
    // Like file_copy(), of a range that lies inside `from`. NULL: -ENOTSUP.
    int (*copy)(Fiber *self, File *from, uint64_t from_off, File *to, uint64_t to_off,
                uint64_t len);
    // Like file_may_copy(). Where copy() is.
    bool (*may_copy)(const File *from, uint64_t from_off, const File *to, uint64_t len);
    int (*find_extent)(Fiber *self, File *file, uint64_t off, uint64_t len, bool *ret_is_data,
                       uint64_t *ret_len); // -ENOTSUP: unknown
    int (*get_size)(Fiber *self, File *file, uint64_t *ret_size);
    // Its size and mtime. NULL, -ENOTSUP: who changes it is not known.
    int (*get_stamp)(Fiber *self, File *file, FileStamp *ret_stamp);
    int (*get_allocated)(Fiber *self, File *file, uint64_t *ret_bytes); // NULL: unknown
    // Like file_free_bytes(). NULL: unknown.
    int (*get_free)(Fiber *self, File *file, uint64_t *ret_bytes, bool *ret_can_share);
    void (*debug_event)(File *file, DebugEvent event); // NULL: nobody cares
    int (*lock)(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error);
    // From a File opened for reading to one that the host lets write, with the locks it holds.
    // Reads may be under way.
    int (*make_writable)(Fiber *self, File *file, GError **error);
    // Of a File whose node has a mode of its own: may it be written now? NULL: as it always could.
    bool (*may_be_written)(const File *file);
    // What to do when it is written no more; make_writable() is called again then. NULL: nothing,
    // and it stays as it was made.
    void (*make_read_only)(Fiber *self, File *file);
    // Past the page cache or not, with the alignments of it. NULL: it stays as it was opened.
    int (*set_direct)(Fiber *self, File *file, bool is_direct, GError **error);
    // Nothing is under way. Waits for what is still to come, and lets go of what is the loop's; on
    // its new loop (file->loop) it finds the same there, and does not suspend. NULL: nothing to do.
    void (*detach)(Fiber *self, File *file);
    void (*attach)(File *file);
    // Releases everything, file_done(), frees the struct.
    void (*close)(Fiber *self, File *file);
};

struct File {
    const FileOps *ops;
    Loop *loop;
    char *path;
    uint64_t size;
    uint64_t identity[2];
    uint32_t alignment;         // of offsets and lengths; 1: buffered
    uint32_t address_alignment; // of buffers; 1 in the simulation, or runs would depend on the heap
    uint32_t zero_alignment;    // of FileOps.zero and discard; file.c writes or skips the odd ends
    bool is_writable;
    bool is_direct;      // it was asked for, whatever the host makes of it
    bool host_may_write; // the host lets it: it was opened so, or made so
    bool keeps_mode;     // whatever lies in it
    FileModeFn *mode_fn;
    void *mode_arg;
    unsigned held, unshared; // FilePerm
    FiberMutex lock_mutex;   // of these: changes take effect in the order in which they come
    bool takes_no_locks;
    bool is_inactive; // of `held` and `unshared` it has only what lets others write
    bool is_block_device;
    bool is_in_memory;
    unsigned n_refs;
    bool is_detached; // on its way to another loop

    // Flushes have numbers. A caller needs one that starts after it came.
    uint64_t flush_started, flush_done;
    bool is_flushing;
    bool has_flush_failed;
    FiberQueue flush_waiters;

    // Last answer of find_extent; invalid when empty.
    uint64_t extent_start, extent_end;
    bool extent_is_data;
    uint64_t write_threshold; // UINT64_MAX: none
    FileThresholdFn *threshold_fn;
    void *threshold_arg;
    uint64_t n_changes;  // writes, zeroes, … begun or ended
    unsigned n_changing; // under way
    uint64_t told_size;  // of the last RESIZED event
    FileStamp stamp;     // file-stamp.c
    bool is_remembered, is_change_told;
    FileEventFn *event_fn;
    void *event_arg;

    // Direct I/O: ranges being changed or waiting to be, in order of arrival.
    FileRange *first_range, *last_range;
    unsigned n_exclusive_ranges, n_waiting_ranges;
    // Direct I/O: bounces not yet started, and how many are.
    Bounce *first_bounce, *last_bounce;
    unsigned n_bouncing;
    bool is_pumping;
};

// Fills the head: zeroes, then sets the fields given, the alignments to 1. Copies `path`. The back
// end sets size, identity, alignments, is_block_device and is_in_memory.
void file_init(File *file, const FileOps *ops, Loop *loop, const char *path, FileOpenFlags flags);
void file_done(File *file);

void file_transfer_done(FileTransfer *x, ssize_t result);

// Direct I/O (file-direct.c). Starts a transfer of any alignment.
void file_direct_read_start(File *file, uint64_t off, void *buf, size_t len, IoBatch *batch);
void file_direct_write_start(File *file, uint64_t off, const struct iovec *iov, unsigned n_iov,
                             IoBatch *batch);
// A transfer with `bounce` ended.
void file_bounce_read_done(Bounce *bounce, int result);
void file_bounce_free(Bounce *bounce);
// Keeps other changes of the range away while a partial block is rewritten, and the reverse.
void file_range_lock(Fiber *self, File *file, FileRange *range, uint64_t off, uint64_t len,
                     bool is_exclusive);
void file_range_unlock(File *file, FileRange *range);

// Takes a transfer from the free list, for the caller to fill and submit (file.c). Without `batch`
// the caller sets `bounce`.
FileTransfer *file_transfer_new(File *file, bool is_write, uint64_t off, const struct iovec *iov,
                                unsigned n_iov, IoBatch *batch);
// Puts one back that the back end lost (a simulated power cut); nobody hears of its end.
void file_transfer_drop(FileTransfer *x);
// Forgets the memo where [off, off+len) changes: to be called when a change begins and when it
// ends.
void file_note_change(File *file, uint64_t off, uint64_t len);
// A write, zeroing or growth reached `end`.
void file_note_end(File *file, uint64_t end);
// `r`, after a failure of the host was told.
int file_told(File *file, FileEventKind kind, uint64_t off, int r);
// Whoever runs out of a quota has no space, which is all that callers want to know.
int file_space_error(int r);
// What a write at `off` answers when the back end said `r`; a failure is told.
int file_write_result(File *file, uint64_t off, int r);
