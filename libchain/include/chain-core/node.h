// SPDX-License-Identifier: LGPL-2.1-or-later
// Nodes: named places in the graph. A node has a driver (qcow2, raw, the merged map of a chain, a
// filter), at most one backing child (what it shows where it has nothing itself), perhaps other
// children (where a filter copies to), and lives on one loop. Drivers implement NodeOps; everybody
// else calls the node_* functions, which check bounds, run write hooks and keep drivers small. All
// functions: on the node's loop.
#pragma once

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "chain-core/debug-event.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/file.h"
#include "chain-core/io-batch.h"
#include "chain-core/units.h"

typedef struct Node Node;
typedef struct NodeOps NodeOps;
typedef void NodeVisitFn(Node *node, void *arg);
typedef struct DirtyBitmapStore DirtyBitmapStore;
typedef struct NodeFillOps NodeFillOps;
typedef struct NodeCompressedOps NodeCompressedOps;
typedef struct NodeKinds NodeKinds;

typedef enum NodeIoFlags {
    NODE_IO_FUA = 1 << 0,       // durable before the call returns
    NODE_IO_NO_UNMAP = 1 << 1,  // write-zeroes: keep the space allocated (NBD NO_HOLE)
    NODE_IO_FAST_ZERO = 1 << 2, // write-zeroes: -ENOTSUP at once, data untouched, if not fast
    // Write, write-zeroes: may end past the node's end, which moves there; what lies between reads
    // as zeros. Where node_can_grow(). For whoever uses the node like a file (node-file.h).
    NODE_IO_GROW = 1 << 3,
} NodeIoFlags;

// What a request is to those who let it in (port.h).
typedef enum RequestKind {
    REQUEST_READ, // and whatever else changes nothing: block status, look-ups
    REQUEST_WRITE,
    REQUEST_ZERO,
    REQUEST_DISCARD,
    REQUEST_FLUSH,
    REQUEST_KINDS, // how many there are
} RequestKind;
typedef unsigned RequestMask; // of 1 << RequestKind
enum {
    REQUESTS_ALL = (1 << REQUEST_KINDS) - 1,
    REQUESTS_THAT_WRITE = 1 << REQUEST_WRITE | 1 << REQUEST_ZERO | 1 << REQUEST_DISCARD,
};

typedef enum NodeExtentKind {
    NODE_EXTENT_BELOW,          // nothing here: ask the backing child (zeros when there is none)
    NODE_EXTENT_ZERO,           // reads as zeros, no host data (hole)
    NODE_EXTENT_ZERO_ALLOCATED, // reads as zeros, host space reserved
    NODE_EXTENT_DATA,           // plain bytes at `host` of `file`
    NODE_EXTENT_OPAQUE, // data only node_read() of `node` can give (compressed, remote, filter)
} NodeExtentKind;

typedef struct NodeExtent {
    uint64_t len; // bytes from the asked offset, ≥1
    NodeExtentKind kind;
    uint32_t depth; // layers below the asked node at which this was found; 0 = the node itself
    File *file;     // DATA: borrowed, valid while the node is open
    HostOff host;   // DATA
    Node *node; // OPAQUE: whom to read (guest offsets are the same); DATA: whose it is; borrowed
    bool is_host_hole; // DATA: `file` has a hole there (node_status_of_host() only)
} NodeExtent;

// What a node can still take, for sure no more.
typedef struct NodeRoom {
    uint64_t granule_bytes; // new data takes multiples of this
    uint64_t most_bytes;    // for new data (counts_all: for what data it has, too)
    bool counts_all;
    bool can_share; // data of others on the same file system may need no room (file_free_bytes())
} NodeRoom;

