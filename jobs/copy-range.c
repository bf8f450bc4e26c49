// SPDX-License-Identifier: LGPL-2.1-or-later
// On the nodes' loop.
#include "copy-range.h"

#include "chain-core/chain-range.h"
#include "chain-core/chain.h"
#include "chain-core/qcow2.h"

Node *copy_range_image_of(Node *node)
{
    while (node->ops->is_filter)
        node = chain_backing(node);
    return node;
}

bool copy_range_has_hidden_backing(Node *target)
{
    Node *image = copy_range_image_of(target);
    const Qcow2Image *qcow2 = qcow2_node_image(image);
    return qcow2 && !chain_backing(image) && qcow2_image_backing_name(qcow2);
}

static int find_piece(Fiber *self, const CopyRange *range, uint64_t off, uint64_t len,
                      CopyExtent *ret_extent)
{
    const ChainLayers layers = {
        .top = range->image,
        .base = range->is_top ? chain_backing(range->image) : NULL,
    };
    ChainRange found;
    int r = chain_range_find(self, &layers, guest_off(off), len, &found);
    if (r < 0)
        return r;
    *ret_extent = (CopyExtent){
        .len = found.len,
        .is_work = found.is_owned || !layers.base,
        .kind = found.is_owned && !found.is_zero ? WORK_DATA : WORK_METADATA,
    };
    return 0;
}

// One of them, of which pieces differ.
static int find_whole(Fiber *self, const CopyRange *range, uint64_t off, uint64_t len,
                      CopyExtent *ret_extent)
{
    *ret_extent = (CopyExtent){.len = len, .kind = WORK_DATA};
    for (uint64_t at = 0; at < len && !ret_extent->is_work;) {
        CopyExtent piece;
        int r = find_piece(self, range, off + at, len - at, &piece);
        if (r < 0)
            return r;
        ret_extent->is_work = piece.is_work;
        at += piece.len;
    }
    return 0;
}

int copy_range_find(Fiber *self, const CopyRange *range, uint64_t off, uint64_t len,
                    CopyExtent *ret_extent)
{
    int r = find_piece(self, range, off, len, ret_extent);
    if (r < 0 || !range->whole_bytes || ret_extent->len == len)
        return r;
    if (ret_extent->len < range->whole_bytes)
        return find_whole(self, range, off, MIN(len, range->whole_bytes), ret_extent);
    ret_extent->len -= ret_extent->len % range->whole_bytes;
    return 0;
}
