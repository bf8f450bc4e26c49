// SPDX-License-Identifier: LGPL-2.1-or-later
// qcow2 images for crash tests: templates by qemu-img, opening with a backing node, checking.
#include "crash-qcow2-image.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain-core/dirty-bitmap.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2.h"
#include "chain-core/raw.h"

enum { PLENTY_BYTES = 32 << 20 };

typedef struct Template {
    char *top, *middle, *base, *data, *content;
    gsize top_bytes, middle_bytes, base_bytes, data_bytes, content_bytes;
} Template;

static uint64_t content_bytes(const CrashCase *c)
{
    const CrashQcow2 *q = c->data;
    return q->base_bytes ? q->base_bytes : c->size_bytes;
}

// Data in the first half, with a hole in the middle of it; zeros in the rest.
static void set_initial(const CrashCase *c, ShadowModel *model, uint8_t *content)
{
    const CrashQcow2 *q = c->data;
    uint64_t quarter = content_bytes(c) / 4 / 512 * 512;
    for (unsigned i = 0; i < 3 && !q->is_empty; i += 2) {
        uint64_t off = quarter / 2 * i / 512 * 512 + quarter * (i / 2) / 512 * 512;
        uint32_t version = shadow_model_set_initial(model, SHADOW_DATA, off, quarter);
        if (content)
            shadow_model_fill(model, version, off, content + off, quarter);
    }
}

static void run_or_die(const char *dir, const CrashCase *c, const char *commands)
{
    g_autofree char *script = g_strdup_printf("cd '%s' && SIZE=%" PRIu64 " && { %s ; } >/dev/null",
                                              dir, c->size_bytes, commands);
    if (system(script) != 0) {
        printf("Bail out! %s: cannot make the image: %s\n", c->name, script);
        exit(1);
    }
}

static void load(const char *dir, const char *name, char **ret_data, gsize *ret_bytes)
{
    g_autofree char *path = g_build_filename(dir, name, NULL);
    g_file_get_contents(path, ret_data, ret_bytes, NULL); // absent: NULL
}

static Template *template_make(const CrashCase *c)
{
    const CrashQcow2 *q = c->data;
    g_autofree char *dir = g_strdup("/dev/shm/chaind-crash-XXXXXX");
    if (!g_mkdtemp(dir)) {
        printf("Bail out! cannot make a directory in /dev/shm\n");
        exit(1);
    }
    ShadowModel *model = shadow_model_new(c->size_bytes, c->cell_bytes ? c->cell_bytes : 512);
    g_autofree uint8_t *content = g_malloc0(content_bytes(c));
    g_autofree char *path = g_build_filename(dir, "content", NULL);
    set_initial(c, model, content);
    g_file_set_contents(path, (char *)content, (gssize)content_bytes(c), NULL);
    run_or_die(dir, c, q->commands);
    Template *t = g_new0(Template, 1);
    load(dir, "top", &t->top, &t->top_bytes);
    load(dir, "middle", &t->middle, &t->middle_bytes);
    load(dir, "base", &t->base, &t->base_bytes);
    load(dir, "data", &t->data, &t->data_bytes);
    load(dir, "content", &t->content, &t->content_bytes);
    run_or_die(dir, c, "rm -rf \"$PWD\"");
    shadow_model_free(model);
    return t;
}

static Template *template_get(const CrashCase *c)
{
    static GHashTable *templates; // CrashCase → Template, for the life of the program
    if (!templates)
        templates = g_hash_table_new(NULL, NULL);
    Template *t = g_hash_table_lookup(templates, c);
    if (!t) {
        t = template_make(c);
        g_hash_table_insert(templates, (void *)c, t);
    }
    return t;
}

void crash_qcow2_prepare(const CrashCase *c, Sim *sim, ShadowModel *model)
{
    Template *t = template_get(c);
    set_initial(c, model, NULL);
    sim_write_file(sim, "/top", t->top, t->top_bytes);
    if (t->middle)
        sim_write_file(sim, "/middle", t->middle, t->middle_bytes);
    if (t->base)
        sim_write_file(sim, "/base", t->base, t->base_bytes);
    if (t->data)
        sim_write_file(sim, "/data", t->data, t->data_bytes);
}

