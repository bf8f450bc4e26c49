// SPDX-License-Identifier: LGPL-2.1-or-later
// From QMP's addresses to those of the command line, which listeners.h takes. Control loop.
#include "socket-address.h"

#include <errno.h>
#include <string.h>

#include "chain-core/loop.h"
#include "daemon/qmp/args.h"
#include "daemon/qmp/error.h"

#define INET_MEMBERS                                                                               \
    {"host", &qmp_str, .doc = "a name or an address; empty: every address of the machine"},        \
        {"port", &qmp_str, .doc = "a number"},                                                     \
        {"numeric", &qmp_bool, true, "accepted, does nothing"},                                    \
        {"to", &qmp_uint16, true, "refused unless it is the port"},                                \
        {"ipv4", &qmp_bool, true, "accepted, does nothing"},                                       \
        {"ipv6", &qmp_bool, true, "accepted, does nothing"},                                       \
        {"keep-alive", &qmp_bool, true, "accepted, does nothing"},                                 \
        {"mptcp", &qmp_bool, true, "accepted, does nothing"},                                      \
    {                                                                                              \
        0                                                                                          \
    }

static const QmpType inet_address = {
    .name = "InetSocketAddress",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){INET_MEMBERS},
};
static const QmpType unix_address = {
    .name = "UnixSocketAddress",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"path", &qmp_str, .doc = "of the socket"},
                                   {"abstract", &qmp_bool, true, "refused if true"},
                                   {"tight", &qmp_bool, true, "does nothing"},
                                   {0}},
};
static const QmpType fd_address = {
    .name = "FdSocketAddress",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"str", &qmp_str,
                                    .doc = "the number of a listening socket that the "
                                           "daemon inherited"},
                                   {0}},
};

static const QmpType vsock_address = {
    .name = "VsockSocketAddress",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"cid", &qmp_str, .doc = "refused"},
                                   {"port", &qmp_str, .doc = "refused"},
                                   {0}},
};

static const QmpType address_type = {
    .name = "SocketAddressType",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"inet", "unix", "vsock", "fd", NULL},
};

const QmpType socket_address = {
    .name = "SocketAddress",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"type", &address_type, .doc = "which kind"}, {0}},
    .tag = "type",
    .variants = (const QmpVariant[]){{"inet", &inet_address},
                                     {"unix", &unix_address},
                                     {"vsock", &vsock_address},
                                     {"fd", &fd_address},
                                     {0}},
};

static const QmpType inet_wrapper = {
    .name = "InetSocketAddressWrapper",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"data", &inet_address, .doc = "where"}, {0}},
};
static const QmpType unix_wrapper = {
    .name = "UnixSocketAddressWrapper",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"data", &unix_address, .doc = "where"}, {0}},
};
static const QmpType vsock_wrapper = {
    .name = "VsockSocketAddressWrapper",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"data", &vsock_address, .doc = "where"}, {0}},
};
static const QmpType fd_wrapper = {
    .name = "FdSocketAddressWrapper",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"data", &fd_address, .doc = "which"}, {0}},
};

const QmpType socket_address_legacy = {
    .name = "SocketAddressLegacy",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"type", &address_type, .doc = "which kind"}, {0}},
    .tag = "type",
    .variants = (const QmpVariant[]){{"inet", &inet_wrapper},
                                     {"unix", &unix_wrapper},
                                     {"vsock", &vsock_wrapper},
                                     {"fd", &fd_wrapper},
                                     {0}},
};

typedef struct Listening {
    char *addresses[2]; // ends with NULL
    Listeners *listeners;
    GError *error;
} Listening;

static int listen_on_worker(void *arg)
{
    Listening *l = arg;
    l->listeners = listeners_open(NULL, l->addresses, &l->error);
    return l->listeners ? 0 : -EINVAL;
}

// Owned; NULL with a sentence.
static char *inet_text(const json_t *inet, GError **error)
{
    const char *host = qmp_args_str(inet, "host"), *port = qmp_args_str(inet, "port");
    char *text = NULL;
    if (qmp_args_have(inet, "to"))
        qmp_fail(error, "a range of ports is not supported: name one port");
    else if (!qmp_args_bool(inet, "ipv4", true) && !qmp_args_bool(inet, "ipv6", true))
        qmp_fail(error, "Cannot disable IPv4 and IPv6 at same time");
    else if (strchr(host, ':'))
        text = g_strdup_printf("[%s]:%s", host, port);
    else
        text = g_strdup_printf("%s:%s", host, port);
    return text;
}

static char *unix_text(const json_t *data, GError **error)
{
    if (!qmp_args_bool(data, "abstract", false))
        return g_canonicalize_filename(qmp_args_str(data, "path"), NULL);
    qmp_fail(error, "abstract sockets are not supported: name a path");
    return NULL;
}

static Listeners *listen_at_fd(InheritedFds *fds, const json_t *data, GError **error)
{
    int fd = inherited_fds_take(fds, qmp_args_str(data, "str"), error);
    return fd < 0 ? NULL : listeners_open_fd(fd, error);
}

static Listeners *listen_at(Fiber *self, char *text, GError **error)
{
    Listening listening = {.addresses = {text}};
    if (text)
        loop_work(self, listen_on_worker, &listening);
    if (listening.error)
        g_propagate_error(error, listening.error);
    g_free(text);
    return listening.listeners;
}

Listeners *socket_address_listen(Fiber *self, InheritedFds *fds, const json_t *address,
                                 GError **error)
{
    const json_t *data = json_object_get(address, "data");
    const char *type = qmp_args_str(address, "type");
    if (!data)
        data = address;
    if (g_str_equal(type, "fd"))
        return listen_at_fd(fds, data, error);
    if (g_str_equal(type, "inet"))
        return listen_at(self, inet_text(data, error), error);
    if (g_str_equal(type, "unix"))
        return listen_at(self, unix_text(data, error), error);
    qmp_fail(error, "sockets of the type '%s' are not supported", type);
    return NULL;
}
