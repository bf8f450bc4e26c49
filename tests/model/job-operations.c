// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs on the model's chain: a commit of the head into the layer below it, which becomes the head
// or stays below it, or of that layer into the next; a stream of that layer into the head; a mirror
// of the disk, which becomes the head or is let go; a backup of it. A job is the whole of one,
// begin to end: each of its chunks, its flushes and its switch is a step that others come before
// and after, and so is what its user asks for when it is ready. In fibers of the simulation.
#include "operations.h"

#include <errno.h>

#include "chain-core/chain.h"
#include "job-work.h"
#include "jobs/backup.h"
#include "jobs/block-stream.h"
#include "jobs/commit.h"
#include "jobs/mirror.h"

// --- a job, and its user -------------------------------------------------------------------------

static void hear(void *arg, const JobNews *news)
{
    Work *work = arg;
    work->is_job_ready |= news->kind == JOB_NEWS_READY;
    fiber_queue_wake_all(&work->job_news);
}

typedef struct User {
    Work *work;
    const Operation *operation;
} User;

static void user_fiber(Fiber *self, void *arg)
{
    Work *work = ((User *)arg)->work;
    const Operation *operation = ((User *)arg)->operation;
    if (operation->switches_mode && !work->is_job_over)
        job_control_ask_copy_mode(work->job, COPY_MODE_WRITE_BLOCKING);
    while (!work->is_job_ready && !work->is_job_over)
        fiber_queue_wait(self, &work->job_news, false, "model: a job that is ready");
    if (!work->is_job_over) {
        work->asked_at = shadow_model_read_begin(work->model);
        job_control_ask_end(work->job, operation->end);
    }
    fiber_wait_group_done(&work->job_users);
}

// The job holds the chain's nodes from here on.
static void begin_job(Fiber *self, Work *work, User *user)
{
    Loop *loop = fiber_loop(self);
    fiber_mutex_lock(self, &work->graph);
    g_assert(!work->job);
    work->job = job_control_new(0);
    job_control_begin_copy_mode(work->job, copy_mode_at_first(user->operation->copy_mode));
    job_control_begin(work->job, loop, loop, hear, work);
    if (user->operation->end == JOB_END_NOT_YET)
        return;
    fiber_wait_group_add(&work->job_users, 1);
    g_assert(fiber_spawn(loop, "user", user_fiber, user, NULL) == 0);
}

// The work has ended: nobody cancels it any more, and its end takes its turn.
static void end_run(Fiber *self, Work *work)
{
    work->is_job_over = true;
    fiber_queue_wake_all(&work->job_news);
    fiber_mutex_lock(self, &work->graph);
}

static void end_job(Fiber *self, Work *work, const Operation *operation, int result,
                    const GError *error)
{
    bool is_allowed = work->may_fail || (result == -ECANCELED && job_is_cancelled(work->job));
    work->is_job_over = true;
    fiber_queue_wake_all(&work->job_news);
    fiber_wait_group_wait(self, &work->job_users);
    job_control_end(work->job);
    job_control_drop(g_steal_pointer(&work->job));
    fiber_mutex_unlock(self, &work->graph);
    if (result < 0 && !is_allowed)
        work_fail(work, "%s: %s", operation->name, error ? error->message : g_strerror(-result));
}

// Of a layer that leaves, or changes, nothing is kept.
static void forget_layer_below(Work *work)
{
    work->layers[work->chain.top - 1] = NULL;
}

// Guests are at the next head.
static void follow(Fiber *self, Work *work)
{
    Chain *chain = &work->chain;
    Node *left = chain->head;
    if (is_on_first_head(work) || work->next_top == TARGET_LAYER)
        work->transient = NULL; // leaves with its node
    chain->head = node_ref(work->next_head);
    chain->top = work->next_top;
    work->next_head = NULL;
    node_unref_close(self, left);
}

// --- commits -------------------------------------------------------------------------------------

static int leave_out(Fiber *self, Commit *commit, bool *ret_switched, GError **error)
{
    int r;
    do {
        r = commit_come_close(self, commit, error);
        if (r == 0)
            r = commit_switch(self, commit, ret_switched, error);
    } while (r > 0);
    return r == 0 ? commit_give_back(self, commit) : r;
}

