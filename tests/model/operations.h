// SPDX-License-Identifier: LGPL-2.1-or-later
// What the model does with its chain, several at a time, and what is expected of the disk then. An
// operation says to the shadow model what it is about to do and what became of it. Test code only.
#pragma once

#include "fixture.h"
#include "jobs/copy-mode.h"
#include "jobs/job-control.h"

typedef enum JobType {
    JOB_TYPE_NONE,
    JOB_TYPE_COMMIT,
    JOB_TYPE_STREAM,
    JOB_TYPE_MIRROR,
    JOB_TYPE_BACKUP,
} JobType;

// Where operations meet: whole clusters, and a part of them.
typedef struct Place {
    const char *name;
    unsigned n_layers;
    uint64_t off, len;
    uint64_t part_off, part_len; // half of a cluster, or two halves about a border
    JobType job; // one of which is among the operations there, and only those that can be beside it
} Place;
extern const Place places[];
extern const unsigned n_places;

enum { MAX_SNAPSHOTS = 3, MAX_CHANGES = 8 };

// A point in time of which a snapshot was taken.
typedef struct Kept {
    const ShadowModel *model; // NULL: none
    char name[16];            // internal ones
    unsigned layer;
    enum { KEPT_BEGUN, KEPT_MADE, KEPT_LEAVING, KEPT_GONE } state;
} Kept;

// A request that changed something on the layer that was the head at the beginning.
typedef struct Change {
    uint32_t version; // the first of it
    uint64_t off, len;
    uint64_t ended;  // moment; 0: not yet
    bool is_cut_off; // the disk has been too short for it since: a bitmap forgets that for good
} Change;

// Operations at work on one chain.
typedef struct Work {
    const World *world;
    const Place *place;
    Chain chain;
    ShadowModel *model; // owned
    bool may_fail;      // something was made to fail
    FiberMutex
        graph; // one change of the graph, the size or the bitmaps at a time, as in the daemon
    Kept old;  // the internal snapshot of the beginning
    Kept snapshots[MAX_SNAPSHOTS]; // internal ones
    unsigned n_snapshots;
    const ShadowModel
        *layers[MAX_LAYERS + 1];     // what layers that are no head any more show; or NULL
    DirtyBitmap *transient, *stored; // of the first head; `stored`: NULL when removed
    bool is_stored_leaving;          // its removal was asked for
    uint64_t transient_cleared, stored_cleared; // moments, 0: never
    Change changes[MAX_CHANGES];
    unsigned n_changes;
    JobControl *job;   // that holds the chain, as its daemon would have it; NULL: none
    bool is_job_ready; // its user has heard of it
    bool is_job_over;  // nobody cancels it any more
    FiberQueue job_news;
    FiberWaitGroup job_users;
    uint64_t asked_at;       // moment at which its user asked it to end
    Node *next_head;         // that a commit or a mirror takes guests to; NULL: none does
    unsigned next_top;       // its layer
    const ShadowModel *copy; // what the target shows for good; NULL: nothing yet
    ShadowModel *found;      // that, where it was found there; owned
    char problem[320];       // the first thing found wrong; empty: none
} Work;

typedef struct Operation Operation;
struct Operation {
    const char *name;
    void (*run)(Fiber *self, Work *work, const Operation *operation);
    // Requests, with what they do to the disk:
    RequestKind kind;
    NodeIoFlags flags;
    bool is_part;
    // Jobs, and what is combined with them:
    JobType job;
    CopyMode copy_mode;
    JobEnd end;         // what its user asks for when it is ready; NOT_YET: it completes itself
    bool keeps_top;     // of a commit
    bool switches_mode; // its user wants it to be write-blocking at some time
    bool hands_over_bitmap;
    bool is_beside_job;
};
extern const Operation operations[];
extern const unsigned n_operations;
const Operation *operation_find(const char *name); // NULL: none
// Does the model run these together at that place? `a`, `b`, `c`: in the order of `operations`.
bool operations_meet(const Place *place, const Operation *a, const Operation *b,
                     const Operation *c);

void run_commit(Fiber *self, Work *work, const Operation *operation);
void run_commit_of_middle(Fiber *self, Work *work, const Operation *operation);
void run_stream(Fiber *self, Work *work, const Operation *operation);
void run_mirror(Fiber *self, Work *work, const Operation *operation);
void run_backup(Fiber *self, Work *work, const Operation *operation);
void run_cancel(Fiber *self, Work *work, const Operation *operation);

bool is_on_first_head(const Work *work);

void work_init(Work *work, const World *world, const Place *place);
void work_done(Work *work);
// From a run's beginning to its end.
int work_begin(Fiber *self, Work *work, GError **error);
// Operations have ended: what can be said without another open, and some more requests.
void work_expect(Fiber *self, Work *work);
void work_end(Fiber *self, Work *work);

// What matters after a crash, and is not in the model.
uint64_t work_hash(const Work *work);
// In another simulation, of the files that `work` left, in the middle or at its end: are they what
// they may be? `is_closed`: it ended, and nothing was made to fail. Notes what is wrong in `work`.
void work_look(Fiber *self, Work *work, bool is_closed);

// The layer that guests are on: from a job's switch on, before whoever waits for the job hears of
// it.
unsigned work_top(const Work *work);

void work_fail(Work *work, const char *format, ...) G_GNUC_PRINTF(2, 3);
