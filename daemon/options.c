// SPDX-License-Identifier: LGPL-2.1-or-later
// Reads the command line. Options and files may come in any order; what cannot be meant is refused
// here, before anything is opened, so that a usage error never leaves a socket or a lock behind.
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CONFIG_NONE "none" // --config with it: no file

static const char help_text[] =
    "usage: chaind [OPTION]... [NAME=]FILE[,format=FORMAT]...\n"
    "\n"
    "Serves disk images, each with its whole backing chain, over NBD until it gets SIGTERM or\n"
    "SIGINT. One FILE without a NAME is the default export. Each export's URI goes to stdout.\n"
    "\n"
    "Where to listen\n"
    "  --nbd ADDRESS        a socket path, HOST:PORT, [IPV6]:PORT or :PORT; may be repeated.\n"
    "                       Without it: a private unix socket\n"
    "  --qmp PATH           a socket for commands (QMP); may be repeated. Then no FILE is needed\n"
    "  --qmp-read-only PATH the same for queries only, also for the group; may be repeated\n"
    "  --max-connections N  clients at a time; others wait (as many as there is memory for)\n"
    "\n"
    "Encryption of the --nbd sockets\n"
    "  --tls-certificates DIR  certificates: ca-cert.pem, server-cert.pem, server-key.pem\n"
    "  --tls-psk FILE       keys of users instead, lines of USER:KEY (psktool makes them)\n"
    "  --tls MODE           require (as soon as one of these is given), on: clients may also\n"
    "                       speak plain, or off\n"
    "  --tls-verify-peer    clients must show a certificate of the same authority\n"
    "\n"
    "What to serve\n"
    "  --format FORMAT      qcow2 or raw, for every FILE that does not say its own. Needed for\n"
    "                       raw images, since their content could pretend to be anything\n"
    "  --snapshot NAME      an internal snapshot, by id or name, instead of the live disk\n"
    "  --read-only          accept no writes, and leave the files untouched\n"
    "  --force-share        read even while another program writes; implies --read-only\n"
    "  --description TEXT   what clients see beside the name\n"
    "  --state DIR          remember disks, their points in time and exports in DIR, and serve\n"
    "                       those that are; then no FILE is needed\n"
    "\n"
    "Configuration\n"
    "  --config FILE        settings, from FILE and FILE.d/*.conf; none: no file (chaind.conf(5))\n"
    "  --service            serve this machine: read " CHAIND_CONFIG " if no\n"
    "                       --config says another; if nothing says otherwise, remember disks\n"
    "                       in " CHAIND_STATE_DIR ", with sockets in " CHAIND_RUN_DIR "\n"
    "  --check-config       name every mistake of these files, or say that there is none\n"
    "\n"
    "How\n"
    "  --direct             direct I/O: past the page cache of the host\n"
    "  --loops N            threads that serve (1 per disk, at most 1 per CPU)\n"
    "  --map-memory SIZE    bound on cached tables and maps, e.g. 64M (32M)\n"
    "  --busy-poll USEC     how long an idle thread may poll before it sleeps; 0: never (50)\n"
    "  --log LEVEL          error, warning, info or debug (info)\n"
    "  --metrics FILE       write metrics there, for Prometheus, every --metrics-interval seconds "
    "(15)\n"
    "  --metrics-listen ADDRESS  answer GET /metrics at a socket path or a loopback HOST:PORT\n"
    "  --daemonize          go to the background once everything is served\n"
    "  --pidfile FILE       where to write the number of the process\n"
    "  --help, --version    this text, or the version\n"
    "\n"
    "As qemu-storage-daemon has them, in any order, with dotted keys or JSON\n"
    "  --blockdev, --nbd-server, --export, --object, --chardev, --monitor\n"
    "\n"
    "Examples\n"
    "  chaind disk.qcow2\n"
    "  nbdcopy -- [ chaind disk.qcow2 ] disk.raw\n"
    "  chaind --nbd /run/vm.sock --nbd localhost:10809 web=web.qcow2 db=db.img,format=raw\n"
    "\n"
    "Exit status: 0 after a stop by signal or the last client of an activated socket, 1 after an\n"
    "error, 2 when the command line makes no sense. More in chaind(8).\n";

