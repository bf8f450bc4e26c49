// SPDX-License-Identifier: LGPL-2.1-or-later
// Throttle groups: limits on bytes and requests a second that nodes of any loops share. What they
// mean is QEMU's leaky bucket. A table finds groups by name; all functions: any thread, unless said
// otherwise.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/loop.h"

typedef enum ThrottleKind {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_N_KINDS
} ThrottleKind;

// Of bytes, or requests, a second.
typedef struct ThrottleRate {
    uint64_t average; // 0: no limit
    uint64_t burst;   // allowed for `burst_s` in a row, before it is the average; 0: none
    uint64_t burst_s; // ≥1
} ThrottleRate;

typedef struct ThrottleLimits {
    ThrottleRate rates[THROTTLE_N_KINDS];
    uint64_t request_bytes; // a longer request counts as several; 0: as one
} ThrottleLimits;

void throttle_limits_init(ThrottleLimits *limits); // none
bool throttle_limits_are_none(const ThrottleLimits *limits);
// -EINVAL with QEMU's sentence where they make no sense. Pure.
int throttle_limits_check(const ThrottleLimits *limits, GError **error);

typedef struct ThrottleGroup ThrottleGroup;
typedef struct ThrottleGroups ThrottleGroups;

ThrottleGroups *throttle_groups_new(void);
// Nodes may still have groups of it. Accepts NULL.
void throttle_groups_free(ThrottleGroups *groups);
// False: there is one of that name. `limits` were checked.
bool throttle_groups_add(ThrottleGroups *groups, const char *name, const ThrottleLimits *limits);
// -ENOENT, or -EBUSY while it has members or users.
int throttle_groups_remove(ThrottleGroups *groups, const char *name);
// A new reference; NULL: there is none of that name. `groups` may be NULL.
ThrottleGroup *throttle_groups_find(ThrottleGroups *groups, const char *name);
// The same for a user, who may have members in it: if there is none, it is made with `limits`, and
// goes with its last user.
ThrottleGroup *throttle_groups_use(ThrottleGroups *groups, const char *name,
                                   const ThrottleLimits *limits);
// Takes `group`. Accepts NULL.
void throttle_groups_end_use(ThrottleGroups *groups, ThrottleGroup *group);

// There is a group of that name from now on, used or not, with these limits, which were checked: it
// is made, or one that users made is kept, or the limits of one that is kept change.
void throttle_groups_keep(ThrottleGroups *groups, const char *name, const ThrottleLimits *limits);
// It goes with its last user, or at once.
void throttle_groups_let_go(ThrottleGroups *groups, const char *name);

ThrottleGroup *throttle_group_ref(ThrottleGroup *group);
void throttle_group_unref(ThrottleGroup *group); // accepts NULL
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ThrottleGroup, throttle_group_unref)
const char *throttle_group_name(const ThrottleGroup *group);
// Changes of checked limits hold for requests that wait, too.
void throttle_group_set_limits(ThrottleGroup *group, const ThrottleLimits *limits);
void throttle_group_get_limits(ThrottleGroup *group, ThrottleLimits *ret_limits);

// A node's place in a group, on the node's loop. Members take turns, one request each.
typedef struct ThrottleRequest ThrottleRequest;
typedef struct ThrottleMember ThrottleMember;

// A member's requests of one direction that wait.
typedef struct ThrottleQueue {
    ThrottleMember *member;
    bool is_write, is_in_turn; // in the group's list of turns
    bool is_called;            // `call` is on its way
    ThrottleRequest *first, **last_next;
    LoopTimer timer;
    LoopCall call; // its turn has come, or the limits have changed
    GList turn;    // in the group's list
} ThrottleQueue;

struct ThrottleMember {
    ThrottleGroup *group;
    Loop *loop;
    bool is_unlimited;
    bool has_left;           // frees itself
    ThrottleQueue queues[2]; // reads, writes
    FiberQueue idle;         // woken when no call is on its way any more
};

// Takes `group`.
void throttle_member_init(ThrottleMember *member, ThrottleGroup *group, Loop *loop);
// Nothing may wait.
void throttle_member_done(Fiber *self, ThrottleMember *member);
// The same for one that nobody has to wait for: what waits goes on at once, and is still counted;
// the member is freed when no call is on its way any more. Accepts NULL.
ThrottleMember *throttle_member_new(ThrottleGroup *group, Loop *loop); // takes `group`
void throttle_member_leave(ThrottleMember *member);
// Waits until a request of so many bytes may go on.
void throttle_member_wait(Fiber *self, ThrottleMember *member, bool is_write, uint64_t bytes);
// From now on (until false) nothing waits, and what does goes on at once; it is still counted.
void throttle_member_set_unlimited(ThrottleMember *member, bool is_unlimited);
