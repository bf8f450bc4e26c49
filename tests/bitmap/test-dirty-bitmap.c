// SPDX-License-Identifier: LGPL-2.1-or-later
// Dirty bitmaps on a node: what sets their bits and when, their states, and their life.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "../node/memory-node.h"
#include "../node/on-loop.h"
#include "chain-core/dirty-bitmap.h"

enum { SIZE = 1 << 20, GRANULE_BITS = 12, GRANULE = 1 << GRANULE_BITS };

static DirtyBitmap *add(Node *node, const char *name, bool is_disabled)
{
    DirtyBitmapSpec spec = {.name = name,
                            .node_name = "disk",
                            .granularity_bits = GRANULE_BITS,
                            .is_disabled = is_disabled};
    DirtyBitmap *b;
    assert_int_equal(dirty_bitmap_add(node, &spec, &b, NULL), 0);
    return b;
}

static uint64_t n_dirty(const DirtyBitmap *b)
{
    DirtyBitmapInfo info;
    dirty_bitmap_info(b, &info);
    assert_int_equal(info.dirty_granules, bitmap_n_dirty(dirty_bitmap_bits(b)));
    return info.dirty_granules;
}

static void changes(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    DirtyBitmap *b = add(&m->node, "b", false), *off = add(&m->node, "off", true);
    uint8_t buf[512] = {0};
    assert_int_equal(node_write(self, &m->node, guest_off(GRANULE - 1), buf, 2, 0), 0);
    assert_int_equal(n_dirty(b), 2);
    assert_int_equal(node_discard(self, &m->node, guest_off(5 * GRANULE), GRANULE, 0), 0);
    assert_true(bitmap_is_dirty(dirty_bitmap_bits(b), 5 * GRANULE));
    m->fail_writes = -EIO;
    assert_int_equal(node_write(self, &m->node, guest_off(9 * GRANULE), buf, 512, 0), -EIO);
    assert_int_equal(node_zero(self, &m->node, guest_off(11 * GRANULE), 1, 0), -EIO);
    m->fail_writes = 0;
    assert_true(bitmap_is_dirty(dirty_bitmap_bits(b), 9 * GRANULE));
    assert_true(bitmap_is_dirty(dirty_bitmap_bits(b), 11 * GRANULE));
    assert_int_equal(node_read(self, &m->node, guest_off(20 * GRANULE), buf, 512), 0);
    assert_int_equal(n_dirty(b), 5);
    assert_int_equal(n_dirty(off), 0);
    dirty_bitmap_set_enabled(b, false);
    dirty_bitmap_set_enabled(off, true);
    assert_int_equal(node_write(self, &m->node, guest_off(0), buf, 512, 0), 0);
    assert_int_equal(node_write(self, &m->node, guest_off(100 * GRANULE), buf, 512, 0), 0);
    assert_int_equal(n_dirty(b), 5);
    assert_int_equal(n_dirty(off), 2);
    node_unref_close(self, &m->node);
}

static void what_changes_or_may_have_is_dirty_and_nothing_else(void **state)
{
    on_loop(changes, NULL);
}

static void lives(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    DirtyBitmap *first = add(&m->node, "first", false), *second = add(&m->node, "second", false);
    DirtyBitmap *held = dirty_bitmap_ref(second);
    assert_ptr_equal(dirty_bitmap_find(&m->node, "second"), second);
    DirtyBitmapSpec spec = {.name = "first", .node_name = "disk", .granularity_bits = 16};
    g_autoptr(GError) error = NULL;
    assert_int_equal(dirty_bitmap_add(&m->node, &spec, &first, &error), -EEXIST);
    assert_string_equal(error->message, "Bitmap already exists: first");
    g_clear_error(&error);
    spec.name = "kept";
    spec.is_persistent = true;
    assert_int_equal(dirty_bitmap_add(&m->node, &spec, &first, &error), -ENOTSUP);
    assert_string_equal(error->message,
                        "Can't store persistent bitmaps to disk: Operation not supported");
    assert_int_equal(dirty_bitmap_remove(self, first, NULL), 0);
    assert_null(dirty_bitmap_find(&m->node, "first"));
    assert_int_equal(dirty_bitmaps_of(&m->node)->len, 1);
    assert_int_equal(node_discard(self, &m->node, guest_off(0), GRANULE, 0), 0);
    node_unref_close(self, &m->node);
    assert_int_equal(n_dirty(held), 1);
    dirty_bitmap_unref(held);
}