// A filter may leave out what it does not change: that goes on to its backing child. Only a filter
// that has write() is not passed by: zeros it lacks are written through it, discards end there.
struct NodeOps {
    const char *driver; // "qcow2", "raw", …
    bool is_filter;     // shows its backing child's content; a barrier for the chain map
    bool covers_below;  // no layer itself: map() answers for the whole chain below (merged map)
    bool is_file;       // the node of a file: formats write the file itself, and not through it
    bool reads_write;   // a read may write below (copy-on-read), and is drained with what writes
    // Shows what a child showed once: it stays with that node when others are taken elsewhere, and
    // needs nothing of what the node shows now.
    bool is_view;
    // Reads [off, off+len), already inside the node's size: starts transfers into `buf` in `batch`;
    // may suspend for metadata. `buf` is filled when io_batch_wait() returned 0. Returns 0 or
    // -errno (the batch must be waited for in both cases).
    int (*read_start)(Fiber *self, Node *node, GuestOff off, void *buf, size_t len, IoBatch *batch);
    // NULL on read-only drivers.
    int (*write)(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
                 NodeIoFlags flags);
    // See node_write_extent(). NULL: cannot.
    int (*write_extent)(Fiber *self, Node *node, GuestOff off, const NodeExtent *from,
                        uint64_t *ret_len);
    int (*zero)(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags);
    int (*discard)(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags);
    // See node_uncover(). NULL: cannot.
    int (*uncover)(Fiber *self, Node *node, GuestOff off, uint64_t len);
    int (*flush)(Fiber *self, Node *node);
    // First extent at `off`, at most `len` long, coalesced as far as is cheap. Own layer only
    // (BELOW is not followed). Adjacent extents of one kind may come in pieces.
    int (*map)(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent);
    // The kind of what is at `off`, and how far it is that, wherever it lies: BELOW, ZERO or DATA,
    // so far as is cheap. May suspend for metadata. NULL: as map() says.
    int (*find_kind)(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtentKind *ret_kind,
                     uint64_t *ret_len);
    // node_find_kinds(), faster than by find_kind(). -ENOTSUP, or NULL: it is not.
    int (*find_kinds)(Fiber *self, Node *node, GuestOff off, uint64_t len, const NodeKinds *kinds);
    // What map() tells from now on stays where it is until io_batch_wait(): no cluster of it is
    // taken for something else. May suspend. NULL: it stays anyway.
    void (*pin)(Fiber *self, Node *node, IoBatch *batch);
    // The file in which all that map() calls DATA lies; the same as long as the node is open. NULL,
    // or an operation that is NULL: there is no such file.
    File *(*file)(Node *node);
    // Where the driver keeps its metadata, if that is not file(). NULL, or an operation that is
    // NULL: there is no such file.
    File *(*metadata_file)(Node *node);
    // May it have anything (not BELOW) in the range? Cheap, no I/O, no suspend, may say yes
    // wrongly. NULL means always yes.
    bool (*may_have)(Node *node, GuestOff off, uint64_t len);
    // May ranges that map() calls DATA be holes of the file? May suspend. NULL: no.
    bool (*data_may_be_hole)(Fiber *self, Node *node);
    // Makes the driver and its file writable; or read-only, after the last write: everything
    // written back, durable, and the locks given up. All as before on failure. Reads may be under
    // way, and are drained for what they must not see. NULL: cannot.
    int (*set_writable)(Fiber *self, Node *node, bool is_writable, GError **error);
    // Of a read-only node, drained: leaves its files to other programs, and keeps nothing of what
    // they show; or keeps the others out, and reads everything anew, its size too. All as before on
    // failure. NULL: nobody else writes what it shows.
    int (*set_active)(Fiber *self, Node *node, bool is_active, GError **error);
    // Brings the file to another size and sets `size_bytes`, which is what is there on failure,
    // too. Drained, on a node that is not read-only; what comes new reads as zeros. NULL: cannot; a
    // filter without it has what it filters resized.
    int (*resize)(Fiber *self, Node *node, uint64_t size_bytes, GError **error);
    // Of a filter whose size is not that of `below`, which it filters: what it is. NULL: the same.
    uint64_t (*size_over)(const Node *below);
    // What a file can, for an image that lies in the node (node-file.h); a filter without them has
    // it done to what it filters. Does a write past its end make it longer? NULL: it ends where it
    // ends.
    bool (*can_grow)(Node *node);
    // Takes the host's space, as file_reserve() has it. NULL: nobody can tell, and it passes for
    // done.
    int (*reserve)(Fiber *self, Node *node, GuestOff off, uint64_t len);
    // Looks how long it is now, as file_refresh_size() has it; only longer. NULL: as it knows.
    int (*remeasure)(Fiber *self, Node *node);
    // See node_room(); `ret_room` is zeroed. NULL: nobody can tell.
    int (*room)(Fiber *self, Node *node, uint64_t enough, NodeRoom *ret_room);
    // Keeps other programs out, as file_lock_also() has it. NULL: nobody can be.
    int (*lock)(Fiber *self, Node *node, unsigned held, unsigned unshared, GError **error);
    // Something below `node` changed place (a backing child set, a filter put in or taken out) or
    // mode: forget what was derived from it. Drained; must not suspend. May be NULL.
    void (*below_changed)(Node *node);
    // To another loop (component.h), drained. `detach`, on the old one: waits for what the node
    // does by itself, and lets go of what belongs to the loop; uses no other node. `attach`, on the
    // new one, when `loop` is set: the reverse; must not suspend, cannot fail. NULL: it cannot be
    // moved.
    void (*detach)(Fiber *self, Node *node);
    void (*attach)(Node *node);
    // Visits the nodes that share something of their loop with `node`, and have to move with it.
    // May be NULL.
    void (*for_each_sibling)(Node *node, NodeVisitFn *fn, void *arg);
    // What it does by itself that takes long, and that another loop, size or mode would wait for:
    // "an internal snapshot of it is being made or deleted". NULL: nothing. May be NULL.
    const char *(*own_work)(const Node *node);
    // What comes next is done for that (of the image that lies in it). Must not suspend. NULL: no
    // matter.
    void (*debug_event)(Node *node, DebugEvent event);
    // How it comes to own what it shows (chain-core/node-fill.h). NULL: it owns all of it, or
    // cannot.
    const NodeFillOps *fill;
    // How compressed clusters come and go as they are (chain-core/node-compressed.h). NULL: it has
    // none.
    const NodeCompressedOps *compressed;
    // How persistent dirty bitmaps are kept (chain-core/dirty-bitmap.h). NULL: none can be.
    const DirtyBitmapStore *bitmap_store;
    // Somebody waits until its requests have ended, or no longer: limits do not hold meanwhile.
    // Must not suspend. NULL: it has none.
    void (*drained)(Node *node, bool is_drained);
    // From now on requests fail rather than wait for somebody else, those in flight too. Must not
    // suspend. NULL: it waits for nobody but the host.
    void (*give_up)(Node *node);
    // Writes back what is dirty, frees what the driver's struct holds; may be NULL. Called once, by
    // node_unref_close(), which then frees the struct itself with g_free().
    void (*close)(Fiber *self, Node *node);
};

