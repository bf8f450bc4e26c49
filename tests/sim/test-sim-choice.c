// SPDX-License-Identifier: LGPL-2.1-or-later
// A chooser in place of the seed: what it may choose among, and which states are the same.
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/sim-choice.h"

enum { LEN = 512, N_WRITERS = 2, MAX_CHOICES = 16 };

typedef struct Script {
    SimChooser chooser; // first
    Sim *sim;
    File *file;
    FiberWaitGroup group;
    uint64_t offs[N_WRITERS];
    unsigned next_writer;
    Fiber *writers[N_WRITERS];
    // What the chooser does: its choices, then 0. How many there were each time.
    unsigned choices[MAX_CHOICES], limits[MAX_CHOICES], n;
    unsigned n_effects; // of writers, so far
    uint64_t state;     // after the last of them
    GString *order;     // letters of the writers as they went on
} Script;

static void writer(Fiber *self, void *arg)
{
    Script *s = arg;
    unsigned i = s->next_writer++;
    uint8_t data[LEN];
    s->writers[i] = self;
    memset(data, 'a' + (int)i, LEN);
    g_string_append_c(s->order, (char)('a' + i));
    assert_int_equal(file_write(self, s->file, host_off(s->offs[i]), data, LEN), 0);
    g_string_append_c(s->order, (char)('A' + i));
    fiber_wait_group_done(&s->group);
}

static bool is_of_writer(const Script *s, const SimAction *action)
{
    return action->is_effect && action->fiber &&
           (action->fiber == s->writers[0] || action->fiber == s->writers[1]);
}

static unsigned choose(SimChooser *chooser, const SimAction *actions, unsigned n)
{
    Script *s = (Script *)chooser;
    if (!s->writers[0])
        return 0;
    if (s->n_effects == N_WRITERS && !s->state)
        s->state = sim_state_hash(s->sim);
    assert_true(s->n < MAX_CHOICES);
    s->limits[s->n] = n;
    unsigned picked = s->choices[s->n++];
    s->n_effects += is_of_writer(s, &actions[picked]);
    return picked;
}

static void script_main(Fiber *self, void *arg)
{
    Script *s = arg;
    assert_int_equal(file_open(self, "/f", FILE_WRITABLE, &s->file, NULL), 0);
    fiber_wait_group_add(&s->group, N_WRITERS);
    for (unsigned i = 0; i < N_WRITERS; i++)
        assert_int_equal(fiber_spawn(fiber_loop(self), "writer", writer, s, NULL), 0);
    fiber_wait_group_wait(self, &s->group);
    s->chooser.choose = NULL;
    file_close(self, s->file);
}

// The first `n_choices` are given; what came of it is in `s`, and what the file holds then.
static char run(Script *s, uint64_t other_off)
{
    uint8_t zeros[2 * LEN] = {0};
    void *content;
    uint64_t len;
    s->chooser.choose = choose;
    s->offs[1] = other_off;
    s->order = g_string_new(NULL);
    s->sim = sim_new(&(SimConfig){.seed = 1});
    sim_write_file(s->sim, "/f", zeros, sizeof(zeros));
    sim_set_chooser(s->sim, &s->chooser);
    assert_true(sim_run(s->sim, script_main, s));
    assert_int_equal(sim_read_file(s->sim, "/f", &content, &len), 0);
    char first = ((char *)content)[0];
    g_free(content);
    sim_free(s->sim);
    return first;
}

// The next sequence of choices, as an odometer counts. False: that was the last.
static bool next_choices(Script *s)
{
    Script next = {0};
    unsigned i = s->n;
    while (i > 0 && s->choices[i - 1] + 1 == s->limits[i - 1])
        i--;
    if (i == 0)
        return false;
    memcpy(next.choices, s->choices, i * sizeof(unsigned));
    next.choices[i - 1]++;
    *s = next;
    return true;
}

