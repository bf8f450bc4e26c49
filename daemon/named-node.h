// SPDX-License-Identifier: LGPL-2.1-or-later
// A node of the graph that has a name, as control sees it: what it was made of, its children, and
// who uses it. What is read of the node itself was copied here when it last changed. Control loop;
// nodes.c decides what changes.
#pragma once

#include <glib.h>

#include "chain-core/node-config.h"
#include "chain-core/node-perm.h"
#include "node-origin.h"

typedef struct NamedNode NamedNode;
typedef struct WriteThreshold WriteThreshold;

// That a node is used: as a child of another node, or by something outside of the graph, such as an
// export. It lives as long as its user wants it.
typedef struct NodeUse {
    NamedNode *used;
    NamedNode *by;    // the parent; NULL: `user` is it
    const char *role; // as which child; "root": for others than nodes
    bool writes;      // changes what it shows, and so allows no one who relies on that
    bool is_fixed;    // keeps it on its loop
    // An overlay, of a node that was written already when it was made: nobody relies on what it
    // shows there before somebody reads the overlay.
    bool is_scratch;
    // An overlay, of a node whose moment a backup shows through it (jobs/backup.h): it needs
    // nothing of what the node shows now, and is no layer over it any more.
    bool is_moment;
    bool allows_inactive;   // may begin, and go on, while the node is inactive
    const Loop *opened_on;  // where what is to use it is being opened; NULL: nothing is
    char *user;             // for messages: "block export 'a'", "node 'top'"
    const NodePerms *perms; // a hold's; NULL: what the role and `writes` say
} NodeUse;

// Of a remembered disk, which holds its layers in their places, and nothing else.
#define NODE_USE_ROLE_DISK "disk"

NodePerms node_use_perms(const NodeUse *use);

// What is known of a node without asking its loop. nodes_refresh() copies it again.
typedef struct NodeFacts {
    uint64_t size_bytes;
    bool read_only;
    json_t *info;       // Driver.info's; owned, or NULL
    GPtrArray *bitmaps; // DirtyBitmap, a reference each, oldest first; NULL: none
} NodeFacts;

struct NamedNode {
    char *name;
    bool is_made_up;        // the name
    bool is_added;          // by itself, and goes when it is deleted; else with its last user
    bool is_said_read_only; // whatever became of it
    bool is_inactive;       // other programs may write what it lies in (node-active.h)
    bool is_writable_then;  // when it is active
    NodeOrigin *origin;     // a reference
    const Driver *driver;
    const NodeConfig *config; // of the origin; NULL: only an image's header speaks of it
    Node *node;               // the table's reference; used on node->loop, which is read anywhere
    NodeFacts facts;
    WriteThreshold *threshold; // a reference (write-threshold.h), or NULL
    GPtrArray *children;       // NodeUse, owned
    GPtrArray *users;          // NodeUse, borrowed
    GPtrArray *instances;      // NodeInstance, on other loops (node-instances.h); NULL: none
};

static inline Loop *named_node_loop(const NamedNode *named)
{
    return named->node->loop;
}

// As what a node that `config` describes uses the one that is named as its `child`. "snapshot": one
// of the internal snapshots of that image, which the image's other users cannot change.
const char *named_node_role(const NamedNode *used, const NodeConfig *config,
                            const NodeConfigChild *child);
// Is it read-only whatever it lies in is? QEMU's word on whether a node is.
bool named_node_says_read_only(const NamedNode *named);
// What a node of such a driver, made of these options, does with its child, whose users do `above`
// with the node. Where driver_passes_on().
NodePerms named_node_perms_through(const Driver *driver, const json_t *values, NodePerms above);
// Adds what such a driver needs by itself of the child, as soon as the node is used.
void named_node_perms_add_kept(const Driver *driver, NodePerms *perms);
// Of who is inactive: it changes nothing, and expects others to.
void named_node_perms_make_inactive(NodePerms *perms);
// The use of the child of that role, and the child; NULL: it has none.
NodeUse *named_node_edge(const NamedNode *named, const char *role);
NamedNode *named_node_child(const NamedNode *named, const char *role);
// What it filters, or its backing child; NULL: it has neither.
NamedNode *named_node_below(const NamedNode *named);
// What it filters, or lies in; NULL: there is no such node. Not the layer below.
NamedNode *named_node_lower(const NamedNode *named);
// It, or under filters what they filter. NULL: there is nothing.
NamedNode *named_node_image(NamedNode *named);
// How the header of an image at `overlay` names it: a relative name counts from the header's
// folder. Owned; NULL: no file lies below.
char *named_node_header_name(const NamedNode *named, const char *overlay);
// The path of the file that it is or lies in; "" where there is none. Borrowed.
const char *named_node_file_name(const NamedNode *named);
// Does something outside of the graph write it, by itself or through filters?
bool named_node_is_written(const NamedNode *named);
// Begins a use of `used` as `as` says, whose `user` is taken, and `perms` copied; in both it is
// noted. Owned by its user.
NodeUse *named_node_use(NamedNode *used, const NodeUse *as);
// The same of a child, for its parent, which owns it.
void named_node_add_child(NamedNode *parent, NamedNode *child, const char *role);
// Ends it, and says whether it was the last one. The parent has let go of it.
bool named_node_end_use(NodeUse *use);
// Its facts say another mode now: it writes its children, or no more.
void named_node_mode_changed(NamedNode *named);
// Can whoever has `perms` write the node, and what it lies in? QEMU's words where it is read-only.
int named_node_check_mode(const NamedNode *named, NodePerms perms, GError **error);
// May `use` begin, or a child's use become this? QEMU's words when another use does not allow it.
int named_node_check_use(const NamedNode *named, const NodeUse *use, GError **error);
// The same for one of several nodes that are used together, a GPtrArray of NamedNode: what they
// need of each other is in no way.
int named_node_check_use_in(const NamedNode *named, const NodeUse *use, const GPtrArray *range,
                            GError **error);
// Is it active? A sentence. For what reads or changes more than exports and parents do.
int named_node_check_active(const NamedNode *named, GError **error);
// May something be done that needs these permissions, and is over before anything else begins?
// `what`: "a snapshot". A use that does not share them says so.
int named_node_check_change(const NamedNode *named, unsigned perms, const char *what,
                            GError **error);
// The same for a job that needs and allows `perms` until its end.
int named_node_check_job(const NamedNode *named, NodePerms perms, GError **error);
// May `child` become that child of `named`, which does not lie in or below it?
int named_node_check_no_cycle(const NamedNode *named, const NamedNode *child, const char *role,
                              GError **error);
// Does no other node use it, but views of its internal snapshots? QEMU's words.
int named_node_check_root(const NamedNode *named, GError **error);
// Does no image lie in it, raw ones too? They write it as their file, which is in nobody's way but
// of work at the node itself. A sentence: take that, "a backup", of the image.
int named_node_check_no_image(const NamedNode *named, const char *what, GError **error);
// Does no overlay stand on it? QEMU's words, which name the one that came last.
int named_node_check_no_overlay(const NamedNode *named, GError **error);
// The same of it and of the filters over it.
int named_node_check_no_overlay_above(const NamedNode *named, GError **error);
// "20 GiB qcow2, 4 layers, head, read-only"; owned.
char *named_node_summary(const NamedNode *named);
// Who uses it, for messages: "node 'top' (as 'backing'), block export 'a'"; owned.
char *named_node_users_text(const NamedNode *named);
