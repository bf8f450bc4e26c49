// SPDX-License-Identifier: LGPL-2.1-or-later
// A file or block device of the host (or of the simulation), opened for one loop. At open it learns
// what it can do: memory-backed files (tmpfs) are read and written inline; page-cache hits are
// taken inline (RWF_NOWAIT); O_DIRECT and misses go to the ring; buffered writes and blocking calls
// (open, locks, truncate, seek, rename) go to workers. All functions: on the file's loop, and the
// ones with `self` may suspend.
//
// Common rules: offsets and lengths may have any alignment (direct I/O bounces, and locks partial
// blocks against each other); short transfers are continued; a read past the end of the file gives
// zeros; results are 0 or -errno. A quota that is used up (EDQUOT) is -ENOSPC.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "chain-core/io-batch.h"
#include "chain-core/loop.h"
#include "chain-core/units.h"

typedef struct File File;

typedef enum FileOpenFlags {
    FILE_WRITABLE = 1 << 0,
    FILE_DIRECT = 1 << 1,
    FILE_CREATE = 1 << 2, // O_CREAT|O_EXCL, mode 0644; -EEXIST when it is there
    FILE_NO_FOLLOW_FINAL = 1 << 3,
} FileOpenFlags;

// Opens `path`. Only regular files and block devices (else -EINVAL with a sentence). The error
// names the path and the reason. Returned owned: file_close().
int file_open(Fiber *self, const char *path, FileOpenFlags flags, File **ret_file, GError **error);
// One more reference: a file's node and the format that lies in it use the same File.
File *file_ref(File *file);
// Drops a reference; the last one releases locks and the descriptor, once changes of locks that
// have begun are through. Does not flush. Accepts NULL.
void file_close(Fiber *self, File *file);

// Has it several references?
bool file_is_shared(const File *file);

// To another loop. On the file's loop, once nothing is under way: waits for what the host still
// does by itself, and lets go of what belongs to the loop. Until file_attach() it may only be asked
// for what it knows. Its users may each do both; the first and the last of them count.
void file_detach(Fiber *self, File *file);
// On `loop`, another or the same. Does not suspend, and cannot fail.
void file_attach(File *file, Loop *loop);

const char *file_path(const File *file); // as given to file_open()
Loop *file_loop(const File *file);
bool file_is_writable(const File *file);
bool file_is_block_device(const File *file);
// Nothing there waits for a device, and transfers take the processor of who asks for them.
bool file_is_in_memory(const File *file);
// Identity for loop detection and sharing: (st_dev, st_ino), or the device number of a block
// device.
void file_identity(const File *file, uint64_t ret_id[2]);
// Bytes; follows this File's own writes and truncates. Devices: their size at open.
uint64_t file_size(const File *file);
// Re-reads the size from the host (after another program grew the file). This File's own writes may
// be under way.
int file_refresh_size(Fiber *self, File *file);
// Direct I/O alignment in bytes; 1 when buffered. Aligned transfers avoid a bounce.
uint32_t file_alignment(const File *file);

// Start a transfer and add it to `batch`; done inline when that cannot block. `buf`/`iov` memory
// must stay until io_batch_wait(); the iovec array itself is copied (n_iov ≤ FILE_MAX_IOV).
enum { FILE_MAX_IOV = 16 };
void file_read_start(File *file, HostOff off, void *buf, size_t len, IoBatch *batch);
void file_write_start(File *file, HostOff off, const struct iovec *iov, unsigned n_iov,
                      IoBatch *batch);
// The same for what an image holds, and not for its metadata: debuggers are told (debug-event.h).
void file_read_data_start(File *file, HostOff off, void *buf, size_t len, IoBatch *batch);
void file_write_data_start(File *file, HostOff off, const struct iovec *iov, unsigned n_iov,
                           IoBatch *batch);
int file_read(Fiber *self, File *file, HostOff off, void *buf, size_t len);
int file_write(Fiber *self, File *file, HostOff off, const void *buf, size_t len);
// Copies [from_off, from_off+len) of `from` into `to`, within the host: 1 when both share the bytes
// now (a reflink: nothing was moved); 0 when the host moved them, which it does where that is
// cheaper than reading and writing. -ENOTSUP: neither can be; nothing was done, read and write. In
// every other way it is a write to `to`. Both files are on the same loop.
int file_copy(Fiber *self, File *from, HostOff from_off, File *to, HostOff to_off, uint64_t len);
// May that be, as far as is known before it is tried? Cheap.
bool file_may_copy(const File *from, HostOff from_off, const File *to, uint64_t len);
// Buffered writes of all files of `loop` that workers make or are about to make. A small one takes
// microseconds, unless the disk does not keep up. Always 0 under sim.
unsigned file_n_buffered_writes(Loop *loop);

