// SPDX-License-Identifier: LGPL-2.1-or-later
#include "verbs-points.h"

#include <stdio.h>

#include "ctl.h"
#include "job-start.h"
#include "paths.h"
#include "uris.h"

// -- snapshot -------------------------------------------------------------------------------------

static json_t *snapshots_of(const Ctl *ctl)
{
    json_t *snapshots = json_array();
    const char *directory = arguments_text(ctl->arguments, "directory");
    for (char **word = arguments_words(ctl->arguments); *word; word++) {
        g_auto(GStrv) parts = g_strsplit(*word, "@", 2);
        json_array_append_new(snapshots,
                              json_pack("{s:s, s:s, s:o*}", "disk", parts[0], "point", parts[1],
                                        "directory", directory ? paths_json(directory) : NULL));
    }
    return snapshots;
}

static int run_snapshot(Ctl *ctl, GError **error)
{
    json_auto_t *made =
        ctl_run(ctl, "disk-snapshot", json_pack("{s:o}", "snapshots", snapshots_of(ctl)), error);
    if (!made)
        return -1;
    if (ctl->output.format != OUTPUT_TABLE)
        output_json(&ctl->output, made);
    return CTL_OK;
}

// -- delete ---------------------------------------------------------------------------------------

static int print_plan(Ctl *ctl, json_t *args, GError **error)
{
    static const Column columns[] = {
        {"way", "WAY", CELL_NAME},           {"is-chosen", "CHOSEN", CELL_BOOL},
        {"copy", "COPIES", CELL_SIZE},       {"space", "NEEDS", CELL_SIZE},
        {"available", "HAS", CELL_SIZE},     {"freed", "FREES", CELL_SIZE},
        {"blocked", "CANNOT BE", CELL_TEXT}, {0},
    };
    json_auto_t *plan = ctl_run(ctl, "disk-plan", args, error);
    if (!plan)
        return -1;
    size_t i;
    json_t *way, *ways = json_object_get(plan, "ways");
    json_array_foreach(ways, i, way)
    {
        bool is_chosen = json_equal(json_object_get(way, "way"), json_object_get(plan, "way"));
        json_object_set_new(way, "is-chosen", json_boolean(is_chosen));
    }
    output_rows(&ctl->output, ways, columns, NULL);
    return CTL_OK;
}

static void tell_what_stays(const json_t *reply)
{
    if (g_strcmp0(json_string_value(json_object_get(reply, "way")), "keep") == 0)
        fputs("chainctl: the point is gone; its layer stays, as others stand on it\n", stderr);
}

static int run_delete(Ctl *ctl, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(ctl_word(ctl, 0), "@", 2);
    g_autofree char *label = g_strdup_printf("%s → delete %s", parts[0], parts[1]);
    bool is_layer = arguments_flag(ctl->arguments, "layer");
    json_t *args =
        json_pack("{s:s, s:s}", "disk", parts[0], is_layer ? "layer" : "point", parts[1]);
    if (arguments_flag(ctl->arguments, "dry-run"))
        return print_plan(ctl, args, error);
    const char *way = arguments_text(ctl->arguments, "way");
    if (way)
        json_object_set_new(args, "way", json_string(way));
    job_start_add_speed(ctl, args);
    job_start_add_space(ctl, args);
    return job_start(ctl,
                     &(JobStart){
                         .command = "disk-delete-point",
                         .args = args,
                         .label = label,
                         .disk = parts[0],
                         .tell = tell_what_stays,
                     },
                     error);
}

// -- rollback, clone ------------------------------------------------------------------------------

static int run_rollback(Ctl *ctl, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(ctl_word(ctl, 0), "@", 2);
    const char *name = arguments_text(ctl->arguments, "keep-as");
    bool drops = arguments_flag(ctl->arguments, "drop");
    if (drops && name)
        return ctl_fail(error, CTL_USAGE, "--drop and --keep-as exclude each other");
    json_t *args = json_pack("{s:s, s:s, s:s, s:s*, s:s*}", "disk", parts[0], "point", parts[1],
                             "above", drops ? "drop" : "keep", "keep-as", name, "clients",
                             arguments_flag(ctl->arguments, "disconnect") ? "hard" : NULL);
    json_auto_t *disk = ctl_run(ctl, "disk-rollback", args, error);
    if (!disk)
        return -1;
    if (ctl->output.format != OUTPUT_TABLE)
        output_json(&ctl->output, disk);
    return CTL_OK;
}

