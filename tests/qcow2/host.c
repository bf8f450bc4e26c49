// SPDX-License-Identifier: LGPL-2.1-or-later
#include "host.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Run {
    FiberFn *fn;
    void *arg;
} Run;

static void run_and_stop(Fiber *self, void *arg)
{
    Run *run = arg;
    run->fn(self, run->arg);
    loop_stop(fiber_loop(self));
}

void host_run(FiberFn *fn, void *arg)
{
    g_autoptr(GError) error = NULL;
    Loop *loop = loop_new(&(LoopConfig){.max_fibers = 64}, &error);
    if (!loop)
        fail_msg("%s", error->message);
    Run run = {fn, arg};
    assert_int_equal(fiber_spawn(loop, "test", run_and_stop, &run, NULL), 0);
    loop_run(loop);
    loop_free(loop);
}

char *host_make_dir(void)
{
    // On memory where that is possible: tests write a lot of small images.
    g_autofree char *template = g_strdup("/dev/shm/chaind-test-XXXXXX");
    if (g_mkdtemp(template))
        return g_steal_pointer(&template);
    return g_dir_make_tmp("chaind-test-XXXXXX", NULL);
}

void host_remove_dir(char *dir)
{
    host_shell(dir, "rm -rf \"$PWD\"");
    g_free(dir);
}

static int shell(const char *dir, char **ret_output, char **ret_errors, const char *command)
{
    const char *argv[] = {"sh", "-c", command, NULL};
    int status = -1;
    if (!g_spawn_sync(dir, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, ret_output,
                      ret_errors, &status, NULL))
        return -1;
    return g_spawn_check_wait_status(status, NULL) ? 0 : status >> 8;
}

int host_try_shell(const char *dir, char **ret_output, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *command = g_strdup_vprintf(format, args), *output = NULL, *errors = NULL;
    va_end(args);
    int status = shell(dir, &output, &errors, command);
    if (ret_output)
        *ret_output = g_steal_pointer(&output);
    return status;
}

void host_shell(const char *dir, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *command = g_strdup_vprintf(format, args), *output = NULL, *errors = NULL;
    va_end(args);
    int status = shell(dir, &output, &errors, command);
    if (status != 0)
        fail_msg("'%s' ends with %d: %s%s", command, status, output, errors);
}

uint64_t host_get64(const uint8_t *data, uint64_t off)
{
    uint64_t v;
    memcpy(&v, data + off, sizeof(v));
    return be64toh(v);
}

void host_put64(uint8_t *data, uint64_t off, uint64_t v)
{
    v = htobe64(v);
    memcpy(data + off, &v, sizeof(v));
}

uint32_t host_get32(const uint8_t *data, uint64_t off)
{
    uint32_t v;
    memcpy(&v, data + off, sizeof(v));
    return be32toh(v);
}

void host_put32(uint8_t *data, uint64_t off, uint32_t v)
{
    v = htobe32(v);
    memcpy(data + off, &v, sizeof(v));
}

uint64_t host_random(HostRandom *r, uint64_t bound)
{
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (z ^ z >> 31) % bound;
}

uint64_t host_seed(uint64_t fallback)
{
    const char *given = g_getenv("CHAIND_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : fallback;
    printf("# seed %#lx (CHAIND_TEST_SEED)\n", seed);
    return seed;
}
