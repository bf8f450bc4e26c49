// SPDX-License-Identifier: LGPL-2.1-or-later
// A move begins with all connections parked (connection-life.h), those too that come meanwhile, and
// ends with a message for each to the loop where the export lives then. What is written on the old
// loop until the end is the old loop's alone; `server_loop` is written last: who reads it there has
// not missed the queue of the parked ones.
#include "export-move.h"

#include <errno.h>

#include "connection-life.h"
#include "server-state.h"

// A client that takes its replies is parked in less than the time of one request. One that does not
// holds up nobody for longer: the move is refused.
static const uint64_t PARK_TIMEOUT_NS = 1000000000;

typedef struct Park {
    LoopTimer timer; // first
    NbdsExport *export;
    bool is_late;
} Park;

static void come_late(LoopTimer *timer)
{
    Park *p = (Park *)timer;
    p->is_late = true;
    fiber_queue_wake_all(&p->export->emptied);
}

static NbdsExport *export_of(Port *port)
{
    return (NbdsExport *)((char *)port - offsetof(NbdsExport, port));
}

static void attach(Port *port, Loop *loop)
{
    NbdsExport *export = export_of(port);
    NbdsServer *server = export->server_loop->server;
    pthread_mutex_lock(&server->lock);
    export->moved_to = nbds_server_get_loop(server, loop);
    pthread_mutex_unlock(&server->lock);
}

static void resume(Port *port)
{
    NbdsExport *export = export_of(port);
    GQueue parked = export->parked;
    NbdsServerLoop *server_loop = export->moved_to ? export->moved_to : export->server_loop;
    export->parked = (GQueue)G_QUEUE_INIT;
    export->moved_to = NULL;
    export->is_moving = false;
    export->server_loop = server_loop;
    for (GList *link; (link = g_queue_pop_head_link(&parked));)
        nbds_connection_resume(link->data);
}

static int park(Fiber *self, Port *port, GError **error)
{
    NbdsExport *export = export_of(port);
    Loop *loop = fiber_loop(self);
    export->is_moving = true;
    for (GList *l = export->server_loop->connections.head, *next; l; l = next) {
        NbdsConnection *c = l->data;
        next = l->next;
        if (c->export == export)
            nbds_connection_move(c, export, UINT64_MAX);
    }
    Park p = {.timer.fn = come_late, .export = export};
    loop_timer_start(loop, &p.timer, PARK_TIMEOUT_NS);
    while (export->n_connections && !p.is_late)
        fiber_queue_wait(self, &export->emptied, false, "nbd: clients to be parked");
    loop_timer_stop(loop, &p.timer);
    if (!export->n_connections)
        return 0;
    g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_AGAIN,
                "export '%s' cannot be moved to another loop: a client does not take its replies",
                export->info.name);
    resume(port);
    return -EBUSY;
}

const PortMoveOps nbds_export_move_ops = {park, attach, resume};
