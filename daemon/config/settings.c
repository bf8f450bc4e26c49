// SPDX-License-Identifier: LGPL-2.1-or-later
// The tables.
#include "settings.h"

#include <errno.h>

#include "daemon/log.h"
#include "daemon/nbd-address.h"
#include "nbd/server.h"

// Far above any core count, and any number of clients: bounds for typos.
static const ConfigType loops = {CONFIG_NUMBER, .min = 1, .max = 256};
static const ConfigType connections = {CONFIG_NUMBER, .min = 1, .max = 100000};
static const ConfigType busy_poll = {CONFIG_NUMBER, .max = 1000};
// Below, hardly one region fits.
static const ConfigType map_memory = {CONFIG_SIZE, .min = 1 << 20};
static const ConfigType level = {CONFIG_CHOICE, .choices = log_level_names};
static const ConfigType path = {CONFIG_PATH};
static const ConfigType text = {CONFIG_TEXT};
static const ConfigType interval = {CONFIG_NUMBER, .min = 1, .max = 3600};
static const ConfigType address = {CONFIG_ADDRESS};
static const ConfigType mode = {CONFIG_MODE};
// Below what throttle groups take, which is 10^15.
static const ConfigType rate = {CONFIG_SIZE, .max = UINT64_C(900) << 40};
static const ConfigType requests = {CONFIG_NUMBER, .max = 1000000000};
static const ConfigType user = {CONFIG_USER}, users = {CONFIG_USERS};
static const ConfigType group = {CONFIG_GROUP}, groups = {CONFIG_GROUPS};
static const ConfigType ranges = {CONFIG_RANGES};
static const ConfigType patterns = {CONFIG_PATTERNS};
static const ConfigType yes_no = {CONFIG_YES_NO};
static const char *const tls_modes[] = {"default", "off", "on", "require", NULL};
static const ConfigType tls = {CONFIG_CHOICE, .choices = tls_modes};

static int refuse(const char **ret_key, const char *key, GError **error, const char *sentence)
{
    *ret_key = key;
    g_set_error_literal(error, G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE, sentence);
    return -EINVAL;
}

// -- [daemon] -------------------------------------------------------------------------------------

#define AT(field) offsetof(DaemonSettings, field)
static const ConfigKey daemon_keys[] = {
    {"state", &path, AT(state_dir), CONFIG_AT_START,
     "The directory where disks, their points in time and their exports are remembered. Without it "
     "none are, or with B<--service> in F</var/lib/chaind>."},
    {"log", &level, AT(log_level), CONFIG_LIVE,
     "The least that is logged; each level includes those before it.", "info"},
    {"max-connections", &connections, AT(max_connections), CONFIG_AT_START,
     "How many clients may be connected at a time; others wait. Without it, as many as there is "
     "memory for."},
    {"loops", &loops, AT(n_loops), CONFIG_AT_START,
     "How many threads serve. Without it, one for each CPU."},
    {"map-memory", &map_memory, AT(map_memory_bytes), CONFIG_AT_START,
     "Bound of the memory for cached tables and maps, of all disks together.", "32M"},
    {"busy-poll", &busy_poll, AT(busy_poll_us), CONFIG_AT_START,
     "For how many microseconds an idle thread may poll before it sleeps; 0: never.", "50"},
    {"metrics", &path, AT(metrics_path), CONFIG_AT_START,
     "A file that has the daemon's metrics, in Prometheus' text format. Written anew every "
     "B<metrics-interval>, and removed at the end: for node_exporter's textfile collector."},
    {"metrics-interval", &interval, AT(metrics_interval_s), CONFIG_AT_START,
     "How many seconds lie between two.", "15"},
    {"metrics-listen", &text, AT(metrics_address), CONFIG_AT_START,
     "A socket that answers C<GET /metrics> by HTTP: the path of a unix socket (it contains a "
     "slash), or I<HOST:PORT> of a loopback address."},
    {0},
};
#undef AT

static int check_daemon(const void *values, const char **ret_key, GError **error)
{
    const DaemonSettings *daemon = values;
    g_auto(NbdAddress) parsed = {0};
    *ret_key = "metrics-listen";
    return daemon->metrics_address ? nbd_address_parse(daemon->metrics_address, &parsed, error) : 0;
}

const ConfigSection settings_daemon = {
    .name = "daemon",
    .size = sizeof(DaemonSettings),
    .keys = daemon_keys,
    .doc = "What holds for the whole daemon. On the command line, each key is an option.",
    .check = check_daemon,
};

// -- [control NAME] -------------------------------------------------------------------------------

