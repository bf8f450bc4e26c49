// SPDX-License-Identifier: LGPL-2.1-or-later
// The command line, parsed in this process.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <getopt.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <unistd.h>

#include "options.h"

// Parses the words of `line`, separated by '|'.
static int parse(const char *line, Options *options, GError **error)
{
    g_autofree char *all = g_strconcat("chaind|", line, NULL);
    g_auto(GStrv) words = g_strsplit(all, "|", -1);
    // getopt_long() moves the words about; the array is freed by its own copy of the pointers.
    guint n = g_strv_length(words);
    g_autofree char **argv = g_new0(char *, n + 1);
    for (guint i = 0; i < n; i++)
        argv[i] = words[i];
    optind = 0; // begin anew
    return options_parse((int)n, argv, options, error);
}

static Options parsed(const char *line)
{
    Options options;
    g_autoptr(GError) error = NULL;
    if (parse(line, &options, &error) != 0)
        fail_msg("%s: %s", line, error ? error->message : "asked for a text");
    return options;
}

static void assert_refused(const char *line, const char *words)
{
    Options options;
    g_autoptr(GError) error = NULL;
    assert_int_equal(parse(line, &options, &error), -EINVAL);
    assert_non_null(error);
    if (!strstr(error->message, words))
        fail_msg("'%s' is not in: %s", words, error->message);
}

static const DiskOption *disk(const Options *options, guint i)
{
    assert_true(i < options->disks->len);
    return g_ptr_array_index(options->disks, i);
}

static void defaults_are_those_of_the_manual(void **state)
{
    Options o = parsed("a.qcow2");
    assert_null(o.addresses[0]);
    assert_null(o.format);
    assert_null(o.snapshot);
    assert_null(o.description);
    assert_false(o.read_only || o.direct || o.force_share);
    assert_int_equal(o.daemon.n_loops, 0);
    assert_int_equal(o.daemon.max_connections, 0);
    assert_int_equal(o.daemon.busy_poll_us, 50);
    assert_int_equal(o.daemon.map_memory_bytes, 32 << 20);
    assert_int_equal(o.daemon.log_level, LOG_INFO);
    assert_int_equal(o.disks->len, 1);
    assert_string_equal(disk(&o, 0)->name, "");
    assert_string_equal(disk(&o, 0)->file, "a.qcow2");
    options_clear(&o);
}

static void every_option_is_taken_in_any_order(void **state)
{
    Options o = parsed(
        "--nbd|/run/a|x=1.img|--format=raw|--direct|--loops|3|--nbd|:10809|"
        "--map-memory|2g|--max-connections|7|--log|debug|--description|text|y=2.img|--read-only");
    assert_string_equal(o.addresses[0], "/run/a");
    assert_string_equal(o.addresses[1], ":10809");
    assert_null(o.addresses[2]);
    assert_string_equal(o.format, "raw");
    assert_true(o.direct && o.read_only && !o.force_share);
    assert_int_equal(o.daemon.n_loops, 3);
    assert_int_equal(o.daemon.max_connections, 7);
    assert_int_equal(o.daemon.map_memory_bytes, (uint64_t)2 << 30);
    assert_int_equal(o.daemon.log_level, LOG_DEBUG);
    assert_string_equal(o.description, "text");
    assert_string_equal(disk(&o, 0)->name, "x");
    assert_string_equal(disk(&o, 1)->file, "2.img");
    options_clear(&o);
}

static void sharing_and_snapshots_are_read_only(void **state)
{
    Options shared = parsed("--force-share|a");
    assert_true(shared.force_share && shared.read_only);
    options_clear(&shared);
    Options snapshot = parsed("--snapshot|monday|a");
    assert_true(snapshot.read_only);
    assert_string_equal(snapshot.snapshot, "monday");
    options_clear(&snapshot);
}

