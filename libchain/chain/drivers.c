// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of drivers: a new format adds its line here. Pure; any thread.
#include "chain-core/driver.h"

#include "chain-core/qcow2.h"
#include "chain-core/raw.h"

static const Driver *const drivers[] = {
    &qcow2_driver,
    &raw_driver,
};

char *drivers_names(void)
{
    GString *names = g_string_new(drivers[0]->name);
    for (size_t i = 1; i < G_N_ELEMENTS(drivers); i++)
        g_string_append_printf(names, "%s%s", i + 1 < G_N_ELEMENTS(drivers) ? ", " : " and ",
                               drivers[i]->name);
    return g_string_free(names, FALSE);
}

const Driver *driver_find(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(drivers); i++) {
        if (g_str_equal(drivers[i]->name, name))
            return drivers[i];
    }
    return NULL;
}

const Driver *driver_probe(const uint8_t *head, size_t len)
{
    for (size_t i = 0; i < G_N_ELEMENTS(drivers); i++) {
        if (drivers[i]->probe && drivers[i]->probe(head, len))
            return drivers[i];
    }
    return NULL;
}
