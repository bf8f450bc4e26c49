// SPDX-License-Identifier: LGPL-2.1-or-later
#include "verbs-disks.h"

#include <stdio.h>
#include <string.h>

#include "ctl.h"
#include "disk-view.h"
#include "job-start.h"
#include "paths.h"
#include "units.h"
#include "uris.h"

static int make(Ctl *ctl, const char *command, json_t *args, GError **error)
{
    json_auto_t *disk = ctl_run(ctl, command, args, error);
    if (!disk)
        return -1;
    uris_print(&ctl->output, disk, json_object_get(disk, "exports"));
    return CTL_OK;
}

static void add_birth_options(const Ctl *ctl, json_t *args)
{
    const char *description = arguments_text(ctl->arguments, "description");
    if (description)
        json_object_set_new(args, "description", json_string(description));
    if (arguments_flag(ctl->arguments, "no-export"))
        json_object_set_new(args, "export", json_false());
    if (arguments_flag(ctl->arguments, "direct"))
        json_object_set_new(args, "direct", json_true());
}

static int run_create(Ctl *ctl, GError **error)
{
    uint64_t size = 0;
    units_parse_size(ctl_word(ctl, 1), &size);
    const char *file = ctl_word(ctl, 2), *format = arguments_text(ctl->arguments, "format");
    json_t *args = json_pack("{s:s, s:I}", "name", ctl_word(ctl, 0), "size", (json_int_t)size);
    if (file)
        json_object_set_new(args, "file", paths_json(file));
    if (format)
        json_object_set_new(args, "format", json_string(format));
    add_birth_options(ctl, args);
    return make(ctl, "disk-create", args, error);
}

// It works from the first moment; what lies elsewhere comes here meanwhile.
static int migrate(Ctl *ctl, json_t *args, GError **error)
{
    g_autofree char *label = g_strdup_printf("%s → migrate", ctl_word(ctl, 0));
    json_object_set_new(args, "overlay", json_true());
    int r = make(ctl, "disk-add", args, error);
    if (r < 0)
        return r;
    fflush(stdout);
    json_t *of_job = json_pack("{s:s}", "disk", ctl_word(ctl, 0));
    job_start_add_speed(ctl, of_job);
    return job_start(ctl,
                     &(JobStart){
                         .command = "disk-flatten",
                         .args = of_job,
                         .label = label,
                         .disk = ctl_word(ctl, 0),
                     },
                     error);
}

static int run_add(Ctl *ctl, GError **error)
{
    const char *format = arguments_text(ctl->arguments, "format");
    json_t *args =
        json_pack("{s:s, s:o}", "name", ctl_word(ctl, 0), "file", paths_json(ctl_word(ctl, 1)));
    if (format)
        json_object_set_new(args, "format", json_string(format));
    if (arguments_flag(ctl->arguments, "own"))
        json_object_set_new(args, "own", json_true());
    if (arguments_flag(ctl->arguments, "read-only"))
        json_object_set_new(args, "read-only", json_true());
    add_birth_options(ctl, args);
    const char *directory = arguments_text(ctl->arguments, "directory");
    if (directory)
        json_object_set_new(args, "directory", paths_json(directory));
    if (arguments_flag(ctl->arguments, "migrate"))
        return migrate(ctl, args, error);
    return make(ctl, "disk-add", args, error);
}

static int run_remove(Ctl *ctl, GError **error)
{
    json_t *args = json_pack("{s:s}", "name", ctl_word(ctl, 0));
    if (arguments_flag(ctl->arguments, "disconnect"))
        json_object_set_new(args, "clients", json_string("hard"));
    if (arguments_flag(ctl->arguments, "delete-files"))
        json_object_set_new(args, "delete-files", json_true());
    return ctl_do(ctl, "disk-remove", args, error);
}

static int run_export(Ctl *ctl, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(ctl_word(ctl, 0), "@", 2);
    const char *name = arguments_text(ctl->arguments, "name");
    if (arguments_flag(ctl->arguments, "stop")) {
        json_t *stop = json_pack("{s:s}", "id", name ? name : ctl_word(ctl, 0));
        if (arguments_flag(ctl->arguments, "disconnect"))
            json_object_set_new(stop, "clients", json_string("hard"));
        return ctl_do(ctl, "disk-unexport", stop, error);
    }
    json_t *args =
        json_pack("{s:s, s:s*, s:s*}", "disk", parts[0], "point", parts[1], "name", name);
    if (arguments_flag(ctl->arguments, "writable"))
        json_object_set_new(args, "writable", json_true());
    json_auto_t *export = ctl_run(ctl, "disk-export", args, error);
    if (!export)
        return -1;
    json_auto_t *exports = json_pack("[O]", export);
    uris_print(&ctl->output, export, exports);
    return CTL_OK;
}