static void the_last_of_two_values_counts(void **state)
{
    Options o = parsed("--format|raw|--format|qcow2|--snapshot|a|--snapshot|b|x");
    assert_string_equal(o.format, "qcow2");
    assert_string_equal(o.snapshot, "b");
    options_clear(&o);
}

static void names_are_split_off_only_where_they_are_names(void **state)
{
    Options o = parsed("web-1.x_Y=/srv/a=b.qcow2|json:{\"driver\":\"file=x\"}");
    assert_string_equal(disk(&o, 0)->name, "web-1.x_Y");
    assert_string_equal(disk(&o, 0)->file, "/srv/a=b.qcow2");
    assert_string_equal(disk(&o, 1)->name, "");
    assert_string_equal(disk(&o, 1)->file, "json:{\"driver\":\"file=x\"}");
    options_clear(&o);
    Options path = parsed("./a=b.qcow2");
    assert_string_equal(disk(&path, 0)->file, "./a=b.qcow2");
    options_clear(&path);
    Options empty = parsed("=b");
    assert_string_equal(disk(&empty, 0)->file, "=b");
    options_clear(&empty);
}

static void a_file_that_exists_is_not_split(void **state)
{
    g_autofree char *dir = g_dir_make_tmp("chaind-options-XXXXXX", NULL);
    g_autofree char *before = g_get_current_dir();
    assert_int_equal(g_chdir(dir), 0);
    assert_true(g_file_set_contents("a=b", "", 0, NULL));
    Options o = parsed("a=b");
    assert_string_equal(disk(&o, 0)->name, "");
    assert_string_equal(disk(&o, 0)->file, "a=b");
    options_clear(&o);
    g_unlink("a=b");
    assert_int_equal(g_chdir(before), 0);
    g_rmdir(dir);
}

static void assert_disk(const char *argument, const char *name, const char *file,
                        const char *format)
{
    Options o = parsed(argument);
    assert_string_equal(disk(&o, 0)->name, name);
    assert_string_equal(disk(&o, 0)->file, file);
    if (format)
        assert_string_equal(disk(&o, 0)->format, format);
    else
        assert_null(disk(&o, 0)->format);
    options_clear(&o);
}

static void a_file_may_say_its_own_format(void **state)
{
    assert_disk("x=a.img,format=raw", "x", "a.img", "raw");
    assert_disk("a.img,format=qcow2", "", "a.img", "qcow2");
    assert_disk("a,b.img,format=raw", "", "a,b.img", "raw");
    assert_disk("x=a,b=c.img,format=raw", "x", "a,b=c.img", "raw");
    assert_disk("a,format=raw,format=qcow2", "", "a,format=raw", "qcow2");
    assert_disk("a,b.img", "", "a,b.img", NULL);
    assert_disk("a,format", "", "a,format", NULL);
    assert_disk("json:{\"driver\":\"raw\",\"file.filename\":\"a,format=x\"}", "",
                "json:{\"driver\":\"raw\",\"file.filename\":\"a,format=x\"}", NULL);
    assert_refused("a,format=vdi", "vdi");
    assert_refused("a,format=", "''");
    assert_refused("x=,format=raw", "no file");
}

static void a_file_that_exists_is_not_split_at_its_comma(void **state)
{
    g_autofree char *dir = g_dir_make_tmp("chaind-options-XXXXXX", NULL);
    g_autofree char *before = g_get_current_dir();
    assert_int_equal(g_chdir(dir), 0);
    assert_true(g_file_set_contents("a,format=raw", "", 0, NULL));
    assert_true(g_file_set_contents("c=d", "", 0, NULL));
    assert_disk("a,format=raw", "", "a,format=raw", NULL);
    assert_disk("x=a,format=raw", "x", "a,format=raw", NULL);
    assert_disk("a,format=raw,format=raw", "", "a,format=raw", "raw");
    assert_disk("c=d,format=raw", "", "c=d", "raw");
    g_unlink("a,format=raw");
    g_unlink("c=d");
    assert_int_equal(g_chdir(before), 0);
    g_rmdir(dir);
}

