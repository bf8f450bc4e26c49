// SPDX-License-Identifier: LGPL-2.1-or-later
// From the head of each disk down to its base, one layer a line:
//
//     web  20 GiB qcow2, 2 clients  nbd+unix:///web?socket=/run/chaind/nbd.sock
//     ├─ head  312 MiB  /srv/web.3.qcow2
//     ├─ @mon  1.1 GiB  /srv/web.2.qcow2  shared with db
//     └─ base  2.1 GiB  /srv/web.1.qcow2  shared with db
//        job 7  commit  running  61%  412 MiB/s
#include "tree.h"

#include <glib.h>
#include <stdio.h>

#include "disk-view.h"
#include "field.h"
#include "job-follow.h"
#include "units.h"

// Owned.
static char *styled(const Output *output, OutputStyle style, const char *text)
{
    g_autofree char *clean = output_clean(text);
    const char *on = style == STYLE_PLAIN ? "" : output_style(output, style);
    return g_strconcat(on, clean, *on ? output_style(output, STYLE_PLAIN) : "", NULL);
}

static void print_disk(const Output *output, const json_t *disk)
{
    g_autofree char *name = styled(output, STYLE_NAME, field_text(disk, "name"));
    g_autofree char *size = output_cell(output, field(disk, "size"), CELL_SIZE);
    const char *uri = json_string_value(json_array_get(field(disk, "uris"), 0));
    g_autofree char *where = styled(output, STYLE_DIM, uri ? uri : "not exported");
    json_int_t clients = field_int(disk, "clients");
    printf("%s  %s %s%s, %" JSON_INTEGER_FORMAT " client%s  %s\n", name, size,
           field_text(disk, "format"), json_is_true(field(disk, "read-only")) ? ", read-only" : "",
           clients, clients == 1 ? "" : "s", where);
}

static char *names_text(const json_t *names)
{
    enum { SHOWN = 4 };
    GString *text = g_string_new(NULL);
    size_t i;
    const json_t *name;
    json_array_foreach(names, i, name)
    {
        if (i == SHOWN) {
            g_string_append_printf(text, " and %zu more", json_array_size(names) - SHOWN);
            break;
        }
        g_string_append_printf(text, "%s%s", i ? ", " : "", json_string_value(name));
    }
    return g_string_free(text, FALSE);
}

static void print_list(const Output *output, const char *title, const json_t *names,
                       OutputStyle style)
{
    if (!json_array_size(names))
        return;
    g_autofree char *list = names_text(names);
    g_autofree char *text = g_strconcat(title, list, NULL);
    g_autofree char *shown = styled(output, style, text);
    printf("  %s", shown);
}

static void print_layers(const Output *output, const json_t *disk)
{
    const json_t *layers = field(disk, "layers");
    size_t i, n = json_array_size(layers);
    const json_t *layer;
    unsigned title_width = 0, size_width = 0;
    json_array_foreach(layers, i, layer)
    {
        g_autofree char *title = disk_view_layer_title(disk, i);
        g_autofree char *size = output_cell(output, field(layer, "allocated"), CELL_SIZE);
        title_width = MAX(title_width, output_width(title));
        size_width = MAX(size_width, output_width(size));
    }
    json_array_foreach(layers, i, layer)
    {
        g_autofree char *title = disk_view_layer_title(disk, i);
        g_autofree char *size = output_cell(output, field(layer, "allocated"), CELL_SIZE);
        g_autofree char *file = output_clean(field_text(layer, "filename"));
        g_autofree char *name = styled(output, i ? STYLE_PLAIN : STYLE_BOLD, title);
        printf("%s─ %s%*s  %*s%s  %s", i + 1 == n ? "└" : "├", name,
               (int)(title_width - output_width(title)), "", (int)(size_width - output_width(size)),
               "", size, file);
        print_list(output, "shared with ", field(layer, "shared"), STYLE_DIM);
        print_list(output, "snapshots: ", field(layer, "snapshots"), STYLE_DIM);
        putchar('\n');
    }
}

// Points that the head does not stand on, as after a rollback.
static void print_other_points(const Output *output, const json_t *points)
{
    size_t i;
    const json_t *point;
    json_array_foreach(points, i, point)
    {
        if (json_is_true(field(point, "in-chain")))
            continue;
        g_autofree char *title = g_strconcat("@", field_text(point, "name"), NULL);
        g_autofree char *name = styled(output, STYLE_PLAIN, title);
        g_autofree char *what = styled(output, STYLE_DIM, "beside the chain");
        printf("   %s  %s\n", name, what);
    }
}

static void print_problem(const Output *output, const json_t *disk)
{
    const char *problem = json_string_value(field(disk, "problem"));
    g_autofree char *text = problem ? styled(output, STYLE_BAD, problem) : NULL;
    if (text)
        printf("   not open: %s\n", text);
}

static void print_job(const Output *output, const json_t *job)
{
    const char *status = field_text(job, "status");
    g_autofree char *name = styled(output, STYLE_BOLD, field_text(job, "id"));
    g_autofree char *state = styled(output, output_style_of_state(status), status);
    g_autofree char *rate = output_cell(output, field(job, "rate"), CELL_RATE);
    printf("   job %s  %s  %s  %" JSON_INTEGER_FORMAT "%%  %s", name, field_text(job, "type"),
           state, field_int(job, "percent"), rate);
    if (field(job, "seconds-left")) {
        g_autofree char *left = units_clock((uint64_t)field_int(job, "seconds-left"));
        printf("  ETA %s", left);
    }
    putchar('\n');
}

static void print_bitmaps(const Output *output, const json_t *bitmaps)
{
    size_t i;
    const json_t *bitmap;
    json_array_foreach(bitmaps, i, bitmap)
    {
        bool is_bad = json_is_true(field(bitmap, "inconsistent"));
        g_autofree char *name = styled(output, STYLE_BOLD, field_text(bitmap, "name"));
        g_autofree char *size = units_size((uint64_t)field_int(bitmap, "count"));
        g_autofree char *state =
            styled(output, is_bad ? STYLE_BAD : STYLE_DIM, is_bad ? "inconsistent" : "dirty");
        printf("   bitmap %s  %s %s\n", name, size, state);
    }
}

void tree_print(const Output *output, const json_t *disks, const json_t *jobs)
{
    size_t i, j;
    const json_t *disk, *id;
    json_array_foreach(disks, i, disk)
    {
        if (i)
            putchar('\n');
        print_disk(output, disk);
        print_layers(output, disk);
        print_other_points(output, field(disk, "points"));
        print_bitmaps(output, field(disk, "bitmaps"));
        print_problem(output, disk);
        json_array_foreach(field(disk, "jobs"), j, id)
        {
            const json_t *job = job_rows_find(jobs, json_string_value(id));
            if (job)
                print_job(output, job);
        }
    }
}
