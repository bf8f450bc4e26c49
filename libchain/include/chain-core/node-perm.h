// SPDX-License-Identifier: LGPL-2.1-or-later
// What users of a node do with it, and what they let others do meanwhile: the words and the meaning
// are QEMU's. A user asks for all it will need before it begins; whoever keeps the list of users
// refuses when one of them does not allow it. Pure; any thread.
#pragma once

#include <glib.h>
#include <stdbool.h>

typedef enum NodePerm {
    NODE_PERM_CONSISTENT_READ = 1 << 0, // what is read is one state of the disk, not half of two
    NODE_PERM_WRITE = 1 << 1,
    NODE_PERM_WRITE_UNCHANGED = 1 << 2, // what it shows already: to fill it from below
    NODE_PERM_RESIZE = 1 << 3,
    NODE_PERM_PLACE = 1 << 4,   // another node in its place, or over it
    NODE_PERM_BACKING = 1 << 5, // another node below it, or none
    NODE_PERM_COVER = 1 << 6, // a filter over it that shows the same, and nothing else in its place
    NODE_PERM_ALL = (1 << 7) - 1,
    NODE_PERMS_OF_CONTENT = NODE_PERM_PLACE - 1, // those that QEMU has, too
} NodePerm;

typedef struct NodePerms {
    unsigned held;   // of NodePerm
    unsigned shared; // that others may hold beside it
} NodePerms;

typedef enum NodeUser {
    NODE_USER_OUTSIDE,  // an export: sees what others write as it comes
    NODE_USER_BACKING,  // an overlay, of what lies below it
    NODE_USER_FORMAT,   // an image, of the file that it lies in
    NODE_USER_FILTER,   // what goes through it
    NODE_USER_SNAPSHOT, // a view of an internal snapshot, of the image's head: it is there
    NODE_USER_TARGET,   // a filter, of what it copies to
    NODE_USER_VIEW,     // what shows what the node showed once
} NodeUser;
// `writes`: the user changes what the node shows.
NodePerms node_perms_of(NodeUser user, bool writes);

// Of both together.
static inline void node_perms_add(NodePerms *perms, NodePerms other)
{
    perms->held |= other.held;
    perms->shared &= other.shared;
}

// What `holder` holds and `sharer` does not allow; 0: they get along, in this direction.
static inline unsigned node_perms_conflict(NodePerms holder, NodePerms sharer)
{
    return holder.held & ~sharer.shared;
}

// "write, resize", owned; "none".
char *node_perms_text(unsigned perms);
// Of one bit, as it stands in QMP: "consistent-read". NULL: no such bit.
const char *node_perm_name(unsigned bit);
