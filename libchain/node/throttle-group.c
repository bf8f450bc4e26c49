// SPDX-License-Identifier: LGPL-2.1-or-later
// Members with something to wait for stand in a list for each direction. Only the first may let a
// request go on, and then goes to the end; so they take turns, whatever each has waiting. The first
// one's timer runs on its own loop; who comes to be the first is called there.
//
// A mutex guards buckets and lists, for a few instructions at a time. What a member's requests wait
// in, its timers and its fibers belong to its loop.
#include "chain-core/throttle-group.h"

#include <errno.h>
#include <string.h>

#include "node/throttle-bucket.h"

struct ThrottleGroup {
    char *name;
    gint n_refs;
    GMutex mutex;
    ThrottleBuckets buckets;
    unsigned n_members; // and users
    bool goes_with_users;
    GQueue turns[2]; // of ThrottleQueue: reads, writes
};

struct ThrottleGroups {
    GMutex mutex;
    GHashTable *by_name; // ThrottleGroup, a reference
};

// --- groups by name ------------------------------------------------------------------------------

static void unref_group(gpointer group)
{
    throttle_group_unref(group);
}

ThrottleGroups *throttle_groups_new(void)
{
    ThrottleGroups *groups = g_new0(ThrottleGroups, 1);
    g_mutex_init(&groups->mutex);
    groups->by_name = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, unref_group);
    return groups;
}

void throttle_groups_free(ThrottleGroups *groups)
{
    if (!groups)
        return;
    g_hash_table_unref(groups->by_name);
    g_mutex_clear(&groups->mutex);
    g_free(groups);
}

static ThrottleGroup *group_new(const char *name, const ThrottleLimits *limits)
{
    ThrottleGroup *group = g_new0(ThrottleGroup, 1);
    group->name = g_strdup(name);
    group->n_refs = 1;
    g_mutex_init(&group->mutex);
    throttle_buckets_init(&group->buckets, limits, 0);
    g_queue_init(&group->turns[0]);
    g_queue_init(&group->turns[1]);
    return group;
}

bool throttle_groups_add(ThrottleGroups *groups, const char *name, const ThrottleLimits *limits)
{
    g_mutex_lock(&groups->mutex);
    bool is_new = !g_hash_table_contains(groups->by_name, name);
    if (is_new) {
        ThrottleGroup *group = group_new(name, limits);
        g_hash_table_insert(groups->by_name, group->name, group);
    }
    g_mutex_unlock(&groups->mutex);
    return is_new;
}

int throttle_groups_remove(ThrottleGroups *groups, const char *name)
{
    g_mutex_lock(&groups->mutex);
    ThrottleGroup *group = g_hash_table_lookup(groups->by_name, name);
    int r = group ? 0 : -ENOENT;
    if (group) {
        g_mutex_lock(&group->mutex);
        r = group->n_members ? -EBUSY : 0;
        g_mutex_unlock(&group->mutex);
    }
    if (r == 0)
        g_hash_table_remove(groups->by_name, name);
    g_mutex_unlock(&groups->mutex);
    return r;
}

ThrottleGroup *throttle_groups_find(ThrottleGroups *groups, const char *name)
{
    if (!groups)
        return NULL;
    g_mutex_lock(&groups->mutex);
    ThrottleGroup *group = g_hash_table_lookup(groups->by_name, name);
    if (group)
        throttle_group_ref(group);
    g_mutex_unlock(&groups->mutex);
    return group;
}

static void add_to_members(ThrottleGroup *group, unsigned n)
{
    g_mutex_lock(&group->mutex);
    group->n_members += n;
    g_mutex_unlock(&group->mutex);
}

ThrottleGroup *throttle_groups_use(ThrottleGroups *groups, const char *name,
                                   const ThrottleLimits *limits)
{
    g_mutex_lock(&groups->mutex);
    ThrottleGroup *group = g_hash_table_lookup(groups->by_name, name);
    if (!group) {
        group = group_new(name, limits);
        group->goes_with_users = true;
        g_hash_table_insert(groups->by_name, group->name, group);
    }
    add_to_members(throttle_group_ref(group), 1);
    g_mutex_unlock(&groups->mutex);
    return group;
}

