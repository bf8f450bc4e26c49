// SPDX-License-Identifier: LGPL-2.1-or-later
// HOST:PORT, [IPV6]:PORT and :PORT have no slash; everything else is a path.
#include "nbd-address.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/un.h>

void nbd_address_clear(NbdAddress *address)
{
    g_free(address->path);
    g_free(address->host);
    g_free(address->port);
}

G_GNUC_PRINTF(2, 3)
static int fail(GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    GError *e = g_error_new_valist(G_FILE_ERROR, G_FILE_ERROR_INVAL, format, args);
    va_end(args);
    g_propagate_error(error, e);
    return -EINVAL;
}

// getaddrinfo() would take names of services, and takes larger numbers modulo 65536.
static bool is_port(const char *text)
{
    guint64 n;
    return g_ascii_string_to_unsigned(text, 10, 0, UINT16_MAX, &n, NULL);
}

int nbd_address_parse(const char *text, NbdAddress *ret_address, GError **error)
{
    const char *colon = strrchr(text, ':');
    if (strchr(text, '/') || !colon) {
        g_autofree char *path = g_canonicalize_filename(text, NULL);
        if (strlen(path) >= sizeof((struct sockaddr_un){0}.sun_path))
            return fail(error,
                        "the socket path '%s' is longer than the 107 bytes that unix sockets allow",
                        path);
        ret_address->path = g_steal_pointer(&path);
        return 0;
    }

    g_autofree char *host = g_strndup(text, (gsize)(colon - text));
    size_t len = strlen(host);
    bool in_brackets = len >= 2 && host[0] == '[' && host[len - 1] == ']';
    if (!colon[1])
        return fail(error, "'%s' has no port: write HOST:PORT, such as localhost:10809", text);
    if (strchr(host, ':') && !in_brackets)
        return fail(error, "'%s' is ambiguous: write [IPV6]:PORT, such as [::1]:10809", text);
    if (!is_port(colon + 1))
        return fail(error,
                    "'%s': the port must be a number from 0 to 65535, such as 10809; for a file "
                    "name with a colon write ./NAME",
                    text);
    ret_address->host = in_brackets ? g_strndup(host + 1, len - 2) : g_steal_pointer(&host);
    ret_address->port = g_strdup(colon + 1);
    return 0;
}
