// SPDX-License-Identifier: LGPL-2.1-or-later
// Drivers: one for each kind of node that can be made by name. There are three kinds:
//
//     formats    (qcow2, raw) turn a locked file into a node in two steps, so that a chain is known
//                to its end before anything of it is written:
//                open   reads the header only: which image lies below, where the data are. Writes
//                       nothing.
//                load   reads the tables, and makes the node. Images that are read only can be
//                       loaded side by side; one that is written is loaded last, and may be
//                       repaired then.
//     files      (file, host_device) are what formats lie in. The chain opens and locks them.
//     the rest   (filters, what has no file of the host) are made in one step from their options.
//
// To add one: a file with its Driver, a line in chain/drivers.c. A filter that only a job puts in
// needs NodeOps and nothing else (node.h). Everything runs on the file's loop, in a fiber, unless
// said otherwise.
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chain-core/driver-option.h"
#include "chain-core/file.h"
#include "chain-core/map-memory.h"
#include "chain-core/node.h"
#include "chain-core/throttle-group.h"

typedef struct Driver Driver;
typedef struct TlsCredsTable TlsCredsTable; // tls-creds.h
typedef struct DriverImage DriverImage;

// Tells the owner of a node what happens to it at run time, in one sentence; on the node's loop,
// must not suspend. One object may serve many nodes. Each function may be NULL.
typedef struct NodeEvents NodeEvents;
struct NodeEvents {
    // Found corrupt: writes to it answer -EIO from now on.
    void (*corrupt)(const NodeEvents *events, const char *sentence);
    // Worth a line in the log, no failure: opening repaired it, bitmaps were dropped.
    void (*notice)(const NodeEvents *events, const char *sentence);
};

typedef struct DriverOptions {
    const char *name; // of the node, for messages
    bool is_writable;
    bool is_shared;       // another program may write the file meanwhile: remember nothing of it
    bool is_inactive;     // the same, until it becomes active; not with is_shared
    const char *snapshot; // internal snapshot by id or name; NULL: the head
    const json_t *values; // those of Driver.options that were given; NULL: none
    MapMemory *memory;    // borrowed, outlives the node
    ThrottleGroups *throttle_groups; // borrowed for the call; NULL: there are none
    TlsCredsTable *tls_creds;        // likewise
    const NodeEvents *events;        // borrowed, outlives the node; NULL: nobody is told
    Node *target; // the child of that role, beside the one that is filtered; borrowed; NULL: none
    // Finds another node on this loop by its name; borrowed, NULL: there is none. May be NULL.
    Node *(*find_node)(void *arg, const char *name);
    void *find_arg;
} DriverOptions;

// The head (first member) of a driver's own struct: an image that was opened and not yet loaded.
// Strings are borrowed from it; NULL: none.
struct DriverImage {
    const Driver *driver;
    File *file;
    const char *backing_name;   // as recorded: relative to the image's folder, or json:
    const char *backing_format; // as recorded
    const char *data_name;      // of an external data file, as recorded
};

// What a node that is in use is to become: blockdev-reopen.
typedef struct DriverReopen {
    const json_t *values;            // those of Driver.options that are given; NULL: none
    Node *was_below, *below;         // its child now, and from then on; borrowed
    File *file;                      // formats: that as a file; borrowed
    ThrottleGroups *throttle_groups; // borrowed for the call; NULL: there are none
} DriverReopen;

// That, prepared; the head (first member) of a driver's own struct.
typedef struct DriverChange DriverChange;
struct DriverChange {
    // The node's then, as far as is known: what grows has grown until it is committed.
    uint64_t size_bytes;
    // Memory only. Its component stands still (component.h). Edges are the caller's to change.
    void (*commit)(DriverChange *change);
    // Frees it, committed or not, when everything goes on.
    void (*drop)(Fiber *self, DriverChange *change);
};

struct Driver {
    const char *name;            // QEMU's
    const DriverOption *options; // its own, children among them, besides driver_common_options
    bool is_file;                // its "filename" is the file
    bool reads_write;            // NodeOps.reads_write of its nodes
    bool is_view;                // NodeOps.is_view of its nodes
    bool keeps_below;   // while its nodes are used nobody else writes or resizes what they filter
    bool is_remote;     // made with the help of another machine, which may be long
    bool stays_as_made; // blockdev-reopen refuses it, like QEMU
    // Neither files nor formats: makes the node. `child` is the one that the options name or
    // describe (borrowed; NULL: there is no such option); `options` is borrowed for the call.
    int (*make)(Fiber *self, const DriverOptions *options, Node *child, Node **ret_node,
                GError **error);
    // Prepares that an open node takes other values of the options that may change, or another
    // child. Changes nothing. NULL: none can.
    int (*reopen)(Fiber *self, Node *node, const DriverReopen *wanted, DriverChange **ret_change,
                  GError **error);
    // What query-named-block-nodes tells of an image beside what all nodes have, in QEMU's words:
    // "cluster-size", "format-specific", … A new object; does not suspend. May be NULL.
    json_t *(*info)(Node *node);
    // QEMU's name for what a node of these options shows, over a child of the name `below` (NULL:
    // it has none, or there is no child); owned. NULL: no name says all of it. Pure. May be NULL.
    char *(*exact_name)(const json_t *values, const char *below);
    // What follows is for formats.
    // Does a file that begins with these `len` bytes say that it is of this format? Pure, any
    // thread. NULL: no file does, it must be said.
    bool (*probe)(const uint8_t *head, size_t len);
    bool has_snapshots; // images may hold internal snapshots
    // A view of an internal snapshot beside `image`, a node of this driver that is open, perhaps
    // for writing; it has the same below. Where has_snapshots.
    int (*open_beside)(Fiber *self, Node *image, const char *snapshot, Node **ret_node,
                       GError **error);
    // Takes `file`, locked, also on failure; `options` is borrowed until load() or drop().
    int (*open)(Fiber *self, File *file, const DriverOptions *options, DriverImage **ret_image,
                GError **error);
    // Takes `image`, also on failure, and `data`, the file that data_name names (NULL without).
    int (*load)(Fiber *self, DriverImage *image, File *data, Node **ret_node, GError **error);
    // Closes an image that will not be loaded. Writes nothing.
    void (*drop)(Fiber *self, DriverImage *image);
};

// What every node may be given (read-only, cache, …).
extern const DriverOption driver_common_options[];
// An option of `driver`, own or common; NULL: it has none of that name. `driver` NULL: a format
// that is not known yet, which has a file and perhaps a backing file.
const DriverOption *driver_find_option(const Driver *driver, const char *name);

// Does what users want of such a node go on to its child as it is? Filters, and formats without
// metadata; not to a filter's "target".
bool driver_passes_on(const Driver *driver);

// The driver of that name, or of a file that begins so; NULL: there is none. Pure; any thread.
const Driver *driver_find(const char *name);
enum { DRIVER_PROBE_BYTES = 512 };
const Driver *driver_probe(const uint8_t *head, size_t len);
// All of them: drivers_get(0), …, NULL at the end.
const Driver *drivers_get(unsigned i);
// One more, of who makes nodes outside of libchain. At the begin of the program, before any thread.
void drivers_add(const Driver *driver);
// The formats, for messages: "qcow2 and raw"; owned.
char *drivers_names(void);
