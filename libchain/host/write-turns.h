// SPDX-License-Identifier: LGPL-2.1-or-later
// In which order the buffered writes of a file are made: in turns, each of them the small ones that
// are there and then one large one. So a small write waits for one large write at most, however many
// came before it; and a large one for the small ones that are in flight at once. A job's or a bulk
// client's writes then cost others little. Pure; any thread.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

#include "io/file-private.h"

enum { WRITE_IS_LARGE_BYTES = 128 << 10 };

typedef struct WriteList {
    FileTransfer *first, *last;
} WriteList;

typedef struct WriteTurns {
    WriteList small, large;
} WriteTurns;

static inline void write_list_append(WriteList *list, FileTransfer *x)
{
    x->next = NULL;
    *(list->first ? &list->last->next : &list->first) = x;
    list->last = x;
}

// NULL: it is empty.
static inline FileTransfer *write_list_pop(WriteList *list)
{
    FileTransfer *x = list->first;
    if (x)
        list->first = x->next;
    return x;
}

static inline bool write_is_large(const FileTransfer *x)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < x->n_left_iov; i++)
        bytes += x->iov[x->first_iov + i].iov_len;
    return bytes >= WRITE_IS_LARGE_BYTES;
}

// `x` and those after it, in order.
static inline void write_turns_add(WriteTurns *turns, FileTransfer *x)
{
    for (FileTransfer *next; x; x = next) {
        next = x->next;
        write_list_append(write_is_large(x) ? &turns->large : &turns->small, x);
    }
}

static inline bool write_turns_are_over(const WriteTurns *turns)
{
    return !turns->small.first && !turns->large.first;
}
