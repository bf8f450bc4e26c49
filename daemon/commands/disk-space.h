// SPDX-License-Identifier: LGPL-2.1-or-later
// Is there room for what a command of disks is about to write? Asked before its job begins, of
// metadata. What nobody can tell is no reason to refuse: how much room a device or another machine
// has, and what takes less than it shows. Control loop, unless said.
#pragma once

#include "daemon/named-node.h"
#include "daemon/qmp/command.h"
#include "daemon/state/catalogue.h"

// A member of the arguments of such commands.
extern const char disk_space_doc[];
#define DISK_SPACE_MEMBER                                                                          \
    {                                                                                              \
        "check-space", &qmp_bool, true, disk_space_doc                                             \
    }
bool disk_space_is_checked(const json_t *args);
// What the job does once there is no room, as the member `name` of its arguments: it fails, or is
// paused where nobody wanted that to be asked before.
void disk_space_set_on_error(json_t *of_job, const char *name, const json_t *args);

// What the host has for the node's file; UINT64_MAX: nobody can tell, or what is copied may need
// none. On the node's loop.
uint64_t disk_space_free(Fiber *self, Node *node);

// -ENOSPC with both figures where `target`, new and empty, cannot hold what `head` shows, of which
// `most` bytes are to be copied. Zeros that are only known to be such once they are read count;
// clusters that are compressed do not.
int disk_space_check_copy(Fiber *self, NamedNode *head, NamedNode *target, uint64_t most,
                          GError **error);
// The same where the head of `disk`, which is open, cannot hold what it needs of the layers above
// `base` (NULL: of all).
int disk_space_check_fill(Fiber *self, Daemon *daemon, const Disk *disk, const DiskLayer *base,
                          GError **error);