// A hook runs after each write, zero or discard ended, also when it failed, before the caller
// hears of it (dirty bitmaps). Must not suspend.
typedef struct NodeWriteHook NodeWriteHook;
struct NodeWriteHook {
    void (*fn)(NodeWriteHook *hook, GuestOff off, uint64_t len);
    NodeWriteHook *next;
};

// Told when a node is written beyond `off`, once: node_set_write_threshold(). On the node's loop.
typedef struct NodeThreshold NodeThreshold;
struct NodeThreshold {
    NodeWriteHook hook; // first; set by the node, like `node`
    Node *node;
    uint64_t off;
    void (*crossed)(NodeThreshold *threshold, uint64_t beyond); // must not suspend
    void (*drop)(NodeThreshold *threshold); // the node has it no longer; frees it
};

// Which content a node shows: the file's identity, which view of it (0: all of it, or an image's
// head), and how it is read: one file as raw and as qcow2 is two contents, and so is one that grew
// between two opens, or was written meanwhile. Two nodes with equal identities show the same bytes.
// Drivers set `file` and `view`, all zero: like no other node; node_set_writable() sets
// `generation`, the merged map adds the rest. No padding: compared as bytes.
typedef struct NodeIdentity {
    uint64_t file[2];
    uint64_t view;
    uint64_t generation; // of its content: 0 as it was opened, else like no other
    const NodeOps *ops;
    uint64_t size_bytes;
} NodeIdentity;

