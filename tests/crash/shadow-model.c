// SPDX-License-Identifier: LGPL-2.1-or-later
// The shadow model: versions with the moments at which they began and ended, and for each cell the
// list of versions that may be there. A version leaves a cell's list when a durable one that began
// after its end covers the cell. No I/O; one thread.
#include "shadow-model.h"

#include <assert.h>
#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "sim/sim-random.h"

typedef struct Version {
    ShadowKind kind;
    uint64_t off, len;
    uint64_t begun, ended; // moments; ended 0: in flight
    bool has_failed, is_durable;
} Version;

// Oldest first. A version that a durable one replaced is GONE: a crash cannot bring it back, but a
// read that began before may still return it; it is dropped when nobody reads.
enum { FEW = 4 };
typedef struct Cell {
    uint32_t n, capacity; // of `many`; 0: they are in `few`
    uint32_t few[FEW];
    uint32_t *many;
} Cell;
#define GONE (UINT32_C(1) << 31)

// A cell of data is filled with copies of this.
typedef struct Mark {
    uint32_t magic, version;
    uint64_t cell;
} Mark;

struct ShadowModel {
    uint64_t size_bytes;
    uint32_t cell_bytes;
    uint64_t moment;
    unsigned n_readers;
    GArray *versions;    // Version; index 0 is the zeros of a new disk
    GArray *not_durable; // uint32_t: ended, not yet covered by a flush
    Cell *cells;
    uint32_t n_initial; // versions that were there before any request
    uint64_t kept_at;   // the moment at which it was kept
    GPtrArray *kept;    // ShadowModel
    GArray *sizes;      // uint64_t: those that may be found after a crash; the last: the one now
    uint64_t next_size; // 0: no change under way
    uint32_t growth;    // the version that is its zeros; 0: none
};

enum { MAGIC = 0x53484457 };

static Version *version_at(const ShadowModel *model, uint32_t version)
{
    return &g_array_index(model->versions, Version, version & ~GONE);
}

static const uint32_t *cell_versions(const Cell *cell)
{
    return cell->capacity ? cell->many : cell->few;
}

static void cell_add(Cell *cell, uint32_t version)
{
    if (cell->n == MAX(cell->capacity, FEW)) {
        uint32_t *many = g_new(uint32_t, 2 * cell->n);
        memcpy(many, cell_versions(cell), cell->n * sizeof(uint32_t));
        g_free(cell->many);
        cell->many = many;
        cell->capacity = 2 * cell->n;
    }
    ((uint32_t *)cell_versions(cell))[cell->n++] = version;
}

static void free_kept(void *kept)
{
    shadow_model_free(kept);
}

static ShadowModel *model_alloc(uint64_t size_bytes, uint32_t cell_bytes)
{
    assert(512 % cell_bytes == 0 && cell_bytes % sizeof(Mark) == 0);
    assert(size_bytes % cell_bytes == 0);
    ShadowModel *model = g_new0(ShadowModel, 1);
    model->size_bytes = size_bytes;
    model->cell_bytes = cell_bytes;
    model->moment = 1;
    model->versions = g_array_new(false, false, sizeof(Version));
    model->not_durable = g_array_new(false, false, sizeof(uint32_t));
    model->cells = g_new0(Cell, size_bytes / cell_bytes);
    model->kept = g_ptr_array_new_with_free_func(free_kept);
    model->sizes = g_array_new(false, false, sizeof(uint64_t));
    g_array_append_val(model->sizes, size_bytes);
    return model;
}

ShadowModel *shadow_model_new(uint64_t size_bytes, uint32_t cell_bytes)
{
    ShadowModel *model = model_alloc(size_bytes, cell_bytes);
    shadow_model_set_initial(model, SHADOW_ZEROS, 0, size_bytes);
    return model;
}

void shadow_model_free(ShadowModel *model)
{
    if (!model)
        return;
    for (uint64_t i = 0; i < shadow_model_n_cells(model); i++)
        g_free(model->cells[i].many);
    g_free(model->cells);
    g_array_unref(model->versions);
    g_array_unref(model->not_durable);
    g_ptr_array_unref(model->kept);
    g_array_unref(model->sizes);
    g_free(model);
}

