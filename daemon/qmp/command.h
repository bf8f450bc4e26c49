// SPDX-License-Identifier: LGPL-2.1-or-later
// What QMP can do, as constant tables: commands, actions of a transaction and events, grouped in
// families. A family of daemon/commands/ is one file with one QmpFamily; commands.c lists them.
// Everything here runs on the control loop.
#pragma once

#include "chain-core/fiber.h"
#include "error.h"
#include "peer.h"
#include "type.h"

typedef struct Daemon Daemon;
typedef struct QmpTable QmpTable;
typedef struct JobGroup JobGroup;
typedef struct JobPivot JobPivot;
typedef struct QmpAction QmpAction;

// An action of a transaction that is prepared.
typedef struct QmpStep {
    const QmpAction *action;
    void *state;
} QmpStep;

// On whose behalf a command runs: a monitor's, or an option's of the command line.
typedef struct QmpCall {
    Daemon *daemon;
    const QmpTable *table;
    bool is_negotiated;        // of the monitor: commands other than qmp_capabilities are allowed
    bool is_read_only;         // of the monitor: queries only
    const SocketProcess *peer; // of the monitor; NULL: an option's, or nobody knows
    JobGroup *group; // of the jobs that a transaction starts, when they end together; else NULL
    const struct JobFollower *follower; // of the jobs that actions prepare; NULL: they have none
    void *follower_arg;
    const JobPivot *pivot; // of the job that is prepared; NULL: it has none (jobs/job-pivot.h)
    const QmpStep *steps;  // of the transaction, those before the one that is prepared now
    size_t n_steps;
} QmpCall;

// Runs in its monitor's fiber and may suspend; commands of other monitors run meanwhile. `args` are
// of the command's type, {} when there are none. Sets `*ret_reply` (a new reference), or leaves it
// for a reply of {}. 0, or a negative errno with `error`.
typedef int QmpCommandFn(Fiber *self, QmpCall *call, const json_t *args, json_t **ret_reply,
                         GError **error);

typedef struct QmpCommand {
    const char *name;
    const QmpType *args;  // an object; NULL: takes none
    const QmpType *reply; // NULL: {}
    const char *doc;      // one or more sentences
    QmpCommandFn *fn;
    const char *feature; // of the schema, for clients that look for it; NULL: none
    // Changes nothing, and tells nothing that is secret: clients of sockets for queries only may
    // run it.
    bool is_query;
} QmpCommand;

typedef struct QmpEvent {
    const char *name;
    const QmpType *data; // an object; NULL: none
    const char *doc;
} QmpEvent;

// Actions of one transaction take effect together or not at all. First, what each would drain is
// drained by itself (daemon/drain-rehearsal.h). Then the graph lock (nodes_graph_lock())
// is held throughout, so they do not take it. For all in their order: prepare; then drain; then
// commit; then resume; then finish; then start; then clean. When one of prepare or drain fails:
// resume what was drained, abort in reverse order those that were prepared, clean. When one of
// finish fails: the same but for the resume. All functions but prepare may be NULL.
struct QmpAction {
    const char *name;
    const QmpType *data; // an object
    const char *doc;
    // Does everything that may fail, and sets `*ret_state`. What fails undoes itself: of it neither
    // abort nor clean is called.
    int (*prepare)(Fiber *self, QmpCall *call, const json_t *data, void **ret_state,
                   GError **error);
    // Holds back requests, for those who change the graph.
    int (*drain)(Fiber *self, void *state, GError **error);
    // Takes effect. Memory only.
    void (*commit)(Fiber *self, void *state);
    // As if nothing had been done; also after the commit, when guests have gone on since.
    void (*abort)(Fiber *self, void *state);
    // Lets requests go on. Before the commit only if the action is going to be aborted.
    void (*resume)(Fiber *self, void *state);
    // Frees `state`.
    void (*clean)(Fiber *self, void *state);
    // Work that is left, and may fail, while guests go on.
    int (*finish)(Fiber *self, void *state, GError **error);
    // The name of the node whose writers `drain` will hold back, borrowed; NULL: `data` names none.
    // Wherever there is a drain.
    const char *(*drains)(const json_t *data);
    // All has been done, and cannot be undone any more: what goes on by itself begins.
    void (*start)(Fiber *self, void *state);
    bool is_job; // it starts a job, which can end together with others: QmpCall.group
};

// Tables end with an entry without a name; NULL: there are none.
typedef struct QmpFamily QmpFamily;
struct QmpFamily {
    const char *title; // a heading of docs/qmp.md
    // What stands under it there before the commands, in Markdown, owned; NULL: nothing.
    char *(*text)(void);
    const QmpCommand *commands;
    const QmpAction *actions;
    const QmpEvent *events;
    // Fills in types that are not constant, such as a union of what another table lists; NULL:
    // there are none. Once, before any other use.
    void (*init)(void);
    // Likewise, from the tables of all families, after all init.
    void (*link)(const QmpFamily *const *families);
};