// What a node's user wants done with requests, whatever the driver.
typedef enum NodeZeroDetection {
    NODE_ZEROES_WRITTEN,   // as they are
    NODE_ZEROES_ALLOCATED, // become zeroes that keep their space
    NODE_ZEROES_UNMAPPED,  // and need not, where discards are let through
} NodeZeroDetection;

// The head of every driver's own struct (first member; the struct comes from g_new0()). Drivers
// fill it with node_init(); others read only through the functions below, and `size_bytes`,
// `read_only`.
struct Node {
    const NodeOps *ops;
    Loop *loop;
    char *name;          // for messages: the node's name or the image's file name
    uint64_t size_bytes; // shrinks only drained (node_resize()); NODE_IO_GROW makes it longer
    bool read_only;
    bool is_becoming_writable;        // and has locked its files for that
    bool ignores_discards;            // they end here, and zeroes keep their space
    NodeZeroDetection zero_detection; // of writes
    uint32_t preferred_bytes;         // good I/O size (cluster size), a power of 2
    uint32_t n_refs;
    Node *backing;     // owned reference or NULL
    GPtrArray *others; // children beside `backing`, owned references; NULL: none
    NodeWriteHook *write_hooks;
    NodeThreshold *threshold; // or NULL
    GPtrArray *bitmaps;       // its dirty bitmaps (chain-core/dirty-bitmap.h), or NULL
    int (*resize_bitmaps)(Node *node, uint64_t size_bytes); // with them; -ENOMEM: none follows
    NodeIdentity identity;
    const atomic_bool *is_corrupt;    // was its image found to be? Any thread; NULL: it never is
    GPtrArray *parents;               // nodes whose child this is, once for each edge
    GPtrArray *ports;                 // ports whose target this is
    GPtrArray *holds;                 // of node-hold.h, or NULL
    uint32_t n_drains[REQUEST_KINDS]; // begun and not yet ended
    FiberQueue undrained;             // who waits for the last of them to end
    uint64_t n_changes, n_flushed;    // writes that ended; how many of them a flush has covered
    bool owes_flush_below; // flush debt: layers below may have been written and not flushed
};

void node_init(Node *node, const NodeOps *ops, Loop *loop, const char *name, uint64_t size_bytes);
Node *node_ref(Node *node);
// Drops a reference; the last one closes the node (does I/O), then its backing child. NULL is fine.
void node_unref_close(Fiber *self, Node *node);
// Sets or replaces the backing child (takes a new reference, drops the old one; NULL: none) of a
// node that no request can reach yet. Where requests are, a Switch does it (switch.h).
void node_set_backing(Fiber *self, Node *node, Node *backing);
// Adds a child beside the backing child (takes a new reference), or takes it out and returns the
// reference, to be dropped when nothing is drained any more. A drain of the child stops what enters
// above `node`, too. Memory only; not while requests are in `node`.
void node_add_child(Node *node, Node *child);
Node *node_take_child(Node *node, Node *child);

// Bounds are the caller's promise (asserted): off+len ≤ size_bytes; with NODE_IO_GROW, ≤ INT64_MAX.
int node_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len, IoBatch *batch);
int node_read(Fiber *self, Node *node, GuestOff off, void *buf, size_t len);
// -EROFS on read-only nodes. Data is in the host's hands (page cache) on return; durable after a
// flush or with FUA.
int node_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
               NodeIoFlags flags);