G_GNUC_PRINTF(2, 3)
static int refuse(GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    GError *e = g_error_new_valist(G_OPTION_ERROR, G_OPTION_ERROR_BAD_VALUE, format, args);
    va_end(args);
    g_propagate_error(error, e);
    return -EINVAL;
}

static void append(char ***strings, const char *value)
{
    guint n = g_strv_length(*strings);
    *strings = g_renew(char *, *strings, n + 2);
    (*strings)[n] = g_strdup(value);
    (*strings)[n + 1] = NULL;
}

static void startup_option_free(gpointer p)
{
    StartupOption *startup = p;
    g_free(startup->text);
    json_decref(startup->args);
    g_free(startup);
}

static void disk_option_free(gpointer p)
{
    DiskOption *disk = p;
    g_free(disk->name);
    g_free(disk->file);
    g_free(disk);
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

// "qcow2" or "raw" as a literal, or NULL.
static const char *find_format(const char *text)
{
    static const char *const formats[] = {"qcow2", "raw"};
    for (unsigned i = 0; i < G_N_ELEMENTS(formats); i++)
        if (g_str_equal(text, formats[i]))
            return formats[i];
    return NULL;
}

// Takes ",format=FORMAT" off the end of the file.
static int split_format(DiskOption *disk, GError **error)
{
    static const char key[] = ",format=";
    char *comma = strrchr(disk->file, ',');
    if (!comma || !g_str_has_prefix(comma, key))
        return 0;
    const char *format = comma + strlen(key);
    if (format[strspn(format, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS)])
        return 0; // the inside of a json: name
    disk->format = find_format(format);
    if (!disk->format)
        return refuse(error, "'%s': the format is qcow2 or raw, not '%s'", disk->file, format);
    *comma = '\0';
    return 0;
}

// Takes "NAME=", `len` bytes and the sign, off the front of the file.
static void split_name(DiskOption *disk, size_t len)
{
    char *file = g_strdup(disk->file + len + 1);
    g_free(disk->name);
    disk->name = g_strndup(disk->file, len);
    g_free(disk->file);
    disk->file = file;
}

// Splits [NAME=]FILE[,format=FORMAT]. A file's name may itself contain '=' and ',': what exists
// under the longer name is that file.
static int split_argument(const char *argument, DiskOption *disk, GError **error)
{
    size_t len = strspn(argument, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "._-");
    bool may_have_name = len > 0 && argument[len] == '=';
    disk->name = g_strdup("");
    disk->file = g_strdup(argument);
    if (exists(argument))
        return 0;
    bool is_name_and_file = may_have_name && exists(argument + len + 1);
    int r = is_name_and_file ? 0 : split_format(disk, error);
    if (may_have_name && (is_name_and_file || !exists(disk->file)))
        split_name(disk, len);
    return r;
}

static int parse_disks(char **arguments, GPtrArray *disks, GError **error)
{
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    for (; *arguments; arguments++) {
        DiskOption *disk = g_new0(DiskOption, 1);
        g_ptr_array_add(disks, disk);
        if (split_argument(*arguments, disk, error) < 0)
            return -EINVAL;
        if (strlen(disk->name) > OPTIONS_MAX_STRING)
            return refuse(error, "the name '%.32s…' is longer than the %d bytes that NBD allows",
                          disk->name, OPTIONS_MAX_STRING);
        if (!*disk->file)
            return refuse(error, "'%s' names no file: write NAME=FILE", *arguments);
        if (g_hash_table_add(names, disk->name))
            continue;
        if (*disk->name)
            return refuse(error, "two disks are named '%s': give each its own name", disk->name);
        return refuse(error,
                      "only one file can be the default export: write NAME=%s to name this one",
                      disk->file);
    }
    return 0;
}

// `text`: the option as it was given. Words without a key mean what they mean to
// qemu-storage-daemon.
static int add_startup(Options *options, StartupKind kind, const char *text, const char *value,
                       GError **error)
{
    static const char *const implied_keys[] = {
        [STARTUP_BLOCKDEV] = "driver", [STARTUP_EXPORT] = "type",     [STARTUP_OBJECT] = "qom-type",
        [STARTUP_CHARDEV] = "backend", [STARTUP_MONITOR] = "chardev", [STARTUP_NBD_SERVER] = NULL,
    };
    g_autoptr(GError) fault = NULL;
    bool has_flags = kind == STARTUP_CHARDEV && *value != '{';
    g_autofree char *keyed = has_flags ? qmp_keyval_expand(value) : g_strdup(value);
    QmpInput input;
    json_t *args = qmp_keyval_parse(keyed, implied_keys[kind], &input, &fault);
    if (!args)
        return refuse(error, "%s: %s", text, fault->message);
    StartupOption *startup = g_new0(StartupOption, 1);
    *startup = (StartupOption){
        .kind = kind,
        .text = g_strdup(text),
        .args = args,
        .input = input,
    };
    g_ptr_array_add(options->startups, startup);
    return 0;
}

static int parse_tls_mode(const char *text, NbdsTlsMode *ret_mode, GError **error)
{
    static const char *const modes[] = {
        [NBDS_TLS_OFF] = "off", [NBDS_TLS_OPTIONAL] = "on", [NBDS_TLS_REQUIRED] = "require"};
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        if (g_str_equal(text, modes[i])) {
            *ret_mode = (NbdsTlsMode)i;
            return 0;
        }
    }
    return refuse(error, "--tls is require, on or off, not '%s'", text);
}

