// SPDX-License-Identifier: LGPL-2.1-or-later
// BlockDeviceInfo and ImageInfo, as QEMU makes them. Control loop.
#include "node-info.h"

#include <string.h>
#include <sys/stat.h>

#include "bitmaps.h"
#include "chain-core/whole-sectors.h"
#include "daemon/bitmaps.h"
#include "daemon/write-threshold.h"

// -- types ----------------------------------------------------------------------------------------

const QmpType snapshot_info = {
    .name = "SnapshotInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"id", &qmp_str, .doc = "a number"},
                                   {"name", &qmp_str, .doc = "what the user called it"},
                                   {"vm-state-size", &qmp_int, .doc = "bytes of a machine's state"},
                                   {"date-sec", &qmp_int, .doc = "when it was made"},
                                   {"date-nsec", &qmp_int, .doc = "and the fraction"},
                                   {"vm-clock-sec", &qmp_int, .doc = "the machine's clock"},
                                   {"vm-clock-nsec", &qmp_int, .doc = "and the fraction"},
                                   {"icount", &qmp_int, true, "instructions executed"},
                                   {0}},
};
static const QmpType snapshot_infos = {.kind = QMP_ARRAY, .element = &snapshot_info};

static const QmpType image_info;
static const QmpType image_info = {
    .name = "ImageInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){
            {"filename", &qmp_str, .doc = "the image's name"},
            {"format", &qmp_str, .doc = "the driver"},
            {"virtual-size", &qmp_int, .doc = "bytes that it shows"},
            {"actual-size", &qmp_int, true, "bytes that its file takes"},
            {"dirty-flag", &qmp_bool, true, "whether it was not closed"},
            {"cluster-size", &qmp_int, true, "bytes of a cluster"},
            {"backing-filename", &qmp_str, true, "what the header names as lying below"},
            {"full-backing-filename", &qmp_str, true, "the same as a path"},
            {"backing-filename-format", &qmp_str, true, "the format recorded with it"},
            {"snapshots", &snapshot_infos, true, "internal snapshots"},
            {"backing-image", &image_info, true, "the node below"},
            {"format-specific", &qmp_any, true, "what only this format has"},
            {0}},
};

static const QmpType cache_info = {
    .name = "BlockdevCacheInfo",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"writeback", &qmp_bool, .doc = "true"},
                                   {"direct", &qmp_bool, .doc = "past the page cache"},
                                   {"no-flush", &qmp_bool, .doc = "as it was given"},
                                   {0}},
};

#define LIMIT_DOC "always 0: limits are in throttle nodes"
const QmpType block_device_info = {
    .name = "BlockDeviceInfo",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"node-name", &qmp_str, true, "the node"},
                            {"drv", &qmp_str, .doc = "its driver"},
                            {"file", &qmp_str, .doc = "its name as a file"},
                            {"ro", &qmp_bool, .doc = "whether it is read-only"},
                            {"active", &qmp_bool, .doc = "what blockdev-set-active said"},
                            {"backing_file", &qmp_str, true, "the name of what lies below"},
                            {"backing_file_depth", &qmp_int, .doc = "how many nodes lie below"},
                            {"encrypted", &qmp_bool, .doc = "false"},
                            {"detect_zeroes", &qmp_str, .doc = "as it was given"},
                            {"bps", &qmp_int, .doc = LIMIT_DOC},
                            {"bps_rd", &qmp_int, .doc = LIMIT_DOC},
                            {"bps_wr", &qmp_int, .doc = LIMIT_DOC},
                            {"iops", &qmp_int, .doc = LIMIT_DOC},
                            {"iops_rd", &qmp_int, .doc = LIMIT_DOC},
                            {"iops_wr", &qmp_int, .doc = LIMIT_DOC},
                            {"image", &image_info, .doc = "the image"},
                            {"cache", &cache_info, .doc = "how its files are opened"},
                            {"write_threshold", &qmp_int, .doc = "of block-set-write-threshold"},
                            {"dirty-bitmaps", &bitmap_infos_type, true, "its dirty bitmaps"},
                            {0}},
};

