// SPDX-License-Identifier: LGPL-2.1-or-later
#include "verbs-map.h"

#include <stdio.h>

#include "ctl.h"
#include "disk-view.h"
#include "map-view.h"

enum { PAGE_PARTS = 1024, PLAIN_COLUMNS = 100, LABEL_COLUMNS = 32, LEAST_COLUMNS = 16 };

static unsigned n_parts(const Ctl *ctl)
{
    uint64_t wanted = arguments_size(ctl->arguments, "parts", 0);
    unsigned width = ctl->output.width ? ctl->output.width : PLAIN_COLUMNS;
    if (wanted)
        return (unsigned)MIN(wanted, 4096);
    if (arguments_have(ctl->arguments, "html"))
        return PAGE_PARTS;
    return width > LABEL_COLUMNS + LEAST_COLUMNS ? width - LABEL_COLUMNS : LEAST_COLUMNS;
}

// What the daemon says of nodes, with what people call them.
static json_t *join(const json_t *disk, json_t *map)
{
    size_t i, j;
    json_t *layer, *known;
    json_array_foreach(json_object_get(map, "layers"), i, layer)
    {
        json_t *node = json_object_get(layer, "node-name");
        json_array_foreach(json_object_get(disk, "layers"), j, known)
        {
            if (!json_equal(json_object_get(known, "node"), node))
                continue;
            g_autofree char *title = disk_view_layer_title(disk, j);
            json_object_set_new(layer, "title", json_string(title));
            json_object_set(layer, "filename", json_object_get(known, "filename"));
        }
        json_object_set(layer, "node", node);
        json_object_del(layer, "node-name");
    }
    json_object_set(map, "name", json_object_get(disk, "name"));
    return map;
}

static int write_page(const char *path, const json_t *map, GError **error)
{
    g_autofree char *page = map_view_html(map);
    g_autoptr(GError) fault = NULL;
    if (g_str_equal(path, "-")) {
        fputs(page, stdout);
        return CTL_OK;
    }
    return g_file_set_contents(path, page, -1, &fault)
               ? CTL_OK
               : ctl_fail(error, CTL_FAILED, "%s", fault->message);
}

static int run_map(Ctl *ctl, GError **error)
{
    const char *page = arguments_text(ctl->arguments, "html");
    json_auto_t *disk = disk_view_load_one(ctl, ctl_word(ctl, 0), error);
    if (!disk)
        return -1;
    json_auto_t *map = ctl_run_with(ctl, "query-chain-map", error, "{s:O, s:i}", "device",
                                    json_object_get(disk, "node"), "parts", (int)n_parts(ctl));
    if (!map)
        return -1;
    join(disk, map);
    if (page)
        return write_page(page, map, error);
    if (ctl->output.format != OUTPUT_TABLE)
        output_json(&ctl->output, map);
    else if (ctl->output.is_bare)
        output_rows(&ctl->output, json_object_get(map, "layers"),
                    (const Column[]){{"title", "LAYER", CELL_NAME},
                                     {"shown", "SHOWN", CELL_SIZE},
                                     {"data", "DATA", CELL_SIZE},
                                     {"filename", "FILE", CELL_TEXT},
                                     {0}},
                    NULL);
    else
        map_view_print(&ctl->output, map);
    return CTL_OK;
}

static const VerbOption options[] = {
    {"html", 0, WORD_FILE, "FILE", "write a page with the picture instead; -: print it"},
    {"parts", 0, WORD_NUMBER, "N", "into how many parts the disk is divided"},
    {0},
};
static const VerbWord words[] = {{"DISK", WORD_DISK}, {0}};

static const Verb verbs[] = {
    {
        .name = "map",
        .summary = "Show which layer owns what of a disk",
        .text = "A row for each layer: the darker, the more of a place is seen of that layer.\n"
                "Only metadata is read.",
        .examples = "chainctl map web\nchainctl map web --html=web.html\nchainctl map web -H",
        .words = words,
        .options = options,
        .run = run_map,
    },
    {0},
};

const VerbFamily verbs_map_family = {.verbs = verbs};