// fdatasync: what completed before the call is durable when it returns 0. Calls that overlap share
// syncs where that is safe (one that started after the caller's writes completed). A failure is
// sticky: each later flush answers -EIO (file_flush_failed() tells) until the file is reopened.
int file_flush(Fiber *self, File *file);
bool file_flush_failed(const File *file);
// What was written, by anybody, begins to go from the page cache to the device, so that a flush has
// less left to do. Returns at once, and promises nothing; what fails is told by the flush.
void file_write_out(File *file);

// What the host does to a file that its user should hear of.
typedef enum FileEventKind {
    FILE_EVENT_READ_FAILED,
    FILE_EVENT_WRITE_FAILED,
    FILE_EVENT_ZERO_FAILED,
    FILE_EVENT_DISCARD_FAILED,
    FILE_EVENT_TRUNCATE_FAILED,
    FILE_EVENT_MAP_FAILED,    // where its data and its holes are
    FILE_EVENT_DECODE_FAILED, // a driver's: what was read is broken (file_tell())
    FILE_EVENT_FLUSH_FAILED,  // for the first time; it sticks
    FILE_EVENT_RESIZED,       // by somebody else (file_check_size())
    FILE_EVENT_CHANGED,       // likewise, of a remembered file
} FileEventKind;

typedef struct FileEvent {
    FileEventKind kind;
    uint64_t off; // bytes; RESIZED: the new size; FLUSH_FAILED: 0
    int error;    // -errno; RESIZED: 0
} FileEvent;

// `fn` is called for each event of `file`, on its loop, inside or outside a fiber. It must not
// suspend, and is quick: a disk that fails does so for every request. NULL: nobody hears of it.
typedef void FileEventFn(File *file, const FileEvent *event, void *arg);
void file_set_event_fn(File *file, FileEventFn *fn, void *arg);
// For the driver that reads `file`.
void file_tell(File *file, FileEventKind kind, uint64_t off, int error);
// Did another program change the file's size since it was opened? Then there is an event, one for
// each new size. Says nothing while a write is under way, which may change it too. 0 or -errno.
int file_check_size(Fiber *self, File *file);

// A file that something relies on, and that nobody writes: how it is now is remembered (size, time
// of the last write, first bytes), until it is forgotten before it is written here. Reads; what
// cannot be told is not remembered. file_reopen() sees to it for files that change their mode.
void file_remember(Fiber *self, File *file);
void file_forget(File *file);
// Did another program change it since? -ESTALE with a sentence, and an event the first time. 0 as
// well for files that are not remembered.
int file_check_unchanged(Fiber *self, File *file, GError **error);
// The same, but a file that can only have been touched is remembered as it is now.
int file_accept_change(Fiber *self, File *file, GError **error);

// Calls `fn` once, with how far it goes, when a write (zeroing, taking space) begins that ends
// beyond `off`; then there is no threshold any more. `fn` must not suspend. 0: none.
typedef void FileThresholdFn(void *arg, uint64_t beyond);
void file_set_write_threshold(File *file, uint64_t off, FileThresholdFn *fn, void *arg);
bool file_has_write_threshold(const File *file);

typedef enum FileZeroFlags {
    FILE_ZERO_UNMAP = 1 << 0, // may deallocate (punch hole)
    FILE_ZERO_FAST = 1 << 1,  // -ENOTSUP with data untouched rather than write zeros out
} FileZeroFlags;
// Makes the range read as zeros; grows the file when it ends past its end. Falls back to writing.
int file_zero(Fiber *self, File *file, HostOff off, uint64_t len, FileZeroFlags flags);
// Takes the host's space for the range, so that later writes into it need none: -ENOSPC comes from
// here or never. What the range shows stays as it is; the file grows when the range ends past its
// end. -ENOTSUP: the host has no such call, only writing takes space. Nothing can be promised for
// copy-on-write file systems (btrfs, ZFS; extents shared by a reflink) and thin volumes.
int file_reserve(Fiber *self, File *file, HostOff off, uint64_t len);
// Gives space back as a hint; contents afterwards are zeros or as before. 0 where unsupported.
int file_discard(Fiber *self, File *file, HostOff off, uint64_t len);
int file_truncate(Fiber *self, File *file, uint64_t size);
// What is at `off`: *ret_is_data, and for how many bytes at least (≥1, ≤len). SEEK_DATA/SEEK_HOLE;
// where unknown, data. `off` must lie inside the file.
int file_find_extent(Fiber *self, File *file, HostOff off, uint64_t len, bool *ret_is_data,
                     uint64_t *ret_len);

