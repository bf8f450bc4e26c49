// SPDX-License-Identifier: LGPL-2.1-or-later
// libnbd as the judge: an independent client whose checks of the protocol are its own.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <errno.h>
#include <libnbd.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "fixture.h"

enum { SIZE = 1 << 20 };

typedef struct nbd_handle Handle;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Handle, nbd_close)

#define ok(call)                                                                                   \
    do {                                                                                           \
        if ((call) < 0)                                                                            \
            fail_msg("%s: %s", #call, nbd_get_error());                                            \
    } while (0)

static Handle *new_handle(bool structured)
{
    Handle *h = nbd_create();
    assert_non_null(h);
    ok(nbd_set_request_structured_replies(h, structured));
    ok(nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION));
    ok(nbd_add_meta_context(h, "qemu:allocation-depth"));
    return h;
}

static void features_are_as_advertised(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Handle) h = new_handle(true);
    ok(nbd_set_full_info(h, true));
    ok(nbd_connect_unix(h, f->socket_path));
    assert_int_equal(nbd_get_size(h), SIZE);
    assert_string_equal(nbd_get_protocol(h), "newstyle-fixed");
    assert_int_equal(nbd_is_read_only(h), 0);
    assert_int_equal(nbd_can_flush(h), 1);
    assert_int_equal(nbd_can_fua(h), 1);
    assert_int_equal(nbd_can_trim(h), 1);
    assert_int_equal(nbd_can_zero(h), 1);
    assert_int_equal(nbd_can_fast_zero(h), 1);
    assert_int_equal(nbd_can_df(h), 1);
    assert_int_equal(nbd_can_cache(h), 1);
    assert_int_equal(nbd_can_multi_conn(h), 1);
    assert_int_equal(nbd_is_rotational(h), 0);
    assert_int_equal(nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION), 1);
    assert_int_equal(nbd_can_meta_context(h, "qemu:allocation-depth"), 1);
    assert_int_equal(nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM), 1);
    assert_int_equal(nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED), 4096);
    assert_int_equal(nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM), 32 << 20);
    g_autofree char *description = nbd_get_export_description(h);
    assert_string_equal(description, "a memory node");
    ok(nbd_shutdown(h, 0));
}

static int count_export(void *user_data, const char *name, const char *description)
{
    assert_string_equal(description, "a memory node");
    ++*(unsigned *)user_data;
    return 0;
}

static int count_context(void *user_data, const char *name)
{
    ++*(unsigned *)user_data;
    return 0;
}

static void exports_and_contexts_can_be_listed(void **state)
{
    FixtureConfig config = {.n_exports = 3, .names = {"a", "b", "ü"}};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Handle) h = nbd_create();
    ok(nbd_set_opt_mode(h, true));
    ok(nbd_connect_unix(h, f->socket_path));
    unsigned n = 0;
    ok(nbd_opt_list(h, (nbd_list_callback){.callback = count_export, .user_data = &n}));
    assert_int_equal(n, 3);
    assert_int_equal(nbd_opt_info(h), -1); // no default export among three
    ok(nbd_set_export_name(h, "b"));
    n = 0;
    ok(nbd_opt_list_meta_context(
        h, (nbd_context_callback){.callback = count_context, .user_data = &n}));
    assert_int_equal(n, 2);
    ok(nbd_opt_info(h));
    assert_int_equal(nbd_get_size(h), SIZE);
    ok(nbd_set_export_name(h, "ü"));
    ok(nbd_opt_go(h));
    assert_int_equal(nbd_get_size(h), SIZE);
    ok(nbd_shutdown(h, 0));
}