static int open_file(Fiber *self, const CrashCase *c, const char *path, FileOpenFlags flags,
                     File **ret_file, GError **error)
{
    if (c->uses_direct_io)
        flags |= FILE_DIRECT;
    return file_open(self, path, flags, ret_file, error);
}

static int open_qcow2(Fiber *self, const CrashCase *c, const char *path, bool read_only,
                      MapMemory *memory, Node **ret_node, GError **error)
{
    File *file, *data;
    Qcow2Image *image;
    Qcow2OpenOptions options = {.read_only = read_only, .memory = memory};
    FileOpenFlags flags = read_only ? 0 : FILE_WRITABLE;
    int r = open_file(self, c, path, flags, &file, error);
    if (r < 0)
        return r;
    r = qcow2_image_open(self, file, &options, &image, error);
    if (r < 0)
        return r;
    if (qcow2_image_data_file_name(image)) {
        r = open_file(self, c, "/data", flags, &data, error);
        if (r == 0)
            qcow2_image_set_data_file(image, data);
    }
    if (r == 0)
        r = qcow2_view_new(self, image, NULL, ret_node, error);
    qcow2_image_unref_close(self, image);
    return r;
}

// Byte 79 of the header holds the first incompatible bits; 1 is "dirty".
static bool has_dirty_bit(Fiber *self, File *file)
{
    uint8_t bits = 0;
    return file_read(self, file, host_off(79), &bits, 1) == 0 && bits & 1;
}

// A writable open leaves nothing to be repaired.
static int expect_clean(Fiber *self, GError **error)
{
    File *file;
    int r = file_open(self, "/top", 0, &file, error);
    if (r < 0)
        return r;
    if (has_dirty_bit(self, file)) {
        g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_FAILED, "it is open, and still dirty");
        r = -EUCLEAN;
    }
    file_close(self, file);
    return r;
}

static int open_base(Fiber *self, const CrashCase *c, MapMemory *memory, Node **ret_node,
                     GError **error)
{
    const CrashQcow2 *q = c->data;
    File *file;
    if (strcmp(q->base_format, "raw") != 0)
        return open_qcow2(self, c, "/base", true, memory, ret_node, error);
    int r = open_file(self, c, "/base", 0, &file, error);
    return r < 0 ? r : raw_node_new(self, file, ret_node, error);
}

int crash_qcow2_open(Fiber *self, const CrashCase *c, CrashImage *ret_image, GError **error)
{
    const CrashQcow2 *q = c->data;
    MapMemory *memory = map_memory_new(q->map_memory_bytes ? q->map_memory_bytes : PLENTY_BYTES);
    Node *node = NULL, *base = NULL;
    int r = open_qcow2(self, c, "/top", q->changes_mode, memory, &node, error);
    if (r == 0 && q->changes_mode)
        r = node_set_writable(self, node, true, error);
    if (r == 0 && q->is_dirty)
        r = expect_clean(self, error);
    if (r == 0 && q->base_format) {
        r = open_base(self, c, memory, &base, error);
        if (r == 0)
            node_set_backing(self, node, base);
        node_unref_close(self, base);
    }
    if (r < 0) {
        node_unref_close(self, node);
        map_memory_free(memory);
        return r;
    }
    *ret_image = (CrashImage){.node = node, .data = memory};
    return 0;
}

void crash_qcow2_close(Fiber *self, const CrashCase *c, CrashImage *image)
{
    const CrashQcow2 *q = c->data;
    if (q->changes_mode)
        node_set_writable(self, image->node, false, NULL); // a failure is seen by what is durable
    node_unref_close(self, image->node);
    map_memory_free(image->data);
}

