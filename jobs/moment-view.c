// SPDX-License-Identifier: LGPL-2.1-or-later
// A request comes from the overlay, which had nothing there when it looked. What is saved by now it
// has got since, so the view asks it again. Should it have nothing there all the same (it has lost
// what was saved), it would ask the view again, and so on: that is seen, and fails.
#include "moment-view.h"

#include <errno.h>

#include "chain-core/component.h"
#include "filter-copy-before.h"

typedef struct Look Look;

typedef struct MomentView {
    Node node; // the source is the one child beside
    Node *filter;
    Look *looks;
} MomentView;

// A request under way, on its fiber's stack. It keeps the filter, which may be closed otherwise.
struct Look {
    const Fiber *fiber;
    Node *filter;
    Look *next;
};

static int begin_look(const Fiber *self, MomentView *view, Look *look)
{
    if (!view->filter)
        return -EACCES;
    for (const Look *other = view->looks; other; other = other->next)
        if (other->fiber == self)
            return -EIO;
    *look = (Look){self, node_ref(view->filter), view->looks};
    view->looks = look;
    return 0;
}

static void end_look(Fiber *self, MomentView *view, const Look *look)
{
    Look **at = &view->looks;
    while (*at != look)
        at = &(*at)->next;
    *at = look->next;
    node_unref_close(self, look->filter);
}

static int moment_read_start(Fiber *self, Node *node, GuestOff off, void *buf, size_t len,
                             IoBatch *batch)
{
    MomentView *view = (MomentView *)node;
    Look look;
    int r = begin_look(self, view, &look);
    if (r < 0)
        return r;
    r = filter_copy_before_read(self, look.filter, off, buf, len);
    end_look(self, view, &look);
    return r;
}

static int moment_map(Fiber *self, Node *node, GuestOff off, uint64_t len, NodeExtent *ret_extent)
{
    MomentView *view = (MomentView *)node;
    Look look;
    int r = begin_look(self, view, &look);
    if (r < 0)
        return r;
    r = filter_copy_before_map(self, look.filter, node, off, len, ret_extent);
    end_look(self, view, &look);
    return r;
}

static const NodeOps moment_ops = {
    .driver = "moment",
    .is_view = true,
    .read_start = moment_read_start,
    .map = moment_map,
    .detach = component_detach_nothing,
    .attach = component_attach_nothing,
};

Node *moment_view_new(Node *source, Node *filter)
{
    MomentView *view = g_new0(MomentView, 1);
    node_init(&view->node, &moment_ops, source->loop, source->name, source->size_bytes);
    view->node.read_only = true;
    view->node.preferred_bytes = source->preferred_bytes;
    view->filter = filter;
    node_add_child(&view->node, source);
    return &view->node;
}

void moment_view_end(Node *view)
{
    ((MomentView *)view)->filter = NULL;
}
