// SPDX-License-Identifier: LGPL-2.1-or-later
// Bitmaps beside a plain array with a byte for each granule: random changes of all kinds, at sizes
// that end anywhere, and what they cost in memory.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <glib.h>

#include "bitmap/bitmap-part.h"

// Allocations of parts: counted, and failing while is_short says so.
static size_t n_parts_made;
static bool is_short;

void *__real_g_try_malloc(size_t bytes);
void *__wrap_g_try_malloc(size_t bytes);
void *__wrap_g_try_malloc(size_t bytes)
{
    n_parts_made++;
    return is_short ? NULL : __real_g_try_malloc(bytes);
}
void *__real_g_try_malloc0(size_t bytes);
void *__wrap_g_try_malloc0(size_t bytes);
void *__wrap_g_try_malloc0(size_t bytes)
{
    n_parts_made++;
    return is_short ? NULL : __real_g_try_malloc0(bytes);
}

static uint64_t seed;

static uint64_t pick(uint64_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % n;
}

// A bitmap and what it should say.
typedef struct Pair {
    Bitmap *bitmap;
    uint8_t *bytes; // of each granule
    uint64_t size, n;
    uint32_t bits;
} Pair;

static Pair pair_new(uint64_t size, uint32_t bits)
{
    uint64_t n = (size + (UINT64_C(1) << bits) - 1) >> bits;
    return (Pair){bitmap_new(size, bits), g_malloc0(n + 1), size, n, bits};
}

static void pair_free(Pair *p)
{
    bitmap_free(p->bitmap);
    g_free(p->bytes);
}

static Pair pair_clone(const Pair *p)
{
    return (Pair){bitmap_clone(p->bitmap), g_memdup2(p->bytes, p->n + 1), p->size, p->n, p->bits};
}

static uint64_t granule_end(const Pair *p, uint64_t i)
{
    return MIN((i + 1) << p->bits, p->size);
}

static void pair_set(Pair *p, uint64_t off, uint64_t len)
{
    bitmap_set(p->bitmap, off, len);
    for (uint64_t i = off >> p->bits; len && i < p->n && i << p->bits < off + len; i++)
        p->bytes[i] = 1;
}

static void pair_clear(Pair *p, uint64_t off, uint64_t len)
{
    assert_int_equal(bitmap_clear(p->bitmap, off, len), 0);
    for (uint64_t i = off >> p->bits; i < p->n && granule_end(p, i) <= off + len; i++)
        if (i << p->bits >= off)
            p->bytes[i] = 0;
}

// Every way of asking says the same as the bytes.
static void pair_check(const Pair *p)
{
    uint64_t n_dirty = 0, bytes = 0;
    for (uint64_t i = 0; i < p->n; i++) {
        n_dirty += p->bytes[i];
        bytes += p->bytes[i] ? granule_end(p, i) - (i << p->bits) : 0;
    }
    assert_int_equal(bitmap_n_dirty(p->bitmap), n_dirty);
    assert_int_equal(bitmap_dirty_bytes(p->bitmap), bytes);
    uint64_t i = 0;
    BitmapRun run = {0};
    while (bitmap_next_dirty(p->bitmap, run.off + run.len, UINT64_MAX, &run)) {
        for (; i < run.off >> p->bits; i++)
            assert_false(p->bytes[i]);
        for (; i < p->n && i << p->bits < run.off + run.len; i++)
            assert_true(p->bytes[i]);
    }
    for (; i < p->n; i++)
        assert_false(p->bytes[i]);
    g_autofree uint8_t *piece = g_malloc(p->n / 8 + 16);
    bitmap_get_bits(p->bitmap, 0, piece, p->n / 8 + 16);
    for (i = 0; i < (p->n / 8 + 16) * 8; i++)
        assert_int_equal(piece[i / 8] >> i % 8 & 1, i < p->n && p->bytes[i]);
}

// A range of any kind: within a granule, aligned, long, up to and past the end.
static void pick_range(const Pair *p, uint64_t *off, uint64_t *len)
{
    *off = pick(p->size + 1);
    uint64_t kinds[] = {1 + pick(64), pick(UINT64_C(4) << p->bits), pick(UINT64_C(200) << p->bits),
                        pick(p->size + 1), UINT64_C(64) << p->bits};
    *len = kinds[pick(G_N_ELEMENTS(kinds))];
    if (pick(3) == 0)
        *off &= ~((UINT64_C(64) << p->bits) - 1);
    if (pick(8) == 0)
        *len = p->size - *off;
}