static int run_and_leave_out(Fiber *self, Work *work, const CommitSpec *spec, bool *ret_switched,
                             GError **error)
{
    Commit *commit = NULL;
    int r = commit_begin(self, spec, &commit, error);
    fiber_mutex_unlock(self, &work->graph);
    if (r == 0)
        r = commit_run(self, work->job, commit, error);
    end_run(self, work);
    if (r == 0)
        r = leave_out(self, commit, ret_switched, error);
    commit_end(self, commit);
    return r;
}

void run_commit(Fiber *self, Work *work, const Operation *operation)
{
    g_autoptr(GError) error = NULL;
    User user = {work, operation};
    bool is_switched = false;
    begin_job(self, work, &user);
    forget_layer_below(work);
    Node *base = node_ref(chain_backing(work->chain.head));
    CommitSpec spec = {.name = operation->name,
                       .top = work->chain.head,
                       .base = base,
                       .keeps_top = operation->keeps_top,
                       .backing_name = base->name + 1,
                       .backing_format = "qcow2",
                       .copy_mode = operation->copy_mode,
                       .completes_itself = operation->end == JOB_END_NOT_YET,
                       .memory = work->chain.memory};
    if (!operation->keeps_top) {
        work->next_head = base;
        work->next_top = work->chain.top - 1;
    }
    int r = node_change_mode(self, base, true, &error);
    if (r == 0)
        r = run_and_leave_out(self, work, &spec, &is_switched, &error);
    if (is_switched && !operation->keeps_top)
        follow(self, work);
    else
        node_change_mode(self, base, false, NULL);
    work->next_head = NULL;
    node_unref_close(self, base);
    end_job(self, work, operation, r, error);
}

// The layer below the head, into the one that it lies on.
void run_commit_of_middle(Fiber *self, Work *work, const Operation *operation)
{
    g_autoptr(GError) error = NULL;
    User user = {work, operation};
    bool is_switched = false;
    char path[16];
    begin_job(self, work, &user);
    forget_layer_below(work);
    Chain *chain = &work->chain;
    Node *head = chain->head, *top = chain_backing(head), *base = node_ref(chain_backing(top));
    layer_name(path, chain->top - 2);
    CommitSpec spec = {.name = operation->name,
                       .top = top,
                       .base = base,
                       .overlays = &head,
                       .n_overlays = 1,
                       .backing_name = path + 1,
                       .backing_format = chain->top == 2 ? "raw" : "qcow2",
                       .memory = chain->memory};
    int r = node_change_mode(self, base, true, &error);
    if (r == 0)
        r = run_and_leave_out(self, work, &spec, &is_switched, &error);
    if (is_switched && !is_on_first_head(work))
        work->transient = NULL; // left with the layer between
    node_change_mode(self, base, false, NULL);
    node_unref_close(self, base);
    end_job(self, work, operation, r, error);
}

// --- streams -------------------------------------------------------------------------------------

