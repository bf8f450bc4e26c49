// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs on the model's chain: a commit of the head into the layer below it, which becomes the head,
// and a stream of that layer into the head. A job is the whole of one, begin to end: each of its
// chunks, its flushes and its switch is a step that others come before and after. In fibers of the
// simulation.
#include "operations.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "job-work.h"
#include "jobs/block-stream.h"
#include "jobs/commit.h"

static void hear(void *arg, const JobNews *news)
{
}

// The job holds the chain's nodes from here on. The layer below the head, which is to leave or to
// change, is no point in time any more.
static void begin_job(Fiber *self, Work *work)
{
    Loop *loop = fiber_loop(self);
    fiber_mutex_lock(self, &work->graph);
    g_assert(!work->job);
    work->job = job_control_new(0);
    work->layers[work->chain.top - 1] = NULL;
    job_control_begin(work->job, loop, loop, hear, NULL);
}

static void end_job(Fiber *self, Work *work, const Operation *operation, int result,
                    const GError *error)
{
    bool is_allowed = work->may_fail || (result == -ECANCELED && job_is_cancelled(work->job));
    job_control_end(work->job);
    job_control_drop(g_steal_pointer(&work->job));
    fiber_mutex_unlock(self, &work->graph);
    if (result < 0 && !is_allowed)
        work_fail(work, "%s: %s", operation->name, error ? error->message : g_strerror(-result));
}

// The work has ended: nobody cancels it any more, and its end takes its turn.
static void end_run(Fiber *self, Work *work)
{
    work->is_job_over = true;
    fiber_mutex_lock(self, &work->graph);
}

// --- commits -------------------------------------------------------------------------------------

static int switch_to_base(Fiber *self, Work *work, Commit *commit, GError **error)
{
    Chain *chain = &work->chain;
    bool is_switched = false;
    int r;
    do {
        r = commit_come_close(self, commit, error);
        if (r == 0)
            r = commit_switch(self, commit, &is_switched, error);
    } while (r > 0);
    if (is_switched) {
        Node *top = chain->head;
        if (is_on_first_head(work))
            work->transient = NULL; // leaves with its node
        chain->head = node_ref(work->base);
        chain->top--;
        work->base = NULL;
        node_unref_close(self, top);
    }
    return r;
}

static int run_and_switch(Fiber *self, Work *work, const CommitSpec *spec, GError **error)
{
    Commit *commit = NULL;
    int r = commit_begin(self, spec, &commit, error);
    fiber_mutex_unlock(self, &work->graph);
    if (r == 0)
        r = commit_run(self, work->job, commit, error);
    end_run(self, work);
    if (r == 0)
        r = switch_to_base(self, work, commit, error);
    commit_end(self, commit);
    return r;
}

void run_commit(Fiber *self, Work *work, const Operation *operation)
{
    g_autoptr(GError) error = NULL;
    begin_job(self, work);
    Node *base = node_ref(chain_backing(work->chain.head));
    CommitSpec spec = {.name = operation->name,
                       .top = work->chain.head,
                       .base = base,
                       .copy_mode = operation->copy_mode,
                       .completes_itself = true,
                       .memory = work->chain.memory};
    work->base = base;
    int r = node_change_mode(self, base, true, &error);
    if (r == 0)
        r = run_and_switch(self, work, &spec, &error);
    if (work->base)
        node_change_mode(self, base, false, NULL);
    work->base = NULL;
    node_unref_close(self, base);
    end_job(self, work, operation, r, error);
}

// --- streams -------------------------------------------------------------------------------------

void run_stream(Fiber *self, Work *work, const Operation *operation)
{
    g_autoptr(GError) error = NULL;
    begin_job(self, work);
    Chain *chain = &work->chain;
    char path[16];
    layer_name(path, chain->top - 2);
    const BlockStreamBacking backing = {path + 1, chain->top == 2 ? "raw" : "qcow2"};
    BlockStream *stream =
        block_stream_new(chain->head, chain_backing(chain->head), chain->memory, "stream");
    fiber_mutex_unlock(self, &work->graph);
    int r = block_stream_run(self, stream, work->job, JOB_ON_ERROR_REPORT, &error);
    end_run(self, work);
    if (r == 0)
        r = block_stream_switch(self, stream, &backing, &error);
    if (r == 0 && !is_on_first_head(work))
        work->transient = NULL; // left with the node below
    block_stream_free(self, stream);
    end_job(self, work, operation, r, error);
}

// -------------------------------------------------------------------------------------------------

void run_cancel(Fiber *self, Work *work, const Operation *operation)
{
    if (work->job && !work->is_job_over)
        job_control_cancel(work->job);
}
