// SPDX-License-Identifier: LGPL-2.1-or-later
// Schedules wait in pools, one for each number of deviations. A schedule is what differs from the
// plain outcomes: where, and what instead. A run follows its own to the last of them; from there on
// it is new ground, and each other outcome becomes a schedule of its own.
#include "explorer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "sim/sim-random.h"

// At the decision with number `at` the outcome `choice`, which is not the plain one.
typedef struct Turn {
    uint32_t at;
    uint16_t choice;
    bool is_failure;
} Turn;

typedef struct Schedule {
    unsigned n_deviations;
    bool has_failure;
    unsigned n;
    Turn turns[];
} Schedule;

typedef struct Pool {
    GPtrArray *schedules;
    uint64_t n_offered; // so far
} Pool;

// A set of hashes, none of them 0.
typedef struct HashSet {
    uint64_t *slots;
    uint64_t n, capacity;
} HashSet;

enum { MAX_RANKS = 64, FIRST_RANK = UINT32_C(1) << 31 };

struct Explorer {
    SimChooser chooser; // first
    ExplorerLimits limits;
    SimRandom random;
    Pool pools[EXPLORER_MAX_DEVIATIONS + 1];
    uint64_t n_waiting;
    HashSet known;
    ExplorerCounts counts;
    unsigned first_left; // the fewest deviations of a schedule that was dropped
    bool is_replay;
    // this run
    Sim *sim; // NULL: no decisions now
    Schedule *schedule;
    unsigned n_followed;
    uint32_t n_decisions;
    unsigned last; // number of the fiber that did something last
    bool is_known, is_wrong;
    // a run at random, whose schedule is written as it goes
    bool is_random;
    uint32_t ranks[MAX_RANKS]; // by a fiber's number; 0: none yet
    uint32_t last_rank;        // of all that were given
    unsigned step_back_percent;
    unsigned fail_at; // so many operations from now one fails; 0: none does
};

enum { NOBODY = UINT32_MAX };

static unsigned choose(SimChooser *chooser, const SimAction *actions, unsigned n);
static void offer(Explorer *e, Schedule *schedule);

Explorer *explorer_new(const ExplorerLimits *limits)
{
    Explorer *e = g_new0(Explorer, 1);
    g_assert(limits->max_deviations <= EXPLORER_MAX_DEVIATIONS);
    e->chooser.choose = choose;
    e->limits = *limits;
    e->first_left = UINT_MAX;
    e->random = sim_random_make(limits->seed, 0x6d6f64);
    for (unsigned i = 0; i <= EXPLORER_MAX_DEVIATIONS; i++)
        e->pools[i].schedules = g_ptr_array_new_with_free_func(g_free);
    offer(e, g_new0(Schedule, 1));
    return e;
}

void explorer_free(Explorer *e)
{
    if (!e)
        return;
    for (unsigned i = 0; i <= EXPLORER_MAX_DEVIATIONS; i++)
        g_ptr_array_unref(e->pools[i].schedules);
    g_free(e->schedule);
    g_free(e->known.slots);
    g_free(e);
}

// --- known states --------------------------------------------------------------------------------

static bool set_add(HashSet *set, uint64_t hash);

static void set_grow(HashSet *set)
{
    HashSet old = *set;
    set->capacity = old.capacity ? old.capacity * 2 : 1024;
    set->slots = g_new0(uint64_t, set->capacity);
    set->n = 0;
    for (uint64_t i = 0; i < old.capacity; i++)
        if (old.slots[i])
            set_add(set, old.slots[i]);
    g_free(old.slots);
}

// False: it was there.
static bool set_add(HashSet *set, uint64_t hash)
{
    if (set->n * 2 >= set->capacity)
        set_grow(set);
    hash |= !hash;
    uint64_t i = hash & (set->capacity - 1);
    for (; set->slots[i]; i = (i + 1) & (set->capacity - 1))
        if (set->slots[i] == hash)
            return false;
    set->slots[i] = hash;
    set->n++;
    return true;
}

// --- schedules -----------------------------------------------------------------------------------

static bool is_on_new_ground(const Explorer *e)
{
    return e->n_followed == e->schedule->n;
}

// Schedules with so many deviations, or fewer, that wait.
static uint64_t n_waiting_up_to(const Explorer *e, unsigned n_deviations)
{
    uint64_t n = 0;
    for (unsigned i = 0; i <= n_deviations; i++)
        n += e->pools[i].schedules->len;
    return n;
}

// Takes it. Of more than can be run each is kept with the same chance.
static void offer(Explorer *e, Schedule *schedule)
{
    unsigned n_deviations = schedule->n_deviations;
    Pool *pool = &e->pools[n_deviations];
    pool->n_offered++;
    if (!e->limits.max_runs ||
        e->counts.n_runs + n_waiting_up_to(e, n_deviations) < e->limits.max_runs) {
        g_ptr_array_add(pool->schedules, schedule);
        e->n_waiting++;
        return;
    }
    uint64_t i = sim_random_below(&e->random, pool->n_offered);
    if (i < pool->schedules->len) {
        Schedule *other = pool->schedules->pdata[i];
        pool->schedules->pdata[i] = schedule;
        schedule = other;
    }
    g_free(schedule);
    e->counts.n_left++;
    e->first_left = MIN(e->first_left, n_deviations);
}

