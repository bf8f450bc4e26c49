// SPDX-License-Identifier: LGPL-2.1-or-later
// Volatile and durable names of the simulated disk. A rename is one change: it happens or does not,
// for both names. No loop, no time; one thread.
#include "sim/sim-disk.h"

#include <errno.h>
#include <string.h>

typedef struct SimNameChange {
    char *removed, *added; // paths or NULL
    SimInode *inode;       // of `added`
    uint64_t seq;
} SimNameChange;

static void name_change_free(void *data)
{
    SimNameChange *change = data;
    g_free(change->removed);
    g_free(change->added);
    sim_inode_unref(change->inode);
    g_free(change);
}

static void inode_unref(void *inode)
{
    sim_inode_unref(inode);
}

static void set_name(GHashTable *names, const char *path, SimInode *inode)
{
    g_hash_table_insert(names, g_strdup(path), sim_inode_ref(inode));
}

static void apply(const SimNameChange *change, GHashTable *names)
{
    if (change->removed)
        g_hash_table_remove(names, change->removed);
    if (change->added)
        set_name(names, change->added, change->inode);
}

static void happen(SimDisk *disk, const char *removed, const char *added, SimInode *inode)
{
    SimNameChange *change = g_new(SimNameChange, 1);
    *change = (SimNameChange){g_strdup(removed), g_strdup(added),
                              inode ? sim_inode_ref(inode) : NULL, ++disk->last_seq};
    apply(change, disk->now);
    g_ptr_array_add(disk->unsynced, change);
}

void sim_disk_init(SimDisk *disk)
{
    *disk = (SimDisk){
        .now = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, inode_unref),
        .durable = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, inode_unref),
        .unsynced = g_ptr_array_new_with_free_func(name_change_free),
    };
}

void sim_disk_done(SimDisk *disk)
{
    g_ptr_array_unref(disk->unsynced);
    g_hash_table_unref(disk->now);
    g_hash_table_unref(disk->durable);
}

SimInode *sim_disk_find(const SimDisk *disk, const char *path)
{
    return g_hash_table_lookup(disk->now, path);
}

int sim_disk_create(SimDisk *disk, const char *path, SimInode **ret_inode)
{
    if (sim_disk_find(disk, path))
        return -EEXIST;
    SimInode *inode = sim_inode_new(++disk->last_ino);
    happen(disk, NULL, path, inode);
    sim_inode_unref(inode);
    *ret_inode = inode;
    return 0;
}

int sim_disk_rename(SimDisk *disk, const char *from, const char *to)
{
    SimInode *inode = sim_disk_find(disk, from);
    if (!inode)
        return -ENOENT;
    if (strcmp(from, to) != 0)
        happen(disk, from, to, inode);
    return 0;
}

int sim_disk_unlink(SimDisk *disk, const char *path)
{
    if (!sim_disk_find(disk, path))
        return -ENOENT;
    happen(disk, path, NULL, NULL);
    return 0;
}

static bool is_in_dir(const SimNameChange *change, const char *dir)
{
    g_autofree char *own = g_path_get_dirname(change->added ? change->added : change->removed);
    return strcmp(own, dir) == 0;
}

void sim_disk_sync_dir(SimDisk *disk, const char *path, uint64_t seq)
{
    g_autofree char *dir = g_path_get_dirname(path);
    for (guint i = 0; i < disk->unsynced->len;) {
        SimNameChange *change = disk->unsynced->pdata[i];
        if (change->seq > seq || !is_in_dir(change, dir)) {
            i++;
            continue;
        }
        apply(change, disk->durable);
        g_ptr_array_remove_index(disk->unsynced, i);
    }
}

uint64_t sim_disk_hash(const SimDisk *disk)
{
    uint64_t sum = sim_mix(disk->last_seq, disk->unsynced->len);
    GHashTableIter iter;
    void *path, *inode;
    g_hash_table_iter_init(&iter, disk->now);
    while (g_hash_table_iter_next(&iter, &path, &inode))
        sum += sim_mix(g_str_hash(path), sim_inode_hash(inode));
    return sum;
}

SimInode *sim_disk_provide(SimDisk *disk, const char *path)
{
    SimInode *inode = sim_disk_find(disk, path);
    if (!inode)
        sim_disk_create(disk, path, &inode);
    sim_disk_sync_dir(disk, path, disk->last_seq);
    return inode;
}

// The names that the cut leaves; the inodes are still those of `disk`.
static GHashTable *names_after_power_cut(const SimDisk *disk, SimPowerCut *cut)
{
    GHashTable *names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, inode_unref);
    GHashTableIter iter;
    void *path, *inode;
    g_hash_table_iter_init(&iter, disk->durable);
    while (g_hash_table_iter_next(&iter, &path, &inode))
        set_name(names, path, inode);
    guint n = disk->unsynced->len;
    if (cut->mode == SIM_CUT_PREFIX)
        n = sim_random_below(&cut->random, n + 1);
    for (guint i = 0; i < n && cut->mode != SIM_CUT_NONE; i++)
        if (cut->mode != SIM_CUT_SUBSET || sim_random_chance(&cut->random, cut->keep_percent))
            apply(disk->unsynced->pdata[i], names);
    return names;
}

static SimInode *inode_survivor(const SimInode *inode, SimPowerCut *cut)
{
    SimInode *survivor = sim_inode_new(inode->ino);
    survivor->direct_alignment = inode->direct_alignment;
    survivor->is_device = inode->is_device;
    survivor->now = sim_inode_after_power_cut(inode, cut);
    survivor->durable = sim_content_copy(&survivor->now);
    return survivor;
}

void sim_disk_after_power_cut(const SimDisk *disk, uint64_t seed, SimDisk *ret_disk)
{
    SimPowerCut cut = sim_power_cut_make(seed);
    GHashTable *names = names_after_power_cut(disk, &cut);
    GHashTable *survivors = g_hash_table_new_full(NULL, NULL, NULL, inode_unref);
    GHashTableIter iter;
    void *path, *inode;
    sim_disk_init(ret_disk);
    ret_disk->last_ino = disk->last_ino;
    g_hash_table_iter_init(&iter, names);
    while (g_hash_table_iter_next(&iter, &path, &inode)) {
        SimInode *survivor = g_hash_table_lookup(survivors, inode);
        if (!survivor) {
            survivor = inode_survivor(inode, &cut);
            g_hash_table_insert(survivors, inode, survivor);
        }
        set_name(ret_disk->now, path, survivor);
        set_name(ret_disk->durable, path, survivor);
    }
    g_hash_table_unref(survivors);
    g_hash_table_unref(names);
}