static int run_resize(Ctl *ctl, GError **error)
{
    uint64_t size = 0;
    json_auto_t *disk = disk_view_load_one(ctl, ctl_word(ctl, 0), error);
    if (!disk)
        return -1;
    units_parse_size(ctl_word(ctl, 1), &size);
    uint64_t now = (uint64_t)json_integer_value(json_object_get(disk, "size"));
    if (size < now && !arguments_flag(ctl->arguments, "shrink")) {
        g_autofree char *text = units_size(now);
        return ctl_fail(error, CTL_USAGE,
                        "'%s' has %s, and what lies beyond the new end would be lost: --shrink "
                        "says that this is meant",
                        ctl_word(ctl, 0), text);
    }
    if (json_is_true(json_object_get(disk, "is-remembered")))
        return ctl_do(ctl, "disk-resize",
                      json_pack("{s:s, s:I, s:b}", "disk", ctl_word(ctl, 0), "size",
                                (json_int_t)size, "shrink",
                                arguments_flag(ctl->arguments, "shrink")),
                      error);
    return ctl_do(ctl, "block_resize",
                  json_pack("{s:O, s:I}", "node-name", json_object_get(disk, "node"), "size",
                            (json_int_t)size),
                  error);
}

// -- the family -----------------------------------------------------------------------------------

#define BIRTH_OPTIONS                                                                              \
    {"description", 0, WORD_TEXT, "TEXT", "what clients see beside the name"},                     \
        {"no-export", 0, WORD_NONE, NULL, "clients do not see it yet"},                            \
        {"direct", 0, WORD_NONE, NULL, "past the page cache of the host"},                         \
    {                                                                                              \
        "format", 'f', WORD_TEXT, "qcow2|raw", "of the image"                                      \
    }

static const VerbOption create_options[] = {BIRTH_OPTIONS, {0}};
static const VerbOption add_options[] = {
    BIRTH_OPTIONS,
    {"own", 0, WORD_NONE, NULL, "its layers are the daemon's to merge and remove"},
    {"read-only", 'r', WORD_NONE, NULL, "nobody is to write it"},
    {"migrate", 0, WORD_NONE, NULL, "bring it here, while it is used"},
    {"directory", 'd', WORD_FILE, "DIR", "where to, with --migrate (the daemon's)"},
    JOB_START_OPTIONS,
    {0},
};
static const VerbOption remove_options[] = {
    {"delete-files", 0, WORD_NONE, NULL, "remove what no other disk needs"},
    {"disconnect", 0, WORD_NONE, NULL, "although it has clients"},
    {0},
};
static const VerbOption export_options[] = {
    {"name", 'n', WORD_TEXT, "NAME", "what clients call it (DISK or DISK@POINT)"},
    {"writable", 'w', WORD_NONE, NULL, "clients may write; a disk only"},
    {"stop", 0, WORD_NONE, NULL, "end the export"},
    {"disconnect", 0, WORD_NONE, NULL, "end it although it has clients"},
    {0},
};
static const VerbOption resize_options[] = {
    {"shrink", 0, WORD_NONE, NULL, "what lies beyond the new end is lost"},
    {0},
};
static const VerbWord create_words[] = {
    {"NAME", WORD_TEXT}, {"SIZE", WORD_SIZE}, {"FILE", WORD_FILE, .is_optional = true}, {0}};
static const VerbWord add_words[] = {{"NAME", WORD_TEXT}, {"FILE", WORD_FILE}, {0}};
static const VerbWord disk_word[] = {{"DISK", WORD_DISK}, {0}};
static const VerbWord export_word[] = {{"DISK[@POINT]", WORD_DISK_OR_POINT}, {0}};
static const VerbWord resize_words[] = {{"DISK", WORD_DISK}, {"SIZE", WORD_SIZE}, {0}};

static const Verb verbs[] = {
    {
        .name = "create",
        .summary = "Make a disk with a new image, and export it",
        .text = "The image lies in the daemon's state directory unless a FILE is given. Prints\n"
                "the URI under which clients reach the disk.",
        .examples = "chainctl create web 20G\nchainctl create db 100G /srv/vm/db.qcow2",
        .words = create_words,
        .options = create_options,
        .run = run_create,
    },
    {
        .name = "add",
        .summary = "Make a disk of an image that exists, and export it",
        .text = "FILE is the top of its chain; all that it stands on is found by itself. Prints\n"
                "the URI under which clients reach the disk. With --migrate FILE, which may be an\n"
                "NBD URI, stays as it is: what it shows is copied into a new image, and clients\n"
                "may use the disk from the first moment on.",
        .examples = "chainctl add web /srv/vm/web.qcow2\nchainctl add old old.img -f raw -r\n"
                    "chainctl add web nbd://old-host/web -f raw --migrate",
        .words = add_words,
        .options = add_options,
        .run = run_add,
    },
    {
        .name = "remove",
        .summary = "Forget a disk; its files stay",
        .text = "Refused while it has clients, unless they are to be disconnected.",
        .examples = "chainctl remove web\nchainctl remove web --delete-files",
        .words = disk_word,
        .options = remove_options,
        .run = run_remove,
    },
    {
        .name = "export",
        .summary = "Show a disk, or a point in time, to clients",
        .text = "A point in time is shown read-only, beside the disk. Prints the URI.",
        .examples = "chainctl export web@mon\nchainctl export web@mon --stop",
        .words = export_word,
        .options = export_options,
        .run = run_export,
    },
    {
        .name = "resize",
        .summary = "Change a disk's size while it is used",
        .text = "Clients that are connected see the new size when they connect again, or ask.",
        .examples = "chainctl resize web 40G",
        .words = resize_words,
        .options = resize_options,
        .run = run_resize,
    },
    {0},
};

const VerbFamily verbs_disks_family = {.title = "Disks", .verbs = verbs};
