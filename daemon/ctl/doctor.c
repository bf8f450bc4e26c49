// SPDX-License-Identifier: LGPL-2.1-or-later
// Each finding names what is wrong, and the command that mends it. Nothing is changed, unless
// --mend says so, and then only what can be mended while disks are used: bitmaps that nobody can
// trust any more are removed.
#include "doctor.h"

#include <stdio.h>
#include <string.h>

#include "ctl.h"
#include "disk-view.h"
#include "field.h"
#include "units.h"

typedef struct Doctor {
    Ctl *ctl;
    json_t *findings;
} Doctor;

// `remedy`: a command, or what to do. Takes both texts.
static void find(Doctor *doctor, const json_t *disk, const char *kind, const char *severity,
                 char *problem, char *remedy)
{
    json_array_append_new(doctor->findings,
                          json_pack("{s:s, s:s, s:s, s:s, s:s}", "disk", field_text(disk, "name"),
                                    "kind", kind, "severity", severity, "problem", problem,
                                    "remedy", remedy));
    g_free(problem);
    g_free(remedy);
}

// -- what there may be ----------------------------------------------------------------------------

static void check_open(Doctor *doctor, const json_t *disk)
{
    const char *problem = json_string_value(field(disk, "problem"));
    if (problem)
        find(doctor, disk, "not-open", "error", g_strdup_printf("it is not open: %s", problem),
             g_strdup("mend what is said, then start the daemon again"));
}

static int mend_bitmap(Doctor *doctor, const json_t *disk, const json_t *name, GError **error)
{
    return ctl_do(doctor->ctl, "block-dirty-bitmap-remove",
                  json_pack("{s:O, s:O}", "node",
                            field(json_array_get(field(disk, "layers"), 0), "node"), "name", name),
                  error);
}

static int check_bitmaps(Doctor *doctor, const json_t *disk, GError **error)
{
    size_t i;
    const json_t *bitmap;
    json_array_foreach(field(disk, "bitmaps"), i, bitmap)
    {
        if (!json_is_true(field(bitmap, "inconsistent")))
            continue;
        if (arguments_flag(doctor->ctl->arguments, "mend")) {
            if (mend_bitmap(doctor, disk, field(bitmap, "name"), error) < 0)
                return -1;
            continue;
        }
        find(doctor, disk, "bitmap", "warning",
             g_strdup_printf("bitmap '%s' was in use when the daemon ended, and says nothing now: "
                             "the next backup is a full one",
                             field_text(bitmap, "name")),
             g_strdup_printf("chainctl doctor %s --mend", field_text(disk, "name")));
    }
    return 0;
}

static char *quoted(const json_t *layer)
{
    return g_shell_quote(field_text(layer, "filename"));
}

static void check_checked(Doctor *doctor, const json_t *disk, const json_t *layer)
{
    const json_t *check = field(layer, "check");
    json_int_t n_corruptions = json_integer_value(field(check, "corruptions"));
    json_int_t n_leaks = json_integer_value(field(check, "leaks"));
    g_autofree char *file = quoted(layer);
    if (field(check, "error")) {
        find(doctor, disk, "unchecked", "warning",
             g_strdup_printf("%s could not be checked: %s", field_text(layer, "filename"),
                             field_text(check, "error")),
             g_strdup_printf("qemu-img check -U %s", file));
        return;
    }
    if (n_corruptions)
        find(doctor, disk, "corrupt", "error",
             g_strdup_printf("%s has %" JSON_INTEGER_FORMAT " faults in its tables",
                             field_text(layer, "filename"), n_corruptions),
             g_strdup_printf("while no daemon uses it: qemu-img check -r all %s", file));
    if (n_leaks) {
        g_autofree char *size = units_size((uint64_t)json_integer_value(field(check, "leaked")));
        find(doctor, disk, "leaks", "warning",
             g_strdup_printf("%s has %s that nothing uses", field_text(layer, "filename"), size),
             g_strdup_printf("while no daemon uses it: qemu-img check -r leaks %s", file));
    }
}

static int check_files(Doctor *doctor, const json_t *disk, GError **error)
{
    size_t i;
    const json_t *layer;
    json_auto_t *layers =
        ctl_run_with(doctor->ctl, "query-chain-health", error, "{s:O, s:b}", "device",
                     field(disk, "node"), "check", arguments_flag(doctor->ctl->arguments, "check"));
    if (!layers)
        return -1;
    json_array_foreach(layers, i, layer)
    {
        if (json_is_true(field(layer, "missing")))
            find(doctor, disk, "missing", "error",
                 g_strdup_printf("%s was removed, or replaced, while it is used: it is gone when "
                                 "the daemon ends",
                                 field_text(layer, "filename")),
                 g_strdup_printf("chainctl mirror %s NEWFILE", field_text(disk, "name")));
        if (field(layer, "changed"))
            find(doctor, disk, "changed", "error", g_strdup(field_text(layer, "changed")),
                 g_strdup("restore the file from a backup, then start the daemon again"));
        check_checked(doctor, disk, layer);
    }
    return 0;
}

// -- files that nothing knows ---------------------------------------------------------------------

static void add_files(GHashTable *known, const json_t *of, const char *key)
{
    size_t i;
    const json_t *one;
    json_array_foreach(of, i, one) g_hash_table_add(known, (gpointer)field_text(one, key));
}

// Absolute names of all files of layers and points, and of what is open besides (`nodes`).
static GHashTable *known_files(const json_t *disks, const json_t *nodes)
{
    GHashTable *known = g_hash_table_new(g_str_hash, g_str_equal);
    size_t i;
    const json_t *disk;
    add_files(known, nodes, "file");
    json_array_foreach(disks, i, disk)
    {
        add_files(known, field(disk, "layers"), "filename");
        add_files(known, field(disk, "points"), "filename");
    }
    return known;
}

