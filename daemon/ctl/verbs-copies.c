// SPDX-License-Identifier: LGPL-2.1-or-later
// Jobs of block layers, on the head of a disk.
#include "verbs-copies.h"

#include <stdio.h>

#include "ctl.h"
#include "disk-view.h"
#include "job-start.h"
#include "paths.h"
#include "units.h"

// Starts `command` on the disk that the first word names, with `args` (taken).
static int start(Ctl *ctl, const char *command, const char *what, json_t *args, bool completes,
                 GError **error)
{
    G_GNUC_UNUSED json_auto_t *owned = args;
    json_auto_t *disk = disk_view_load_one(ctl, ctl_word(ctl, 0), error);
    g_autofree char *id = disk ? job_start_new_id(ctl, ctl->verb->name, error) : NULL;
    if (!id)
        return -1;
    g_autofree char *label = g_strdup_printf("%s → %s", ctl_word(ctl, 0), what);
    json_object_set(args, "device", json_object_get(disk, "node"));
    json_object_set_new(args, "job-id", json_string(id));
    job_start_add_speed(ctl, args);
    return job_start(ctl,
                     &(JobStart){
                         .command = command,
                         .args = json_incref(args),
                         .id = id,
                         .label = label,
                         .disk = ctl_word(ctl, 0),
                         .completes = completes,
                     },
                     error);
}

// The same by a command of disks, which names its job itself.
static int start_and_tell(Ctl *ctl, const char *command, const char *what, json_t *args,
                          void (*tell)(const json_t *reply), GError **error)
{
    g_autofree char *label = g_strdup_printf("%s → %s", ctl_word(ctl, 0), what);
    json_object_set_new(args, "disk", json_string(ctl_word(ctl, 0)));
    job_start_add_speed(ctl, args);
    job_start_add_space(ctl, args);
    return job_start(ctl,
                     &(JobStart){
                         .command = command,
                         .args = args,
                         .label = label,
                         .disk = ctl_word(ctl, 0),
                         .tell = tell,
                     },
                     error);
}

static int start_on_disk(Ctl *ctl, const char *command, const char *what, json_t *args,
                         GError **error)
{
    return start_and_tell(ctl, command, what, args, NULL, error);
}

// NULL: `error`. Whether the daemon remembers the disk, `*ret_is_remembered`.
static json_t *load(Ctl *ctl, bool *ret_is_remembered, GError **error)
{
    json_t *disk = disk_view_load_one(ctl, ctl_word(ctl, 0), error);
    *ret_is_remembered = json_is_true(json_object_get(disk, "is-remembered"));
    return disk;
}

static json_t *target_args(const Ctl *ctl)
{
    const char *format = arguments_text(ctl->arguments, "format");
    json_t *args = json_pack("{s:o, s:s, s:s}", "target", paths_json(ctl_word(ctl, 1)), "sync",
                             "full", "format", format ? format : "qcow2");
    if (arguments_flag(ctl->arguments, "verify"))
        json_object_set_new(args, "x-verify", json_true());
    return args;
}

static int backup_of_moment(Ctl *ctl, GError **error)
{
    json_t *args = target_args(ctl);
    if (arguments_flag(ctl->arguments, "compress"))
        json_object_set_new(args, "compress", json_true());
    return start(ctl, "drive-backup", "backup", args, false, error);
}

// A copy that is larger than was asked for.
static void tell_reason(const json_t *reply)
{
    const char *reason = json_string_value(json_object_get(reply, "reason"));
    const char *since = json_string_value(json_object_get(reply, "since"));
    g_autofree char *size =
        units_size((uint64_t)json_integer_value(json_object_get(reply, "copy")));
    if (reason && since)
        fprintf(stderr, "chainctl: %s; copying what has changed since '%s', %s at most\n", reason,
                since, size);
    else if (reason)
        fprintf(stderr, "chainctl: %s; copying all, %s at most\n", reason, size);
}

static int print_backup_plan(Ctl *ctl, json_t *args, GError **error)
{
    static const Column columns[] = {
        {"target", "target", CELL_NAME}, {"since", "since", CELL_TEXT},
        {"copy", "copies", CELL_SIZE},   {"checkpoint", "checkpoint", CELL_TEXT},
        {"reason", "reason", CELL_TEXT}, {0},
    };
    json_object_set_new(args, "disk", json_string(ctl_word(ctl, 0)));
    json_object_set_new(args, "dry-run", json_true());
    json_auto_t *plan = ctl_run(ctl, "disk-backup", args, error);
    if (!plan)
        return -1;
    output_fields(&ctl->output, plan, columns);
    return CTL_OK;
}

