// SPDX-License-Identifier: LGPL-2.1-or-later
// Events of images and files become lines of the log and events of monitors. A disk that fails does
// so for every request: monitors hear of it at most once a second.
#include "node-origin.h"

#include <errno.h>

#include "log.h"
#include "message-ids.h"

enum { QUIET_US = G_USEC_PER_SEC };

static void log_notice(const NodeEvents *events, const char *sentence)
{
    const NodeOrigin *origin = (const NodeOrigin *)events;
    LogAbout about = {.disk = origin->label, .node = origin->name};
    log_about(LOG_WARNING, &about, "%s", sentence);
}

static void emit(const NodeOrigin *origin, const char *event, json_t *data)
{
    if (origin->emit)
        origin->emit(origin->emit_arg, event, data);
    else
        json_decref(data);
}

static void found_corrupt(const NodeEvents *events, const char *sentence)
{
    NodeOrigin *origin = (NodeOrigin *)events;
    origin->is_corrupt = true;
    LogAbout about = {MESSAGE_ID_IMAGE_CORRUPT, .disk = origin->label, .node = origin->name};
    log_about(LOG_ERROR, &about, "%s", sentence);
    emit(origin, "BLOCK_IMAGE_CORRUPTED",
         json_pack("{s:s, s:s, s:s, s:b}", "device", "", "node-name", origin->name, "msg", sentence,
                   "fatal", 1));
}

NodeOrigin *node_origin_new(const char *label, NodeConfig *config, NodeOriginEmit *emit_fn,
                            void *emit_arg)
{
    NodeOrigin *origin = g_new0(NodeOrigin, 1);
    *origin = (NodeOrigin){
        .events = {.corrupt = found_corrupt, .notice = log_notice},
        .n_refs = 1,
        .label = g_strdup(label),
        .config = config,
        .own_configs = g_ptr_array_new_with_free_func((GDestroyNotify)node_config_free),
        .emit = emit_fn,
        .emit_arg = emit_arg,
    };
    origin->file_log.disk = origin->label;
    return origin;
}

NodeOrigin *node_origin_ref(NodeOrigin *origin)
{
    origin->n_refs++;
    return origin;
}

void node_origin_unref(NodeOrigin *origin)
{
    if (!origin || --origin->n_refs > 0)
        return;
    file_log_done(&origin->file_log);
    g_ptr_array_unref(origin->own_configs);
    node_config_free(origin->config);
    g_free(origin->label);
    g_free(origin->name);
    g_free(origin);
}

static bool is_reading(FileEventKind kind)
{
    return kind == FILE_EVENT_READ_FAILED || kind == FILE_EVENT_MAP_FAILED ||
           kind == FILE_EVENT_DECODE_FAILED;
}

// To another size it comes by a command, which hears of it.
static bool is_of_requests(FileEventKind kind)
{
    return kind != FILE_EVENT_RESIZED && kind != FILE_EVENT_CHANGED &&
           kind != FILE_EVENT_TRUNCATE_FAILED;
}

void node_origin_file_event(File *file, const FileEvent *event, void *arg)
{
    NodeOrigin *origin = arg;
    file_log_event(file, event, &origin->file_log);
    gint64 now_us = g_get_monotonic_time();
    if (!is_of_requests(event->kind) || now_us < origin->quiet_until_us)
        return;
    origin->quiet_until_us = now_us + QUIET_US;
    emit(origin, "BLOCK_IO_ERROR",
         json_pack("{s:s, s:s, s:s, s:s, s:s, s:b, s:s}", "qom-path", "", "device", "", "node-name",
                   origin->name, "operation", is_reading(event->kind) ? "read" : "write", "action",
                   "report", "nospace", event->error == -ENOSPC, "reason",
                   g_strerror(-event->error)));
}