static void check_one_place(const Pair *p)
{
    uint64_t off, len, n = 0;
    pick_range(p, &off, &len);
    len = MIN(len, p->size - off);
    for (uint64_t i = off >> p->bits; len && i < p->n && i << p->bits < off + len; i++)
        n += p->bytes[i] ? MIN(granule_end(p, i), off + len) - MAX(i << p->bits, off) : 0;
    assert_int_equal(bitmap_dirty_bytes_in(p->bitmap, off, len), n);
    if (off >= p->size || !len)
        return;
    assert_int_equal(bitmap_is_dirty(p->bitmap, off), p->bytes[off >> p->bits]);
    bool dirty;
    uint64_t run = bitmap_run_at(p->bitmap, off, len, &dirty), i = off >> p->bits;
    assert_true(run > 0 && run <= len);
    assert_int_equal(dirty, p->bytes[i]);
    while (i < p->n && i << p->bits < off + len && p->bytes[i] == dirty)
        i++;
    assert_int_equal(off + run, MIN(i << p->bits, off + len));
}

static void pair_resize(Pair *p)
{
    uint64_t size =
        pick(3) ? p->size + pick(p->size + 1) - pick(p->size / 2 + 1) : pick(p->size + 1);
    if (!size || size >> p->bits > 100000)
        size = UINT64_C(64) << p->bits;
    uint64_t n = (size + (UINT64_C(1) << p->bits) - 1) >> p->bits;
    assert_int_equal(bitmap_resize(p->bitmap, size), 0);
    p->bytes = g_realloc(p->bytes, n + 1);
    if (n > p->n)
        memset(p->bytes + p->n, 0, n - p->n);
    p->n = n;
    p->size = size;
}

static void pair_merge(Pair *p, const Pair *from)
{
    bitmap_merge(p->bitmap, from->bitmap);
    for (uint64_t i = 0; i < from->n; i++) {
        uint64_t off = i << from->bits, end = granule_end(from, i);
        for (uint64_t j = off >> p->bits; from->bytes[i] && j < p->n && j << p->bits < end; j++)
            p->bytes[j] = 1;
    }
}

static void merge_with_another(Pair *p)
{
    uint32_t bits = pick(2) ? p->bits : p->bits + pick(5) - 2;
    bits = MAX(bits, 9);
    Pair other = pair_new(pick(2) ? p->size : 1 + pick(2 * p->size), bits);
    for (int i = 0; i < 5; i++) {
        uint64_t off, len;
        pick_range(&other, &off, &len);
        pair_set(&other, off, len);
    }
    pair_merge(p, &other);
    pair_check(&other); // what is shared now is still right
    pair_set(p, pick(p->size), 1);
    pair_check(&other);
    pair_free(&other);
}

static void through_bits(Pair *p)
{
    uint64_t first = pick(p->n / 64 + 1) * 64, n_bytes = 1 + pick(2000);
    g_autofree uint8_t *bits = g_malloc0(n_bytes);
    uint8_t density = pick(4);
    for (uint64_t i = 0; i < n_bytes; i++)
        bits[i] = density == 0 ? 0xff : density == 1 ? pick(256) : pick(50) == 0;
    bitmap_set_bits(p->bitmap, first, bits, n_bytes);
    for (uint64_t i = 0; i < n_bytes * 8 && first + i < p->n; i++)
        p->bytes[first + i] |= bits[i / 8] >> i % 8 & 1;
}

static void take_some(Pair *p)
{
    BitmapCursor cursor = {p->bitmap, pick(p->size)};
    for (int i = 0; i < 20; i++) {
        uint64_t max = 1 + pick(UINT64_C(20) << p->bits), at = cursor.off >> p->bits;
        BitmapRun run;
        if (bitmap_cursor_take(&cursor, max, &run) == 0) {
            for (; at < p->n; at++)
                assert_false(p->bytes[at]);
            return;
        }
        for (; at < run.off >> p->bits; at++)
            assert_false(p->bytes[at]);
        for (; at < p->n && at << p->bits < run.off + run.len; at++) {
            assert_true(p->bytes[at]);
            p->bytes[at] = 0;
        }
        assert_int_equal(cursor.off, run.off + run.len);
    }
}