static void choices_go_through_every_order(void **state)
{
    g_autoptr(GHashTable) orders = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    Script s = {0};
    char seen[2] = {0};
    unsigned n_runs = 0;
    do {
        char content = run(&s, 0); // both at one place: the last to take effect is there
        seen[content == 'b'] = content;
        g_hash_table_add(orders, g_string_free(s.order, false));
        n_runs++;
    } while (next_choices(&s));
    // The first writer is the one that the chooser is told of first, so b never begins before a.
    assert_int_equal(g_hash_table_size(orders), 3); // abAB abBA aAbB
    assert_true(seen[0] == 'a' && seen[1] == 'b');
    assert_true(n_runs > 6);
}

static void equal_choices_are_the_same_run(void **state)
{
    Script first = {.choices = {0, 1}}, again = {.choices = {0, 1}};
    run(&first, 0);
    run(&again, 0);
    assert_true(g_string_equal(first.order, again.order));
    assert_int_equal(first.n, again.n);
    assert_true(first.state && first.state == again.state);
    g_string_free(first.order, true);
    g_string_free(again.order, true);
}

// The state once both writes have taken effect and no writer has run since: [0] in the order in
// which they were asked for, [1] in the other.
static void both_states(uint64_t off, uint64_t states[2])
{
    for (unsigned i = 0; i < 2; i++) {
        // b begins (a has), the first or the second effect, the other.
        Script s = {.choices = {0, i, 1}};
        run(&s, off);
        states[i] = s.state;
        g_string_free(s.order, true);
    }
}

static void what_does_not_concern_each_other_leaves_one_state(void **state)
{
    uint64_t apart[2], together[2];
    both_states(LEN, apart);
    both_states(0, together);
    assert_true(apart[0] && apart[0] == apart[1]);
    assert_true(together[0] && together[0] != together[1]);
}

// --- in flight -----------------------------------------------------------------------------------

typedef struct Cut {
    SimHook hook; // first
    Sim *sim;
    unsigned n_there, n_not;
} Cut;

static int cut_here(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                    uint64_t len)
{
    Cut *cut = (Cut *)hook;
    for (uint64_t seed = 0; op == SIM_OP_WRITE && seed < 64; seed++) {
        Sim *after = sim_clone_after_power_cut(cut->sim, seed);
        void *content;
        uint64_t size;
        assert_int_equal(sim_read_file(after, "/f", &content, &size), 0);
        *(((char *)content)[0] == 'x' ? &cut->n_there : &cut->n_not) += 1;
        g_free(content);
        sim_free(after);
    }
    return 0;
}

static void write_one(Fiber *self, void *arg)
{
    File *file;
    uint8_t data[LEN];
    memset(data, 'x', LEN);
    assert_int_equal(file_open(self, "/f", FILE_WRITABLE, &file, NULL), 0);
    assert_int_equal(file_write(self, file, host_off(0), data, LEN), 0);
    file_close(self, file);
}

static void a_write_that_was_asked_for_may_survive_a_power_cut(void **state)
{
    static SimChooser plain;
    uint8_t zeros[LEN] = {0};
    Cut cut = {.hook.fn = cut_here, .sim = sim_new(&(SimConfig){.seed = 1})};
    sim_write_file(cut.sim, "/f", zeros, LEN);
    sim_set_hook(cut.sim, &cut.hook);
    sim_set_chooser(cut.sim, &plain);
    assert_true(sim_run(cut.sim, write_one, NULL));
    assert_true(cut.n_there > 0 && cut.n_not > 0);
    sim_free(cut.sim);
}

static void sleep_for_an_hour(Fiber *self, void *arg)
{
    assert_int_equal(fiber_sleep(self, UINT64_C(3600000000000)), 0);
    *(bool *)arg = true;
}

static void time_goes_on_when_nothing_else_can_happen(void **state)
{
    static SimChooser plain;
    bool is_over = false;
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    sim_set_chooser(sim, &plain);
    assert_true(sim_run(sim, sleep_for_an_hour, &is_over));
    assert_true(is_over);
    sim_free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_go_through_every_order),
        cmocka_unit_test(equal_choices_are_the_same_run),
        cmocka_unit_test(what_does_not_concern_each_other_leaves_one_state),
        cmocka_unit_test(a_write_that_was_asked_for_may_survive_a_power_cut),
        cmocka_unit_test(time_goes_on_when_nothing_else_can_happen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
