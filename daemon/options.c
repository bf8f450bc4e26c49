// SPDX-License-Identifier: LGPL-2.1-or-later
// Reads the command line. Options and files may come in any order; what cannot be meant is refused
// here, before anything is opened, so that a usage error never leaves a socket or a lock behind.
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LOOPS = 256 };                       // far above any core count; a bound for typos
enum { MAX_CONNECTIONS = 100000 };              // likewise
static const uint64_t MIN_MAP_MEMORY = 1 << 20; // below, hardly one region fits
static const uint64_t DEFAULT_MAP_MEMORY = 32 << 20;
enum { DEFAULT_BUSY_POLL_US = 50, MAX_BUSY_POLL_US = 1000 };

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
    "  --max-connections N  clients at a time; others wait (as many as there is memory for)\n"
    "\n"
    "What to serve\n"
    "  --format FORMAT      qcow2 or raw, for every FILE that does not say its own. Needed for\n"
    "                       raw images, since their content could pretend to be anything\n"
    "  --snapshot NAME      an internal snapshot, by id or name, instead of the live disk\n"
    "  --read-only          accept no writes, and leave the files untouched\n"
    "  --force-share        read even while another program writes; implies --read-only\n"
    "  --description TEXT   what clients see beside the name\n"
    "\n"
    "How\n"
    "  --direct             direct I/O: past the page cache of the host\n"
    "  --loops N            threads that serve (1 per disk, at most 1 per CPU)\n"
    "  --map-memory SIZE    bound on cached tables and maps, e.g. 64M (32M)\n"
    "  --busy-poll USEC     how long an idle thread may poll before it sleeps; 0: never (50)\n"
    "  --log LEVEL          error, warning, info or debug (info)\n"
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

// Bytes, with an optional K, M, G or T (powers of 1024).
static bool parse_size(const char *text, uint64_t *ret_bytes)
{
    if (!g_ascii_isdigit(*text))
        return false;
    char *end = NULL;
    errno = 0;
    uint64_t value = g_ascii_strtoull(text, &end, 10);
    if (errno)
        return false;
    unsigned shift = 0;
    if (*end) {
        const char *units = "KMGT", *unit = strchr(units, g_ascii_toupper(*end));
        if (!unit || end[1])
            return false;
        shift = 10 * (unsigned)(unit - units + 1);
    }
    if (value > UINT64_MAX >> shift)
        return false;
    *ret_bytes = value << shift;
    return true;
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

// `text`: both, as they were given.
static int parse_value(int option, const char *text, const char *value, Options *options,
                       GError **error)
{
    uint64_t n;
    switch (option) {
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
    case 'l':
        if (!parse_size(value, &n) || n < 1 || n > MAX_LOOPS)
            return refuse(error, "--loops is a number from 1 to %d, not '%s'", MAX_LOOPS, value);
        options->n_loops = (unsigned)n;
        return 0;
    case 'c':
        if (!parse_size(value, &n) || n < 1 || n > MAX_CONNECTIONS)
            return refuse(error, "--max-connections is a number from 1 to %d, not '%s'",
                          MAX_CONNECTIONS, value);
        options->max_connections = (unsigned)n;
        return 0;
    case 'm':
        if (!parse_size(value, &n) || n < MIN_MAP_MEMORY)
            return refuse(error, "--map-memory is a size of at least 1M, such as 64M, not '%s'",
                          value);
        options->map_memory_bytes = n;
        return 0;
    case 'b':
        if (!parse_size(value, &n) || n > MAX_BUSY_POLL_US)
            return refuse(error, "--busy-poll is a number of microseconds up to %d, not '%s'",
                          MAX_BUSY_POLL_US, value);
        options->busy_poll_us = (unsigned)n;
        return 0;
    case 'g':
        if (!log_level_parse(value, &options->log_level))
            return refuse(error, "--log is error, warning, info or debug, not '%s'", value);
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
    {"max-connections", required_argument, NULL, 'c'},
    {"format", required_argument, NULL, 'f'},
    {"snapshot", required_argument, NULL, 's'},
    {"read-only", no_argument, NULL, 'r'},
    {"direct", no_argument, NULL, 'd'},
    {"force-share", no_argument, NULL, 'U'},
    {"description", required_argument, NULL, 't'},
    {"loops", required_argument, NULL, 'l'},
    {"map-memory", required_argument, NULL, 'm'},
    {"busy-poll", required_argument, NULL, 'b'},
    {"log", required_argument, NULL, 'g'},
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

static int parse(int argc, char **argv, Options *options, GError **error)
{
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, ":hV", long_options, NULL)) != -1;) {
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
        case 'D':
            options->daemonize = true;
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
            int r = parse_value(option, text, optarg, options, error);
            if (r < 0)
                return r;
        }
        }
    }
    if (options->snapshot)
        options->read_only = true;
    int r = parse_disks(argv + optind, options->disks, error);
    if (r == 0 && options->disks->len == 0 && !*options->qmp_paths && options->startups->len == 0)
        return refuse(error, "no FILE to serve was given, and no --qmp to add some");
    return r;
}

int options_parse(int argc, char **argv, Options *ret_options, GError **error)
{
    Options options = {
        .map_memory_bytes = DEFAULT_MAP_MEMORY,
        .busy_poll_us = DEFAULT_BUSY_POLL_US,
        .log_level = LOG_INFO,
        .addresses = g_new0(char *, 1),
        .qmp_paths = g_new0(char *, 1),
        .disks = g_ptr_array_new_with_free_func(disk_option_free),
        .startups = g_ptr_array_new_with_free_func(startup_option_free),
    };
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
    g_free(options->snapshot);
    g_free(options->description);
    g_free(options->pidfile);
    g_clear_pointer(&options->startups, g_ptr_array_unref);
    g_clear_pointer(&options->disks, g_ptr_array_unref);
}
