// SPDX-License-Identifier: LGPL-2.1-or-later
// Stacks: mmap'd, with a guard page, reused last in first out (the top one is in the cache). Each
// costs two mappings of the process's vm.max_map_count; half of those are left to the rest of the
// process. Loop thread; the count of stacks is shared by all loops.
#include "loop/fiber-stack.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "loop/fiber-sanitizer.h"
#include "loop/loop-private.h"
#include "loop/valgrind-hints.h"

enum {
#ifdef FIBER_HAS_ASAN
    STACK_BYTES = 256 * 1024, // redzones make frames several times larger
#else
    STACK_BYTES = 64 * 1024,
#endif
    POOL_MAX = 1024,
    MAPPINGS_PER_STACK = 2,
    // Stacks start at different cache sets: all tops at one page offset would evict each other.
    COLOURS = 16,
    COLOUR_BYTES = 256,
    STACK_ALIGNMENT = 64,
};

static atomic_uint n_stacks; // of the process

static unsigned stacks_max(void)
{
    static atomic_uint cached;
    unsigned max = atomic_load_explicit(&cached, memory_order_relaxed);
    if (max)
        return max;
    unsigned long maps = 65530; // the kernel's default
    FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
    if (f) {
        if (fscanf(f, "%lu", &maps) != 1)
            maps = 65530;
        fclose(f);
    }
    max = (unsigned)(maps / 2 / MAPPINGS_PER_STACK);
    atomic_store_explicit(&cached, max, memory_order_relaxed);
    return max;
}

static Fiber *stack_map(unsigned number)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (atomic_fetch_add(&n_stacks, 1) >= stacks_max())
        goto full;
    size_t bytes = STACK_BYTES + page;
    uint8_t *low = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (low == MAP_FAILED)
        goto full;
    if (mprotect(low, page, PROT_NONE) < 0) {
        munmap(low, bytes);
        goto full;
    }
    size_t top = bytes - sizeof(Fiber) - (number % COLOURS) * COLOUR_BYTES;
    Fiber *fiber = (Fiber *)(low + top / STACK_ALIGNMENT * STACK_ALIGNMENT);
    fiber->stack = low;
    fiber->stack_bytes = bytes;
    fiber->valgrind_id = VALGRIND_STACK_REGISTER(low + page, low + bytes);
#ifdef FIBER_HAS_ASAN
    __lsan_register_root_region(low + page, STACK_BYTES);
#endif
    return fiber;
full:
    atomic_fetch_sub(&n_stacks, 1);
    return NULL;
}

static void stack_unmap(Fiber *fiber)
{
    void *low = fiber->stack;
    size_t bytes = fiber->stack_bytes;
    VALGRIND_STACK_DEREGISTER(fiber->valgrind_id);
#ifdef FIBER_HAS_ASAN
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    __lsan_unregister_root_region((uint8_t *)low + page, STACK_BYTES);
    __asan_unpoison_memory_region((uint8_t *)low + page, STACK_BYTES);
#endif
    munmap(low, bytes);
    atomic_fetch_sub(&n_stacks, 1);
}

Fiber *fiber_stack_take(Loop *loop)
{
    Fiber *fiber = loop->free_stacks;
    if (fiber) {
        loop->free_stacks = fiber->next;
        loop->n_free_stacks--;
    } else {
        fiber = stack_map(loop->n_stacks_made++);
        if (!fiber)
            return NULL;
    }
    *fiber = (Fiber){
        .loop = loop,
        .stack = fiber->stack,
        .stack_bytes = fiber->stack_bytes,
        .valgrind_id = fiber->valgrind_id,
    };
    return fiber;
}

void fiber_stack_put(Loop *loop, Fiber *fiber)
{
#ifdef FIBER_HAS_ASAN
    // Frames that never returned (fiber_main() itself) left their red zones.
    uint8_t *low = (uint8_t *)fiber->stack + sysconf(_SC_PAGESIZE);
    __asan_unpoison_memory_region(low, (size_t)((uint8_t *)fiber - low));
#endif
    if (loop->n_free_stacks >= POOL_MAX) {
        stack_unmap(fiber);
        return;
    }
    fiber->next = loop->free_stacks;
    loop->free_stacks = fiber;
    loop->n_free_stacks++;
}

void fiber_stack_free_all(Loop *loop)
{
    while (loop->free_stacks) {
        Fiber *fiber = loop->free_stacks;
        loop->free_stacks = fiber->next;
        stack_unmap(fiber);
    }
    loop->n_free_stacks = 0;
}

// The frame that fiber_switch() pops; see fiber-switch.S.
void fiber_stack_prepare(Fiber *fiber, void (*main_fn)(Fiber *fiber))
{
    void **top = (void **)fiber; // aligned to STACK_ALIGNMENT
#if defined(__x86_64__)
    // r15, r14, r13, r12, rbx, rbp, return address; fiber_entry finds the stack 16-byte aligned.
    void **frame = top - 2 - 7;
    memset(frame, 0, 9 * sizeof(void *));
    frame[0] = fiber;
    frame[1] = (void *)main_fn;
    frame[6] = (void *)fiber_entry;
#elif defined(__aarch64__)
    // x19 … x30, then d8 … d15.
    void **frame = top - 20;
    memset(frame, 0, 20 * sizeof(void *));
    frame[0] = fiber;
    frame[1] = (void *)main_fn;
    frame[11] = (void *)fiber_entry;
#endif
    fiber->context = frame;
}
