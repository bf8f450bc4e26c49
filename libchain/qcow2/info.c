// SPDX-License-Identifier: LGPL-2.1-or-later
// What a view tells of its image to who asks over QMP, in the words of QEMU's ImageInfo. On the
// image's loop; does not suspend.
#include "qcow2/info.h"

#include "chain-core/qcow2-snapshot.h"
#include "qcow2/image.h"
#include "qcow2/mapping.h"

static json_t *format_specific(const Qcow2Image *image)
{
    const Qcow2Header *h = &image->header;
    json_t *data =
        json_pack("{s:s, s:s, s:i}", "compat", h->version < 3 ? "0.10" : "1.1", "compression-type",
                  h->compression == QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib", "refcount-bits",
                  1 << h->refcount_order);
    if (h->version < 3)
        return data;
    bool is_corrupt = image->corrupt || h->incompatible & QCOW2_INCOMPAT_CORRUPT;
    json_object_set_new(data, "lazy-refcounts",
                        json_boolean(h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS));
    json_object_set_new(data, "corrupt", json_boolean(is_corrupt));
    json_object_set_new(data, "extended-l2",
                        json_boolean(h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2));
    if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE)
        json_object_set_new(data, "data-file-raw",
                            json_boolean(h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA));
    // What is no UTF-8 cannot be said in JSON.
    json_t *data_file = h->data_file_name ? json_string(h->data_file_name) : NULL;
    if (data_file)
        json_object_set_new(data, "data-file", data_file);
    return data;
}

static void set_string(json_t *object, const char *name, const char *text)
{
    if (text && *text)
        json_object_set_new(object, name, json_string(text));
}

static json_t *snapshots_of(Node *node)
{
    enum { NS_PER_S = 1000000000 };
    g_autoptr(GArray) infos = qcow2_snapshots(node);
    json_t *all = json_array();
    for (guint i = 0; i < infos->len; i++) {
        const Qcow2SnapshotInfo *info = &g_array_index(infos, Qcow2SnapshotInfo, i);
        json_t *each =
            json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "id", info->id, "name", info->name,
                      "vm-state-size", (json_int_t)info->vm_state_bytes, "date-sec",
                      (json_int_t)info->date_sec, "date-nsec", (json_int_t)info->date_nsec,
                      "vm-clock-sec", (json_int_t)(info->vm_clock_ns / NS_PER_S), "vm-clock-nsec",
                      (json_int_t)(info->vm_clock_ns % NS_PER_S));
        if (each && info->icount != UINT64_MAX)
            json_object_set_new(each, "icount", json_integer((json_int_t)info->icount));
        if (each)
            json_array_append_new(all, each);
    }
    return all;
}

json_t *qcow2_info(Node *node)
{
    const Qcow2Image *image = ((const Qcow2View *)node)->image;
    const Qcow2Header *h = &image->header;
    json_t *info =
        json_pack("{s:I, s:b, s:{s:s, s:o}}", "cluster-size", (json_int_t)1 << h->cluster_bits,
                  "dirty-flag", (h->incompatible & QCOW2_INCOMPAT_DIRTY) != 0, "format-specific",
                  "type", "qcow2", "data", format_specific(image));
    set_string(info, "backing-filename", h->backing_name);
    set_string(info, "backing-filename-format", h->backing_format);
    json_t *snapshots = snapshots_of(node);
    if (json_array_size(snapshots))
        json_object_set(info, "snapshots", snapshots);
    json_decref(snapshots);
    return info;
}