static void after_two_dashes_everything_is_a_file(void **state)
{
    Options o = parsed("--|--read-only");
    assert_false(o.read_only);
    assert_string_equal(disk(&o, 0)->file, "--read-only");
    options_clear(&o);
}

static void sizes_are_checked(void **state)
{
    Options o = parsed("--map-memory|1048576|a");
    assert_int_equal(o.daemon.map_memory_bytes, 1 << 20);
    options_clear(&o);
    static const char *const bad[] = {"1048575",     "",     "M",   "-1M", "0x100000",
                                      "1MB",         "1.5M", " 1M", "1P",  "99999999999999999999",
                                      "17179869184G"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *line = g_strdup_printf("--map-memory|%s|a", bad[i]);
        assert_refused(line, "--map-memory");
    }
}

static void what_makes_no_sense_is_refused(void **state)
{
    assert_refused("--read-only", "no FILE");
    assert_refused("--nope|a", "--nope");
    assert_refused("-x|a", "-x");
    assert_refused("a|--format", "--format needs a value");
    assert_refused("--read-only=yes|a", "--read-only");
    assert_refused("--format|vdi|a", "vdi");
    assert_refused("--busy-poll|1001|a", "--busy-poll");
    assert_refused("--busy-poll|x|a", "--busy-poll");
    assert_refused("--loops|0|a", "--loops");
    assert_refused("--loops|257|a", "--loops");
    assert_refused("--max-connections|0|a", "--max-connections");
    assert_refused("--max-connections|100001|a", "--max-connections");
    assert_refused("--max-connections|many|a", "--max-connections");
    assert_refused("--log|verbose|a", "verbose");
    assert_refused("--nbd||a", "--nbd");
    assert_refused("x=a|x=b", "named 'x'");
    assert_refused("a|b", "NAME=b");
    assert_refused("x=", "no file");
    assert_refused("--description|\xff|a", "UTF-8");
}

static void strings_for_clients_have_at_most_4096_bytes(void **state)
{
    g_autofree char *fits = g_strnfill(4096, 'x'), *is_long = g_strnfill(4097, 'x');
    char *lines[] = {g_strdup_printf("--description|%s|a", fits), g_strdup_printf("%s=a", fits),
                     g_strdup_printf("--description|%s|a", is_long),
                     g_strdup_printf("%s=a", is_long)};
    for (unsigned i = 0; i < 2; i++) {
        Options o = parsed(lines[i]);
        options_clear(&o);
    }
    assert_refused(lines[2], "--description is at most 4096 bytes");
    assert_refused(lines[3], "longer than the 4096 bytes");
    for (unsigned i = 0; i < G_N_ELEMENTS(lines); i++)
        g_free(lines[i]);
}

static const StartupOption *startup(const Options *options, guint i)
{
    assert_true(i < options->startups->len);
    return options->startups->pdata[i];
}

static void assert_startup(const StartupOption *option, StartupKind kind, const char *args)
{
    char *got = json_dumps(option->args, JSON_COMPACT);
    assert_int_equal(option->kind, kind);
    assert_string_equal(got, args);
    free(got);
}

