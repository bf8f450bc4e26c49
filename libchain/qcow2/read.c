// SPDX-License-Identifier: LGPL-2.1-or-later
// Reading through a view: runs of host data become file transfers of one batch, what the layer does
// not have comes from the backing child, zeros are filled in place. In a fiber on the image's loop.

#include <errno.h>
#include <string.h>

#include "chain-core/mutant.h"
#include "qcow2/inflated-cache.h"
#include "qcow2/view.h"

static int read_below(Fiber *self, Qcow2View *view, GuestOff off, uint8_t *buf, size_t len,
                      IoBatch *batch)
{
    Node *below = view->node.backing;
    uint64_t size = below ? below->size_bytes : 0;
    size_t n = off.v < size ? MIN(len, size - off.v) : 0;
    if (n < len)
        memset(buf + n, 0, len - n);
    return n ? node_read_start(self, below, off, buf, n, batch) : 0;
}

int view_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len, IoBatch *batch)
{
    Qcow2View *view = view_of(node);
    Qcow2Image *image = view->image;
    File *data = image_data_file(image);
    if (!MUTANT("reads-pin"))
        image_pin(self, image, batch);
    while (len) {
        MappingRun run;
        CompressedPart part;
        int r = mapping_find(self, view, off, len, &run);
        if (G_UNLIKELY(r < 0))
            return r;
        switch (run.kind) {
        case QCOW2_CLUSTER_DATA:
            file_read_data_start(data, run.host, buf, run.len, batch);
            break;
        case QCOW2_CLUSTER_UNALLOCATED:
            r = read_below(self, view, off, buf, run.len, batch);
            break;
        case QCOW2_CLUSTER_COMPRESSED:
            part = (CompressedPart){run.host, run.compressed_bytes,
                                    qcow2_in_cluster(&image->geometry, off)};
            r = inflated_cache_read(self, image->inflated, &part, buf, run.len);
            break;
        default:
            memset(buf, 0, run.len);
        }
        if (G_UNLIKELY(r < 0))
            return r;
        off.v += run.len;
        buf = (uint8_t *)buf + run.len;
        len -= run.len;
    }
    return 0;
}

int view_reads_as_zeros(Fiber *self, Qcow2View *view, GuestOff off, uint64_t len, bool *ret_zeros)
{
    *ret_zeros = false;
    while (len) {
        MappingRun run;
        int r = mapping_find(self, view, off, len, &run);
        if (r < 0)
            return r;
        if (run.kind == QCOW2_CLUSTER_DATA || run.kind == QCOW2_CLUSTER_COMPRESSED)
            return 0;
        Node *below = view->node.backing;
        if (run.kind == QCOW2_CLUSTER_UNALLOCATED && off.v < view_shown_below(view)) {
            NodeExtent e;
            if (!below)
                return 0;
            run.len = MIN(run.len, below->size_bytes - off.v);
            r = node_status(self, below, off, run.len, &e);
            if (r < 0)
                return r;
            if (e.kind == NODE_EXTENT_DATA || e.kind == NODE_EXTENT_OPAQUE)
                return 0;
            run.len = e.len;
        }
        off.v += run.len;
        len -= run.len;
    }
    *ret_zeros = true;
    return 0;
}
