// SPDX-License-Identifier: LGPL-2.1-or-later
// Tells AddressSanitizer and ThreadSanitizer about switches between stacks; nothing in a plain
// build. Order: the side that leaves calls fiber_sanitizer_*_leave, the side that arrives
// fiber_sanitizer_*_arrive.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "loop/fiber-private.h"

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_HAS_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define FIBER_HAS_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FIBER_HAS_TSAN 1
#endif
#endif

#ifdef FIBER_HAS_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#endif
#ifdef FIBER_HAS_TSAN
#include <sanitizer/tsan_interface.h>
#endif

// Fiber.sanitizer: where a fiber's own fake stack, its resumer's stack and its TSan state are kept.
enum { SANITIZER_FAKE, SANITIZER_BOTTOM, SANITIZER_SIZE, SANITIZER_TSAN };

typedef struct FiberSanitizerResumer {
    void *fake, *tsan;
} FiberSanitizerResumer;

static inline void fiber_sanitizer_resumer_leave(FiberSanitizerResumer *resumer, Fiber *fiber)
{
#ifdef FIBER_HAS_ASAN
    __sanitizer_start_switch_fiber(&resumer->fake, fiber->stack, fiber->stack_bytes);
#endif
#ifdef FIBER_HAS_TSAN
    if (!fiber->sanitizer[SANITIZER_TSAN])
        fiber->sanitizer[SANITIZER_TSAN] = __tsan_create_fiber(0);
    resumer->tsan = __tsan_get_current_fiber();
    fiber->sanitizer[SANITIZER_BOTTOM] = resumer->tsan;
    __tsan_switch_to_fiber(fiber->sanitizer[SANITIZER_TSAN], 0);
#endif
    (void)resumer;
    (void)fiber;
}

static inline void fiber_sanitizer_resumer_arrive(FiberSanitizerResumer *resumer, Fiber *fiber)
{
#ifdef FIBER_HAS_ASAN
    __sanitizer_finish_switch_fiber(resumer->fake, NULL, NULL);
#endif
#ifdef FIBER_HAS_TSAN
    if (fiber->state == FIBER_ENDED) {
        __tsan_destroy_fiber(fiber->sanitizer[SANITIZER_TSAN]);
        fiber->sanitizer[SANITIZER_TSAN] = NULL;
    }
#endif
    (void)resumer;
    (void)fiber;
}

static inline void fiber_sanitizer_fiber_arrive(Fiber *self)
{
#ifdef FIBER_HAS_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(self->sanitizer[SANITIZER_FAKE], &bottom, &size);
    self->sanitizer[SANITIZER_BOTTOM] = (void *)bottom;
    self->sanitizer[SANITIZER_SIZE] = (void *)size;
#endif
    (void)self;
}

static inline void fiber_sanitizer_fiber_leave(Fiber *self)
{
#ifdef FIBER_HAS_ASAN
    bool is_last = self->state == FIBER_ENDED;
    __sanitizer_start_switch_fiber(is_last ? NULL : &self->sanitizer[SANITIZER_FAKE],
                                   self->sanitizer[SANITIZER_BOTTOM],
                                   (size_t)self->sanitizer[SANITIZER_SIZE]);
#endif
#ifdef FIBER_HAS_TSAN
    __tsan_switch_to_fiber(self->sanitizer[SANITIZER_BOTTOM], 0);
#endif
    (void)self;
}
