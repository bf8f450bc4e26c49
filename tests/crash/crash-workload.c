// SPDX-License-Identifier: LGPL-2.1-or-later
// Requests of a crash test's workload. Fibers do not keep out of each other's way: overlapping
// writes in flight may win in either order, cell by cell. In fibers of the simulation.
#include "crash-workload.h"

#include <errno.h>
#include <string.h>

enum { COMPARE_BYTES = 64 * 1024, ANSWERED_NS = 2000000 };

static uint64_t pick(CrashWorkload *w, uint64_t bound)
{
    return sim_random(w->sim, bound);
}

// A range of whole cells: mostly short, at times long; at times whole clusters.
static void pick_range(CrashWorkload *w, uint64_t *ret_off, uint64_t *ret_len)
{
    const CrashCase *c = w->c;
    uint64_t cell = shadow_model_cell_bytes(w->model);
    uint64_t max = pick(w, 4) == 0 ? c->max_request_bytes : MAX(c->max_request_bytes / 8, cell);
    uint64_t len = (1 + pick(w, max / cell)) * cell;
    uint64_t room = c->size_bytes - len;
    if (c->hot_bytes && pick(w, 4) > 0)
        room = MIN(room, c->hot_bytes);
    uint64_t off = pick(w, room / cell + 1) * cell;
    if (c->discard_bytes && pick(w, 3) == 0) {
        off -= off % c->discard_bytes;
        if (len >= c->discard_bytes)
            len -= len % c->discard_bytes;
    }
    *ret_off = off;
    *ret_len = len;
}

// Long enough after the one operation that failed for it to have been answered.
static bool is_after_fault(const CrashWorkload *w)
{
    return w->fault_ns && loop_now_ns(w->node->loop) > w->fault_ns + ANSWERED_NS;
}

// A request failed (or not): may it have? One fault fails what depended on it. Where it was a
// flush, no later one can succeed, nor a write that needs room for metadata which cannot be written
// back.
static void note_result(CrashWorkload *w, int result, bool is_read, bool began_after_fault)
{
    if (result >= 0 || (result == -ENOSPC && w->c->space_bytes))
        return;
    w->n_failed++;
    if (began_after_fault && (is_read || !w->has_flush_fault))
        w->n_failed_late++;
}

// §10: what a flush needs was there before the requests that it covers were answered.
static void note_flush(CrashWorkload *w, int result)
{
    if (result < 0 && !w->fault_ns && !w->problem[0])
        g_snprintf(w->problem, sizeof(w->problem), "a flush fails (%s) though nothing else did",
                   g_strerror(-result));
}

// §9: once a sync has failed nothing is durable any more, and nobody is told that it is.
static void note_durable(CrashWorkload *w, int result, bool began_after_fault)
{
    if (result >= 0 && began_after_fault && w->has_flush_fault && !w->problem[0])
        g_snprintf(w->problem, sizeof(w->problem), "a flush succeeds after a sync has failed");
}

