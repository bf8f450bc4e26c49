// SPDX-License-Identifier: LGPL-2.1-or-later
// What the daemon remembers: disks, the layers that they consist of, their points in time, exports
// and checkpoints. It is in memory, as the database has it; queries ask nobody else. Layers form a
// tree: each stands on one below or none, and several disks may share what lies below.
// docs/disks.md has the rules. Control loop.
//
//     base ← layer-2 ← layer-3     head of disk 'web', whose point 'mon' is what layer-2 shows
//                    ← layer-4     head of a clone
#pragma once

#include <jansson.h>

#include "chain-core/fiber-sync.h"
#include "database.h"

typedef struct DiskLayer DiskLayer;
struct DiskLayer {
    int64_t id;
    char *file; // an absolute path, or the name of an image elsewhere
    char *format;
    DiskLayer *below; // NULL: nothing
    bool is_ours;     // we made it, or were given it: it may be changed below others, and removed
    bool is_merging;  // a commit into it has begun: what it shows by itself is no state of the disk
    unsigned n_users; // disks of which it is the head, points, layers above; none: nobody needs it
};

// What the layer shows; nothing above changes that.
typedef struct Point {
    char *name;
    DiskLayer *layer;
    int64_t created_s; // since 1970
} Point;

// Of the head, or of a point.
typedef struct DiskExport {
    char *id, *name;
    char *point;     // NULL: the head
    json_t *options; // "writable", "description", "throttle" (disk-limits.h)
} DiskExport;

// From when on changes are known: those of the bitmap of this name on the layer, and all that
// layers above it own.
typedef struct Checkpoint {
    char *name;
    DiskLayer *layer;
    char *target; // the last backup of it; NULL: none, or another file has its name
    int64_t created_s;
} Checkpoint;

typedef struct DiskPull DiskPull;
typedef struct Disk {
    char *name;
    DiskLayer *head;
    json_t *policy;         // "direct", "read-only", "description"
    GPtrArray *points;      // Point, oldest first
    GPtrArray *exports;     // DiskExport
    GPtrArray *checkpoints; // Checkpoint, oldest first
    // Not remembered.
    GPtrArray *holds; // NodeUse of each of its layers, head first; empty: it is not open
    char *problem;    // why it is not; NULL: it is
    char *job;        // that is at work on its layers; NULL: none
    bool is_opening;  // a server is waited for
    DiskPull *pull;   // somebody reads a moment of it (commands/disk-pull.c); NULL: nobody does
} Disk;

// What is about to be done to files, as it was noted before.
typedef struct Intent {
    int64_t id;
    char *kind;
    json_t *detail;
} Intent;

typedef struct Catalogue {
    Database *database;
    char *images_dir;
    GHashTable *layers; // DiskLayer, by id
    GPtrArray *disks;   // Disk, by name
    GPtrArray *intents; // Intent
    GQueue history;     // json_t, newest first
    int64_t last_layer, last_job, last_intent;
    // Of whoever changes disks, from before he looks until he is done; taken before the graph lock.
    FiberMutex lock;
    // Disks that need other machines, as they are opened (state/disks-opening.c).
    unsigned n_opening, n_untried;
    FiberQueue opening, retrying;
    bool is_ending;
    FiberQueue pulls_ended;
} Catalogue;

// An empty one, for catalogue_load(). Takes `database`.
Catalogue *catalogue_new(Database *database, const char *dir);
// Takes `database`. Blocks: before the loops run. NULL with a sentence; `database` is closed then.
Catalogue *catalogue_load(Database *database, const char *dir, GError **error);
// Accepts NULL.
void catalogue_free(Catalogue *catalogue);

// -- finding: NULL, with a sentence where there is an `error`, if there is none -------------------

