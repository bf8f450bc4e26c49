// SPDX-License-Identifier: LGPL-2.1-or-later
// A view: one L1 table on an image, as a Node (view.c), whose operations are read.c, write.c and
// zero.c. For this folder. On the image's loop.
#pragma once

#include "chain-core/node-compressed.h"
#include "chain-core/node-fill.h"
#include "chain-core/node-kinds.h"
#include "qcow2/mapping.h"

// node operations (read.c, write.c, zero.c)
int view_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len, IoBatch *batch);
int view_write(Fiber *self, Node *node, GuestOff off, const void *buf, size_t len,
               NodeIoFlags flags);
int view_write_extent(Fiber *self, Node *node, GuestOff off, const NodeExtent *from,
                      uint64_t *ret_len);
int view_zero(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags);
int view_discard(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeIoFlags flags);
int view_uncover(Fiber *self, Node *node, GuestOff off, uint64_t len);
int view_flush(Fiber *self, Node *node);
int view_find_kind(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtentKind *ret_kind,
                   uint64_t *ret_len); // kind.c
int view_find_kinds(Fiber *self, Node *node, GuestOff off, uint64_t len,
                    const NodeKinds *kinds);                                   // kinds.c
int view_resize(Fiber *self, Node *node, uint64_t size_bytes, GError **error); // resize.c
int view_room(Fiber *self, Node *node, uint64_t enough, NodeRoom *ret_room);   // room.c
// What of [off, off+len), which begins and ends at borders of clusters (subclusters) or at the
// view's end, shows what lies below becomes `buf`, which is the same bytes. For fills (fill.c).
int view_write_unallocated(Fiber *self, Qcow2View *view, GuestOff off, const void *buf, size_t len);
extern const NodeFillOps view_fill_ops;
extern const NodeCompressedOps view_compressed_ops; // compressed.c
// Whole clusters of [from, to) read as zeros, or as what lies below in version 2; what they named
// is freed. `to` may be the end of the view's last cluster.
int view_zero_clusters(Fiber *self, Qcow2View *view, uint64_t from, uint64_t to);

// The writable head (head.c). Loads the L1 table of a new view; makes a loaded view the head, and
// the reverse; NodeOps.set_writable.
int view_load_l1(Fiber *self, Qcow2View *view, HostOff l1, uint64_t n_l1, GError **error);
int view_join_as_head(Qcow2View *view, GError **error);
void view_leave_head(Qcow2View *view);
int view_set_writable(Fiber *self, Node *node, bool is_writable, GError **error);
int view_set_active(Fiber *self, Node *node, bool is_active, GError **error); // active.c
// The header has another L1 table, or lies about the same one anew. On failure it stays as it was.
int view_reload_l1(Fiber *self, Qcow2View *view, GError **error);

// As which content others may know it. The view's other fields are set.
void view_set_identity(Qcow2View *view);

// Is it an image with preallocated metadata? (preallocation.c)
bool view_data_may_be_hole(Fiber *self, Node *node);

// How far what lies below may show, to whoever opens the image next, too: all of a backing file
// that the header names counts where it is not open.
static inline uint64_t view_shown_below(const Qcow2View *view)
{
    if (view->node.backing)
        return view->node.backing->size_bytes;
    return view->image->header.backing_name ? view->node.size_bytes : 0;
}

// Does [off, off+len) read as zeros, as far as metadata tells, also when a backing file that the
// header names is open? May suspend. <0 on error.
int view_reads_as_zeros(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, bool *ret_zeros);
