// SPDX-License-Identifier: LGPL-2.1-or-later
// Write-forwarding: a filter above the source of a copy that keeps the target in step with what
// guests change. In the background: they write to the source, and what they wrote becomes work of
// the copy before they hear of it. Write-blocking: they write to source and target, with the range
// of the target held, so nothing is left to do; what is still work around a write is done with it.
// So a guest that writes makes the work less, however fast it is. Discards are the exception: what
// the source shows after one (zeros, or what was there) is known only then, and may be work. Where
// the copy is to end, however many of them come, they are left undone.
//
// The target's failures are not the guest's: what did not come to the target becomes work. Nor does
// a guest's flush make the target durable, unless that is asked for: before the target takes the
// source's place.
//
// On the node's loop.
#pragma once

#include "copy-engine.h"
#include "range-lock.h"

typedef enum ForwardMode {
    FORWARD_BACKGROUND,
    FORWARD_WRITE_BLOCKING,
    FORWARD_ENDING, // write-blocking, and discards are left undone: nothing but what fails is work
} ForwardMode;

typedef struct ForwardConfig {
    const char *name; // for messages
    Node *source;     // goes under the filter with node_insert_filter()
    Node *target; // becomes a child beside it, so that a drain of it stops guests; may lie below
    CopyEngine *engine;
    RangeLock *lock; // of the target
    ForwardMode mode;
    // Writes and zeros come to the target in multiples of it, zeros as entries of their own, and
    // discards through the copy only: what will lie below the target is not there yet. 0: as they
    // are.
    uint64_t whole_bytes;
} ForwardConfig;

// All in `config` is borrowed, and outlives the filter's use. Returned with one reference.
Node *filter_forward_new(const ForwardConfig *config);
// The filter is about to be closed while somebody may still hold it: it forwards nothing more.
void filter_forward_stop(Node *filter);

ForwardMode filter_forward_mode(const Node *filter);
// Holds for requests that begin from now on.
void filter_forward_set_mode(Node *filter, ForwardMode mode);

// From now on what a guest's flush or FUA promises is durable in the target, too, as far as it was
// written since and did not become work.
void filter_forward_set_durable(Node *filter, bool is_durable);
// Has it been so ever since that was set?
bool filter_forward_is_durable(const Node *filter);
