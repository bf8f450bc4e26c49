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

typedef struct Version {
    ShadowKind kind;
    uint64_t off, len;
    uint64_t begun, ended; // moments; ended 0: in flight
    bool has_failed, is_durable;
} Version;

// Oldest first. A version that a durable one replaced is GONE: a crash cannot bring it back, but a
// read that began before may still return it; it is dropped when nobody reads.
typedef struct Cell {
    uint32_t n;
    uint32_t *versions;
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
};

enum { MAGIC = 0x53484457 };

static Version *version_at(const ShadowModel *model, uint32_t version)
{
    return &g_array_index(model->versions, Version, version & ~GONE);
}

static void cell_add(Cell *cell, uint32_t version)
{
    cell->versions = g_renew(uint32_t, cell->versions, cell->n + 1);
    cell->versions[cell->n++] = version;
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
        g_free(model->cells[i].versions);
    g_free(model->cells);
    g_array_unref(model->versions);
    g_array_unref(model->not_durable);
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
    uint32_t n = 0;
    for (uint32_t i = 0; i < cell->n; i++) {
        const Version *v = version_at(model, cell->versions[i]);
        if (v->ended && v->ended < winner->begun)
            cell->versions[i] |= GONE;
        if (!(cell->versions[i] & GONE) || model->n_readers > 0)
            cell->versions[n++] = cell->versions[i];
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
        const Version *w = version_at(model, cell->versions[i]);
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
        const Version *v = version_at(model, cell->versions[i]);
        if ((cell->versions[i] & GONE) && !read_begun)
            continue;
        bool is_match = is_zeros
                            ? v->kind != SHADOW_DATA
                            : v->kind == SHADOW_DATA && mark.version == (cell->versions[i] & ~GONE);
        if (is_match && !is_overwritten(model, cell, v, read_begun))
            return cell->versions[i] & ~GONE;
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
        const Version *v = version_at(model, cell->versions[i]);
        if (cell->versions[i] & GONE)
            continue;
        n += snprintf(problem + n, 256 - n, " %" PRIu32 "%s%s", cell->versions[i],
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