#define AT(field) offsetof(ControlSettings, field)
static const ConfigKey control_keys[] = {
    {"path", &path, AT(path), CONFIG_AT_START, "Where the socket is."},
    {"mode", &mode, AT(mode), CONFIG_AT_START,
     "Its permissions. B<Who can write to it controls chaind>, and every file that its user can "
     "reach.",
     "0600"},
    {"read-only", &yes_no, AT(is_read_only), CONFIG_AT_START,
     "Whether it takes only commands that change nothing, as of B<--qmp-read-only>.", "no"},
    {"owner", &user, AT(owner), CONFIG_AT_START, "Its owner. Without it, chaind's user."},
    {"group", &group, AT(group), CONFIG_AT_START,
     "Its group; chaind's user must be in it, unless it is root. Without it, chaind's."},
    {"allow-uid", &users, AT(allow_uid), CONFIG_AT_START,
     "Users whose processes may use it, of those who can connect. Others are told so, and "
     "disconnected. The daemon's own user and root always may."},
    {"allow-gid", &groups, AT(allow_gid), CONFIG_AT_START, "Groups whose members may, likewise."},
    {0},
};
#undef AT

const ConfigSection settings_control = {
    .name = "control",
    .label = "NAME",
    .size = sizeof(ControlSettings),
    .keys = control_keys,
    .doc =
        "A unix socket for commands (QMP): for chainctl(1), and for programs. I<NAME> is for the "
        "files only. B<--qmp> replaces all of these sections.",
    .needs = "path",
};

// -- [listen NAME] --------------------------------------------------------------------------------

#define AT(field) offsetof(ListenSettings, field)
static const ConfigKey listen_keys[] = {
    {"address", &address, AT(address), CONFIG_LIVE,
     "The path of a unix socket, or I<HOST:PORT>, I<[IPV6]:PORT>, or I<:PORT> for every address of "
     "the machine. Port 0 lets the kernel choose."},
    {"mode", &mode, AT(mode), CONFIG_LIVE, "Permissions of a unix socket.", "0600"},
    {"owner", &user, AT(owner), CONFIG_LIVE, "Its owner. Without it, chaind's user."},
    {"group", &group, AT(group), CONFIG_LIVE,
     "Its group; chaind's user must be in it, unless it is root. Without it, chaind's."},
    {"tls-certificates", &path, AT(tls_certificates), CONFIG_LIVE,
     "A directory with F<ca-cert.pem>, F<server-cert.pem>, F<server-key.pem>, and perhaps "
     "F<ca-crl.pem>. A reload reads them again."},
    {"tls-psk", &path, AT(tls_psk), CONFIG_LIVE,
     "A file of keys instead, lines of I<USER>:I<KEY>; it is looked into for each client."},
    {"tls", &tls, AT(tls), CONFIG_LIVE,
     "Whether clients must use TLS (C<require>), may (C<on>), or cannot (C<off>); C<default> is "
     "C<require> where one of the two before is set, else C<off>.",
     "default"},
    {"tls-verify-peer", &yes_no, AT(tls_verify_peer), CONFIG_LIVE,
     "Whether clients must show a certificate of the same authority.", "no"},
    {"tls-authz", &path, AT(tls_authz), CONFIG_LIVE,
     "A file that lists who may connect with TLS, by the distinguished name of the certificate or "
     "the user of the key, in the form of QEMU's C<authz-list-file>: {\"policy\": \"deny\", "
     "\"rules\": [{\"match\": \"alice\", \"policy\": \"allow\"}]}. It is read again when it "
     "has changed."},
    {0},
};
#undef AT

NbdsTlsMode settings_tls_mode(const ListenSettings *listen)
{
    static const NbdsTlsMode modes[] = {NBDS_TLS_OFF, NBDS_TLS_OFF, NBDS_TLS_OPTIONAL,
                                        NBDS_TLS_REQUIRED};
    bool has_creds = listen->tls_certificates || listen->tls_psk;
    return listen->tls == 0 && has_creds ? NBDS_TLS_REQUIRED : modes[listen->tls];
}

static int check_listen(const void *values, const char **ret_key, GError **error)
{
    const ListenSettings *listen = values;
    bool has_creds = listen->tls_certificates || listen->tls_psk;
    if (listen->tls_certificates && listen->tls_psk)
        return refuse(ret_key, "tls-psk", error,
                      "there are tls-certificates, too: leave one of the two");
    if (settings_tls_mode(listen) != NBDS_TLS_OFF && !has_creds)
        return refuse(ret_key, "tls", error, "'tls' needs tls-certificates or tls-psk");
    if (listen->tls_verify_peer && !listen->tls_certificates)
        return refuse(ret_key, "tls-verify-peer", error,
                      "'tls-verify-peer' needs tls-certificates");
    if (listen->tls_authz && !listen->tls_psk && !listen->tls_verify_peer)
        return refuse(ret_key, "tls-authz", error,
                      "'tls-authz' needs to know who a client is: set tls-psk, or "
                      "tls-verify-peer");
    return 0;
}

const ConfigSection settings_listen = {
    .name = "listen",
    .label = "NAME",
    .size = sizeof(ListenSettings),
    .keys = listen_keys,
    .doc =
        "Where NBD clients are served. I<NAME> is for the files only. A reload begins to listen, "
        "and ends it; clients that are connected stay. B<--nbd> replaces all of these sections.",
    .needs = "address",
    .check = check_listen,
};

// -- [throttle-group NAME] ------------------------------------------------------------------------