uint64_t shadow_model_n_cells(const ShadowModel *model)
{
    return model->size_bytes / model->cell_bytes;
}

uint32_t shadow_model_cell_bytes(const ShadowModel *model)
{
    return model->cell_bytes;
}

uint32_t shadow_model_begin(ShadowModel *model, ShadowKind kind, uint64_t off, uint64_t len)
{
    assert((off | len) % model->cell_bytes == 0 && off + len <= model->size_bytes);
    Version version = {.kind = kind, .off = off, .len = len, .begun = ++model->moment};
    g_array_append_val(model->versions, version);
    uint32_t index = model->versions->len - 1;
    for (uint64_t at = off; at < off + len; at += model->cell_bytes)
        cell_add(&model->cells[at / model->cell_bytes], index);
    return index;
}

// `winner` ended durably: what ended before it began can be found no more.
static void cell_drop_older(const ShadowModel *model, Cell *cell, const Version *winner)
{
    uint32_t n = 0, *versions = (uint32_t *)cell_versions(cell);
    for (uint32_t i = 0; i < cell->n; i++) {
        const Version *v = version_at(model, versions[i]);
        if (v->ended && v->ended < winner->begun)
            versions[i] |= GONE;
        if (!(versions[i] & GONE) || model->n_readers > 0)
            versions[n++] = versions[i];
    }
    cell->n = n;
}

static void make_durable(ShadowModel *model, Version *v)
{
    v->is_durable = true;
    for (uint64_t at = v->off; at < v->off + v->len && v->kind != SHADOW_HINT;
         at += model->cell_bytes)
        cell_drop_older(model, &model->cells[at / model->cell_bytes], v);
}

void shadow_model_end(ShadowModel *model, uint32_t version, int result, bool is_durable)
{
    Version *v = version_at(model, version);
    v->ended = ++model->moment;
    v->has_failed = result < 0;
    if (v->has_failed)
        return;
    if (is_durable)
        make_durable(model, v);
    else
        g_array_append_val(model->not_durable, version);
}

uint32_t shadow_model_set_initial(ShadowModel *model, ShadowKind kind, uint64_t off, uint64_t len)
{
    uint32_t version = shadow_model_begin(model, kind, off, len);
    shadow_model_end(model, version, 0, true);
    model->n_initial = version + 1;
    return version;
}

uint64_t shadow_model_flush_begin(ShadowModel *model)
{
    return ++model->moment;
}

uint64_t shadow_model_read_begin(ShadowModel *model)
{
    model->n_readers++;
    return ++model->moment;
}

void shadow_model_read_end(ShadowModel *model)
{
    model->n_readers--;
}

void shadow_model_flush_end(ShadowModel *model, uint64_t begun, int result)
{
    guint n = 0;
    if (result < 0)
        return;
    for (guint i = 0; i < model->not_durable->len; i++) {
        uint32_t version = g_array_index(model->not_durable, uint32_t, i);
        if (version_at(model, version)->ended < begun)
            make_durable(model, version_at(model, version));
        else
            g_array_index(model->not_durable, uint32_t, n++) = version;
    }
    g_array_set_size(model->not_durable, n);
    for (guint i = 0; i < model->kept->len; i++)
        shadow_model_flush_end(model->kept->pdata[i], begun, result);
}

void shadow_model_fill(const ShadowModel *model, uint32_t version, uint64_t off, void *buf,
                       size_t len)
{
    if (version_at(model, version)->kind != SHADOW_DATA) {
        memset(buf, 0, len);
        return;
    }
    Mark *marks = buf;
    for (size_t i = 0; i < len / sizeof(Mark); i++)
        marks[i] = (Mark){MAGIC, version, (off + i * sizeof(Mark)) / model->cell_bytes};
}

