// SPDX-License-Identifier: LGPL-2.1-or-later
// A message for each loop, which is posted again only when all have come.
#include "heartbeat.h"

#include <stdatomic.h>

typedef struct Beat {
    LoopCall call; // first
    Heartbeat *heartbeat;
} Beat;

struct Heartbeat {
    GPtrArray *beats; // Beat; as many as there were loops
    atomic_uint n_unanswered;
};

Heartbeat *heartbeat_new(void)
{
    Heartbeat *heartbeat = g_new0(Heartbeat, 1);
    heartbeat->beats = g_ptr_array_new_with_free_func(g_free);
    return heartbeat;
}

void heartbeat_free(Heartbeat *heartbeat)
{
    if (!heartbeat)
        return;
    g_ptr_array_unref(heartbeat->beats);
    g_free(heartbeat);
}

// On the loop that was asked.
static void answer(LoopCall *call)
{
    atomic_fetch_sub(&((Beat *)call)->heartbeat->n_unanswered, 1);
}

bool heartbeat_check(Heartbeat *heartbeat, const GPtrArray *loops)
{
    if (atomic_load(&heartbeat->n_unanswered))
        return false;
    while (heartbeat->beats->len < loops->len) {
        Beat *beat = g_new0(Beat, 1);
        *beat = (Beat){.call.fn = answer, .heartbeat = heartbeat};
        g_ptr_array_add(heartbeat->beats, beat);
    }
    atomic_store(&heartbeat->n_unanswered, loops->len);
    for (guint i = 0; i < loops->len; i++)
        loop_post(loops->pdata[i], heartbeat->beats->pdata[i]);
    return true;
}
