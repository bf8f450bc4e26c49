// SPDX-License-Identifier: LGPL-2.1-or-later
// The names of the simulated disk: which inode each path leads to now, which it leads to after a
// power cut, and the changes between the two, which a sync of their directory makes durable.
// Directories are not objects: the directory of a path is what stands before its last slash, and
// always exists. No loop, no time; one thread.
#pragma once

#include "sim/sim-inode.h"

typedef struct SimDisk {
    GHashTable *now, *durable;   // path → SimInode, a reference each
    GPtrArray *unsynced;         // SimNameChange in the order in which they happened
    uint64_t last_seq, last_ino; // of name changes; of inodes
} SimDisk;

void sim_disk_init(SimDisk *disk);
void sim_disk_done(SimDisk *disk);

SimInode *sim_disk_find(const SimDisk *disk, const char *path); // borrowed; NULL if absent
// Each: 0 or -errno. Volatile until the directory is synced.
int sim_disk_create(SimDisk *disk, const char *path, SimInode **ret_inode); // -EEXIST; borrowed
int sim_disk_rename(SimDisk *disk, const char *from, const char *to);       // replaces `to`
int sim_disk_unlink(SimDisk *disk, const char *path);
// Makes the changes in the directory of `path` durable that happened up to number `seq`.
void sim_disk_sync_dir(SimDisk *disk, const char *path, uint64_t seq);
// Of all names and contents.
uint64_t sim_disk_hash(const SimDisk *disk);
// The file of that name, made if absent, and its name durable at once.
SimInode *sim_disk_provide(SimDisk *disk, const char *path);

// Fills `ret_disk` (not initialised) with what a power cut leaves of `disk`, all of it durable.
void sim_disk_after_power_cut(const SimDisk *disk, uint64_t seed, SimDisk *ret_disk);