// Whoever gives credentials means them to be used.
static int check_tls(TlsOption *tls, bool has_mode, GError **error)
{
    bool has_creds = tls->certificates || tls->psk_file;
    if (tls->certificates && tls->psk_file)
        return refuse(error, "give --tls-certificates or --tls-psk, not both");
    if (!has_mode && has_creds)
        tls->mode = NBDS_TLS_REQUIRED;
    if (tls->mode != NBDS_TLS_OFF && !has_creds)
        return refuse(error, "--tls needs --tls-certificates DIR or --tls-psk FILE");
    if (tls->verifies_peer && !tls->certificates)
        return refuse(error, "--tls-verify-peer needs --tls-certificates DIR");
    return 0;
}

// An option that is a setting of [daemon], too.
static int parse_setting(const char *name, const char *value, Options *options, GError **error)
{
    const ConfigKey *key = settings_find_key(&settings_daemon, name);
    void *field = settings_value(key, &options->daemon);
    bool is_path = key->type->kind == CONFIG_PATH; // files may not say relative ones
    g_autofree char *absolute = is_path && *value ? g_canonicalize_filename(value, NULL) : NULL;
    g_autoptr(GError) fault = NULL;
    int r = config_value_parse(key->type, is_path && *value ? absolute : value, field, &fault);
    if (r < 0)
        return refuse(error, "--%s %s", name, fault->message);
    options->said |= UINT64_C(1) << (key - settings_daemon.keys);
    return 0;
}

