// SPDX-License-Identifier: LGPL-2.1-or-later
#include "verbs-look.h"

#include <stdio.h>

#include "ctl.h"
#include "disk-view.h"
#include "job-follow.h"
#include "tree.h"

static const char no_disks[] =
    "no disks: 'chainctl create NAME SIZE' makes one, 'chainctl add NAME FILE' takes one";

static int run_ls(Ctl *ctl, GError **error)
{
    static const Column columns[] = {
        {"name", "NAME", CELL_NAME},
        {"size", "SIZE", CELL_SIZE},
        {"allocated", "ALLOCATED", CELL_SIZE},
        {"format", "FORMAT", CELL_TEXT},
        {"layers", "LAYERS", CELL_LENGTH},
        {"points", "POINTS", CELL_LENGTH},
        {"clients", "CLIENTS", CELL_NUMBER},
        {"jobs", "JOBS", CELL_LENGTH},
        {"uris", "URI", CELL_LIST},
        {0},
    };
    json_auto_t *disks = disk_view_load(ctl, ctl_word(ctl, 0), error);
    if (!disks)
        return -1;
    output_rows(&ctl->output, disks, columns, no_disks);
    return CTL_OK;
}

static void print_limits(const json_t *disk)
{
    size_t i;
    const json_t *limits;
    json_array_foreach(json_object_get(disk, "limits"), i, limits) printf(
        "limits of '%s': %s (group '%s')\n", json_string_value(json_object_get(limits, "export")),
        json_string_value(json_object_get(limits, "text")),
        json_string_value(json_object_get(limits, "group")));
}

static int run_info(Ctl *ctl, GError **error)
{
    static const Column columns[] = {
        {"name", "name", CELL_NAME},
        {"size", "size", CELL_SIZE},
        {"format", "format", CELL_TEXT},
        {"read-only", "read-only", CELL_BOOL},
        {"layers", "layers", CELL_LENGTH},
        {"allocated", "allocated", CELL_SIZE},
        {"exclusive", "of it, not shared", CELL_SIZE},
        {"clients", "clients", CELL_NUMBER},
        {"in-flight", "requests in flight", CELL_NUMBER},
        {"uris", "uri", CELL_LIST},
        {"jobs", "jobs", CELL_LIST},
        {"node", "node", CELL_TEXT},
        {0},
    };
    json_auto_t *disk = disk_view_load_one(ctl, ctl_word(ctl, 0), error);
    if (!disk)
        return -1;
    output_fields(&ctl->output, disk, columns);
    if (ctl->output.format == OUTPUT_TABLE)
        print_limits(disk);
    return CTL_OK;
}

static int run_tree(Ctl *ctl, GError **error)
{
    json_auto_t *disks = disk_view_load(ctl, ctl_word(ctl, 0), error);
    json_auto_t *jobs = disks ? job_rows(ctl, error) : NULL;
    if (!jobs)
        return -1;
    if (ctl->output.format != OUTPUT_TABLE || ctl->output.is_bare)
        output_rows(&ctl->output, disks, (Column[]){{"name", "NAME", CELL_NAME}, {0}}, NULL);
    else if (json_array_size(disks))
        tree_print(&ctl->output, disks, jobs);
    else
        fprintf(stderr, "%s\n", no_disks);
    return CTL_OK;
}

static const VerbWord disk_word[] = {{"DISK", WORD_DISK}, {0}};
static const VerbWord any_disk_word[] = {{"DISK", WORD_DISK, .is_optional = true}, {0}};

static const Verb verbs[] = {
    {
        .name = "ls",
        .summary = "List disks",
        .examples =
            "chainctl ls\nchainctl ls -H | cut -f1\nchainctl ls --output=json | jq .[].uris",
        .words = any_disk_word,
        .run = run_ls,
    },
    {
        .name = "info",
        .summary = "Show what is known of a disk",
        .examples = "chainctl info web\nchainctl info web --output=json",
        .words = disk_word,
        .run = run_info,
    },
    {
        .name = "tree",
        .summary = "Show layers, sizes, sharing, jobs and clients",
        .examples = "chainctl tree\nchainctl tree web",
        .words = any_disk_word,
        .run = run_tree,
    },
    {0},
};

const VerbFamily verbs_look_family = {.title = "Looking", .verbs = verbs};