Disk *catalogue_find_disk(const Catalogue *catalogue, const char *name);
Disk *catalogue_get_disk(const Catalogue *catalogue, const char *name, GError **error);
Point *disk_find_point(const Disk *disk, const char *name);
Point *disk_get_point(const Disk *disk, const char *name, GError **error);
DiskExport *catalogue_find_export(const Catalogue *catalogue, const char *id, Disk **ret_disk);
DiskLayer *catalogue_find_file(const Catalogue *catalogue, const char *file);
// Is `layer` the head, or below it?
bool disk_has_layer(const Disk *disk, const DiskLayer *layer);
// Is it, or below one of its points, which may lie beside its chain?
bool disk_needs_layer(const Disk *disk, const DiskLayer *layer);
// A disk of which it is the head.
Disk *catalogue_disk_of_head(const Catalogue *catalogue, const DiskLayer *layer);
// Those that stand on it; owned, of DiskLayer.
GPtrArray *catalogue_layers_above(const Catalogue *catalogue, const DiskLayer *layer);
// A name that a disk, or a point, may have? A sentence if not.
int catalogue_check_disk_name(const char *name, GError **error);
int catalogue_check_point_name(const char *name, GError **error);

// -- changes: in memory at once, and in `change` (NULL: in memory only) ---------------------------

DiskLayer *catalogue_add_layer(Catalogue *catalogue, DatabaseChange *change, const DiskLayer *as);
// Nobody uses it any more; checkpoints on it go with it.
void catalogue_remove_layer(Catalogue *catalogue, DatabaseChange *change, DiskLayer *layer);
DiskLayer *catalogue_layer(const Catalogue *catalogue, int64_t id); // NULL: there is none
// In memory only: it stays, even if nobody needs it, until it is let go. Once for each of the
// first.
void disk_layer_keep(DiskLayer *layer);
void disk_layer_let_go(DiskLayer *layer);
void disk_layer_set_below(DatabaseChange *change, DiskLayer *layer, DiskLayer *below);
void disk_layer_set_merging(DatabaseChange *change, DiskLayer *layer, bool is_merging);
// Takes `policy`.
Disk *catalogue_add_disk(Catalogue *catalogue, DatabaseChange *change, const char *name,
                         DiskLayer *head, json_t *policy);
// With its points, exports and checkpoints; layers stay.
void catalogue_remove_disk(Catalogue *catalogue, DatabaseChange *change, Disk *disk);
void disk_set_head(DatabaseChange *change, Disk *disk, DiskLayer *head);
Point *disk_add_point(DatabaseChange *change, Disk *disk, const char *name, DiskLayer *layer,
                      int64_t created_s);
void disk_remove_point(DatabaseChange *change, Disk *disk, Point *point);
void disk_move_point(DatabaseChange *change, const Disk *disk, Point *point, DiskLayer *layer);
// Copies what `as` has.
DiskExport *disk_add_export(DatabaseChange *change, Disk *disk, const DiskExport *as);
void disk_remove_export(DatabaseChange *change, Disk *disk, DiskExport *export);
// `value` (taken) NULL: the option goes. It is the same in memory and in `change` from then on.
void disk_export_set_option(DatabaseChange *change, DiskExport *export, const char *name,
                            json_t *value);
Checkpoint *disk_add_checkpoint(DatabaseChange *change, Disk *disk, const Checkpoint *as);
void disk_remove_checkpoint(DatabaseChange *change, Disk *disk, Checkpoint *checkpoint);

// Layers that nothing needs leave: each is put into `files` (an array, owned) where it is ours.
void catalogue_drop_unneeded(Catalogue *catalogue, DatabaseChange *change, json_t *files);

// The next number of its kind, never given again.
int64_t catalogue_next_layer(Catalogue *catalogue, DatabaseChange *change);
int64_t catalogue_next_job(Catalogue *catalogue, DatabaseChange *change);

// Durable before what it speaks of is begun: `detail` (taken). Its number, or negative with a
// sentence. Checkpoints whose backup had the name of what is to be made are without one then.
int64_t catalogue_intend(Fiber *self, Catalogue *catalogue, const char *kind, json_t *detail,
                         GError **error);
// As part of a change.
int64_t catalogue_add_intent(Catalogue *catalogue, DatabaseChange *change, const char *kind,
                             json_t *detail);
// `detail` is taken.
void catalogue_change_intent(DatabaseChange *change, int64_t id, const char *kind, json_t *detail);
void catalogue_end_intent(DatabaseChange *change, int64_t id);

// `entry` is of a job that is over. Those beyond the last ones go.
enum { CATALOGUE_MAX_HISTORY = 100 };
void catalogue_add_history(DatabaseChange *change, const json_t *entry);
