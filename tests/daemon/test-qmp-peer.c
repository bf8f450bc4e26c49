// SPDX-License-Identifier: LGPL-2.1-or-later
// Who may use a monitor's socket.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/qmp/peer.h"

enum { ANNE = 1001, BERT = 1002, STAFF = 50, WHEEL = 10 };

static GArray *ids(unsigned id) // uid_t and gid_t are the same
{
    GArray *array = g_array_new(false, false, sizeof(uid_t));
    g_array_append_val(array, id);
    return array;
}

static bool allows(const QmpPolicy *policy, unsigned uid, unsigned gid, unsigned group)
{
    g_autoptr(GArray) groups = ids(group);
    SocketProcess peer = {.uid = uid, .gid = gid, .groups = groups};
    return qmp_policy_allows(policy, &peer);
}

static void without_lists_everybody_may(void **state)
{
    QmpPolicy policy = {.is_read_only = true};
    assert_true(allows(&policy, ANNE, STAFF, STAFF));
    assert_true(qmp_policy_allows(&policy, NULL));
}

static void users_and_groups_are_let_in_and_others_are_not(void **state)
{
    g_autoptr(GArray) users = ids(ANNE), groups = ids(WHEEL);
    QmpPolicy by_user = {.uids = users}, by_group = {.gids = groups};
    QmpPolicy by_either = {.uids = users, .gids = groups};
    assert_true(allows(&by_user, ANNE, STAFF, STAFF));
    assert_false(allows(&by_user, BERT, STAFF, WHEEL));
    assert_true(allows(&by_group, BERT, WHEEL, STAFF));
    assert_true(allows(&by_group, BERT, STAFF, WHEEL)); // a further group
    assert_false(allows(&by_group, ANNE, STAFF, STAFF));
    assert_true(allows(&by_either, ANNE, STAFF, STAFF));
    assert_true(allows(&by_either, BERT, STAFF, WHEEL));
    assert_false(allows(&by_either, BERT, STAFF, STAFF));
    assert_true(allows(&by_user, 0, 0, 0));
    assert_true(allows(&by_user, geteuid(), STAFF, STAFF));
    assert_false(qmp_policy_allows(&by_user, NULL));
}

static void the_kernel_tells_who_it_is(void **state)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    SocketProcess *peer = socket_process_find(pair[0]);
    assert_non_null(peer);
    assert_int_equal(peer->uid, geteuid());
    assert_int_equal(peer->gid, getegid());
    assert_int_equal(peer->pid, getpid());
    assert_int_equal(peer->groups->len, getgroups(0, NULL));
    socket_process_free(peer);
    close(pair[0]);
    close(pair[1]);
    int tcp = socket(AF_INET, SOCK_STREAM, 0);
    assert_null(socket_process_find(tcp));
    close(tcp);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_lists_everybody_may),
        cmocka_unit_test(users_and_groups_are_let_in_and_others_are_not),
        cmocka_unit_test(the_kernel_tells_who_it_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
