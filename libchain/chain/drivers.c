// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of drivers: a new one of libchain adds its line here. And the options that all have.
// Pure; any thread.
#include "chain-core/driver.h"

#include <string.h>

#include "chain-core/nbd-client.h"
#include "chain-core/node-drivers.h"
#include "chain-core/qcow2.h"
#include "chain-core/raw.h"

// With room for those of others.
static const Driver *drivers[16] = {
    &qcow2_driver,   &raw_driver,          &file_driver,     &host_device_driver, &nbd_driver,
    &null_co_driver, &copy_on_read_driver, &compress_driver, &throttle_driver,    &blkdebug_driver,
};

const Driver *drivers_get(unsigned i)
{
    return i < G_N_ELEMENTS(drivers) ? drivers[i] : NULL;
}

void drivers_add(const Driver *driver)
{
    unsigned n = 0;
    while (drivers[n])
        n++;
    g_assert(n + 1 < G_N_ELEMENTS(drivers));
    drivers[n] = driver;
}

char *drivers_names(void)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (size_t i = 0; drivers[i]; i++) {
        if (drivers[i]->open)
            g_ptr_array_add(names, (gpointer)drivers[i]->name);
    }
    GString *text = g_string_new(names->pdata[0]);
    for (guint i = 1; i < names->len; i++)
        g_string_append_printf(text, "%s%s", i + 1 < names->len ? ", " : " and ",
                               (const char *)names->pdata[i]);
    return g_string_free(text, FALSE);
}

bool driver_passes_on(const Driver *driver)
{
    bool has_child = false;
    for (const DriverOption *option = driver->options; option && option->name; option++)
        has_child |= option->type == DRIVER_OPTION_CHILD;
    return has_child && !driver->probe && !driver->is_view;
}

const Driver *driver_find(const char *name)
{
    for (size_t i = 0; drivers[i]; i++) {
        if (g_str_equal(drivers[i]->name, name))
            return drivers[i];
    }
    return NULL;
}

const Driver *driver_probe(const uint8_t *head, size_t len)
{
    for (size_t i = 0; drivers[i]; i++) {
        if (drivers[i]->probe && drivers[i]->probe(head, len))
            return drivers[i];
    }
    return NULL;
}

// -- options --------------------------------------------------------------------------------------

static const DriverOption cache_members[] = {
    {.name = "direct", .type = DRIVER_OPTION_BOOL, .doc = "Past the host's page cache (O_DIRECT)."},
    {.name = "no-flush",
     .type = DRIVER_OPTION_BOOL,
     .doc = "Accepted, does nothing: flushes are always carried out."},
    {0},
};

static const char *const discard_values[] = {"ignore", "unmap", NULL};
static const char *const detect_zeroes_values[] = {"off", "on", "unmap", NULL};

const DriverOption driver_common_options[] = {
    {.name = "node-name", .type = DRIVER_OPTION_STR, .doc = "The node's name; must be unique."},
    {.name = "discard",
     .type = DRIVER_OPTION_ENUM,
     .values = discard_values,
     .doc = "Whether discards reach the node (\"unmap\") or end above it (\"ignore\", as with "
            "blockdev-add unless said)."},
    {.name = "cache", .type = DRIVER_OPTION_OBJECT, .members = cache_members, .doc = "Caching."},
    {.name = "read-only",
     .type = DRIVER_OPTION_BOOL,
     .doc = "Whether the node refuses writes; false unless said."},
    {.name = "auto-read-only",
     .type = DRIVER_OPTION_BOOL,
     .doc = "Whether a node that cannot be opened for writing becomes read-only; false unless "
            "said."},
    {.name = "active",
     .type = DRIVER_OPTION_BOOL,
     .doc = "Whether the node keeps other programs out; one that does not is read-only until "
            "blockdev-set-active. Said for all that is made with it. True unless said."},
    {.name = "force-share",
     .type = DRIVER_OPTION_BOOL,
     .doc = "Takes no lock that keeps other programs out; needs read-only."},
    {.name = "detect-zeroes",
     .type = DRIVER_OPTION_ENUM,
     .values = detect_zeroes_values,
     .doc = "Whether written zeros become zero clusters or holes."},
    {0},
};

// What any format may have.
static const DriverOption unknown_options[] = {
    {.name = "file", .type = DRIVER_OPTION_CHILD},
    {.name = "backing", .type = DRIVER_OPTION_CHILD, .may_be_null = true},
    {0},
};

const DriverOption *driver_find_option(const Driver *driver, const char *name)
{
    const DriverOption *own = driver ? driver->options : unknown_options;
    size_t len = strlen(name);
    return driver_option_find(own, name, len)
               ?: driver_option_find(driver_common_options, name, len);
}