// `text`: both, as they were given.
static int parse_value(int option, const char *text, const char *value, Options *options,
                       GError **error)
{
    switch (option) {
    case 'F':
        if (!*value)
            return refuse(error, "--config needs a file, or none");
        g_free(options->config_path);
        options->config_path = g_str_equal(value, CONFIG_NONE)
                                   ? g_strdup(value)
                                   : g_canonicalize_filename(value, NULL);
        return 0;
    case 'n':
        if (!*value)
            return refuse(error, "--nbd needs a socket path or HOST:PORT");
        append(&options->addresses, value);
        return 0;
    case 'q':
        if (!*value)
            return refuse(error, "--qmp needs a socket path");
        append(&options->qmp_paths, value);
        return 0;
    case 'Q':
        if (!*value)
            return refuse(error, "--qmp-read-only needs a socket path");
        append(&options->query_paths, value);
        return 0;
    case 'f':
        options->format = find_format(value);
        return options->format ? 0 : refuse(error, "--format is qcow2 or raw, not '%s'", value);
    case 's':
        g_free(options->snapshot);
        options->snapshot = g_strdup(value);
        return 0;
    case 't':
        if (strlen(value) > OPTIONS_MAX_STRING || !g_utf8_validate(value, -1, NULL))
            return refuse(error, "--description is at most %d bytes of UTF-8", OPTIONS_MAX_STRING);
        g_free(options->description);
        options->description = g_strdup(value);
        return 0;
    case 'T':
        options->has_tls_mode = true;
        return parse_tls_mode(value, &options->tls.mode, error);
    case 'X':
        g_free(options->tls.certificates);
        options->tls.certificates = g_strdup(value);
        return 0;
    case 'K':
        g_free(options->tls.psk_file);
        options->tls.psk_file = g_strdup(value);
        return 0;
    case 'B':
        return add_startup(options, STARTUP_BLOCKDEV, text, value, error);
    case 'E':
        return add_startup(options, STARTUP_EXPORT, text, value, error);
    case 'N':
        return add_startup(options, STARTUP_NBD_SERVER, text, value, error);
    case 'O':
        return add_startup(options, STARTUP_OBJECT, text, value, error);
    case 'C':
        return add_startup(options, STARTUP_CHARDEV, text, value, error);
    case 'M':
        return add_startup(options, STARTUP_MONITOR, text, value, error);
    case 'p':
        g_free(options->pidfile);
        options->pidfile = g_strdup(value);
        return 0;
    default:
        return refuse(error, "%s is not known", text);
    }
}

