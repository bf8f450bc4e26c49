// SPDX-License-Identifier: LGPL-2.1-or-later
#include "job-start.h"

#include <stdio.h>

#include "job-follow.h"

char *job_start_new_id(Ctl *ctl, const char *verb, GError **error)
{
    json_auto_t *jobs = ctl_run(ctl, "query-jobs", NULL, error);
    if (!jobs)
        return NULL;
    for (unsigned n = 1;; n++) {
        g_autofree char *id = g_strdup_printf("%s-%u", verb, n);
        size_t i;
        const json_t *job;
        bool is_free = true;
        json_array_foreach(jobs, i, job)
        {
            is_free &= g_strcmp0(json_string_value(json_object_get(job, "id")), id) != 0;
        }
        if (is_free)
            return g_steal_pointer(&id);
    }
}

static void print_id(const Ctl *ctl, const char *id)
{
    json_auto_t *object = json_pack("{s:s}", "id", id);
    if (ctl->output.format == OUTPUT_TABLE)
        puts(id);
    else
        output_json(&ctl->output, object);
}

// The job is there; before it, `before` was counted.
static int follow(Ctl *ctl, const JobStart *start, const char *id, const Latency *before,
                  GError **error)
{
    if (arguments_flag(ctl->arguments, "async")) {
        print_id(ctl, id);
        return CTL_OK;
    }
    return job_follow(ctl,
                      &(JobFollow){
                          .id = id,
                          .label = start->label,
                          .timeout_s = -1,
                          .disk = start->disk,
                          .before = before,
                          .completes = start->completes,
                          .is_known = true,
                      },
                      error);
}

int job_start(Ctl *ctl, const JobStart *start, GError **error)
{
    Latency before = {0};
    json_auto_t *args = start->args;
    if (latency_load(ctl, start->disk, &before, error) < 0)
        return -1;
    json_auto_t *reply = ctl_run(ctl, start->command, json_incref(args), error);
    if (!reply)
        return -1;
    if (start->tell)
        start->tell(reply);
    const char *id = start->id ? start->id : json_string_value(json_object_get(reply, "job"));
    if (id)
        return follow(ctl, start, id, &before, error);
    if (ctl->output.format != OUTPUT_TABLE)
        output_json(&ctl->output, reply);
    return CTL_OK;
}

void job_start_add_space(const Ctl *ctl, json_t *args)
{
    if (arguments_flag(ctl->arguments, "no-check-space"))
        json_object_set_new(args, "check-space", json_false());
}

void job_start_add_speed(const Ctl *ctl, json_t *args)
{
    if (arguments_have(ctl->arguments, "speed"))
        json_object_set_new(args, "speed",
                            json_integer((json_int_t)arguments_size(ctl->arguments, "speed", 0)));
}
