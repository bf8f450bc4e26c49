// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests that work on real files beside qemu-img: a fiber on a loop of its own, a temporary
// directory, commands, whole files.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <glib.h>
#include <stdint.h>

#include "chain-core/loop.h"

// Runs fn(arg) as a fiber, until it ended.
void host_run(FiberFn *fn, void *arg);

// A new directory; removed with all in it.
char *host_make_dir(void);
void host_remove_dir(char *dir); // frees the name too

// Runs a shell command in `dir`: its exit status, or -1. Output (if wanted) is stdout.
int host_try_shell(const char *dir, char **ret_output, const char *format, ...) G_GNUC_PRINTF(3, 4);
// The same, and fails the test unless the status is 0.
void host_shell(const char *dir, const char *format, ...) G_GNUC_PRINTF(2, 3);

// Integers as they lie on disk in a buffer.
uint64_t host_get64(const uint8_t *data, uint64_t off);
void host_put64(uint8_t *data, uint64_t off, uint64_t v);
uint32_t host_get32(const uint8_t *data, uint64_t off);
void host_put32(uint8_t *data, uint64_t off, uint32_t v);

// A repeatable random sequence (splitmix64).
typedef struct HostRandom {
    uint64_t state;
} HostRandom;
uint64_t host_random(HostRandom *r, uint64_t bound); // 0 … bound-1
// The seed of this run: $CHAIND_TEST_SEED, or `fallback`. Printed.
uint64_t host_seed(uint64_t fallback);