static void they_end_with_their_node_and_references_stay_good(void **state)
{
    on_loop(lives, NULL);
}

static void merges(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    DirtyBitmap *b = add(&m->node, "b", false);
    assert_int_equal(node_discard(self, &m->node, guest_off(0), GRANULE, 0), 0);
    Bitmap *coarse = bitmap_new(SIZE, 16);
    bitmap_set(coarse, SIZE / 2, 1);
    dirty_bitmap_merge(self, b, coarse);
    assert_int_equal(n_dirty(b), 1 + 16);
    Bitmap *old = dirty_bitmap_swap_bits(b, bitmap_new(SIZE, GRANULE_BITS));
    assert_int_equal(n_dirty(b), 0);
    bitmap_free(dirty_bitmap_swap_bits(b, old));
    assert_int_equal(n_dirty(b), 17);
    assert_int_equal(dirty_bitmaps_resize(&m->node, SIZE / 2), 0);
    assert_int_equal(n_dirty(b), 1);
    bitmap_free(coarse);
    node_unref_close(self, &m->node);
}

static void they_are_merged_cleared_resized(void **state)
{
    on_loop(merges, NULL);
}

static void uses(Fiber *self, void *arg)
{
    MemoryNode *m = memory_node_new(fiber_loop(self), SIZE);
    DirtyBitmap *b = add(&m->node, "b", false);
    g_autoptr(GError) error = NULL;
    assert_int_equal(dirty_bitmap_check(b, DIRTY_BITMAP_USE_CHANGE, NULL), 0);
    dirty_bitmap_set_busy(b, true);
    assert_int_equal(dirty_bitmap_check(b, DIRTY_BITMAP_USE_READ, &error), -EBUSY);
    assert_string_equal(error->message, "Bitmap 'b' is currently in use by another operation and "
                                        "cannot be used");
    dirty_bitmap_set_busy(b, false);
    dirty_bitmap_set_read_only(b, true); // only what is stored can be
    assert_int_equal(dirty_bitmap_check(b, DIRTY_BITMAP_USE_CHANGE, NULL), 0);
    DirtyBitmapSpec spec = {.name = "bad", .granularity_bits = 16, .is_persistent = true};
    DirtyBitmap *bad = dirty_bitmap_add_stored(&m->node, &spec, NULL, "it was not stored");
    assert_int_equal(dirty_bitmap_check(bad, DIRTY_BITMAP_USE_READ, NULL), -EINVAL);
    assert_int_equal(dirty_bitmap_check(bad, DIRTY_BITMAP_USE_REMOVE, NULL), 0);
    dirty_bitmap_set_read_only(bad, true);
    assert_int_equal(dirty_bitmap_check(bad, DIRTY_BITMAP_USE_REMOVE, NULL), -EROFS);
    assert_int_equal(node_discard(self, &m->node, guest_off(0), SIZE, 0), 0);
    assert_int_equal(dirty_bitmaps_resize(&m->node, SIZE / 2), 0);
    node_unref_close(self, &m->node);
}

static void who_may_use_one_follows_from_its_state(void **state)
{
    on_loop(uses, NULL);
}

// The digests are those of sha256sum over the words that QEMU hashes.
static void hash(Fiber *self, void *arg)
{
    Bitmap *b = bitmap_new(SIZE, 16); // 16 granules: one word
    g_autofree char *clean = dirty_bitmap_sha256(self, b);
    assert_string_equal(clean, "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc");
    bitmap_set(b, 0, 1);
    g_autofree char *one = dirty_bitmap_sha256(self, b);
    assert_string_equal(one, "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8");
    bitmap_free(b);
    b = bitmap_new(0, 16); // still one word
    g_autofree char *empty = dirty_bitmap_sha256(self, b);
    assert_string_equal(empty, clean);
    bitmap_free(b);
}

static void the_hash_is_over_whole_words(void **state)
{
    on_loop(hash, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_changes_or_may_have_is_dirty_and_nothing_else),
        cmocka_unit_test(they_end_with_their_node_and_references_stay_good),
        cmocka_unit_test(they_are_merged_cleared_resized),
        cmocka_unit_test(who_may_use_one_follows_from_its_state),
        cmocka_unit_test(the_hash_is_over_whole_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