// Only the daemon's own folder: elsewhere there may be anything.
static bool is_own_folder(const char *folder)
{
    g_autofree char *parent = g_path_get_dirname(folder);
    g_autofree char *database = g_build_filename(parent, "chaind.db", NULL);
    return g_file_test(database, G_FILE_TEST_EXISTS);
}

static void check_folder(Doctor *doctor, GHashTable *known, const char *folder)
{
    g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
    for (const char *name; dir && (name = g_dir_read_name(dir));) {
        g_autofree char *path = g_build_filename(folder, name, NULL);
        g_autofree char *file = g_shell_quote(path);
        bool is_image = g_str_has_suffix(name, ".qcow2") || g_str_has_suffix(name, ".raw");
        if (is_image && !g_hash_table_contains(known, path))
            find(doctor, NULL, "unreferenced", "warning",
                 g_strdup_printf("%s belongs to no disk", path),
                 g_strdup_printf("qemu-img info -U %s says what it is; then chainctl add NAME %s, "
                                 "or rm %s",
                                 file, file, file));
    }
}

static void check_folders(Doctor *doctor, const json_t *disks)
{
    json_auto_t *nodes =
        ctl_run_with(doctor->ctl, "query-named-block-nodes", NULL, "{s:b}", "flat", 1);
    if (!nodes)
        return;
    GHashTable *known = known_files(disks, nodes);
    GHashTable *seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    size_t i, j;
    const json_t *disk, *layer;
    json_array_foreach(disks, i, disk)
    {
        if (!json_is_true(field(disk, "is-remembered")))
            continue;
        json_array_foreach(field(disk, "layers"), j, layer)
        {
            g_autofree char *folder = g_path_get_dirname(field_text(layer, "filename"));
            if (g_path_is_absolute(folder) && !g_hash_table_contains(seen, folder) &&
                is_own_folder(folder))
                check_folder(doctor, known, folder);
            g_hash_table_add(seen, g_steal_pointer(&folder));
        }
    }
    g_hash_table_unref(seen);
    g_hash_table_unref(known);
}

// -- the verb -------------------------------------------------------------------------------------

static int examine(Doctor *doctor, const json_t *disks, GError **error)
{
    size_t i;
    const json_t *disk;
    json_array_foreach(disks, i, disk)
    {
        check_open(doctor, disk);
        if (json_string_value(field(disk, "problem")))
            continue;
        if (check_bitmaps(doctor, disk, error) < 0 || check_files(doctor, disk, error) < 0)
            return -1;
    }
    if (!ctl_word(doctor->ctl, 0))
        check_folders(doctor, disks);
    return 0;
}

static void print(const Ctl *ctl, const json_t *findings)
{
    static const Column columns[] = {
        {"severity", "SEVERITY", CELL_STATE}, {"disk", "DISK", CELL_NAME},
        {"kind", "KIND", CELL_TEXT},          {"problem", "PROBLEM", CELL_TEXT},
        {"remedy", "REMEDY", CELL_TEXT},      {0},
    };
    const Output *output = &ctl->output;
    size_t i;
    const json_t *finding;
    if (output->format != OUTPUT_TABLE || output->is_bare) {
        output_rows(output, findings, columns, NULL);
        return;
    }
    json_array_foreach(findings, i, finding)
    {
        const char *severity = field_text(finding, "severity"), *disk = field_text(finding, "disk");
        g_autofree char *problem = output_clean(field_text(finding, "problem"));
        g_autofree char *remedy = output_clean(field_text(finding, "remedy"));
        printf("%s%s%s: %s%s%s\n    %s\n", output_style(output, output_style_of_state(severity)),
               severity, output_style(output, STYLE_PLAIN), disk, *disk ? ": " : "", problem,
               remedy);
    }
    if (!json_array_size(findings))
        puts("nothing is wrong");
}

static bool has_errors(const json_t *findings)
{
    size_t i;
    const json_t *finding;
    json_array_foreach(findings, i, finding)
    {
        if (g_str_equal(field_text(finding, "severity"), "error"))
            return true;
    }
    return false;
}

static int run_doctor(Ctl *ctl, GError **error)
{
    json_auto_t *disks = disk_view_load(ctl, ctl_word(ctl, 0), error);
    json_auto_t *findings = json_array();
    Doctor doctor = {ctl, findings};
    if (!disks || examine(&doctor, disks, error) < 0)
        return -1;
    print(ctl, findings);
    return has_errors(findings) ? CTL_FAILED : CTL_OK;
}

static const VerbOption options[] = {
    {"check", 'c', WORD_NONE, NULL, "read and check tables of images nobody writes"},
    {"mend", 0, WORD_NONE, NULL, "remove bitmaps that say nothing any more"},
    {0},
};
static const VerbWord words[] = {{"DISK", WORD_DISK, .is_optional = true}, {0}};

static const Verb verbs[] = {
    {
        .name = "doctor",
        .summary = "Say what is wrong, and what mends it",
        .text = "Disks that are not open, files that are missing or were changed, bitmaps that\n"
                "say nothing any more, images that no disk has; with --check faults and leaks in\n"
                "images, too. The status is 1 when something is an error.",
        .examples = "chainctl doctor\nchainctl doctor web --check",
        .words = words,
        .options = options,
        .run = run_doctor,
    },
    {0},
};

const VerbFamily verbs_doctor_family = {.verbs = verbs};
