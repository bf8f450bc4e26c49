// SPDX-License-Identifier: LGPL-2.1-or-later
// An iothread is a loop of its own (iothreads.h), to which block-export-add moves nodes. What its
// properties tune in QEMU is not tuned here: they are checked and told, and do nothing.
#include "daemon/qmp/args.h"
#include "object-kind.h"

#define ACCEPTED "accepted, does nothing"
static const QmpType properties = {
    .name = "IothreadProperties",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"poll-max-ns", &qmp_int, true, ACCEPTED ": see --busy-poll"},
                                   {"poll-grow", &qmp_int, true, ACCEPTED},
                                   {"poll-shrink", &qmp_int, true, ACCEPTED},
                                   {"aio-max-batch", &qmp_int, true, ACCEPTED},
                                   {"thread-pool-min", &qmp_int, true, ACCEPTED},
                                   {"thread-pool-max", &qmp_int, true, ACCEPTED},
                                   {0}},
};

static json_t *default_values(void)
{
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i}", "poll-max-ns", 32768, "poll-grow", 0,
                     "poll-shrink", 0, "aio-max-batch", 0, "thread-pool-min", 0, "thread-pool-max",
                     64);
}

static int check(const json_t *values, GError **error)
{
    for (const QmpMember *m = properties.members; m->type; m++)
        if (qmp_args_int(values, m->name, 0) < 0)
            return qmp_fail(error, "%s value must be in range [0, %" G_GINT64_FORMAT "]", m->name,
                            INT64_MAX);
    int64_t most = qmp_args_int(values, "thread-pool-max", 0);
    if (most == 0 || qmp_args_int(values, "thread-pool-min", 0) > most)
        return qmp_fail(error, "bad thread-pool-min/thread-pool-max values");
    return 0;
}

static int make(Fiber *self, Daemon *daemon, Object *object, const json_t *args, GError **error)
{
    object->values = default_values();
    json_object_update_existing(object->values, (json_t *)args);
    int r = check(object->values, error);
    if (r < 0)
        return r;
    object->loop = iothreads_take(daemon->iothreads, error);
    return object->loop ? 0 : -ENOMEM;
}

// Nodes that are on the loop stay there.
static int unmake(Daemon *daemon, Object *object, GError **error)
{
    iothreads_give_back(daemon->iothreads, object->loop);
    return 0;
}

static int set(Daemon *daemon, Object *object, const char *property, json_t *value, GError **error)
{
    json_auto_t *values = json_copy(object->values);
    json_object_set(values, property, value);
    int r = check(values, error);
    if (r == 0)
        json_object_set(object->values, property, value);
    return r;
}

const ObjectKind object_iothread_kind = {
    .name = "iothread",
    .parent = "event-loop-base",
    .properties = &properties,
    .make = make,
    .unmake = unmake,
    .get = object_kind_get_value,
    .set = set,
};
