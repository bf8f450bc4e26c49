// SPDX-License-Identifier: LGPL-2.1-or-later
// The order in which a file's buffered writes are made.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "host/write-turns.h"

enum { KIB = 1 << 10, MAX_WRITES = 32 };

typedef struct Writes {
    FileTransfer x[MAX_WRITES];
    unsigned n;
    WriteTurns turns;
} Writes;

// Each has two pieces, of which the first is done already, and its number as its offset.
static void come(Writes *w, unsigned n, size_t bytes)
{
    FileTransfer *first = &w->x[w->n];
    for (unsigned i = 0; i < n; i++, w->n++) {
        FileTransfer *x = &w->x[w->n];
        x->off = w->n;
        x->first_iov = 1;
        x->n_left_iov = 2;
        x->iov[0].iov_len = 1 << 20;
        x->iov[1].iov_len = bytes - 1;
        x->iov[2].iov_len = 1;
        x->next = i + 1 < n ? x + 1 : NULL;
    }
    write_turns_add(&w->turns, first);
}

static void assert_made(WriteList *list, unsigned number)
{
    FileTransfer *x = write_list_pop(list);
    assert_non_null(x);
    assert_int_equal(x->off, number);
}

static void each_kind_is_made_in_the_order_in_which_it_came(void **state)
{
    Writes w = {0};
    come(&w, 2, WRITE_IS_LARGE_BYTES); // 0, 1
    come(&w, 2, 4 * KIB);              // 2, 3
    come(&w, 1, WRITE_IS_LARGE_BYTES - 1);
    come(&w, 1, 1024 * KIB);
    assert_made(&w.turns.small, 2);
    assert_made(&w.turns.large, 0);
    come(&w, 1, 512); // 6
    assert_made(&w.turns.small, 3);
    assert_made(&w.turns.small, 4);
    assert_made(&w.turns.small, 6);
    assert_null(write_list_pop(&w.turns.small));
    assert_false(write_turns_are_over(&w.turns));
    assert_made(&w.turns.large, 1);
    assert_made(&w.turns.large, 5);
    assert_true(write_turns_are_over(&w.turns));
}

static void an_emptied_list_fills_again(void **state)
{
    Writes w = {0};
    write_turns_add(&w.turns, NULL);
    assert_true(write_turns_are_over(&w.turns));
    for (unsigned i = 0; i < 4; i++) {
        come(&w, 1, i % 2 ? 4 * KIB : 256 * KIB);
        assert_made(i % 2 ? &w.turns.small : &w.turns.large, i);
        assert_true(write_turns_are_over(&w.turns));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_is_made_in_the_order_in_which_it_came),
        cmocka_unit_test(an_emptied_list_fills_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