// Was `v` overwritten, for a reader who began at `read_begun`, by something that ended before?
static bool is_overwritten(const ShadowModel *model, const Cell *cell, const Version *v,
                           uint64_t read_begun)
{
    for (uint32_t i = 0; i < cell->n && v->ended && read_begun; i++) {
        const Version *w = version_at(model, cell_versions(cell)[i]);
        if (w->kind != SHADOW_HINT && !w->has_failed && w->ended && w->ended < read_begun &&
            w->begun > v->ended)
            return true;
    }
    return false;
}

static bool is_repeated(const uint8_t *cell, uint32_t bytes)
{
    return memcmp(cell, cell + sizeof(Mark), bytes - sizeof(Mark)) == 0;
}

// The version that may be in the cell and looks like `bytes`, or -1.
static int64_t find_version(const ShadowModel *model, uint64_t index, const uint8_t *bytes,
                            uint64_t read_begun)
{
    const Cell *cell = &model->cells[index];
    const Mark zeros = {0};
    Mark mark;
    memcpy(&mark, bytes, sizeof(mark));
    bool is_zeros = memcmp(&mark, &zeros, sizeof(mark)) == 0;
    if (!is_repeated(bytes, model->cell_bytes) ||
        (!is_zeros && (mark.magic != MAGIC || mark.cell != index)))
        return -1;
    for (uint32_t i = cell->n; i-- > 0;) {
        uint32_t version = cell_versions(cell)[i];
        const Version *v = version_at(model, version);
        if ((version & GONE) && !read_begun)
            continue;
        bool is_match = is_zeros ? v->kind != SHADOW_DATA
                                 : v->kind == SHADOW_DATA && mark.version == (version & ~GONE);
        if (is_match && !is_overwritten(model, cell, v, read_begun))
            return version & ~GONE;
    }
    return -1;
}

static void describe(const ShadowModel *model, uint64_t index, const uint8_t *bytes,
                     char problem[256])
{
    const Cell *cell = &model->cells[index];
    Mark mark;
    memcpy(&mark, bytes, sizeof(mark));
    int n = snprintf(problem, 256, "offset %" PRIu64 ": ", index * model->cell_bytes);
    if (!is_repeated(bytes, model->cell_bytes))
        n += snprintf(problem + n, 256 - n, "a mixture, first of ");
    if (mark.magic == MAGIC)
        n += snprintf(problem + n, 256 - n, "version %" PRIu32 " of offset %" PRIu64, mark.version,
                      mark.cell * model->cell_bytes);
    else
        n += snprintf(problem + n, 256 - n, "%08" PRIx32 "…", mark.magic);
    n += snprintf(problem + n, 256 - n, "; may be");
    for (uint32_t i = 0; i < cell->n && n < 220; i++) {
        uint32_t version = cell_versions(cell)[i];
        const Version *v = version_at(model, version);
        if (version & GONE)
            continue;
        n += snprintf(problem + n, 256 - n, " %" PRIu32 "%s%s", version,
                      v->kind == SHADOW_DATA    ? ""
                      : v->kind == SHADOW_ZEROS ? "(zeros)"
                                                : "(hint)",
                      v->is_durable ? "(durable)"
                      : !v->ended   ? "(in flight)"
                                    : "");
    }
}

bool shadow_model_check(const ShadowModel *model, uint64_t off, const void *buf, size_t len,
                        uint64_t read_begun, uint32_t *ret_versions, char problem[256])
{
    const uint8_t *bytes = buf;
    for (size_t at = 0; at < len; at += model->cell_bytes) {
        uint64_t index = (off + at) / model->cell_bytes;
        int64_t version = find_version(model, index, bytes + at, read_begun);
        if (version < 0) {
            describe(model, index, bytes + at, problem);
            return false;
        }
        if (ret_versions)
            ret_versions[at / model->cell_bytes] = (uint32_t)version;
    }
    return true;
}

ShadowModel *shadow_model_found(const ShadowModel *model, const uint32_t *versions)
{
    ShadowModel *found = model_alloc(model->size_bytes, model->cell_bytes);
    found->moment = model->moment + 1;
    g_array_append_vals(found->versions, model->versions->data, model->versions->len);
    for (guint i = 0; i < found->versions->len; i++)
        version_at(found, i)->ended = found->moment;
    for (uint64_t i = 0; i < shadow_model_n_cells(model); i++)
        cell_add(&found->cells[i], versions[i]);
    return found;
}

