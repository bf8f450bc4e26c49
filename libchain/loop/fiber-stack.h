// SPDX-License-Identifier: LGPL-2.1-or-later
// Stacks of fibers, pooled per loop, each with a guard page below it. The Fiber lies at the upper
// end of its stack, so one mapping is all that a fiber needs. Loop thread.
#pragma once

#include "loop/fiber-private.h"

// NULL when none can be had: the bound on mappings (half of vm.max_map_count for the whole
// process), or the kernel said no. All fields but the stack's are zero.
Fiber *fiber_stack_take(Loop *loop);
// Into the loop's pool (bounded; beyond that it is unmapped).
void fiber_stack_put(Loop *loop, Fiber *fiber);
// Empties the pool.
void fiber_stack_free_all(Loop *loop);

// Lets the first fiber_switch() to `fiber` call main_fn(fiber) on its own stack.
void fiber_stack_prepare(Fiber *fiber, void (*main_fn)(Fiber *fiber));

// fiber-switch.S
void fiber_switch(void **ret_saved_sp, void *sp);
void fiber_entry(void);