// How much of the host's space the file takes, in bytes; -ENOTSUP where that is unknown.
int file_allocated_bytes(Fiber *self, File *file, uint64_t *ret_bytes);
// How many bytes the host has left for it, for sure no more: quotas and other files may leave less.
// -ENOTSUP where nobody can tell (devices; file systems that compress, or lie elsewhere), and while
// there is a threshold, whose user makes room as the file grows. *ret_can_share: the file system
// has reflinks, so copies of what lies on it may need nothing.
int file_free_bytes(Fiber *self, File *file, uint64_t *ret_bytes, bool *ret_can_share);

// QEMU's byte locks (raw_apply_lock_bytes() in its block/file-posix.c): an OFD read lock at byte
// 100+bit for each permission held, at 200+bit for each not shared with others.
typedef enum FilePerm {
    FILE_PERM_CONSISTENT_READ = 1 << 0,
    FILE_PERM_WRITE = 1 << 1,
    FILE_PERM_WRITE_UNCHANGED = 1 << 2,
    FILE_PERM_RESIZE = 1 << 3,
} FilePerm;
// Holds `held` and forbids `unshared` to others; replaces what this File held before (both 0
// release). On conflict -EAGAIN with a sentence that names the holder where /proc shows it and says
// what to do; the previous state is then kept.
int file_lock(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error);
// The same beside what it holds.
int file_lock_also(Fiber *self, File *file, unsigned held, unsigned unshared, GError **error);
// Gives up all other than that of what it holds.
void file_lock_only(Fiber *self, File *file, unsigned held, unsigned unshared);
// Makes a file that was opened for reading writable, or the reverse, for what lies in it. The file
// stays the same one, whatever became of its name. If it holds locks it takes FILE_PERM_WRITE and
// FILE_PERM_RESIZE before it is writable, or gives them up after (of a node's file
// node_unlock_writing() does that); what holds before and after is held all the while, so nobody
// gets in between. Transfers and locks of others are as file_lock() says; on failure all is as
// before. Nothing may be changing the file; reads may be under way. Does not flush. A file that was
// changed behind our back does not become writable (-ESTALE).
int file_reopen(Fiber *self, File *file, bool is_writable, GError **error);
// The file is a node by itself, with a mode of its own: file_reopen() changes its locks alone, and
// is -EACCES where it is read-only.
void file_keep_mode(File *file);
// Changes that mode, and no locks, which are those of whoever uses the file. Otherwise the same.
int file_set_mode(Fiber *self, File *file, bool is_writable, GError **error);
// `fn` hears of each change of the mode, on the file's loop. Must not suspend. NULL: nobody does.
typedef void FileModeFn(File *file, void *arg);
void file_set_mode_fn(File *file, FileModeFn *fn, void *arg);
// From now on file_lock() does nothing, and succeeds. Before any.
void file_take_no_locks(File *file);
// Leaves a file that is only read here to other programs, which may write it from now on, whatever
// file_lock() says; or has all that has been said since in force again, and looks at the file anew.
int file_set_active(Fiber *self, File *file, bool is_active, GError **error);
bool file_is_inactive(const File *file);
// Another program may have written it until now: its size and what else is known of it is taken
// anew.
int file_look_anew(Fiber *self, File *file, GError **error);

// Does what is transferred go past the host's page cache? Also where the host has none to pass.
bool file_is_direct(const File *file);
// Has it go there from now on, or not. Nothing may be under way. The error is one sentence: there
// are file systems without direct I/O.
int file_set_direct(Fiber *self, File *file, bool is_direct, GError **error);

// Names. Each is one blocking call on a worker; 0 or -errno with `error` set.
int file_rename(Fiber *self, const char *from, const char *to, GError **error);
int file_unlink(Fiber *self, const char *path, GError **error);
int file_sync_dir(Fiber *self, const char *path_in_dir, GError **error);
