// SPDX-License-Identifier: LGPL-2.1-or-later
// Joining and leaving, for connections that come and go and for limits that change under them.
#include "throttle.h"

void nbds_throttle_join(NbdsConnection *c)
{
    ThrottleGroup *group = c->export->throttle_group;
    nbds_connection_unthrottle(c); // limits may have changed before it began
    if (group)
        c->throttle = throttle_member_new(throttle_group_ref(group), c->server_loop->loop);
    c->admission.keeps_to_its_share = group;
}

void nbds_throttle_wait(Fiber *self, const NbdsConnection *c, const NbdsRequestHead *head)
{
    switch ((NbdsCommand)head->type) {
    case NBDS_CMD_READ:
    case NBDS_CMD_CACHE:
        return throttle_member_wait(self, c->throttle, false, MIN(head->length, NBDS_MAX_PAYLOAD));
    case NBDS_CMD_WRITE:
        return throttle_member_wait(self, c->throttle, true, head->length);
    case NBDS_CMD_WRITE_ZEROES:
    case NBDS_CMD_TRIM:
        return throttle_member_wait(self, c->throttle, true, 0);
    case NBDS_CMD_FLUSH:
    case NBDS_CMD_DISC:
    case NBDS_CMD_BLOCK_STATUS:
        return;
    }
}

void nbds_export_set_throttle(NbdsExport *export, ThrottleGroup *group)
{
    g_clear_pointer(&export->throttle_group, throttle_group_unref);
    export->throttle_group = group;
    for (const GList *l = export->server_loop->connections.head; l; l = l->next) {
        NbdsConnection *c = l->data;
        if (c->export == export && c->state == NBDS_STATE_TRANSMISSION && !c->destination)
            nbds_throttle_join(c);
    }
}