// Requests in flight at once against a shadow: disjoint ranges, each with its own history.
static void random_requests_agree_with_a_shadow(void **state)
{
    enum { SLOTS = 16, SLOT = SIZE / SLOTS, ROUNDS = 150 };
    FixtureConfig config = {.two_loops = true};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autofree uint8_t *shadow = g_malloc0(SIZE), *buffer = g_malloc0(SIZE);
    const uint32_t seed = 4711;
    print_message("# seed %u\n", seed);
    for (int structured = 0; structured < 2; structured++) {
        g_autoptr(GRand) rand = g_rand_new_with_seed(seed + structured);
        memset(shadow, 0, SIZE);
        g_autoptr(Handle) h = new_handle(structured);
        ok(nbd_connect_unix(h, f->socket_path));
        ok(nbd_zero(h, SIZE, 0, 0));
        for (unsigned round = 0; round < ROUNDS; round++) {
            int64_t cookies[SLOTS];
            struct {
                uint32_t op, off, len;
            } done[SLOTS];
            for (unsigned i = 0; i < SLOTS; i++) {
                uint32_t op = g_rand_int_range(rand, 0, 4), len = g_rand_int_range(rand, 1, SLOT);
                uint32_t off = i * SLOT + g_rand_int_range(rand, 0, SLOT - len + 1);
                done[i].op = op;
                done[i].off = off;
                done[i].len = len;
                if (op == 0) {
                    for (uint32_t j = 0; j < len; j++)
                        buffer[off + j] = g_rand_int(rand);
                    memcpy(shadow + off, buffer + off, len);
                    cookies[i] = nbd_aio_pwrite(h, buffer + off, len, off, NBD_NULL_COMPLETION,
                                                round % 7 ? 0 : LIBNBD_CMD_FLAG_FUA);
                } else if (op == 1) {
                    memset(shadow + off, 0, len);
                    cookies[i] = nbd_aio_zero(h, len, off, NBD_NULL_COMPLETION,
                                              round % 2 ? LIBNBD_CMD_FLAG_NO_HOLE : 0);
                } else {
                    memset(buffer + off, 0xee, len);
                    cookies[i] = nbd_aio_pread(h, buffer + off, len, off, NBD_NULL_COMPLETION, 0);
                }
                ok(cookies[i]);
            }
            for (unsigned i = 0; i < SLOTS; i++) {
                int result;
                while ((result = nbd_aio_command_completed(h, cookies[i])) == 0)
                    ok(nbd_poll(h, HANG_S * 1000) - 1);
                ok(result);
                if (done[i].op >= 2)
                    assert_memory_equal(buffer + done[i].off, shadow + done[i].off, done[i].len);
            }
        }
        ok(nbd_pread(h, buffer, SIZE, 0, 0));
        assert_memory_equal(buffer, shadow, SIZE);
        ok(nbd_flush(h, 0));
        ok(nbd_shutdown(h, 0));
    }
}

typedef struct Status {
    uint64_t covered, zeros;
    unsigned n_calls;
} Status;

static int collect_status(void *user_data, const char *context, uint64_t offset, uint32_t *entries,
                          size_t n_entries, int *error)
{
    Status *s = user_data;
    s->n_calls++;
    if (!strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION)) {
        for (size_t i = 0; i < n_entries; i += 2) {
            s->covered += entries[i];
            if (entries[i + 1] & LIBNBD_STATE_ZERO)
                s->zeros += entries[i];
        }
    }
    return 0;
}

static void status_covers_the_range(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Handle) h = new_handle(true);
    ok(nbd_connect_unix(h, f->socket_path));
    uint8_t data[8192] = {1};
    ok(nbd_pwrite(h, data, sizeof data, 40960, 0));
    Status s = {0};
    ok(nbd_block_status(h, SIZE, 0,
                        (nbd_extent_callback){.callback = collect_status, .user_data = &s}, 0));
    assert_int_equal(s.n_calls, 2);
    assert_int_equal(s.covered, SIZE);
    assert_int_equal(s.zeros, SIZE - 8192);
    ok(nbd_shutdown(h, 0));
}

static void errors_arrive_as_errno(void **state)
{
    FixtureConfig config = {.read_only = true};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Handle) h = new_handle(true);
    ok(nbd_set_strict_mode(h, 0)); // let it send what it knows to be wrong
    ok(nbd_connect_unix(h, f->socket_path));
    uint8_t data[512] = {0};
    assert_int_equal(nbd_pwrite(h, data, 512, 0, 0), -1);
    assert_int_equal(nbd_get_errno(), EPERM);
    assert_int_equal(nbd_pread(h, data, 512, SIZE, 0), -1);
    assert_int_equal(nbd_get_errno(), EINVAL);
    f->nodes[0]->fail_with = -EIO;
    assert_int_equal(nbd_pread(h, data, 512, 0, 0), -1);
    assert_int_equal(nbd_get_errno(), EIO);
    f->nodes[0]->fail_with = 0;
    ok(nbd_pread(h, data, 512, 0, 0));
    ok(nbd_shutdown(h, 0));
}

static void a_flush_on_one_connection_covers_writes_of_another(void **state)
{
    FixtureConfig config = {0};
    g_autoptr(Fixture) f = fixture_new(&config);
    g_autoptr(Handle) a = new_handle(true), b = new_handle(false);
    ok(nbd_connect_unix(a, f->socket_path));
    ok(nbd_connect_unix(b, f->socket_path));
    uint8_t data[512] = {42}, got[512];
    ok(nbd_pwrite(a, data, 512, 512, 0));
    ok(nbd_pread(b, got, 512, 512, 0)); // one node below both
    assert_memory_equal(got, data, 512);
    ok(nbd_flush(b, 0));
    assert_int_equal(f->nodes[0]->n_flushes, 1);
    ok(nbd_shutdown(a, 0));
    ok(nbd_shutdown(b, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(features_are_as_advertised),
        cmocka_unit_test(exports_and_contexts_can_be_listed),
        cmocka_unit_test(random_requests_agree_with_a_shadow),
        cmocka_unit_test(status_covers_the_range),
        cmocka_unit_test(errors_arrive_as_errno),
        cmocka_unit_test(a_flush_on_one_connection_covers_writes_of_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