static const struct option long_options[] = {
    {"nbd", required_argument, NULL, 'n'},
    {"qmp", required_argument, NULL, 'q'},
    {"qmp-read-only", required_argument, NULL, 'Q'},
    {"state", required_argument, NULL, 'k'},
    {"config", required_argument, NULL, 'F'},
    {"service", no_argument, NULL, 'v'},
    {"check-config", no_argument, NULL, 'e'},
    {"tls", required_argument, NULL, 'T'},
    {"tls-certificates", required_argument, NULL, 'X'},
    {"tls-psk", required_argument, NULL, 'K'},
    {"tls-verify-peer", no_argument, NULL, 'Y'},
    {"max-connections", required_argument, NULL, 'k'},
    {"format", required_argument, NULL, 'f'},
    {"snapshot", required_argument, NULL, 's'},
    {"read-only", no_argument, NULL, 'r'},
    {"direct", no_argument, NULL, 'd'},
    {"force-share", no_argument, NULL, 'U'},
    {"description", required_argument, NULL, 't'},
    {"loops", required_argument, NULL, 'k'},
    {"map-memory", required_argument, NULL, 'k'},
    {"busy-poll", required_argument, NULL, 'k'},
    {"log", required_argument, NULL, 'k'},
    {"metrics", required_argument, NULL, 'k'},
    {"metrics-interval", required_argument, NULL, 'k'},
    {"metrics-listen", required_argument, NULL, 'k'},
    {"blockdev", required_argument, NULL, 'B'},
    {"export", required_argument, NULL, 'E'},
    {"nbd-server", required_argument, NULL, 'N'},
    {"object", required_argument, NULL, 'O'},
    {"chardev", required_argument, NULL, 'C'},
    {"monitor", required_argument, NULL, 'M'},
    {"daemonize", no_argument, NULL, 'D'},
    {"pidfile", required_argument, NULL, 'p'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {0},
};

static int check_is_for_something(const Options *options, GError **error)
{
    if (options->disks->len || *options->qmp_paths || options->startups->len ||
        options->daemon.state_dir)
        return 0;
    return refuse(error, "no FILE to serve was given, and no --qmp to add some");
}

static int parse(int argc, char **argv, Options *options, GError **error)
{
    opterr = 0;
    for (int option, i; (option = getopt_long(argc, argv, ":hV", long_options, &i)) != -1;) {
        switch (option) {
        case 'r':
            options->read_only = true;
            break;
        case 'd':
            options->direct = true;
            break;
        case 'U':
            options->force_share = options->read_only = true;
            break;
        case 'Y':
            options->tls.verifies_peer = true;
            break;
        case 'D':
            options->daemonize = true;
            break;
        case 'v':
            options->is_service = true;
            break;
        case 'e':
            options->checks_config = true;
            break;
        case 'h':
            fputs(help_text, stdout);
            return 1;
        case 'V':
            puts("chaind " CHAIND_VERSION);
            return 1;
        case ':':
            return refuse(error, "%s needs a value", argv[optind - 1]);
        case '?':
            return refuse(error, "option '%s' is not known, or takes no value", argv[optind - 1]);
        default: {
            // "--option value" are two words, "--option=value" is one.
            bool is_one = optarg != argv[optind - 1];
            g_autofree char *text = is_one ? g_strdup(argv[optind - 1])
                                           : g_strdup_printf("%s %s", argv[optind - 2], optarg);
            int r = option == 'k' ? parse_setting(long_options[i].name, optarg, options, error)
                                  : parse_value(option, text, optarg, options, error);
            if (r < 0)
                return r;
        }
        }
    }
    if (options->snapshot)
        options->read_only = true;
    int r = check_tls(&options->tls, options->has_tls_mode, error);
    if (r == 0)
        r = parse_disks(argv + optind, options->disks, error);
    bool unused;
    if (r == 0 && !options->is_service && !options_config_path(options, &unused))
        r = check_is_for_something(options, error);
    return r;
}

const char *options_config_path(const Options *options, bool *ret_is_optional)
{
    bool is_none = g_strcmp0(options->config_path, CONFIG_NONE) == 0;
    *ret_is_optional = !options->config_path;
    if (options->config_path)
        return is_none ? NULL : options->config_path;
    return options->is_service || options->checks_config ? CHAIND_CONFIG : NULL;
}

bool options_start_server(const Options *options)
{
    for (guint i = 0; i < options->startups->len; i++)
        if (((const StartupOption *)options->startups->pdata[i])->kind == STARTUP_NBD_SERVER)
            return true;
    return false;
}

int options_configure(Options *options, const Config *config, GError **error)
{
    const ConfigEntry *entry = config_find(config, &settings_daemon, NULL);
    const ConfigKey *keys = settings_daemon.keys;
    for (unsigned i = 0; keys[i].name; i++)
        if (entry->texts[i] && !(options->said & UINT64_C(1) << i))
            config_value_parse(keys[i].type, entry->texts[i],
                               settings_value(&keys[i], &options->daemon), NULL);
    if (options->is_service && !options->daemon.state_dir)
        options->daemon.state_dir = g_strdup(CHAIND_STATE_DIR);
    return config_has(config, &settings_control) ? 0 : check_is_for_something(options, error);
}

int options_parse(int argc, char **argv, Options *ret_options, GError **error)
{
    Options options = {
        .addresses = g_new0(char *, 1),
        .qmp_paths = g_new0(char *, 1),
        .query_paths = g_new0(char *, 1),
        .disks = g_ptr_array_new_with_free_func(disk_option_free),
        .startups = g_ptr_array_new_with_free_func(startup_option_free),
    };
    settings_init(&settings_daemon, &options.daemon);
    int r = parse(argc, argv, &options, error);
    if (r == 0)
        *ret_options = options;
    else
        options_clear(&options);
    return r;
}

void options_clear(Options *options)
{
    g_strfreev(options->addresses);
    g_strfreev(options->qmp_paths);
    g_strfreev(options->query_paths);
    g_free(options->snapshot);
    g_free(options->description);
    g_free(options->pidfile);
    g_free(options->config_path);
    settings_clear(&settings_daemon, &options->daemon);
    g_free(options->tls.certificates);
    g_free(options->tls.psk_file);
    g_clear_pointer(&options->startups, g_ptr_array_unref);
    g_clear_pointer(&options->disks, g_ptr_array_unref);
}
