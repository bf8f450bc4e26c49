// SPDX-License-Identifier: LGPL-2.1-or-later
// The nodes of block jobs: which ones a command means, and their mode. Control loop, with the graph
// lock held.
#pragma once

#include "nodes.h"

// The node that the command calls its device, or target. Active.
NamedNode *job_nodes_find_device(const Nodes *nodes, const char *name, GError **error);
// Has it no node over it?
int job_nodes_check_root(const NamedNode *named, GError **error);
// Can a filter have that name? NULL: it is to have none.
int job_nodes_check_filter_name(const Nodes *nodes, const char *name, GError **error);
// The layer below `top` whose file `name` is: as it was opened, or relative to the folder of the
// layer over it. NULL with QEMU's words.
NamedNode *job_nodes_find_file(NamedNode *top, const char *name, GError **error);
// Is `wanted` a node below `top`, or that itself?
bool job_nodes_is_below(const NamedNode *top, const NamedNode *wanted);

// How the header of `image` is to name `base`, which lies below `over`: its file, or as whoever lay
// over it called it. Owned; NULL: it has no name.
char *job_nodes_header_name(const NamedNode *image, NamedNode *over, NamedNode *base);

// Runs fn(fiber, arg, error) on the loop of `named`, and waits: what it returned. -ENOMEM: there
// was no stack for it.
typedef int JobNodesCallFn(Fiber *self, void *arg, GError **error);
int job_nodes_call(Fiber *self, const NamedNode *named, JobNodesCallFn *fn, void *arg,
                   GError **error);

// How the work of a job that takes users of nodes to others comes to its end. All get the job.
typedef struct JobSwitch {
    JobNodesCallFn *come_close; // on the nodes' loop, for as long as it takes
    JobNodesCallFn *switch_now; // there too, with the graph lock; 1: not yet, so close again
    void (*note)(Fiber *self, void *job); // with that lock, after 0: the table of nodes says it
} JobSwitch;
// Without the graph lock, which is taken and given up.
int job_nodes_switch(Fiber *self, Nodes *nodes, const NamedNode *named, const JobSwitch *how,
                     void *job, GError **error);

// Brings both to one loop, on which each is there once: they can be held and joined there.
int job_nodes_join(Fiber *self, Nodes *nodes, NamedNode *source, NamedNode *target, GError **error);

// Has the image internal snapshots? They show the layers below it, too, and would show something
// else when those change or leave: a sentence.
int job_nodes_check_snapshots(const NamedNode *image, GError **error);

// Makes a node that its job holds writable, while it is used; or read-only again, when all that was
// written is durable. The error is one sentence.
int job_nodes_set_writable(Fiber *self, NamedNode *named, bool is_writable, GError **error);
// One that is read-only is writable then, and is put into `changed`, an array of NamedNode.
int job_nodes_make_writable(Fiber *self, NamedNode *named, GPtrArray *changed, GError **error);
// All of them are read-only again. What fails is logged, as after `owner`.
void job_nodes_make_read_only(Fiber *self, const GPtrArray *changed, const char *owner);