static int run_clone(Ctl *ctl, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(ctl_word(ctl, 0), "@", 2);
    const char *directory = arguments_text(ctl->arguments, "directory");
    json_auto_t *disk =
        ctl_run(ctl, "disk-clone",
                json_pack("{s:s, s:s, s:s, s:o*}", "name", ctl_word(ctl, 1), "disk", parts[0],
                          "point", parts[1], "directory", directory ? paths_json(directory) : NULL),
                error);
    if (!disk)
        return -1;
    uris_print(&ctl->output, disk, json_object_get(disk, "exports"));
    return CTL_OK;
}

// -- the family -----------------------------------------------------------------------------------

static const VerbOption snapshot_options[] = {
    {"directory", 'd', WORD_FILE, "DIR", "where the new heads are made (beside the old ones)"},
    {0},
};
static const VerbOption delete_options[] = {
    {"dry-run", 'n', WORD_NONE, NULL, "say what each way would copy, need and free"},
    {"layer", 0, WORD_NONE, NULL, "POINT is the node of a layer without a name"},
    {"way", 0, WORD_TEXT, "stream|commit", "how (the one that copies least)"},
    JOB_SPACE_OPTION,
    JOB_START_OPTIONS,
    {0},
};
static const VerbOption rollback_options[] = {
    {"keep-as", 0, WORD_TEXT, "POINT", "what the disk shows now is kept as this point"},
    {"drop", 0, WORD_NONE, NULL, "drop what it shows now, and later points"},
    {"disconnect", 0, WORD_NONE, NULL, "although it has clients"},
    {0},
};
static const VerbOption clone_options[] = {
    {"directory", 'd', WORD_FILE, "DIR", "where its file is made (beside the other disk's)"},
    {0},
};
static const VerbWord point_word[] = {{"DISK@POINT", WORD_POINT}, {0}};
static const VerbWord clone_words[] = {{"DISK@POINT", WORD_POINT}, {"NAME", WORD_TEXT}, {0}};
static const VerbWord snapshot_words[] = {{"DISK@POINT", WORD_POINT, .is_repeated = true}, {0}};

static const Verb verbs[] = {
    {
        .name = "snapshot",
        .summary = "Keep what disks show now, as points in time",
        .text = "Of several disks at one moment, all or none. Clients do not notice.",
        .examples = "chainctl snapshot web@mon\nchainctl snapshot web@tue db@tue",
        .words = snapshot_words,
        .options = snapshot_options,
        .run = run_snapshot,
    },
    {
        .name = "delete",
        .summary = "Delete a point in time, while the disk is used",
        .text = "The layer above gets what it needs (stream), or the layer gets what the one\n"
                "above has (commit), whichever copies less. All other points show what they did.\n"
                "Files that nobody needs any more are removed last. While several layers stand\n"
                "on it, only the name goes; once one is left, --layer takes the rest.",
        .examples = "chainctl delete web@mon --dry-run\nchainctl delete web@mon",
        .words = point_word,
        .options = delete_options,
        .run = run_delete,
    },
    {
        .name = "rollback",
        .summary = "Take a disk back to a point in time",
        .text = "What it shows now is kept as a point, unless --drop. Refused while it has\n"
                "clients, unless they are to be disconnected.",
        .examples = "chainctl rollback web@mon\nchainctl rollback web@mon --drop",
        .words = point_word,
        .options = rollback_options,
        .run = run_rollback,
    },
    {
        .name = "clone",
        .summary = "Make a disk that begins as a point in time",
        .text = "It shares the layers of that point. Prints the URI.",
        .examples = "chainctl clone web@mon test",
        .words = clone_words,
        .options = clone_options,
        .run = run_clone,
    },
    {0},
};

const VerbFamily verbs_points_family = {.title = "Points in time", .verbs = verbs};
