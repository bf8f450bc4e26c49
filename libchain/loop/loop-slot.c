// SPDX-License-Identifier: LGPL-2.1-or-later
// A few keys, found by a linear look. Loop thread.

#include "loop/loop-slot.h"

#include <assert.h>

#include "loop/loop-private.h"

void **loop_slot(Loop *loop, const void *key)
{
    unsigned i = 0;
    while (i < LOOP_MAX_SLOTS && loop->slots[i].key && loop->slots[i].key != key)
        i++;
    assert(i < LOOP_MAX_SLOTS);
    loop->slots[i].key = key;
    return &loop->slots[i].value;
}
