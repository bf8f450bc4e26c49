// SPDX-License-Identifier: LGPL-2.1-or-later
// Who is in the way of whom: each kind of user of a node against what a job needs of it, for ranges
// of a chain at once. In the simulation.
#include <errno.h>

#include "../loop/in-fiber.h"
#include "chain-core/node-hold.h"
#include "chain-core/port.h"
#include "memory-node.h"
#include "on-sim.h"
#include "pass-filter.h"

enum { SIZE = 1 << 16 };

// What jobs ask for; the table in node-hold.h.
enum {
    GRAPH = NODE_PERM_PLACE | NODE_PERM_BACKING,
    CONTENT = NODE_PERM_WRITE | NODE_PERM_RESIZE,
    EVERYBODY = NODE_PERM_ALL & ~GRAPH,
};
static const NodePerms reads = {NODE_PERM_CONSISTENT_READ, EVERYBODY & ~CONTENT};
static const NodePerms fills = {NODE_PERM_CONSISTENT_READ | NODE_PERM_WRITE_UNCHANGED |
                                    NODE_PERM_BACKING,
                                EVERYBODY & ~NODE_PERM_RESIZE};
static const NodePerms writes = {NODE_PERM_CONSISTENT_READ | CONTENT,
                                 EVERYBODY & ~CONTENT & ~NODE_PERM_CONSISTENT_READ};
static const NodePerms goes = {NODE_PERM_CONSISTENT_READ | GRAPH,
                               EVERYBODY & ~CONTENT & ~NODE_PERM_CONSISTENT_READ};
static const NodePerms is_left = {NODE_PERM_CONSISTENT_READ | NODE_PERM_PLACE,
                                  EVERYBODY & ~NODE_PERM_RESIZE};

static Node *node_new(Fiber *self, const char *name, Node *backing)
{
    Node *node = &memory_node_new(fiber_loop(self), SIZE)->node;
    g_free(node->name);
    node->name = g_strdup(name);
    if (backing)
        node_set_backing(self, node, backing);
    return node;
}

static Node *filter_new(Fiber *self, const char *name, Node *backing)
{
    Node *node = pass_filter_new(fiber_loop(self), name, SIZE);
    node_set_backing(self, node, backing);
    return node;
}

static void refused(const char *owner, const NodeNeed *needs, unsigned n, const char *words)
{
    g_autoptr(GError) error = NULL;
    NodeHold *hold;
    fiber_assert_equal(node_hold_new(owner, needs, n, &hold, &error), -EBUSY);
    if (!strstr(error->message, words))
        g_error("'%s' is missing in: %s", words, error->message);
}

static NodeHold *held(const char *owner, const NodeNeed *needs, unsigned n)
{
    g_autoptr(GError) error = NULL;
    NodeHold *hold;
    if (node_hold_new(owner, needs, n, &hold, &error) < 0)
        g_error("%s", error->message);
    return hold;
}

// May it? Leaves nothing held.
static void allowed(Fiber *self, const NodeNeed *needs, unsigned n)
{
    node_hold_release(self, held("a job", needs, n));
}

SIM_TEST(ports_use_what_they_let_in)
{
    Node *node = node_new(self, "disk", NULL);
    Port port;
    port_init(&port, node, "export 'e'");
    refused("job 'j'", &(NodeNeed){node, reads}, 1, "export 'e' has that");
    refused("job 'j'", &(NodeNeed){node, writes}, 1, "consistent read, write");
    allowed(self, &(NodeNeed){node, fills}, 1);
    port.perms = node_perms_of(NODE_USER_OUTSIDE, false);
    allowed(self, &(NodeNeed){node, reads}, 1);
    refused("job 'j'", &(NodeNeed){node, writes}, 1, "consistent read: export 'e'");
    port_done(self, &port);
    allowed(self, &(NodeNeed){node, writes}, 1);
    node_unref_close(self, node);
}

SIM_TEST(an_overlay_keeps_what_lies_below_it_as_it_is)
{
    Node *base = node_new(self, "base", NULL), *over = node_new(self, "over", base);
    NodePerms may_be_read = {CONTENT, NODE_PERM_ALL};
    refused("job 'j'", &(NodeNeed){base, may_be_read}, 1,
            "write, resize: its overlay 'over' does not allow that");
    allowed(self, &(NodeNeed){base, reads}, 1);
    allowed(self, &(NodeNeed){base, fills}, 1);
    refused("job 'j'", &(NodeNeed){base, writes}, 1, "'over'");
    node_unref_close(self, over);
    allowed(self, &(NodeNeed){base, writes}, 1);
    node_unref_close(self, base);
}

SIM_TEST(an_image_has_its_file_for_itself)
{
    Node *file = node_new(self, "file", NULL), *image = node_new(self, "image", NULL);
    node_add_child(image, file);
    refused("job 'j'", &(NodeNeed){file, reads}, 1, "write, resize: the image in it 'image'");
    image->read_only = true;
    allowed(self, &(NodeNeed){file, reads}, 1);
    refused("job 'j'", &(NodeNeed){file, writes}, 1, "'image' does not allow that");
    node_unref_close(self, image);
    node_unref_close(self, file);
}