// Pages are written from a file, as far as that goes; the rest is left.
static int write_from_scratch(Fiber *self, CrashWorkload *w, GuestOff off, const uint8_t *buf,
                              uint64_t len, uint64_t *ret_done)
{
    enum { PAGE_BYTES = 4096 };
    HostOff host = host_off(w->scratch_end);
    w->scratch_end += (len + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    int r = file_write(self, w->scratch, host, buf, len);
    while (r >= 0 && *ret_done < len) {
        NodeExtent from = {.len = len - *ret_done,
                           .kind = NODE_EXTENT_DATA,
                           .file = w->scratch,
                           .host = host_off(host.v + *ret_done)};
        uint64_t n;
        r = node_write_extent(self, w->node, guest_off(off.v + *ret_done), &from, &n);
        *ret_done += r >= 0 ? n : 0;
    }
    return r == -ENOTSUP ? 0 : MIN(r, 0);
}

static int write_node(Fiber *self, CrashWorkload *w, GuestOff off, const uint8_t *buf, uint64_t len,
                      NodeIoFlags flags)
{
    uint64_t done = 0;
    int r = 0;
    if (w->scratch && !flags && pick(w, 2))
        r = write_from_scratch(self, w, off, buf, len, &done);
    if (r == 0 && done < len)
        r = node_write(self, w->node, guest_off(off.v + done), buf + done, len - done, flags);
    return r;
}

static void do_write(Fiber *self, CrashWorkload *w, uint64_t off, uint64_t len, bool is_fua)
{
    bool after_fault = is_after_fault(w);
    g_autofree uint8_t *buf = g_malloc(len);
    uint32_t version = shadow_model_begin(w->model, SHADOW_DATA, off, len);
    shadow_model_fill(w->model, version, off, buf, len);
    int r = write_node(self, w, guest_off(off), buf, len, is_fua ? NODE_IO_FUA : 0);
    shadow_model_end(w->model, version, r, is_fua);
    note_result(w, r, false, after_fault);
    if (is_fua)
        note_durable(w, r, after_fault);
}

static void do_zero(Fiber *self, CrashWorkload *w, uint64_t off, uint64_t len, bool is_fua)
{
    bool after_fault = is_after_fault(w);
    NodeIoFlags flags = (is_fua ? NODE_IO_FUA : 0) | (pick(w, 2) ? NODE_IO_NO_UNMAP : 0);
    uint32_t version = shadow_model_begin(w->model, SHADOW_ZEROS, off, len);
    int r = node_zero(self, w->node, guest_off(off), len, flags);
    shadow_model_end(w->model, version, r, is_fua);
    note_result(w, r, false, after_fault);
}

// Whole blocks become zeros, the ends of the range may.
static void do_discard(Fiber *self, CrashWorkload *w, uint64_t off, uint64_t len, bool is_fua)
{
    bool after_fault = is_after_fault(w);
    uint64_t block = w->c->discard_bytes ? w->c->discard_bytes : w->c->size_bytes * 2;
    uint64_t end = off + len, start = MIN((off + block - 1) / block * block, end);
    uint64_t stop = end == w->c->size_bytes && w->c->discard_bytes ? end : end / block * block;
    stop = MAX(stop, start);
    uint32_t versions[3] = {
        shadow_model_begin(w->model, SHADOW_HINT, off, start - off),
        shadow_model_begin(w->model, SHADOW_ZEROS, start, stop - start),
        shadow_model_begin(w->model, SHADOW_HINT, stop, end - stop),
    };
    int r = node_discard(self, w->node, guest_off(off), len, is_fua ? NODE_IO_FUA : 0);
    for (unsigned i = 0; i < 3; i++)
        shadow_model_end(w->model, versions[i], r, is_fua);
    note_result(w, r, false, after_fault);
}

static void do_flush(Fiber *self, CrashWorkload *w)
{
    bool after_fault = is_after_fault(w);
    uint64_t begun = shadow_model_flush_begin(w->model);
    int r = node_flush(self, w->node);
    shadow_model_flush_end(w->model, begun, r);
    note_result(w, r, false, after_fault);
    note_flush(w, r);
    note_durable(w, r, after_fault);
}

static void do_read(Fiber *self, CrashWorkload *w, uint64_t off, uint64_t len)
{
    bool after_fault = is_after_fault(w);
    g_autofree uint8_t *buf = g_malloc(len);
    char problem[256];
    uint64_t begun = shadow_model_read_begin(w->model);
    int r = node_read(self, w->node, guest_off(off), buf, len);
    note_result(w, r, true, after_fault);
    if (r == 0 && !shadow_model_check(w->model, off, buf, len, begun, NULL, problem) &&
        !w->problem[0])
        g_snprintf(w->problem, sizeof(w->problem), "read in the run: %s", problem);
    shadow_model_read_end(w->model);
}

// `number`: of all requests that the case weighs, in the order of these.
static RequestKind kind_of(const CrashCase *c, uint64_t number)
{
    const unsigned weights[] = {c->n_write, c->n_zero, c->n_discard, c->n_flush};
    static const RequestKind kinds[] = {REQUEST_WRITE, REQUEST_ZERO, REQUEST_DISCARD,
                                        REQUEST_FLUSH};
    for (unsigned i = 0; i < G_N_ELEMENTS(weights); i++) {
        if (number < weights[i])
            return kinds[i];
        number -= weights[i];
    }
    return REQUEST_READ;
}

static void do_request(Fiber *self, CrashWorkload *w)
{
    const CrashCase *c = w->c;
    uint64_t off, len;
    bool is_fua = pick(w, 100) < c->fua_percent;
    RequestKind kind =
        kind_of(c, pick(w, c->n_write + c->n_zero + c->n_discard + c->n_flush + c->n_read));
    pick_range(w, &off, &len);
    if (w->port)
        port_enter(self, w->port, kind);
    if (kind == REQUEST_WRITE)
        do_write(self, w, off, len, is_fua);
    else if (kind == REQUEST_ZERO)
        do_zero(self, w, off, len, is_fua);
    else if (kind == REQUEST_DISCARD)
        do_discard(self, w, off, len, is_fua);
    else if (kind == REQUEST_FLUSH)
        do_flush(self, w);
    else
        do_read(self, w, off, len);
    if (w->port)
        port_leave(w->port, kind);
}

static void workload_fiber(Fiber *self, void *arg)
{
    CrashWorkload *w = arg;
    for (unsigned i = 0; i < w->n_requests; i++)
        do_request(self, w);
    fiber_wait_group_done(&w->group);
}

// Where space is counted it would take some.
static void open_scratch(Fiber *self, CrashWorkload *w)
{
    if (w->c->space_bytes)
        return;
    int r = file_open(self, "/scratch", FILE_WRITABLE | FILE_CREATE, &w->scratch, NULL);
    if (r == -EEXIST)
        file_open(self, "/scratch", FILE_WRITABLE, &w->scratch, NULL);
}

void crash_workload_run(Fiber *self, CrashWorkload *w)
{
    open_scratch(self, w);
    fiber_wait_group_add(&w->group, w->c->n_fibers);
    for (unsigned i = 0; i < w->c->n_fibers; i++)
        if (fiber_spawn(fiber_loop(self), "workload", workload_fiber, w, NULL) < 0)
            fiber_wait_group_done(&w->group);
    fiber_wait_group_wait(self, &w->group);
    file_close(self, g_steal_pointer(&w->scratch));
}

int crash_compare(Fiber *self, Node *node, const ShadowModel *model, uint32_t *ret_versions,
                  char problem[256])
{
    g_autofree uint8_t *buf = g_malloc(COMPARE_BYTES);
    uint32_t cell = shadow_model_cell_bytes(model);
    for (uint64_t off = 0; off < node->size_bytes; off += COMPARE_BYTES) {
        size_t len = MIN(COMPARE_BYTES, node->size_bytes - off);
        int r = node_read(self, node, guest_off(off), buf, len);
        if (r < 0)
            return r;
        if (!shadow_model_check(model, off, buf, len, 0,
                                ret_versions ? ret_versions + off / cell : NULL, problem))
            return -EILSEQ;
    }
    return 0;
}