#define AT(field) offsetof(ThrottleGroupSettings, field)
static const ConfigKey throttle_group_keys[] = {
    {"bps", &rate, AT(bps), CONFIG_LIVE, "How many bytes a second may be read and written."},
    {"read-bps", &rate, AT(read_bps), CONFIG_LIVE, "How many may be read, instead."},
    {"write-bps", &rate, AT(write_bps), CONFIG_LIVE, "How many may be written, instead."},
    {"iops", &requests, AT(iops), CONFIG_LIVE, "How many requests a second there may be."},
    {"read-iops", &requests, AT(read_iops), CONFIG_LIVE, "How many reads, instead."},
    {"write-iops", &requests, AT(write_iops), CONFIG_LIVE,
     "How many writes, zeroes and discards, instead."},
    {0},
};
#undef AT

void settings_throttle_limits(const ThrottleGroupSettings *settings, ThrottleLimits *ret_limits)
{
    throttle_limits_init(ret_limits);
    ThrottleRate *rates = ret_limits->rates;
    rates[THROTTLE_BPS_TOTAL].average = settings->bps;
    rates[THROTTLE_BPS_READ].average = settings->read_bps;
    rates[THROTTLE_BPS_WRITE].average = settings->write_bps;
    rates[THROTTLE_IOPS_TOTAL].average = settings->iops;
    rates[THROTTLE_IOPS_READ].average = settings->read_iops;
    rates[THROTTLE_IOPS_WRITE].average = settings->write_iops;
}

static int check_throttle_group(const void *values, const char **ret_key, GError **error)
{
    const ThrottleGroupSettings *settings = values;
    if (settings->bps && (settings->read_bps || settings->write_bps))
        return refuse(ret_key, "bps", error,
                      "'bps' is for both directions: leave it, or the others");
    if (settings->iops && (settings->read_iops || settings->write_iops))
        return refuse(ret_key, "iops", error,
                      "'iops' is for both directions: leave it, or the others");
    return 0;
}

const ConfigSection settings_throttle_group = {
    .name = "throttle-group",
    .label = "NAME",
    .size = sizeof(ThrottleGroupSettings),
    .keys = throttle_group_keys,
    .doc =
        "How much the clients of some exports may do, all of them together; 0, or nothing, is no "
        "limit. Which exports these are, their sections say (B<throttle-group>, below). A change "
        "holds at once, for requests that wait, too.",
    .check = check_throttle_group,
};

// -- [export PATTERN] -----------------------------------------------------------------------------

#define AT(field) offsetof(ExportSettings, field)
static const ConfigKey export_keys[] = {
    {"allow-uid", &users, AT(allow_uid), CONFIG_LIVE,
     "Users who may use the export, by name or number, when they come through a unix socket. The "
     "daemon's own user and root always may, there."},
    {"allow-gid", &groups, AT(allow_gid), CONFIG_LIVE, "Groups whose members may, likewise."},
    {"allow-address", &ranges, AT(allow_address), CONFIG_LIVE,
     "Addresses from which clients may use it, over TCP: C<10.1.0.0/16>, C<2001:db8::/32>, or "
     "single ones. C<::/0> is everybody, IPv4 too."},
    {"allow-tls", &patterns, AT(allow_tls), CONFIG_LIVE,
     "Who may use it by what TLS has verified: patterns of the distinguished name of a certificate "
     "(the listener needs tls-verify-peer), or of the user of a key, separated by C<;>."},
    {"throttle-group", &text, AT(throttle_group), CONFIG_LIVE,
     "The section whose limits hold for the export, unless it was given limits of its own "
     "(C<chainctl limit>). A change holds at once, also for clients that are connected.",
     .names = &settings_throttle_group},
    {0},
};
#undef AT

const ConfigSection settings_export = {
    .name = "export",
    .label = "PATTERN",
    .size = sizeof(ExportSettings),
    .keys = export_keys,
    .doc =
        "Policy for exports: I<PATTERN> is a name, or has C<*> and C<?> as in a shell. "
        "Where several match, a key is taken from the section that is the name itself, else from "
        "the last one that has it. As soon as one of the keys B<allow-...> is set for an export, "
        "only those may use it whom one of them names: for others it is not listed, and choosing "
        "it is refused. These keys hold for clients that connect after a reload.",
};

// -- all ------------------------------------------------------------------------------------------

const ConfigSection *const settings_sections[] = {&settings_daemon, &settings_control,
                                                  &settings_listen, &settings_throttle_group,
                                                  &settings_export, NULL};

const ConfigKey *settings_find_key(const ConfigSection *section, const char *name)
{
    for (const ConfigKey *key = section->keys; key->name; key++)
        if (g_str_equal(key->name, name))
            return key;
    return NULL;
}

void settings_init(const ConfigSection *section, void *values)
{
    settings_clear(section, values);
    for (const ConfigKey *key = section->keys; key->name; key++)
        if (key->fallback)
            config_value_parse(key->type, key->fallback, settings_value(key, values), NULL);
}

void settings_clear(const ConfigSection *section, void *values)
{
    for (const ConfigKey *key = section->keys; key->name; key++)
        config_value_clear(key->type, settings_value(key, values));
}