void run_stream(Fiber *self, Work *work, const Operation *operation)
{
    g_autoptr(GError) error = NULL;
    User user = {work, operation};
    begin_job(self, work, &user);
    forget_layer_below(work);
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

// --- copies to another image ---------------------------------------------------------------------

typedef int CopyToFn(Fiber *self, Work *work, Node *target, const Operation *operation,
                     GError **error);

static void run_copy(Fiber *self, Work *work, const Operation *operation, CopyToFn *copy_to)
{
    g_autoptr(GError) error = NULL;
    User user = {work, operation};
    Node *target = NULL;
    begin_job(self, work, &user);
    int r = chain_open_layer(self, &work->chain, TARGET_LAYER, &target, &error);
    if (r == 0)
        r = copy_to(self, work, target, operation, &error);
    node_unref_close(self, target);
    end_job(self, work, operation, r, error);
}

// --- mirrors -------------------------------------------------------------------------------------

// The disk of one moment since it was asked to end, and from now on nothing else.
static void keep_what_is_found(Fiber *self, Work *work, Node *target)
{
    char problem[256];
    uint64_t size = target->size_bytes;
    uint32_t versions[MAX_DISK_BYTES / CELL] = {0};
    g_autofree uint8_t *data = g_malloc(size);
    if (node_read(self, target, guest_off(0), data, size) < 0)
        return; // was made to fail
    if (!shadow_model_check(work->model, 0, data, size, work->asked_at, versions, problem))
        work_fail(work, "what a mirror has left: %s", problem);
    work->found = shadow_model_found(work->model, versions);
    shadow_model_set_initial_size(work->found, size);
    work->copy = work->found;
}

static int end_mirror(Fiber *self, Work *work, Mirror *mirror, GError **error)
{
    bool is_switched = false;
    int r;
    if (job_asked_end(work->job) == JOB_END_CANCEL) {
        keep_what_is_found(self, work, work->next_head);
        return 0;
    }
    do {
        r = mirror_come_close(self, mirror, error);
        if (r == 0)
            r = mirror_switch(self, mirror, &is_switched, error);
    } while (r > 0);
    if (is_switched)
        follow(self, work);
    return r;
}

static int mirror_to(Fiber *self, Work *work, Node *target, const Operation *operation,
                     GError **error)
{
    const MirrorSpec spec = {.name = operation->name,
                             .source = work->chain.head,
                             .target = target,
                             .replaced = work->chain.head,
                             .sync = MIRROR_SYNC_FULL,
                             .copy_mode = operation->copy_mode,
                             .target_is_zero = true};
    work->next_head = target;
    work->next_top = TARGET_LAYER;
    Mirror *mirror = mirror_begin(&spec);
    fiber_mutex_unlock(self, &work->graph);
    int r = mirror_run(self, work->job, mirror, error);
    end_run(self, work);
    if (r == 0)
        r = end_mirror(self, work, mirror, error);
    work->next_head = NULL;
    mirror_end(self, mirror);
    return r;
}

void run_mirror(Fiber *self, Work *work, const Operation *operation)
{
    run_copy(self, work, operation, mirror_to);
}

// --- backups -------------------------------------------------------------------------------------

// The moment; *ret_kept: what the disk shows then.
static int begin_backup(Fiber *self, Work *work, Backup *backup, const ShadowModel **ret_kept,
                        GError **error)
{
    int r = backup_drain(self, backup, error);
    if (r < 0)
        return r;
    *ret_kept = shadow_model_keep(work->model);
    backup_commit(backup);
    backup_resume(backup);
    return 0;
}

// Of the first head: the stored one, if it has one.
static DirtyBitmap *bitmap_to_hand_over(const Work *work)
{
    DirtyBitmap *bitmap = work->stored ? work->stored : work->transient;
    bool is_there = bitmap && is_on_first_head(work) &&
                    dirty_bitmap_check(bitmap, DIRTY_BITMAP_USE_CHANGE, NULL) == 0;
    return is_there ? bitmap : NULL;
}

// What is not copied by a backup that went well stays in it, or all that was there.
static void settle(Fiber *self, Work *work, Backup *backup, const BackupSpec *spec, bool is_good)
{
    int r = backup_settle(self, backup, is_good, NULL);
    if (!spec->bitmap || !is_good || r < 0)
        return;
    *(spec->bitmap == work->stored ? &work->stored_cleared : &work->transient_cleared) =
        shadow_model_kept_at(work->copy);
}

static int back_up_to(Fiber *self, Work *work, Node *target, const Operation *operation,
                      GError **error)
{
    const BackupSpec spec = {
        .name = "backup",
        .source = work->chain.head,
        .target = target,
        .sync = BACKUP_SYNC_FULL,
        .bitmap = operation->hands_over_bitmap ? bitmap_to_hand_over(work) : NULL,
        .bitmap_mode = BACKUP_BITMAP_ON_SUCCESS,
    };
    const ShadowModel *kept = NULL;
    Backup *backup = backup_begin(self, &spec, error);
    int r = backup ? begin_backup(self, work, backup, &kept, error) : -EIO;
    fiber_mutex_unlock(self, &work->graph);
    if (r == 0)
        r = backup_run(self, work->job, backup, error);
    bool is_good = r == 0 && !job_is_cancelled(work->job); // else it is no backup, as in job-life.c
    if (r == 0)
        work->copy = kept;
    end_run(self, work);
    if (backup)
        settle(self, work, backup, &spec, is_good);
    backup_end(self, backup);
    return r;
}

void run_backup(Fiber *self, Work *work, const Operation *operation)
{
    run_copy(self, work, operation, back_up_to);
}

// -------------------------------------------------------------------------------------------------

void run_cancel(Fiber *self, Work *work, const Operation *operation)
{
    if (work->job && !work->is_job_over)
        job_control_cancel(work->job);
}
