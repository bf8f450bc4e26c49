// SPDX-License-Identifier: LGPL-2.1-or-later
// On the work's loop.
#include "job-copy.h"

#include <inttypes.h>

#include "chain-core/chain.h"
#include "copy-verify.h"
#include "jobs/job.h"

void job_copy_asked(void *arg)
{
    JobCopy *copy = arg;
    copy_engine_set_speed(copy->engine, job_speed(copy->control)); // and wakes it
}

uint32_t job_copy_granularity_bits(uint64_t size_bytes, const Node *target, uint32_t least_bits)
{
    enum { MAX_GRANULES_BITS = 26 };
    uint64_t bytes = MAX(size_bytes >> MAX_GRANULES_BITS, target->preferred_bytes);
    uint32_t bits = least_bits;
    while (UINT64_C(1) << bits < bytes)
        bits++;
    return bits;
}

void job_copy_choose_sizes(CopyEngineConfig *config, Node *target)
{
    enum { LEAST_BITS = 16 };
    const File *file = node_file(target);
    bool is_in_memory = file && file_is_in_memory(file);
    config->granularity_bits = job_copy_granularity_bits(config->size_bytes, target,
                                                         MAX(config->granularity_bits, LEAST_BITS));
    config->chunk_bytes = MAX(is_in_memory ? COPY_MEMORY_CHUNK_BYTES : COPY_CHUNK_BYTES,
                              UINT32_C(1) << config->granularity_bits);
    config->window_bytes = MAX(config->window_bytes ?: COPY_WINDOW_BYTES, config->chunk_bytes);
}

void job_copy_begin(JobCopy *copy, Loop *loop, const CopyEngineConfig *config)
{
    copy->engine = copy_engine_new(loop, config);
    copy->size_bytes = config->size_bytes;
    job_set_asked(copy->control, job_copy_asked, copy);
    job_copy_asked(copy);
}

void job_copy_end(JobCopy *copy)
{
    if (!copy->engine)
        return;
    job_set_asked(copy->control, NULL, NULL);
    copy_engine_free(g_steal_pointer(&copy->engine));
}

int job_copy_run(Fiber *self, JobCopy *copy)
{
    return copy_engine_run(self, copy->engine);
}

// It begins with QEMU's words, which are no more than that.
void job_copy_explain(const JobCopy *copy, int result, GError **error)
{
    if (!copy->failure || result != copy->failure || !copy->source || !copy->target)
        return;
    const char *name = copy->failed_reading ? copy->source->name : copy->target->name;
    if (result == COPY_VERIFY_DIFFERS) {
        g_set_error(error, JOB_ERROR, -result,
                    "what is read back from offset %" PRIu64
                    " of %s on is not what was written there: its storage loses or changes data",
                    copy->failed_off, name);
        return;
    }
    g_set_error(
        error, JOB_ERROR, -result, "%s: cannot %s at offset %" PRIu64 " of %s%s",
        g_strerror(-result), copy->failed_reading ? "read" : "write", copy->failed_off, name,
        copy->failed_reading && chain_backing(copy->source) ? ", or of a layer below it" : "");
}

static void note_failure(JobCopy *copy, const CopyChunk *chunk, int error)
{
    if (copy->failure)
        return;
    copy->failure = error;
    copy->failed_reading = chunk->failed_reading;
    copy->failed_off = chunk->off;
}

CopyErrorAction job_copy_failed(void *arg, const CopyChunk *chunk, int error)
{
    JobCopy *copy = arg;
    bool is_read = chunk->failed_reading;
    JobOnError policy = is_read ? copy->on_read_error : copy->on_write_error;
    switch (job_error_action(copy->control, policy, error, is_read)) {
    case JOB_ERROR_IGNORE:
        if (copy->retries_ignored)
            return COPY_ERROR_RETRY;
        note_failure(copy, chunk, error);
        return COPY_ERROR_SKIP;
    case JOB_ERROR_STOP:
        return COPY_ERROR_RETRY;
    case JOB_ERROR_REPORT:
        break;
    }
    note_failure(copy, chunk, error);
    return COPY_ERROR_FAIL;
}

bool job_copy_wants_pause(void *arg)
{
    return job_is_asked(((JobCopy *)arg)->control);
}

int job_copy_pause_point(Fiber *self, void *arg)
{
    return job_pause_point(self, ((JobCopy *)arg)->control);
}

// How far it has come, of *ret_total. What was copied twice, since a guest wrote it meanwhile,
// counts twice: in the total, too. So does what had to be moved elsewhere.
static uint64_t done_of(const JobCopy *copy, const CopyEngineStats *stats, uint64_t *ret_total)
{
    uint64_t beside = stats->beside_copied + stats->beside_shared;
    uint64_t done =
        copy->counts_all ? stats->found_off - MIN(stats->left, stats->found_off) : stats->done;
    *ret_total = beside + (copy->counts_all ? copy->size_bytes : stats->done + stats->left);
    return beside + done;
}

static void count(JobControl *control, JobBytes how, uint64_t *told, uint64_t now)
{
    if (now <= *told)
        return;
    job_count(control, how, now - *told);
    *told = now;
}

// The flush at the end would else be most of the job where the disk is slower than the copying, and
// the disk idle until then. In large parts, so that the file system finds room for them in one
// piece.
static void write_out(JobCopy *copy, uint64_t copied)
{
    enum { PART_BYTES = 16 << 20 };
    if (copied - copy->written_out < PART_BYTES || !copy->target)
        return;
    copy->written_out = copied;
    File *file = node_file(copy->target);
    if (file)
        file_write_out(file);
}

void job_copy_progress(void *arg)
{
    JobCopy *copy = arg;
    CopyEngineStats stats;
    uint64_t total;
    copy_engine_stats(copy->engine, &stats);
    uint64_t done = done_of(copy, &stats, &total);
    uint64_t copied = stats.copied + stats.beside_copied;
    uint64_t shared = stats.shared + stats.beside_shared, moved = copied + shared;
    write_out(copy, copied);
    job_set_total(copy->control, total);
    count(copy->control, JOB_BYTES_COPIED, &copy->copied, copied);
    count(copy->control, JOB_BYTES_SHARED, &copy->shared, shared);
    count(copy->control, JOB_BYTES_SKIPPED, &copy->skipped, done - MIN(moved, done));
}