SIM_TEST(through_filters_their_users_are_seen)
{
    Node *base = node_new(self, "base", NULL), *filter = filter_new(self, "filter", base);
    Port port;
    allowed(self, &(NodeNeed){base, writes}, 1);
    Node *over = node_new(self, "over", filter);
    refused("job 'j'", &(NodeNeed){base, writes}, 1, "its overlay 'over'");
    port_init(&port, filter, "export 'e'");
    refused("job 'j'", &(NodeNeed){base, reads}, 1, "write: export 'e'");

    // The overlay is of the range, the export is not.
    NodeNeed range[] = {{over, is_left}, {base, writes}};
    refused("job 'j'", range, 2, "export 'e'");
    port_done(self, &port);
    allowed(self, range, 2);
    node_unref_close(self, over);
    node_unref_close(self, filter);
    node_unref_close(self, base);
}

SIM_TEST(the_other_child_of_a_filter_is_written)
{
    Node *source = node_new(self, "source", NULL), *target = node_new(self, "target", NULL);
    Node *filter = filter_new(self, "mirror", source);
    node_add_child(filter, target);
    refused("job 'j'", &(NodeNeed){target, reads}, 1, "write: the filter 'mirror'");
    allowed(self, &(NodeNeed){source, reads}, 1);
    node_unref_close(self, filter);
    node_unref_close(self, source);
    node_unref_close(self, target);
}

SIM_TEST(a_range_is_held_whole_or_not_at_all)
{
    Node *base = node_new(self, "base", NULL), *middle = node_new(self, "middle", base);
    Node *top = node_new(self, "top", middle), *over = node_new(self, "over", top);
    NodeNeed commit[] = {{top, is_left}, {middle, goes}, {base, writes}};
    allowed(self, commit, 3);

    Node *branches[] = {base, middle};
    for (unsigned i = 0; i < 2; i++) {
        Node *branch = node_new(self, "branch", branches[i]);
        refused("job 'j'", commit, 3, "its overlay 'branch'");
        fiber_assert(!top->holds && !middle->holds && !base->holds);
        node_unref_close(self, branch);
    }
    Port port;
    port_init(&port, middle, "export 'old'");
    port.perms = node_perms_of(NODE_USER_OUTSIDE, false);
    refused("job 'j'", commit, 3, "export 'old'");
    port_done(self, &port);

    // What shows the same before and after may be used by anybody.
    Node *branch = node_new(self, "branch", top);
    allowed(self, commit, 3);
    node_unref_close(self, branch);

    node_unref_close(self, over);
    node_unref_close(self, top);
    node_unref_close(self, middle);
    node_unref_close(self, base);
}

SIM_TEST(jobs_that_are_in_each_others_way_are_refused_by_name)
{
    Node *a = node_new(self, "a", NULL), *b = node_new(self, "b", a);
    Node *c = node_new(self, "c", b), *d = node_new(self, "d", c);
    NodeNeed commit[] = {{b, is_left}, {a, writes}}, stream[] = {{d, fills}, {c, reads}};
    NodeNeed both[] = {{d, fills}, {c, reads}, {b, reads}};
    NodeHold *one = held("job 'one'", commit, 2);
    NodeHold *two = held("job 'two'", stream, 2);
    refused("job 'three'", both, 3, "job 'two' does not allow that");
    node_hold_release(self, two);
    refused("job 'three'", both, 3, "job 'one'");
    NodeNeed snapshot = {d, {NODE_PERM_PLACE, NODE_PERM_ALL}};
    fiber_assert_equal(node_check_need("a snapshot", &snapshot, NULL, NULL), 0);
    two = held("job 'two'", stream, 2);
    fiber_assert_equal(node_check_need("a snapshot", &snapshot, NULL, NULL), -EBUSY);
    fiber_assert_equal(node_check_need("a snapshot", &snapshot, two, NULL), 0);
    node_hold_release(self, one);
    node_hold_release(self, two);
    allowed(self, both, 3);
    node_unref_close(self, d);
    node_unref_close(self, c);
    node_unref_close(self, b);
    node_unref_close(self, a);
}

SIM_TEST(what_is_held_stays_open)
{
    unsigned n_closed = 0;
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    m->ret_n_closed = &n_closed;
    NodeHold *hold = held("job 'j'", &(NodeNeed){&m->node, reads}, 1);
    node_unref_close(self, &m->node);
    fiber_assert_equal(n_closed, 0);
    node_hold_release(self, hold);
    fiber_assert_equal(n_closed, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ports_use_what_they_let_in),
        cmocka_unit_test(an_overlay_keeps_what_lies_below_it_as_it_is),
        cmocka_unit_test(an_image_has_its_file_for_itself),
        cmocka_unit_test(through_filters_their_users_are_seen),
        cmocka_unit_test(the_other_child_of_a_filter_is_written),
        cmocka_unit_test(a_range_is_held_whole_or_not_at_all),
        cmocka_unit_test(jobs_that_are_in_each_others_way_are_refused_by_name),
        cmocka_unit_test(what_is_held_stays_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