void throttle_groups_end_use(ThrottleGroups *groups, ThrottleGroup *group)
{
    if (!group)
        return;
    add_to_members(group, -1u);
    if (group->goes_with_users)
        throttle_groups_remove(groups, group->name); // -EBUSY: there are others
    throttle_group_unref(group);
}

void throttle_groups_keep(ThrottleGroups *groups, const char *name, const ThrottleLimits *limits)
{
    g_autoptr(ThrottleGroup) group = throttle_groups_use(groups, name, limits);
    ThrottleLimits now;
    group->goes_with_users = false;
    throttle_group_get_limits(group, &now);
    if (memcmp(&now, limits, sizeof now) != 0) // else what was used up stays so
        throttle_group_set_limits(group, limits);
    add_to_members(group, -1u);
}

void throttle_groups_let_go(ThrottleGroups *groups, const char *name)
{
    ThrottleGroup *group = throttle_groups_find(groups, name);
    if (!group)
        return;
    group->goes_with_users = true;
    add_to_members(group, 1);
    throttle_groups_end_use(groups, group);
}

ThrottleGroup *throttle_group_ref(ThrottleGroup *group)
{
    g_atomic_int_inc(&group->n_refs);
    return group;
}

void throttle_group_unref(ThrottleGroup *group)
{
    if (!group || !g_atomic_int_dec_and_test(&group->n_refs))
        return;
    g_mutex_clear(&group->mutex);
    g_free(group->name);
    g_free(group);
}

const char *throttle_group_name(const ThrottleGroup *group)
{
    return group->name;
}

// --- turns ---------------------------------------------------------------------------------------

// One request; on its fiber's stack.
struct ThrottleRequest {
    Fiber *fiber;
    uint64_t bytes;
    bool may_go, is_waiting;
    ThrottleRequest *next;
};

static bool is_first(const ThrottleQueue *q)
{
    return g_queue_peek_head(&q->member->group->turns[q->is_write]) == q;
}

static void call(ThrottleQueue *q)
{
    if (q->is_called)
        return;
    q->is_called = true;
    loop_post(q->member->loop, &q->call);
}

static void call_first(ThrottleGroup *group, bool is_write)
{
    ThrottleQueue *first = g_queue_peek_head(&group->turns[is_write]);
    if (first)
        call(first);
}

static void enter_turns(ThrottleQueue *q)
{
    if (!q->is_in_turn)
        g_queue_push_tail_link(&q->member->group->turns[q->is_write], &q->turn);
    q->is_in_turn = true;
}

static void leave_turns(ThrottleQueue *q)
{
    if (q->is_in_turn)
        g_queue_unlink(&q->member->group->turns[q->is_write], &q->turn);
    q->is_in_turn = false;
}

// The longest waiting goes on.
static void let_go(ThrottleQueue *q)
{
    ThrottleRequest *request = q->first;
    throttle_buckets_add(&q->member->group->buckets, q->is_write, request->bytes);
    q->first = request->next;
    if (!q->first)
        q->last_next = &q->first;
    request->may_go = true;
    if (request->is_waiting)
        fiber_wake(request->fiber);
}

// Lets go on what may, as long as it is the member's turn; else the timer, or who has the turn,
// comes here again. With the mutex held.
static void take_turns(ThrottleQueue *q)
{
    ThrottleMember *m = q->member;
    ThrottleGroup *group = m->group;
    loop_timer_stop(m->loop, &q->timer);
    while (q->first && m->is_unlimited)
        let_go(q);
    while (q->first && is_first(q)) {
        uint64_t wait_ns =
            throttle_buckets_wait_ns(&group->buckets, q->is_write, loop_now_ns(m->loop));
        if (wait_ns) {
            loop_timer_start(m->loop, &q->timer, wait_ns);
            return;
        }
        let_go(q);
        leave_turns(q);
        if (q->first)
            enter_turns(q);
    }
    if (!q->first)
        leave_turns(q);
    call_first(group, q->is_write);
}

static void lock_and_take_turns(ThrottleQueue *q)
{
    ThrottleGroup *group = q->member->group;
    g_mutex_lock(&group->mutex);
    take_turns(q);
    g_mutex_unlock(&group->mutex);
}