static void change(Pair *p)
{
    uint64_t off, len, what = pick(20);
    pick_range(p, &off, &len);
    if (what < 8)
        pair_set(p, off, len);
    else if (what < 14)
        pair_clear(p, off, len);
    else if (what < 15)
        pair_resize(p);
    else if (what < 17)
        merge_with_another(p);
    else if (what < 18)
        through_bits(p);
    else
        take_some(p);
}

static void random_life(uint64_t with)
{
    seed = with * 0x9e3779b97f4a7c15 + 1;
    uint32_t bits = 9 + pick(10);
    static const uint64_t most[] = {100, 5000, 40000};
    Pair p = pair_new(1 + pick(most[pick(3)] << bits), bits);
    for (int i = 0; i < 60; i++) {
        Pair before = pair_clone(&p);
        change(&p);
        pair_check(&before); // what they share was not changed
        if (pick(3) == 0) {  // and the other way round
            change(&before);
            pair_check(&before);
        }
        pair_free(&before);
        pair_check(&p);
        for (int j = 0; j < 5; j++)
            check_one_place(&p);
    }
    pair_free(&p);
}

static void random_changes_are_those_of_a_plain_array(void **state)
{
    const char *one = getenv("SEED");
    for (uint64_t i = 1; i <= 150; i++) {
        uint64_t with = one ? strtoull(one, NULL, 0) : i;
        printf("# SEED=%llu\n", (unsigned long long)with);
        random_life(with);
        if (one)
            return;
    }
}

static size_t parts_of(const BitmapPart *part, unsigned level)
{
    size_t n = 1;
    for (uint64_t left = level ? part->some & ~part->full : 0; left; left &= left - 1)
        n += parts_of(part->parts[__builtin_ctzll(left)], level - 1);
    return n;
}

static size_t memory_of(const Bitmap *b)
{
    // As malloc rounds it.
    return parts_of(&b->top, b->top_level) * ((sizeof(BitmapPart) + 8 + 15) & ~15);
}

static void sixteen_tib_at_64_kib_fit_into_40_mib_and_sparse_into_less(void **state)
{
    uint64_t size = UINT64_C(16) << 40, granule = 64 << 10;
    Bitmap *b = bitmap_new(size, 16);
    for (int i = 0; i < 1000; i++) // a write each 16 GiB
        bitmap_set(b, size / 1000 * i, 4096);
    assert_true(memory_of(b) < 2 << 20);
    for (uint64_t word = 0; word < size / granule / 64; word++) // the worst case: no slot uniform
        bitmap_set(b, word * 64 * granule, granule);
    assert_in_range(bitmap_n_dirty(b), size / granule / 64, size / granule / 64 + 2000);
    assert_true(memory_of(b) > 32 << 20);
    assert_true(memory_of(b) <= 40 << 20);
    bitmap_set(b, 0, size);
    assert_true(memory_of(b) < 4096);
    assert_int_equal(bitmap_dirty_bytes(b), size);
    bitmap_free(b);
}

static void the_largest_disk_with_the_smallest_granule_works(void **state)
{
    Bitmap *b = bitmap_new(INT64_MAX, 9);
    bitmap_set(b, INT64_MAX - 1, 1);
    bitmap_set(b, UINT64_C(1) << 61, UINT64_MAX);
    bitmap_set(b, 12345, 1);
    BitmapRun run;
    assert_true(bitmap_next_dirty(b, 0, UINT64_MAX, &run));
    assert_int_equal(run.off, 12345 & ~511);
    assert_int_equal(run.len, 512);
    assert_true(bitmap_next_dirty(b, 13000, UINT64_MAX, &run));
    assert_int_equal(run.off, UINT64_C(1) << 61);
    assert_int_equal(run.off + run.len, INT64_MAX);
    assert_int_equal(bitmap_dirty_bytes(b), 512 + run.len);
    bitmap_free(b);
}

