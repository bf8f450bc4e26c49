// SPDX-License-Identifier: LGPL-2.1-or-later
// What whole tables say of their clusters, in bits, against what is said of each by itself: groups
// of 64 entries that are all alike, and such with one that is not, at each of their places.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "chain-core/node-kinds.h"
#include "engine-fixture.h"

enum { CLUSTER = 4096, N_CLUSTERS = 256, N_WORDS = N_CLUSTERS / 64 };

typedef struct Scene {
    EngineFixture *f;
    uint64_t n_data, n_zero; // cells, counted
} Scene;

static bool has_bit(const uint64_t *words, unsigned i)
{
    return words[i / 64] >> i % 64 & 1;
}

static void compare(Fiber *self, void *arg)
{
    Scene *s = arg;
    Node *node = engine_open(self, s->f, "image", NULL, true, NULL);
    uint64_t data[N_WORDS] = {0}, zero[N_WORDS] = {0};
    NodeKinds kinds = {data, zero, N_CLUSTERS, __builtin_ctz(CLUSTER)};
    uint64_t size = (uint64_t)N_CLUSTERS * CLUSTER;
    assert_int_equal(node_find_kinds(self, node, guest_off(0), size, &kinds), 0);
    s->n_data = s->n_zero = 0;
    for (unsigned i = 0; i < N_CLUSTERS; i++) {
        NodeExtentKind kind;
        uint64_t len;
        assert_int_equal(
            node_find_kind(self, node, guest_off((uint64_t)i * CLUSTER), CLUSTER, &kind, &len), 0);
        assert_int_equal(has_bit(data, i), kind == NODE_EXTENT_DATA);
        assert_int_equal(has_bit(zero, i), kind == NODE_EXTENT_ZERO);
        s->n_data += kind == NODE_EXTENT_DATA;
        s->n_zero += kind == NODE_EXTENT_ZERO;
    }
    node_unref_close(self, node);
}

static void look(Scene *s, uint64_t n_data, uint64_t n_zero)
{
    engine_run(compare, s);
    assert_int_equal(s->n_data, n_data);
    assert_int_equal(s->n_zero, n_zero);
}

static void groups_of_entries_are_what_each_of_them_is(void **state)
{
    static const char *const others[] = {"write -z -u", "write -z", "discard"};
    EngineFixture f;
    Scene s = {.f = &f};
    engine_fixture_init(&f, 32 << 20);
    engine_shell(&f, "qemu-img create -q -f qcow2 -o cluster_size=4k image 1M");
    look(&s, 0, 0);
    engine_shell(&f, "qemu-io -c 'write -P 1 0 512k' image >/dev/null"); // two groups: no entry
    look(&s, 128, 0);
    for (unsigned kind = 0; kind < G_N_ELEMENTS(others); kind++)
        for (unsigned place = 0; place < 64; place += 7) {
            engine_shell(&f, "qemu-io -c 'write -P 1 0 512k' -c '%s %uk 4k' image >/dev/null",
                         others[kind], (64 + place) * 4);
            engine_run(compare, &s);
            assert_int_equal(s.n_data, 127);
        }
    engine_fixture_done(&f);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(groups_of_entries_are_what_each_of_them_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