static void timer_came(LoopTimer *timer)
{
    lock_and_take_turns((ThrottleQueue *)((char *)timer - offsetof(ThrottleQueue, timer)));
}

static bool is_any_called(const ThrottleMember *m)
{
    return m->queues[0].is_called || m->queues[1].is_called;
}

static void member_free(ThrottleMember *m)
{
    throttle_group_unref(m->group);
    g_free(m);
}

static void call_came(LoopCall *posted)
{
    ThrottleQueue *q = (ThrottleQueue *)((char *)posted - offsetof(ThrottleQueue, call));
    ThrottleMember *m = q->member;
    g_mutex_lock(&m->group->mutex);
    q->is_called = false;
    take_turns(q);
    bool is_gone = m->has_left && !is_any_called(m);
    g_mutex_unlock(&m->group->mutex);
    if (is_gone)
        member_free(m);
    else
        fiber_queue_wake_all(&m->idle);
}

void throttle_group_set_limits(ThrottleGroup *group, const ThrottleLimits *limits)
{
    g_mutex_lock(&group->mutex);
    throttle_buckets_init(&group->buckets, limits, group->buckets.leaked_ns);
    call_first(group, false);
    call_first(group, true);
    g_mutex_unlock(&group->mutex);
}

void throttle_group_get_limits(ThrottleGroup *group, ThrottleLimits *ret_limits)
{
    g_mutex_lock(&group->mutex);
    *ret_limits = group->buckets.limits;
    g_mutex_unlock(&group->mutex);
}

// --- members -------------------------------------------------------------------------------------

void throttle_member_init(ThrottleMember *m, ThrottleGroup *group, Loop *loop)
{
    *m = (ThrottleMember){.group = group, .loop = loop};
    for (unsigned i = 0; i < 2; i++) {
        ThrottleQueue *q = &m->queues[i];
        q->member = m;
        q->is_write = i;
        q->last_next = &q->first;
        q->timer.fn = timer_came;
        q->call.fn = call_came;
        q->turn.data = q;
    }
    add_to_members(group, 1);
}

static bool is_called(ThrottleMember *m)
{
    g_mutex_lock(&m->group->mutex);
    bool is_called = is_any_called(m);
    g_mutex_unlock(&m->group->mutex);
    return is_called;
}

void throttle_member_done(Fiber *self, ThrottleMember *m)
{
    g_assert(!m->queues[0].first && !m->queues[1].first);
    while (is_called(m))
        fiber_queue_wait(self, &m->idle, false, "throttle: a message");
    add_to_members(m->group, -1u);
    g_clear_pointer(&m->group, throttle_group_unref);
}

ThrottleMember *throttle_member_new(ThrottleGroup *group, Loop *loop)
{
    ThrottleMember *m = g_new(ThrottleMember, 1);
    throttle_member_init(m, group, loop);
    return m;
}

void throttle_member_leave(ThrottleMember *m)
{
    if (!m)
        return;
    throttle_member_set_unlimited(m, true);
    add_to_members(m->group, -1u);
    g_mutex_lock(&m->group->mutex);
    m->has_left = true;
    bool is_gone = !is_any_called(m);
    g_mutex_unlock(&m->group->mutex);
    if (is_gone)
        member_free(m);
}

void throttle_member_wait(Fiber *self, ThrottleMember *m, bool is_write, uint64_t bytes)
{
    ThrottleQueue *q = &m->queues[is_write];
    ThrottleRequest request = {.fiber = self, .bytes = bytes};
    g_mutex_lock(&m->group->mutex);
    *q->last_next = &request;
    q->last_next = &request.next;
    enter_turns(q);
    // Whoever is first has its timer, or is being called.
    if (is_first(q) || m->is_unlimited)
        take_turns(q);
    request.is_waiting = true;
    g_mutex_unlock(&m->group->mutex);
    while (!request.may_go)
        fiber_suspend(self, "throttle: its turn");
}

void throttle_member_set_unlimited(ThrottleMember *m, bool is_unlimited)
{
    g_mutex_lock(&m->group->mutex);
    m->is_unlimited = is_unlimited;
    for (unsigned i = 0; i < 2; i++)
        if (m->queues[i].first)
            take_turns(&m->queues[i]);
    g_mutex_unlock(&m->group->mutex);
}
