// SPDX-License-Identifier: LGPL-2.1-or-later
// A verb that starts a job: it follows it to its end, or with --async says which one it is.
#pragma once

#include "ctl.h"

#define JOB_START_OPTIONS                                                                          \
    {"speed", 0, WORD_SIZE, "BYTES", "a second, at most"},                                         \
    {                                                                                              \
        "async", 0, WORD_NONE, NULL, "do not wait: print the job's id"                             \
    }
// Of those that ask whether there is room for what a remembered disk needs.
#define JOB_SPACE_OPTION                                                                           \
    {                                                                                              \
        "no-check-space", 0, WORD_NONE, NULL, "begin without room, and pause once it is full"      \
    }

typedef struct JobStart {
    const char *command; // of QMP
    json_t *args;        // taken
    const char *id;      // of the job; NULL: the reply's member `job`, without which all is done
    const char *label;   // of the progress line: "web → delete mon"
    const char *disk;    // whose guest is to notice nothing
    bool completes;      // when it is ready, it is told to complete
    // What people are to know of the reply before the job goes on; NULL: nothing.
    void (*tell)(const json_t *reply);
} JobStart;

// As job_follow(). With --async, or with nothing left to do, it ends at once.
int job_start(Ctl *ctl, const JobStart *start, GError **error);

// "delete-7", which no job has; owned. NULL: `error`.
char *job_start_new_id(Ctl *ctl, const char *verb, GError **error);

// --speed, and --no-check-space, for a command of QMP.
void job_start_add_speed(const Ctl *ctl, json_t *args);
void job_start_add_space(const Ctl *ctl, json_t *args);