static int backup_remembered(Ctl *ctl, GError **error)
{
    json_t *args = json_pack("{s:o, s:s*, s:s*, s:b}", "target", paths_json(ctl_word(ctl, 1)),
                             "since", arguments_text(ctl->arguments, "since"), "checkpoint",
                             arguments_text(ctl->arguments, "checkpoint"), "compress",
                             arguments_flag(ctl->arguments, "compress"));
    if (arguments_flag(ctl->arguments, "dry-run"))
        return print_backup_plan(ctl, args, error);
    return start_and_tell(ctl, "disk-backup", "backup", args, tell_reason, error);
}

static int remove_point(Ctl *ctl, const char *point, GError **error)
{
    return start_on_disk(ctl, "disk-delete-point", "backup",
                         json_pack("{s:s, s:s}", "point", point, "way", "commit"), error);
}

// A point in time, a copy of it that shares its blocks, and the point goes again.
static int backup_by_reflink(Ctl *ctl, GError **error)
{
    const char *disk = ctl_word(ctl, 0);
    g_autofree char *point = g_strdup_printf("backup-%" G_GINT64_FORMAT, g_get_real_time());
    json_auto_t *made =
        ctl_run(ctl, "disk-snapshot",
                json_pack("{s:[{s:s, s:s}]}", "snapshots", "disk", disk, "point", point), error);
    if (!made)
        return -1;
    json_auto_t *copied = ctl_run(ctl, "disk-copy-point",
                                  json_pack("{s:s, s:s, s:o}", "disk", disk, "point", point,
                                            "target", paths_json(ctl_word(ctl, 1))),
                                  error);
    if (copied)
        return remove_point(ctl, point, error);
    g_autoptr(GError) also = NULL;
    if (remove_point(ctl, point, &also) < 0)
        fprintf(stderr, "chainctl: the point '%s@%s' is left: %s\n", disk, point, also->message);
    return -1;
}

// Checkpoints are the disks' that are remembered.
static int run_backup(Ctl *ctl, GError **error)
{
    const char *since = arguments_text(ctl->arguments, "since");
    const char *checkpoint = arguments_text(ctl->arguments, "checkpoint");
    const char *format = arguments_text(ctl->arguments, "format");
    bool is_remembered,
        is_plain = arguments_flag(ctl->arguments, "verify") || g_strcmp0(format, "raw") == 0;
    json_auto_t *disk = load(ctl, &is_remembered, error);
    if (!disk)
        return -1;
    if (is_remembered && arguments_flag(ctl->arguments, "reflink"))
        return since || checkpoint || is_plain
                   ? ctl_fail(error, CTL_USAGE, "--reflink copies all, as it is")
                   : backup_by_reflink(ctl, error);
    if (is_remembered && !is_plain)
        return backup_remembered(ctl, error);
    if (since || checkpoint || arguments_flag(ctl->arguments, "dry-run"))
        return ctl_fail(error, CTL_USAGE,
                        "checkpoints are for disks that the daemon remembers, in qcow2 images "
                        "that are not read back");
    return backup_of_moment(ctl, error);
}

static int run_mirror(Ctl *ctl, GError **error)
{
    bool is_remembered;
    json_auto_t *disk = load(ctl, &is_remembered, error);
    if (!disk)
        return -1;
    if (is_remembered)
        return start_on_disk(ctl, "disk-mirror", "mirror",
                             json_pack("{s:o, s:s*, s:b}", "target", paths_json(ctl_word(ctl, 1)),
                                       "format", arguments_text(ctl->arguments, "format"), "verify",
                                       arguments_flag(ctl->arguments, "verify")),
                             error);
    return start(ctl, "drive-mirror", "mirror", target_args(ctl),
                 !arguments_flag(ctl->arguments, "async"), error);
}

static int run_flatten(Ctl *ctl, GError **error)
{
    bool is_remembered;
    uint64_t depth = arguments_size(ctl->arguments, "depth", 1);
    json_auto_t *disk = load(ctl, &is_remembered, error);
    if (!disk)
        return -1;
    if (is_remembered)
        return start_on_disk(ctl, "disk-flatten", "flatten",
                             json_pack("{s:I}", "depth", (json_int_t)depth), error);
    const json_t *layers = json_object_get(disk, "layers");
    size_t n = json_array_size(layers);
    json_t *args = json_object();
    if (depth > 1 && depth <= n)
        json_object_set(args, "base-node",
                        json_object_get(json_array_get(layers, n - (size_t)depth + 1), "node"));
    return start(ctl, "block-stream", "flatten", args, false, error);
}