// A write to [off, off+from->len) of bytes that lie in a file and need not pass through this
// program: `from` is a DATA extent that stays as it is meanwhile (node_status_pinned()). Does a
// first part of it, *ret_len long: 1 when both files share it now (the next write to either needs
// space), 0 when the host moved it. -ENOTSUP: it has to be read and written.
int node_write_extent(Fiber *self, Node *node, GuestOff off, const NodeExtent *from,
                      uint64_t *ret_len);
int node_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags);
int node_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags);
// Do discards of it change nothing, for its user, or that of what it filters, wants them ignored?
bool node_ignores_discards(const Node *node);
// What lies below `node` shows in the range from now on, as far as whole clusters go, and the space
// of what it had there is given back. -ENOTSUP: nodes of this kind cannot. Not for guests: it
// changes what they see, or nothing, where it was the same below.
int node_uncover(Fiber *self, Node *node, GuestOff off, uint64_t len);
// Everything that was written to `node` before is durable, and what was written to layers below it
// when they were the head.
int node_flush(Fiber *self, Node *node);
int node_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent);
// A DATA range is the node's no longer once somebody else changes it, and may hold anything then.
// Who is going to use the range itself (file_copy(), a reflink) looks it up so: whatever becomes of
// the node, it holds what it held, or what a guest writes there, until io_batch_wait(). A batch for
// each such use: with more than IO_BATCH_PINS images to pin it waits, and lets go, by itself.
int node_map_pinned(Fiber *self, Node *node, GuestOff off, uint64_t len, IoBatch *batch,
                    NodeExtent *ret_extent);
int node_status_pinned(Fiber *self, Node *node, GuestOff off, uint64_t len, IoBatch *batch,
                       NodeExtent *ret_extent);
// The same as a file can, of NodeOps; a reservation may end past the end as with NODE_IO_GROW.
bool node_can_grow(Node *node);
int node_reserve(Fiber *self, Node *node, GuestOff off, uint64_t len);
int node_remeasure(Fiber *self, Node *node);
int node_lock(Fiber *self, Node *node, unsigned held, unsigned unshared, GError **error);
// Gives up what only writing needs of the locks of `node`, a file or a filter over one, unless one
// of its users writes it. Whoever is about to use it is not seen: the caller knows of them.
void node_unlock_writing(Fiber *self, Node *node);
// How much data may come to a writable node until it is full. More than `enough` need not be told
// exactly. -ENOTSUP: nobody can tell. Goes through refcounts where it has to; others get their
// turn.
int node_room(Fiber *self, Node *node, uint64_t enough, NodeRoom *ret_room);
// Has the node data of its own at `off` (DATA), zeros (ZERO), or nothing (BELOW), and how far, at
// most `len`? Like node_map(), for those who do not care where data lies: what is in pieces there
// is one run here.
int node_find_kind(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtentKind *ret_kind,
                   uint64_t *ret_len);
// The file of the node's DATA extents, borrowed while it is open; NULL where there is none.
static inline File *node_file(Node *node)
{
    return node->ops->file ? node->ops->file(node) : NULL;
}
static inline File *node_metadata_file(Node *node)
{
    return node->ops->metadata_file ? node->ops->metadata_file(node) : NULL;
}
// Like node_map() but follows BELOW and filters down the chain (filters do not count as layers):
// never returns BELOW where a layer has something; BELOW then means "unallocated in every layer"
// (reads as zeros). Depth 0 = `node`. A layer shorter than its overlay reads as allocated zeros
// past its end (kind ZERO with that layer's depth).
int node_status(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent);
// The same, and tells holes of the host's file inside preallocated data: is_host_hole. Asks the
// file system for each extent of such images.
int node_status_of_host(Fiber *self, Node *node, GuestOff off, uint64_t len,
                        NodeExtent *ret_extent);