static void options_of_qemu_storage_daemon_keep_their_order(void **state)
{
    Options o = parsed("--export|nbd,id=e|--blockdev|qcow2,file=f|--nbd-server|addr.type=unix|"
                       "--object|secret,id=s|--chardev|socket,id=c,server,nowait|--monitor|c|"
                       "--blockdev|{\"driver\":\"raw\"}|--daemonize|--pidfile|p");
    assert_int_equal(o.startups->len, 7);
    assert_startup(startup(&o, 0), STARTUP_EXPORT, "{\"type\":\"nbd\",\"id\":\"e\"}");
    assert_startup(startup(&o, 1), STARTUP_BLOCKDEV, "{\"driver\":\"qcow2\",\"file\":\"f\"}");
    assert_startup(startup(&o, 2), STARTUP_NBD_SERVER, "{\"addr\":{\"type\":\"unix\"}}");
    assert_startup(startup(&o, 3), STARTUP_OBJECT, "{\"qom-type\":\"secret\",\"id\":\"s\"}");
    assert_startup(startup(&o, 4), STARTUP_CHARDEV,
                   "{\"backend\":\"socket\",\"id\":\"c\",\"server\":\"on\",\"wait\":\"off\"}");
    assert_startup(startup(&o, 5), STARTUP_MONITOR, "{\"chardev\":\"c\"}");
    assert_startup(startup(&o, 6), STARTUP_BLOCKDEV, "{\"driver\":\"raw\"}");
    assert_int_equal(startup(&o, 5)->input, QMP_INPUT_KEYVAL);
    assert_int_equal(startup(&o, 6)->input, QMP_INPUT_JSON);
    assert_string_equal(startup(&o, 0)->text, "--export nbd,id=e");
    assert_true(o.daemonize);
    assert_string_equal(o.pidfile, "p");
    assert_int_equal(o.disks->len, 0);
    options_clear(&o);
    assert_refused("--nbd-server|x", "--nbd-server x: Expected '=' after parameter 'x'");
    assert_refused("--blockdev|{\"a\"", "JSON parse error");
}

static void a_monitor_needs_no_file(void **state)
{
    Options o = parsed("--qmp|a|--qmp|b");
    assert_string_equal(o.qmp_paths[0], "a");
    assert_string_equal(o.qmp_paths[1], "b");
    assert_null(o.qmp_paths[2]);
    options_clear(&o);
    assert_refused("--qmp|", "--qmp");
}

static void credentials_are_meant_to_be_used(void **state)
{
    Options o = parsed("a");
    assert_int_equal(o.tls.mode, NBDS_TLS_OFF);
    options_clear(&o);
    o = parsed("--tls-certificates|d|--tls-verify-peer|a");
    assert_int_equal(o.tls.mode, NBDS_TLS_REQUIRED);
    assert_string_equal(o.tls.certificates, "d");
    assert_true(o.tls.verifies_peer);
    options_clear(&o);
    o = parsed("--tls-psk=f|--tls|on|a");
    assert_int_equal(o.tls.mode, NBDS_TLS_OPTIONAL);
    assert_string_equal(o.tls.psk_file, "f");
    options_clear(&o);
    o = parsed("--tls|off|--tls-psk|f|a");
    assert_int_equal(o.tls.mode, NBDS_TLS_OFF);
    options_clear(&o);
    assert_refused("--tls|require|a", "needs --tls-certificates");
    assert_refused("--tls|yes|a", "require, on or off");
    assert_refused("--tls-psk|f|--tls-certificates|d|a", "not both");
    assert_refused("--tls-psk|f|--tls-verify-peer|a", "--tls-certificates");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_manual),
        cmocka_unit_test(every_option_is_taken_in_any_order),
        cmocka_unit_test(sharing_and_snapshots_are_read_only),
        cmocka_unit_test(the_last_of_two_values_counts),
        cmocka_unit_test(names_are_split_off_only_where_they_are_names),
        cmocka_unit_test(a_file_that_exists_is_not_split),
        cmocka_unit_test(a_file_may_say_its_own_format),
        cmocka_unit_test(a_file_that_exists_is_not_split_at_its_comma),
        cmocka_unit_test(after_two_dashes_everything_is_a_file),
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(options_of_qemu_storage_daemon_keep_their_order),
        cmocka_unit_test(a_monitor_needs_no_file),
        cmocka_unit_test(credentials_are_meant_to_be_used),
        cmocka_unit_test(strings_for_clients_have_at_most_4096_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