// -- many nodes -----------------------------------------------------------------------------------

// What the host says of a file.
typedef struct FileFacts {
    uint64_t allocated_bytes;
    uint64_t size_bytes; // of a regular file; else 0
} FileFacts;

// An image with all below it, each in the one above.
typedef struct NestedImage {
    json_t *info;
    unsigned depth; // how many lie below
} NestedImage;

struct NodeInfos {
    GHashTable *files;  // by path: FileFacts
    GHashTable *nested; // NestedImage, by node name: made once, part of all above
    unsigned n_images;
};

static void nested_image_free(gpointer p)
{
    json_decref(((NestedImage *)p)->info);
    g_free(p);
}

static int measure(void *arg)
{
    NodeInfos *infos = arg;
    GHashTableIter iter;
    gpointer path, facts;
    g_hash_table_iter_init(&iter, infos->files);
    while (g_hash_table_iter_next(&iter, &path, &facts)) {
        struct stat st;
        if (stat(path, &st) == 0)
            *(FileFacts *)facts = (FileFacts){
                .allocated_bytes = (uint64_t)st.st_blocks * 512,
                .size_bytes = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0,
            };
    }
    return 0;
}

NodeInfos *node_infos_new(Fiber *self, const GPtrArray *nodes)
{
    NodeInfos *infos = g_new0(NodeInfos, 1);
    infos->files = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    infos->nested = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, nested_image_free);
    for (guint i = 0; i < nodes->len; i++) {
        const char *path = named_node_file_name(nodes->pdata[i]);
        if (*path && !g_hash_table_contains(infos->files, path))
            g_hash_table_insert(infos->files, g_strdup(path), g_new0(FileFacts, 1));
    }
    loop_work(self, measure, infos);
    return infos;
}

void node_infos_free(NodeInfos *infos)
{
    g_hash_table_unref(infos->files);
    g_hash_table_unref(infos->nested);
    g_free(infos);
}

unsigned node_infos_n_images(const NodeInfos *infos)
{
    return infos->n_images;
}

// -- names ----------------------------------------------------------------------------------------

// What describes `named` in a json: name: its driver and what decides about its content. A new
// object.
static json_t *describe(const NamedNode *named)
{
    static const char *const decisive[] = {"offset", "size", "filename", "snapshot"};
    json_t *object = json_pack("{s:s}", "driver", named->driver->name);
    for (size_t i = 0; i < G_N_ELEMENTS(decisive); i++) {
        json_t *value = named->config ? json_object_get(named->config->values, decisive[i]) : NULL;
        if (value)
            json_object_set(object, decisive[i], value);
    }
    if (named->driver->is_file)
        json_object_set_new(object, "filename", json_string(named_node_file_name(named)));
    for (guint i = 0; i < named->children->len; i++) {
        const NodeUse *use = named->children->pdata[i];
        if (!g_str_equal(use->role, "backing"))
            json_object_set_new(object, use->role, describe(use->used));
    }
    return object;
}

static char *exact_name(const NamedNode *named);

// Lies another file below it than the one that its header names?
static bool has_other_backing(const NamedNode *named)
{
    const char *recorded =
        json_string_value(json_object_get(named->facts.info, "backing-filename"));
    bool is_given = named->config && node_config_child(named->config, "backing");
    const NamedNode *backing = named_node_child(named, "backing");
    g_autofree char *name = backing && is_given ? exact_name(backing) : NULL;
    return is_given && (backing ? !name || g_strcmp0(recorded, name) != 0 : recorded != NULL);
}

// Of what is a format in a file, that file's.
static char *exact_name_of_format(const NamedNode *named)
{
    static const char *const decisive[] = {"offset", "size", "snapshot"};
    const json_t *values = named->config ? named->config->values : NULL;
    const NamedNode *file = named_node_child(named, "file");
    for (size_t i = 0; i < G_N_ELEMENTS(decisive); i++)
        if (json_object_get(values, decisive[i]))
            return NULL;
    bool is_plain = file && (file->driver->is_file || file->driver->exact_name) &&
                    !file->driver->keeps_below && !file->driver->is_view;
    return is_plain && !has_other_backing(named) ? exact_name(file) : NULL;
}

