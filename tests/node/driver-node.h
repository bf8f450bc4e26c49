// SPDX-License-Identifier: LGPL-2.1-or-later
// For tests: a node made by its driver, from options as a description gives them.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "chain-core/node-config.h"

// `text`: JSON with single quotes, of the driver's options. `child` is for its "file", if it has
// one. Negative with a sentence where it is refused.
static inline int driver_node_try(Fiber *self, const char *text, const DriverOptions *options,
                                  Node *child, Node **ret_node, GError **error)
{
    g_autofree char *json = g_strdelimit(g_strdup(text), "'", '"');
    json_t *object = json_loads(json, 0, NULL);
    assert_non_null(object);
    if (child)
        json_object_set_new(object, "file", json_string("child"));
    g_autoptr(NodeConfig) config = NULL;
    int r = node_config_new(object, true, &config, error);
    json_decref(object);
    if (r < 0)
        return r;
    DriverOptions with_values = *options;
    with_values.values = config->values;
    return config->driver->make(self, &with_values, child, ret_node, error);
}

static inline Node *driver_node_make(Fiber *self, const char *text, Node *child)
{
    g_autoptr(GError) error = NULL;
    Node *node;
    DriverOptions options = {.name = "test", .is_writable = true};
    if (driver_node_try(self, text, &options, child, &node, &error) < 0)
        fail_msg("%s: %s", text, error->message);
    return node;
}