// The first that is not about a leak.
static const char *first_message(const Qcow2CheckResult *result)
{
    for (guint i = 0; result->messages && i < result->messages->len; i++)
        if (!strstr(result->messages->pdata[i], "leaked"))
            return result->messages->pdata[i];
    return "";
}

// All of /top's bytes, as a user of the file sees them.
static uint8_t *read_all(Fiber *self, File *file, gsize *ret_bytes)
{
    uint64_t bytes = file_size(file);
    uint8_t *data = g_malloc0(bytes + 1);
    if (file_read(self, file, host_off(0), data, bytes) < 0)
        bytes = 0;
    *ret_bytes = bytes;
    return data;
}

static char *check_marks(Fiber *self, const CrashCase *c, File *file)
{
    const Template *t = template_get(c);
    gsize bytes;
    g_autofree uint8_t *data = read_all(self, file, &bytes);
    return crash_qcow2_check_marks(data, bytes, (const uint8_t *)t->top, t->top_bytes);
}

// §7, §12: a bitmap that is to be believed, and tracks, names all that differs from the beginning.
static char *check_bitmap(const DirtyBitmap *bitmap, const uint8_t *content, const uint8_t *before,
                          uint64_t bytes)
{
    DirtyBitmapInfo info;
    dirty_bitmap_info(bitmap, &info);
    uint64_t granule = UINT64_C(1) << dirty_bitmap_granularity_bits(bitmap);
    for (uint64_t off = 0; info.is_enabled && off < bytes; off += granule)
        if (memcmp(content + off, before + off, MIN(granule, bytes - off)) &&
            !bitmap_is_dirty(dirty_bitmap_bits(bitmap), off))
            return g_strdup_printf("bitmap '%s' calls what has changed at %" PRIu64 " clean",
                                   dirty_bitmap_name(bitmap), off);
    return NULL;
}

static char *check_bitmaps(Fiber *self, const CrashCase *c)
{
    const Template *t = template_get(c);
    MapMemory *memory = map_memory_new(PLENTY_BYTES);
    Node *node = NULL;
    char *problem = NULL;
    if (open_qcow2(self, c, "/top", true, memory, &node, NULL) == 0) {
        uint64_t bytes = MIN(node->size_bytes, t->content_bytes);
        g_autofree uint8_t *content = g_malloc(bytes);
        const GPtrArray *bitmaps = dirty_bitmaps_of(node);
        if (node_read(self, node, guest_off(0), content, bytes) < 0)
            bitmaps = NULL;
        for (guint i = 0; bitmaps && i < bitmaps->len && !problem; i++)
            problem = check_bitmap(bitmaps->pdata[i], content, (uint8_t *)t->content, bytes);
        node_unref_close(self, node);
    }
    map_memory_free(memory);
    return problem;
}

static char *check_image(Fiber *self, File *file)
{
    Qcow2CheckResult result = {0};
    g_autoptr(GError) error = NULL;
    char *problem = NULL;
    if (qcow2_check(self, file, 0, &result, &error) < 0) {
        problem = g_strdup(error->message);
    } else if (result.n_corruptions || result.n_check_errors) {
        problem =
            g_strdup_printf("%" PRIu64 " corruptions, %" PRIu64 " errors; %s", result.n_corruptions,
                            result.n_check_errors, first_message(&result));
    }
    qcow2_check_result_clear(&result);
    return problem;
}

char *crash_qcow2_check(Fiber *self, const CrashCase *c)
{
    const CrashQcow2 *q = c->data;
    File *file;
    g_autoptr(GError) error = NULL;
    if (file_open(self, "/top", 0, &file, &error) < 0)
        return g_strdup(error->message);
    char *problem = NULL;
    if (!q->is_dirty || !has_dirty_bit(self, file))
        problem = check_image(self, file);
    if (!problem && q->has_marks)
        problem = check_marks(self, c, file);
    file_close(self, file);
    if (!problem && q->has_marks)
        problem = check_bitmaps(self, c);
    return problem;
}