// The mode of a node (its `read_only`) changes through these two only. Above it, drivers are told
// (what they may keep of a node that nobody writes is not what they may keep of another), and
// filters that it is seen through become read-only with it.
//
//               node_set_writable(true)               node_stop_writes()
//     read-only ───────────────────────▶ writable ───────────────────────▶ stopped
//         ▲                                  ▲    node_set_writable(true)     │ │
//         │                                  └────────────────────────────────┘ │
//         └─────────────────────────────────────────────────────────────────────┘
//                               node_set_writable(false)
//
// Stopped is read-only to everybody above, and may have much that is not durable yet (flush debt:
// node_flush() settles it) and its locks. From there on the way down needs no drain, so a switch
// that holds guests up takes no longer than memory does.

// From writable to stopped. Memory only. Drained: of requests that write, and where overlays lie
// above that are read from already, of all.
void node_stop_writes(Node *node);
// Up: the image's file is opened for writing and locked so, its tables are read and checked, a
// dirty image is repaired; drained. Down: from writable, drained, or from stopped; all that was
// written becomes durable and other programs may open the file read-only. For a filter it is done
// to the node it filters. The error is one sentence; a node that could not be made read-only is
// stopped.
int node_set_writable(Fiber *self, Node *node, bool is_writable, GError **error);
// The same while requests come: they wait for a step in memory only, and on the way up for the
// repair of a dirty image.
int node_change_mode(Fiber *self, Node *node, bool is_writable, GError **error);
// Of a filter alone: what it filters stays as it is, and it is writable only where that is.
// Drained.
void node_set_filter_mode(Node *filter, bool is_writable);
// Another program may write what the node lies in from now on, while it is inactive: everything
// that was written here is durable, and the node is read-only, and shows what it can. Active again,
// it shows what there is now; how it is written after that is for node_set_writable(). Of the node
// alone: what lies below is active before it and inactive after it. Drained.
int node_set_active(Fiber *self, Node *node, bool is_active, GError **error);
// Has no other program changed the files of `node`, which nobody may write? -ESTALE with a
// sentence. node_set_writable() asks, too.
int node_check_unchanged(Fiber *self, Node *node, GError **error);
// The same, but files that can only have been touched are taken as they are.
int node_accept_change(Fiber *self, Node *node, GError **error);
// Whoever keeps requests out for such a change asks first: -EBUSY, with a sentence, while the node,
// or what it filters, is at work by itself (NodeOps.own_work).
int node_check_idle(const Node *node, GError **error);
// For drivers whose mode changed otherwise; drained, and not below an overlay.
void node_mode_changed(Node *node, bool is_writable);

// Another size: of the image or file, then of all that shows it: filters, maps, dirty bitmaps, and
// those that enter through ports (Port.resized). Drains, so the caller holds no port entered. What
// comes new reads as zeros, whatever lies below; what is cut off is gone. Overlays keep their size.
// A block device's node takes the size that the device has. The error is QEMU's sentence.
int node_resize(Fiber *self, Node *node, uint64_t size_bytes, GError **error);
// For drivers whose `size_bytes` changed otherwise; drained.
void node_size_changed(Node *node);

// Takes `threshold` and drops the one that the node had. NULL: none from now on. Of a file's node
// it counts what formats write to the file, too.
void node_set_write_threshold(Node *node, NodeThreshold *threshold);

// For the end of it all: whatever waits at `node`, or below it, for another machine fails with -EIO
// at once, and so does all that comes.
void node_give_up(Node *node);
// The same for the node and the files and filtered nodes that it lies in: not for its backing file.
void node_give_up_own(Node *node);

void node_add_write_hook(Node *node, NodeWriteHook *hook);
void node_remove_write_hook(Node *node, NodeWriteHook *hook);
