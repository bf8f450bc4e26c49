// SPDX-License-Identifier: LGPL-2.1-or-later
// A moment of a disk for programs that read it by themselves.
#include "verbs-pull.h"

#include <stdio.h>

#include "ctl.h"
#include "paths.h"
#include "units.h"
#include "uris.h"

static json_t *pull_args(const Ctl *ctl)
{
    static const char *const texts[] = {"since", "checkpoint", "name"};
    const char *directory = arguments_text(ctl->arguments, "directory");
    json_t *args = json_pack("{s:s}", "disk", ctl_word(ctl, 0));
    for (unsigned i = 0; i < G_N_ELEMENTS(texts); i++)
        if (arguments_text(ctl->arguments, texts[i]))
            json_object_set_new(args, texts[i],
                                json_string(arguments_text(ctl->arguments, texts[i])));
    if (directory)
        json_object_set_new(args, "directory", paths_json(directory));
    return args;
}

// The URI is for programs, on stdout; what people are to know is beside it.
static void tell(const json_t *pull)
{
    const char *context = json_string_value(json_object_get(pull, "context"));
    const char *since = json_string_value(json_object_get(pull, "since"));
    const char *reason = json_string_value(json_object_get(pull, "reason"));
    g_autofree char *size = units_size((uint64_t)json_integer_value(json_object_get(pull, "copy")));
    if (reason)
        fprintf(stderr, "chainctl: %s\n", reason);
    if (context)
        fprintf(stderr, "chainctl: what has changed since '%s', %s at most, is in the context %s\n",
                since, size, context);
    else
        fprintf(stderr, "chainctl: all is to be read, %s at most\n", size);
}

static int begin(Ctl *ctl, GError **error)
{
    json_auto_t *pull = ctl_run(ctl, "disk-pull", pull_args(ctl), error);
    if (!pull)
        return -1;
    json_auto_t *exports = json_pack("[O]", pull);
    uris_print(&ctl->output, pull, exports);
    if (ctl->output.format == OUTPUT_TABLE)
        tell(pull);
    return CTL_OK;
}

static int run_pull(Ctl *ctl, GError **error)
{
    bool is_done = arguments_flag(ctl->arguments, "done"),
         is_dropped = arguments_flag(ctl->arguments, "drop");
    if (is_done && is_dropped)
        return ctl_fail(error, CTL_USAGE, "--done and --drop exclude each other");
    if (!is_done && !is_dropped)
        return begin(ctl, error);
    return ctl_do(ctl, "disk-pull-end",
                  json_pack("{s:s, s:b}", "disk", ctl_word(ctl, 0), "success", is_done), error);
}

// -- the family -----------------------------------------------------------------------------------

static const VerbWord disk_word[] = {{"DISK", WORD_DISK}, {0}};
static const VerbOption pull_options[] = {
    {"since", 0, WORD_TEXT, "CHECKPOINT", "tell what has changed since; last: the latest one"},
    {"checkpoint", 0, WORD_TEXT, "NAME", "of this one, for later"},
    {"name", 'n', WORD_TEXT, "NAME", "of the export"},
    {"directory", 'd', WORD_FILE, "DIR", "where what clients change is saved (the daemon's)"},
    {"done", 0, WORD_NONE, NULL, "all was read: the moment is a checkpoint"},
    {"drop", 0, WORD_NONE, NULL, "end it without"},
    {0},
};

static const Verb verbs[] = {
    {
        .name = "pull",
        .summary = "Export a moment of a disk to be backed up",
        .text = "Prints the URI. The export shows what the disk shows now, until it is ended,\n"
                "whatever clients write meanwhile. With --since a metadata context tells what\n"
                "has changed. It is ended with --done, and is a checkpoint then, or with --drop.",
        .examples = "nbdcopy $(chainctl pull web) web.img && chainctl pull web --done",
        .words = disk_word,
        .options = pull_options,
        .run = run_pull,
    },
    {0},
};

const VerbFamily verbs_pull_family = {.verbs = verbs};