static int run_commit(Ctl *ctl, GError **error)
{
    bool is_remembered;
    json_auto_t *disk = load(ctl, &is_remembered, error);
    if (!disk)
        return -1;
    const json_t *below = json_array_get(json_object_get(disk, "layers"), 1);
    json_t *point = json_object_get(below, "point"), *node = json_object_get(below, "node");
    if (!below)
        return ctl_fail(error, CTL_FAILED, "'%s' has no layer below its head to commit into",
                        ctl_word(ctl, 0));
    if (is_remembered)
        return start_on_disk(ctl, "disk-delete-point", "commit",
                             json_pack("{s:O, s:s}", json_is_string(point) ? "point" : "layer",
                                       json_is_string(point) ? point : node, "way", "commit"),
                             error);
    return start(ctl, "block-commit", "commit",
                 json_pack("{s:O, s:b}", "base-node", node, "auto-complete", 1), false, error);
}

// -- the family -----------------------------------------------------------------------------------

#define TARGET_OPTIONS                                                                             \
    {"format", 'f', WORD_TEXT, "qcow2|raw", "of FILE (qcow2)"},                                    \
    {                                                                                              \
        "verify", 0, WORD_NONE, NULL, "read back what was written"                                 \
    }

static const VerbOption backup_options[] = {
    TARGET_OPTIONS,
    {"compress", 'c', WORD_NONE, NULL, "compress clusters"},
    {"since", 0, WORD_TEXT, "CHECKPOINT", "only what has changed since; last: the latest one"},
    {"checkpoint", 0, WORD_TEXT, "NAME", "of this one, for later"},
    {"reflink", 0, WORD_NONE, NULL, "share blocks with the disk, on its file system"},
    {"dry-run", 'n', WORD_NONE, NULL, "say what would be copied, and why; change nothing"},
    JOB_SPACE_OPTION,
    JOB_START_OPTIONS,
    {0},
};
static const VerbOption mirror_options[] = {
    TARGET_OPTIONS, JOB_SPACE_OPTION, JOB_START_OPTIONS, {0}};
static const VerbOption flatten_options[] = {
    {"depth", 0, WORD_NUMBER, "N", "how many layers are left (1)"},
    JOB_SPACE_OPTION,
    JOB_START_OPTIONS,
    {0},
};
static const VerbOption job_options[] = {JOB_SPACE_OPTION, JOB_START_OPTIONS, {0}};
static const VerbWord target_words[] = {{"DISK", WORD_DISK}, {"FILE", WORD_FILE}, {0}};
static const VerbWord disk_word[] = {{"DISK", WORD_DISK}, {0}};

static const Verb verbs[] = {
    {
        .name = "backup",
        .summary = "Copy what a disk shows now to a file",
        .text = "FILE gets what the disk shows at the moment of the command, whatever clients\n"
                "write meanwhile. A backup is a checkpoint for later ones, which copy only what\n"
                "has changed since; with --verify or raw it is none. Where --since last has\n"
                "to copy more, as after a crash, it says why and how much.",
        .examples = "chainctl backup web /mnt/nas/web-1.qcow2\n"
                    "chainctl backup web /mnt/nas/web-2.qcow2 --since last",
        .words = target_words,
        .options = backup_options,
        .run = run_backup,
    },
    {
        .name = "mirror",
        .summary = "Move a disk to another file, while it is used",
        .text = "FILE gets all that the disk shows, and what clients write meanwhile. Then it\n"
                "takes the disk's place, which clients do not notice. Of a disk that the daemon\n"
                "remembers points in time stay where they are, files that nobody needs are\n"
                "removed, and FILE may be a directory or an NBD URI. Of another one, with\n"
                "--async, it stays in step instead until the job is completed.",
        .examples = "chainctl mirror web /srv/new/web.qcow2\n"
                    "chainctl mirror web nbd://store/web",
        .words = target_words,
        .options = mirror_options,
        .run = run_mirror,
    },
    {
        .name = "flatten",
        .summary = "Copy all that lies below into the head",
        .examples = "chainctl flatten web\nchainctl flatten web --speed 100M --async",
        .words = disk_word,
        .options = flatten_options,
        .run = run_flatten,
    },
    {
        .name = "commit",
        .summary = "Merge a disk's head into the layer below it",
        .text = "Clients go on with that layer, and do not notice. Refused where others need\n"
                "what that layer shows.",
        .examples = "chainctl commit web",
        .words = disk_word,
        .options = job_options,
        .run = run_commit,
    },
    {0},
};

const VerbFamily verbs_copies_family = {.title = "Copying and merging", .verbs = verbs};