// The node's name as a file, where one says all of it; owned, or NULL. Recursion is bounded by what
// lies between layers.
static char *exact_name(const NamedNode *named)
{
    const NamedNode *below = named_node_lower(named);
    g_autofree char *name = NULL;
    if (named->driver->is_file)
        return g_strdup(named_node_file_name(named));
    if (named->driver->open)
        return exact_name_of_format(named);
    if (!named->driver->exact_name)
        return NULL;
    name = below ? exact_name(below) : NULL;
    return named->driver->exact_name(named->config ? named->config->values : NULL, name);
}

// The node's name as a file; owned.
static char *file_name(const NamedNode *named)
{
    char *name = exact_name(named);
    if (name)
        return name;
    json_t *object = describe(named);
    char *text = json_dumps(object, JSON_PRESERVE_ORDER);
    name = g_strconcat("json:", text, NULL);
    free(text);
    json_decref(object);
    return name;
}

static void set_text(json_t *object, const char *name, const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1); // names of files may be anything
    json_object_set_new(object, name, json_string(valid));
}

// -- info -----------------------------------------------------------------------------------------

// QEMU counts disks in sectors.
static json_int_t whole_sectors(uint64_t bytes)
{
    return (json_int_t)((bytes + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES);
}

// Does an image lie in it, perhaps behind filters, which makes it longer by itself?
static bool holds_image(const NamedNode *named)
{
    for (guint i = 0; i < named->users->len; i++) {
        const NodeUse *use = named->users->pdata[i];
        if (use->by && !g_str_equal(use->role, "backing") &&
            (!driver_passes_on(use->by->driver) || holds_image(use->by)))
            return true;
    }
    return false;
}

static uint64_t size_now(const NamedNode *named, const NodeInfos *infos)
{
    uint64_t from = 0, size = named->facts.size_bytes;
    const NamedNode *below = named, *lower;
    while (holds_image(named) && driver_passes_on(below->driver) &&
           (lower = named_node_lower(below))) {
        const json_t *values = below->config ? below->config->values : NULL;
        if (json_object_get(values, "size"))
            return size;
        from += driver_value_int(values, "offset", 0);
        below = lower;
    }
    const FileFacts *file = below->driver->is_file
                                ? g_hash_table_lookup(infos->files, named_node_file_name(below))
                                : NULL;
    return file && file->size_bytes > from ? MAX(size, file->size_bytes - from) : size;
}

// Facts are older than what a client has met since.
static void add_corruption(json_t *info, const Node *node)
{
    if (!node->is_corrupt || !atomic_load(node->is_corrupt))
        return;
    json_t *specific = json_deep_copy(json_object_get(info, "format-specific"));
    json_t *data = json_object_get(specific, "data");
    if (json_object_get(data, "corrupt")) // version 2 does not say it
        json_object_set_new(data, "corrupt", json_true());
    json_object_set_new(info, "format-specific", specific);
}

static json_t *image_info_of(const NamedNode *named, const NodeInfos *infos)
{
    json_t *info =
        named->facts.info ? json_copy(named->facts.info) : json_pack("{s:b}", "dirty-flag", 0);
    add_corruption(info, named->node);
    g_autofree char *name = file_name(named);
    const char *path = named_node_file_name(named);
    const FileFacts *file = g_hash_table_lookup(infos->files, path);
    set_text(info, "filename", name);
    json_object_set_new(info, "format", json_string(named->driver->name));
    json_object_set_new(info, "virtual-size", json_integer(whole_sectors(size_now(named, infos))));
    if (g_str_equal(named->driver->name, "file"))
        json_object_set_new(info, "format-specific",
                            json_pack("{s:s, s:{}}", "type", "file", "data"));
    if (file)
        json_object_set_new(info, "actual-size", json_integer((json_int_t)file->allocated_bytes));
    const char *backing = json_string_value(json_object_get(info, "backing-filename"));
    if (!backing)
        return info;
    g_autofree char *dir = g_path_get_dirname(path);
    bool is_relative = *backing != '/' && !strchr(backing, ':');
    g_autofree char *full =
        is_relative && strchr(path, '/') ? g_build_filename(dir, backing, NULL) : g_strdup(backing);
    set_text(info, "full-backing-filename", full);
    return info;
}

// What it shows instead of what it has not itself; NULL: nothing.
static const NamedNode *below(const NamedNode *named)
{
    return named_node_child(named, named->driver->make ? "file" : "backing");
}

// What was described within another node takes over what that one was told.
static const json_t *values_with(const NamedNode *named, const char *option)
{
    while (named->config && !json_object_get(named->config->values, option)) {
        const NodeUse *use = named->users->len ? named->users->pdata[0] : NULL;
        if (named->is_added || !use || !use->by || use->by->origin != named->origin)
            break;
        named = use->by;
    }
    return named->config ? named->config->values : NULL;
}

static json_t *cache_info_of(const NamedNode *named)
{
    const json_t *values = values_with(named, "cache");
    return json_pack("{s:b, s:b, s:b}", "writeback", 1, "direct",
                     driver_value_bool(values, "cache.direct", false), "no-flush",
                     driver_value_bool(values, "cache.no-flush", false));
}

// From the lowest that is not known yet up, since a chain may be deeper than a stack.
static const NestedImage *nested_image(NodeInfos *infos, const NamedNode *named)
{
    g_autoptr(GPtrArray) unknown = g_ptr_array_new();
    const NestedImage *lower = NULL;
    for (; named && !(lower = g_hash_table_lookup(infos->nested, named->name));
         named = below(named))
        g_ptr_array_add(unknown, (gpointer)named);
    for (guint i = unknown->len; i-- > 0;) {
        NestedImage *image = g_new0(NestedImage, 1);
        named = unknown->pdata[i];
        image->info = image_info_of(named, infos);
        if (lower) {
            json_object_set(image->info, "backing-image", lower->info);
            image->depth = lower->depth + 1;
        }
        g_hash_table_insert(infos->nested, g_strdup(named->name), image);
        lower = image;
    }
    return lower;
}

static json_t *image_of(NodeInfos *infos, const NamedNode *named, bool is_flat, unsigned *ret_depth)
{
    const NestedImage *nested = is_flat ? NULL : nested_image(infos, named);
    *ret_depth = nested ? nested->depth : 0;
    infos->n_images += *ret_depth + 1;
    return nested ? json_incref(nested->info) : image_info_of(named, infos);
}

json_t *node_infos_get(NodeInfos *infos, const NamedNode *named, bool is_flat)
{
    static const char *const limits[] = {"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"};
    const json_t *values = named->config ? named->config->values : NULL;
    unsigned depth;
    json_t *image = image_of(infos, named, is_flat, &depth);
    json_t *info = json_pack(
        "{s:s, s:s, s:b, s:b, s:i, s:b, s:s, s:o, s:o, s:I}", "node-name", named->name, "drv",
        named->driver->name, "ro", named_node_says_read_only(named), "active", !named->is_inactive,
        "backing_file_depth", (int)depth, "encrypted", 0, "detect_zeroes",
        driver_value_str(values, "detect-zeroes", "off"), "image", image, "cache",
        cache_info_of(named), "write_threshold", (json_int_t)write_threshold_get(named));
    for (size_t i = 0; i < G_N_ELEMENTS(limits); i++)
        json_object_set_new(info, limits[i], json_integer(0));
    g_autofree char *name = file_name(named);
    set_text(info, "file", name);
    const NamedNode *backing = named_node_child(named, "backing");
    g_autofree char *backing_name = backing ? file_name(backing) : NULL;
    if (backing_name)
        set_text(info, "backing_file", backing_name);
    json_t *bitmaps = bitmaps_info(named);
    if (bitmaps)
        json_object_set_new(info, "dirty-bitmaps", bitmaps);
    return info;
}
