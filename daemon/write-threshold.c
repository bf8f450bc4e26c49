// SPDX-License-Identifier: LGPL-2.1-or-later
// Set in a call of the node's loop, where it is crossed and dropped, too. The event goes the way of
// the node's other events.
#include "write-threshold.h"

#include "chain-core/remote-call.h"

static void crossed(NodeThreshold *head, uint64_t beyond)
{
    WriteThreshold *t = (WriteThreshold *)head;
    atomic_store(&t->off, 0);
    if (t->origin->emit)
        t->origin->emit(t->origin->emit_arg, "BLOCK_WRITE_THRESHOLD",
                        json_pack("{s:s, s:I, s:I}", "node-name", t->node_name, "amount-exceeded",
                                  (json_int_t)beyond, "write-threshold", (json_int_t)head->off));
}

static void drop(NodeThreshold *head)
{
    write_threshold_unref((WriteThreshold *)head);
}

void write_threshold_unref(WriteThreshold *threshold)
{
    if (!threshold || atomic_fetch_sub(&threshold->n_refs, 1) != 1)
        return;
    g_free(threshold->node_name);
    g_free(threshold);
}

static WriteThreshold *write_threshold_new(const NamedNode *named, uint64_t off)
{
    WriteThreshold *t = g_new0(WriteThreshold, 1);
    *t = (WriteThreshold){
        .head = {.off = off, .crossed = crossed, .drop = drop},
        .node_name = g_strdup(named->name),
        .origin = named->origin,
    };
    atomic_init(&t->n_refs, 2); // the node's, and control's
    atomic_init(&t->off, off);
    return t;
}

static void set(void *arg)
{
    const NamedNode *named = arg;
    node_set_write_threshold(named->node, named->threshold ? &named->threshold->head : NULL);
}

void write_threshold_set(Fiber *self, NamedNode *named, uint64_t off)
{
    WriteThreshold *old = named->threshold;
    named->threshold = off ? write_threshold_new(named, off) : NULL;
    remote_call_plain(self, named_node_loop(named), set, named);
    write_threshold_unref(old);
}

uint64_t write_threshold_get(const NamedNode *named)
{
    return named->threshold ? atomic_load(&named->threshold->off) : 0;
}