// The schedule of this run so far, with another outcome now.
static void offer_other(Explorer *e, uint16_t choice, bool is_deviation, bool is_failure)
{
    const Schedule *s = e->schedule;
    unsigned n_deviations = s->n_deviations + is_deviation;
    if (n_deviations > e->limits.max_deviations) {
        e->counts.n_bound++;
        return;
    }
    Schedule *next = g_malloc(sizeof(Schedule) + (s->n + 1) * sizeof(Turn));
    *next = (Schedule){n_deviations, s->has_failure || is_failure, s->n + 1};
    memcpy(next->turns, s->turns, s->n * sizeof(Turn));
    next->turns[s->n] = (Turn){e->n_decisions, choice, is_failure};
    offer(e, next);
}

// The outcome that the schedule wants here, or -1: the plain one.
static int follow(Explorer *e, bool is_failure)
{
    const Schedule *s = e->schedule;
    if (is_on_new_ground(e) || s->turns[e->n_followed].at != e->n_decisions)
        return -1;
    const Turn *turn = &s->turns[e->n_followed++];
    e->is_wrong |= turn->is_failure != is_failure;
    return e->is_wrong ? -1 : turn->choice;
}

// Deviations of the schedule that comes next; one more than allowed: none waits.
static unsigned fewest_waiting(const Explorer *e)
{
    unsigned i = 0;
    while (i <= e->limits.max_deviations && e->pools[i].schedules->len == 0)
        i++;
    return i;
}

static void take_waiting(Explorer *e)
{
    GPtrArray *schedules = e->pools[fewest_waiting(e)].schedules;
    guint i = (guint)sim_random_below(&e->random, schedules->len);
    e->schedule = g_ptr_array_steal_index_fast(schedules, i);
    e->n_waiting--;
    e->counts.n_runs++;
}

static void begin_random(Explorer *e)
{
    static const unsigned percents[] = {0, 2, 5, 10};
    enum { MOST_OPERATIONS = 60 };
    e->is_random = true;
    e->counts.n_random++;
    e->step_back_percent = percents[sim_random_below(&e->random, G_N_ELEMENTS(percents))];
    memset(e->ranks, 0, sizeof(e->ranks));
    e->last_rank = FIRST_RANK;
    e->fail_at = sim_random_chance(&e->random, 50)
                     ? 1 + (unsigned)sim_random_below(&e->random, MOST_OPERATIONS)
                     : 0;
    e->schedule = g_new0(Schedule, 1);
    e->schedule->has_failure = e->fail_at > 0;
}

bool explorer_begin(Explorer *e)
{
    g_clear_pointer(&e->schedule, g_free);
    e->is_random = false;
    if (e->n_waiting && (!e->limits.max_runs || e->counts.n_runs < e->limits.max_runs))
        take_waiting(e);
    else if (e->counts.n_random < e->limits.max_random)
        begin_random(e);
    else
        return false;
    e->n_followed = 0;
    e->n_decisions = 0;
    e->last = NOBODY;
    e->is_known = false;
    return true;
}

void explorer_end(Explorer *e)
{
    if (e->is_wrong || !is_on_new_ground(e)) {
        g_autofree char *schedule = explorer_schedule(e);
        g_error("schedule %s: the run is not the same each time", schedule);
    }
    e->counts.n_known += e->is_known;
}

// --- decisions -----------------------------------------------------------------------------------

void explorer_start(Explorer *e, Sim *sim)
{
    e->sim = sim;
}

void explorer_stop(Explorer *e)
{
    e->sim = NULL;
}

SimChooser *explorer_chooser(Explorer *e)
{
    return &e->chooser;
}

// What follows from here does not depend on how the run came here, but for what may follow.
static void look_at_state(Explorer *e)
{
    uint64_t hash = sim_mix(sim_state_hash(e->sim), e->last);
    hash = sim_mix(hash, e->schedule->has_failure);
    e->is_known |= !e->is_replay && !set_add(&e->known, hash);
}

// The first of those of the fiber with that number; -1: it has none.
static int find(const SimAction *actions, unsigned n, unsigned number)
{
    for (unsigned i = 0; i < n; i++)
        if (actions[i].number == number)
            return (int)i;
    return -1;
}

// Each fiber's first may come; that another one of it does is out of its order, and a deviation.
static void offer_others(Explorer *e, const SimAction *actions, unsigned n, unsigned plain,
                         bool is_free)
{
    for (unsigned i = 0; i < n; i++) {
        bool is_first = find(actions, n, actions[i].number) == (int)i;
        if (i != plain)
            offer_other(e, i, !is_free || !is_first, false);
    }
}