// --- points in time and sizes --------------------------------------------------------------------

ShadowModel *shadow_model_copy(const ShadowModel *model)
{
    ShadowModel *copy = model_alloc(model->size_bytes, model->cell_bytes);
    copy->moment = model->moment;
    copy->n_initial = model->n_initial;
    g_array_append_vals(copy->versions, model->versions->data, model->versions->len);
    g_array_append_vals(copy->not_durable, model->not_durable->data, model->not_durable->len);
    g_array_set_size(copy->sizes, 0);
    g_array_append_vals(copy->sizes, model->sizes->data, model->sizes->len);
    for (uint64_t i = 0; i < shadow_model_n_cells(model); i++) {
        Cell *cell = &copy->cells[i];
        *cell = model->cells[i];
        cell->many = g_memdup2(cell->many, cell->capacity * sizeof(uint32_t));
    }
    return copy;
}

const ShadowModel *shadow_model_keep(ShadowModel *model)
{
    ShadowModel *kept = shadow_model_copy(model);
    kept->kept_at = kept->moment = ++model->moment;
    g_ptr_array_add(model->kept, kept);
    return kept;
}

uint64_t shadow_model_kept_at(const ShadowModel *kept)
{
    return kept->kept_at;
}

uint64_t shadow_model_size(const ShadowModel *model)
{
    return g_array_index(model->sizes, uint64_t, model->sizes->len - 1);
}

void shadow_model_set_initial_size(ShadowModel *model, uint64_t bytes)
{
    g_array_set_size(model->sizes, 0);
    g_array_append_val(model->sizes, bytes);
}

void shadow_model_resize_begin(ShadowModel *model, uint64_t bytes)
{
    uint64_t now = shadow_model_size(model);
    assert(!model->next_size && bytes <= model->size_bytes);
    model->next_size = bytes;
    if (bytes > now)
        model->growth = shadow_model_begin(model, SHADOW_ZEROS, now, bytes - now);
}

void shadow_model_resize_end(ShadowModel *model, int result)
{
    uint64_t now = shadow_model_size(model), next = model->next_size;
    if (result == 0)
        shadow_model_set_initial_size(model, next);
    else
        g_array_insert_val(model->sizes, 0, next);
    assert(result == 0 || shadow_model_size(model) == now);
    if (model->growth)
        shadow_model_end(model, model->growth, result, true);
    if (result == 0 && next < now) // should it grow again
        shadow_model_end(model,
                         shadow_model_begin(model, SHADOW_ZEROS, next, model->size_bytes - next), 0,
                         true);
    model->growth = 0;
    model->next_size = 0;
}

bool shadow_model_may_have_size(const ShadowModel *model, uint64_t bytes)
{
    for (guint i = 0; i < model->sizes->len; i++)
        if (g_array_index(model->sizes, uint64_t, i) == bytes)
            return true;
    return bytes && bytes == model->next_size;
}

uint64_t shadow_model_now(ShadowModel *model)
{
    return ++model->moment;
}

// What each cell may show, where there were requests.
uint64_t shadow_model_hash(const ShadowModel *model)
{
    uint64_t hash = model->next_size;
    for (uint32_t v = model->n_initial; v < model->versions->len; v++) {
        const Version *version = version_at(model, v);
        hash = sim_mix(sim_mix(hash, version->kind), version->off);
        for (uint64_t at = version->off; at < version->off + version->len;
             at += model->cell_bytes) {
            const Cell *cell = &model->cells[at / model->cell_bytes];
            for (uint32_t i = 0; i < cell->n; i++)
                hash = sim_mix(hash, cell_versions(cell)[i]);
        }
    }
    for (guint i = 0; i < model->sizes->len; i++)
        hash = sim_mix(hash, g_array_index(model->sizes, uint64_t, i));
    for (guint i = 0; i < model->kept->len; i++)
        hash = sim_mix(hash, shadow_model_hash(model->kept->pdata[i]));
    return hash;
}
