// SPDX-License-Identifier: LGPL-2.1-or-later
// Every mistake is told, not only the first.
#include "configure.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "configured-listeners.h"
#include "log.h"

Config *configure_read(const Options *options, GPtrArray *mistakes)
{
    bool is_optional;
    const char *path = options_config_path(options, &is_optional);
    return path ? config_read(path, is_optional, mistakes) : config_new();
}

// On a machine that systemd-tmpfiles has not prepared. Where it cannot be made, listening says so.
static void make_run_dir(void)
{
    g_mkdir_with_parents(CHAIND_RUN_DIR, 0755);
}

void configure_add_defaults(Config *config, const Options *options, bool is_nbd_given,
                            bool is_control_given)
{
    bool has_control =
        is_control_given || *options->qmp_paths || config_has(config, &settings_control);
    bool has_listen = is_nbd_given || *options->addresses || options_start_server(options) ||
                      config_has(config, &settings_listen);
    if (options->is_service && (!has_control || !has_listen))
        make_run_dir();
    if (options->is_service && !has_control) {
        config_add(config, &settings_control, "default", "path", CHAIND_RUN_DIR "/control.sock");
        config_add(config, &settings_control, "default", "mode", "0660");
    }
    if (options->is_service && !has_listen) {
        config_add(config, &settings_listen, "default", "address", CHAIND_RUN_DIR "/nbd.sock");
        config_add(config, &settings_listen, "default", "mode", "0660");
    }
}

static void tell(const GPtrArray *mistakes)
{
    for (guint i = 0; i < mistakes->len; i++)
        log_line(LOG_ERROR, "%s", (const char *)mistakes->pdata[i]);
}

int configure(Options *options, Config **ret_config)
{
    g_autoptr(GPtrArray) mistakes = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(Config) config = configure_read(options, mistakes);
    g_autoptr(GError) error = NULL;
    tell(mistakes);
    if (mistakes->len)
        return -EINVAL;
    if (options_configure(options, config, &error) < 0) {
        log_line(LOG_ERROR, "%s", error->message);
        return -EINVAL;
    }
    *ret_config = g_steal_pointer(&config);
    return 0;
}

// What files name for TLS is read, and not used.
static void check_tls(const Config *config, GPtrArray *mistakes)
{
    for (guint i = 0; i < config->entries->len; i++) {
        const ConfigEntry *entry = config->entries->pdata[i];
        g_autoptr(GError) error = NULL;
        if (entry->section == &settings_listen && configured_tls_check(entry, &error) < 0)
            g_ptr_array_add(mistakes, g_strdup(error->message));
    }
}

int configure_check(const Options *options)
{
    g_autoptr(GPtrArray) mistakes = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(Config) config = configure_read(options, mistakes);
    bool unused;
    const char *path = options_config_path(options, &unused);
    if (!mistakes->len) // else what they say is not known
        check_tls(config, mistakes);
    tell(mistakes);
    if (mistakes->len)
        return EXIT_FAILURE;
    for (guint i = 0; i < config->paths->len; i++)
        printf("%s: ok\n", (const char *)config->paths->pdata[i]);
    if (!path)
        puts("no configuration is asked for: the defaults hold");
    else if (!config->paths->len)
        printf("there is neither %s nor anything in %s.d: the defaults hold\n", path, path);
    return EXIT_SUCCESS;
}