static void add_turn(Explorer *e, uint16_t choice, bool is_failure)
{
    Schedule *s = g_realloc(e->schedule, sizeof(Schedule) + (e->schedule->n + 1) * sizeof(Turn));
    s->turns[s->n++] = (Turn){e->n_decisions, choice, is_failure};
    e->schedule = s;
    e->n_followed = s->n;
}

static uint32_t *rank_of(Explorer *e, unsigned number)
{
    uint32_t *rank = &e->ranks[number % MAX_RANKS];
    if (!*rank)
        *rank = FIRST_RANK + 1 + (uint32_t)sim_random_below(&e->random, FIRST_RANK - 2);
    return rank;
}

// Of each fiber its first action.
static unsigned choose_at_random(Explorer *e, const SimAction *actions, unsigned n, unsigned plain)
{
    if (n > 1 && e->last != NOBODY && sim_random_chance(&e->random, e->step_back_percent))
        *rank_of(e, e->last) = --e->last_rank;
    unsigned picked = 0;
    for (unsigned i = 1; i < n; i++)
        if (*rank_of(e, actions[i].number) > *rank_of(e, actions[picked].number))
            picked = i;
    if (picked != plain)
        add_turn(e, (uint16_t)picked, false);
    return picked;
}

static unsigned decide(Explorer *e, const SimAction *actions, unsigned picked)
{
    e->n_decisions++;
    e->last = actions[picked].number;
    return picked;
}

static unsigned choose(SimChooser *chooser, const SimAction *actions, unsigned n)
{
    Explorer *e = (Explorer *)chooser;
    if (!e->sim)
        return 0;
    int own = find(actions, n, e->last);
    unsigned plain = own < 0 ? 0 : (unsigned)own;
    if (e->is_random)
        return decide(e, actions, choose_at_random(e, actions, n, plain));
    if (n > 1 && is_on_new_ground(e) && !e->is_known)
        look_at_state(e);
    if (n > 1 && is_on_new_ground(e) && !e->is_known)
        offer_others(e, actions, n, plain, own < 0);
    int wanted = follow(e, false);
    unsigned picked = wanted < 0 ? plain : (unsigned)wanted;
    if (picked >= n) {
        e->is_wrong = true;
        picked = plain;
    }
    return decide(e, actions, picked);
}

static unsigned fail_at_random(Explorer *e, unsigned n)
{
    unsigned failure = 0;
    if (e->fail_at && --e->fail_at == 0) {
        failure = 1 + (unsigned)sim_random_below(&e->random, n);
        add_turn(e, (uint16_t)failure, true);
    }
    e->n_decisions++;
    return failure;
}

unsigned explorer_fail(Explorer *e, unsigned n)
{
    if (!e->sim)
        return 0;
    if (e->is_random)
        return fail_at_random(e, n);
    if (is_on_new_ground(e) && !e->is_known && !e->schedule->has_failure)
        for (unsigned i = 1; i <= n; i++)
            offer_other(e, i, true, true);
    int wanted = follow(e, true);
    e->n_decisions++;
    return wanted < 0 ? 0 : (unsigned)wanted;
}

// --- what is told --------------------------------------------------------------------------------

bool explorer_is_new(const Explorer *e)
{
    return e->schedule && is_on_new_ground(e) && !e->is_known;
}

bool explorer_has_failure(const Explorer *e)
{
    return e->schedule && e->schedule->has_failure;
}

char *explorer_schedule(const Explorer *e)
{
    GString *s = g_string_new(e->schedule->n ? NULL : "plain");
    for (unsigned i = 0; i < e->schedule->n; i++) {
        const Turn *turn = &e->schedule->turns[i];
        g_string_append_printf(s, "%s%" PRIu32 "%c%u", i ? "," : "", turn->at,
                               turn->is_failure ? '!' : ':', turn->choice);
    }
    return g_string_free(s, false);
}

bool explorer_replay(Explorer *e, const char *schedule)
{
    g_auto(GStrv) words = g_strsplit(g_str_equal(schedule, "plain") ? "" : schedule, ",", -1);
    guint n = g_strv_length(words);
    Schedule *s = g_malloc0(sizeof(Schedule) + n * sizeof(Turn));
    s->n = n;
    for (guint i = 0; i < n; i++) {
        char *end;
        Turn *turn = &s->turns[i];
        turn->at = strtoul(words[i], &end, 10);
        turn->is_failure = *end == '!';
        s->has_failure |= turn->is_failure;
        turn->choice = *end ? strtoul(end + 1, &end, 10) : 0;
        if (*end) {
            g_free(s);
            return false;
        }
    }
    g_ptr_array_set_size(e->pools[0].schedules, 0);
    g_ptr_array_add(e->pools[0].schedules, s);
    e->limits.max_runs = 1;
    e->limits.max_random = 0;
    e->is_replay = true;
    return true;
}

void explorer_counts(const Explorer *e, ExplorerCounts *ret_counts)
{
    *ret_counts = e->counts;
    ret_counts->n_left += e->n_waiting;
    ret_counts->n_complete = MIN(fewest_waiting(e), e->first_left);
}
