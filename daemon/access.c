// SPDX-License-Identifier: LGPL-2.1-or-later
// One who is named in any way may. The answer is in the configuration itself, which is exchanged as
// a whole.
#include "access.h"

#include <fnmatch.h>
#include <stdatomic.h>
#include <unistd.h>

#include "daemon/config/address-range.h"

struct Access {
    atomic_bool is_for_some; // some export is not for everybody
    GMutex mutex;            // of what follows; held for a look-up, in handshakes
    const Config *config;
};

Access *access_new(void)
{
    Access *access = g_new0(Access, 1);
    g_mutex_init(&access->mutex);
    return access;
}

void access_free(Access *access)
{
    if (!access)
        return;
    g_mutex_clear(&access->mutex);
    g_free(access);
}

void access_set(Access *access, const Config *config)
{
    g_mutex_lock(&access->mutex);
    access->config = config;
    access->is_for_some = config_has(config, &settings_export);
    g_mutex_unlock(&access->mutex);
}

static bool allows_address(const GArray *ranges, const struct sockaddr *address)
{
    for (guint i = 0; ranges && i < ranges->len; i++)
        if (address_range_has(&g_array_index(ranges, AddressRange, i), address))
            return true;
    return false;
}

static bool allows_identity(const GPtrArray *patterns, const char *identity)
{
    for (guint i = 0; patterns && identity && i < patterns->len; i++)
        if (fnmatch(patterns->pdata[i], identity, 0) == 0)
            return true;
    return false;
}

static bool says_nothing(const ExportSettings *settings)
{
    return !settings->allow_uid && !settings->allow_gid && !settings->allow_address &&
           !settings->allow_tls;
}

static bool allows(const Config *config, const NbdsPeer *peer, const char *export_name)
{
    ExportSettings settings;
    config_resolve(config, &settings_export, export_name, &settings);
    return says_nothing(&settings) ||
           (peer->process &&
            socket_process_is_one_of(peer->process, settings.allow_uid, settings.allow_gid)) ||
           allows_address(settings.allow_address, (const struct sockaddr *)&peer->address) ||
           allows_identity(settings.allow_tls, peer->identity);
}

bool access_allows(Access *access, const NbdsPeer *peer, const char *export_name)
{
    if (!access->is_for_some)
        return true;
    g_mutex_lock(&access->mutex);
    bool is_allowed = allows(access->config, peer, export_name);
    g_mutex_unlock(&access->mutex);
    return is_allowed;
}