static void an_empty_disk_has_nothing_dirty(void **state)
{
    Bitmap *b = bitmap_new(0, 16);
    bitmap_set(b, 0, 100);
    assert_int_equal(bitmap_clear(b, 0, 100), 0);
    BitmapRun run;
    assert_false(bitmap_next_dirty(b, 0, UINT64_MAX, &run));
    assert_int_equal(bitmap_resize(b, 1), 0);
    assert_false(bitmap_is_dirty(b, 0));
    bitmap_set(b, 0, 1);
    assert_int_equal(bitmap_dirty_bytes(b), 1);
    assert_int_equal(bitmap_resize(b, 0), 0);
    assert_int_equal(bitmap_n_dirty(b), 0);
    bitmap_free(b);
}

static void without_memory_more_is_dirty_but_never_less(void **state)
{
    uint64_t size = UINT64_C(1) << 40;
    for (int i = 0; i < 200; i++) {
        seed = i + 1;
        Bitmap *b = bitmap_new(size, 16);
        Bitmap *old = NULL;
        uint64_t places[50];
        for (int j = 0; j < 50; j++) {
            is_short = pick(2);
            places[j] = pick(size);
            bitmap_set(b, places[j], 1);
            is_short = false;
            if (pick(10) == 0) {
                bitmap_free(old);
                old = bitmap_clone(b);
            }
        }
        uint64_t n = bitmap_n_dirty(b);
        is_short = true;
        int r = bitmap_clear(b, size / 4, 65536 * 5);
        assert_true(r == 0 || bitmap_n_dirty(b) <= n);
        if (bitmap_resize(b, size * 2) == 0)
            assert_true(bitmap_n_dirty(b) <= n);
        is_short = false;
        for (int j = 0; j < 50; j++)
            if (places[j] < size / 4 || places[j] >= size / 4 + 65536 * 5)
                assert_true(bitmap_is_dirty(b, places[j]));
        bitmap_free(old);
        bitmap_free(b);
    }
}

static void clearing_without_memory_says_so(void **state)
{
    Bitmap *b = bitmap_new(UINT64_C(1) << 40, 16);
    bitmap_set(b, 0, UINT64_MAX);
    is_short = true;
    assert_int_equal(bitmap_clear(b, 65536, 65536), -ENOMEM);
    BitmapCursor cursor = {b, 65536};
    BitmapRun run;
    assert_int_equal(bitmap_cursor_take(&cursor, 65536, &run), -ENOMEM);
    assert_int_equal(cursor.off, 65536);
    is_short = false;
    assert_int_equal(bitmap_dirty_bytes(b), UINT64_C(1) << 40);
    assert_int_equal(bitmap_cursor_take(&cursor, 65536, &run), 1);
    assert_int_equal(run.off, 65536);
    assert_int_equal(run.len, 65536);
    bitmap_free(b);
}

static void a_clone_costs_no_parts_and_a_change_only_its_path(void **state)
{
    uint64_t size = UINT64_C(16) << 40;
    Bitmap *b = bitmap_new(size, 16);
    for (uint64_t off = 0; off < size; off += size / 10000)
        bitmap_set(b, off, 1);
    n_parts_made = 0;
    Bitmap *clone = bitmap_clone(b);
    assert_int_equal(n_parts_made, 0);
    bitmap_set(b, size / 2 + 65536 * 3, 1);
    assert_in_range(n_parts_made, 1, 3);
    assert_int_equal(bitmap_n_dirty(clone) + 1, bitmap_n_dirty(b));
    bitmap_free(b);
    assert_true(bitmap_is_dirty(clone, size / 10000 * 17));
    bitmap_free(clone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_changes_are_those_of_a_plain_array),
        cmocka_unit_test(sixteen_tib_at_64_kib_fit_into_40_mib_and_sparse_into_less),
        cmocka_unit_test(the_largest_disk_with_the_smallest_granule_works),
        cmocka_unit_test(an_empty_disk_has_nothing_dirty),
        cmocka_unit_test(without_memory_more_is_dirty_but_never_less),
        cmocka_unit_test(clearing_without_memory_says_so),
        cmocka_unit_test(a_clone_costs_no_parts_and_a_change_only_its_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
