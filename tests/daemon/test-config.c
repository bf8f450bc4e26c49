// SPDX-License-Identifier: LGPL-2.1-or-later
// The configuration's files: what they say, what wins, and that each mistake is named with its
// line.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/address-range.h"
#include "config/config.h"
#include "log.h"

typedef struct Place {
    char *dir, *file, *drop_ins;
} Place;

static int make_place(void **state)
{
    Place *place = g_new0(Place, 1);
    place->dir = g_dir_make_tmp("chaind-config-XXXXXX", NULL);
    assert_non_null(place->dir);
    place->file = g_build_filename(place->dir, "c.conf", NULL);
    place->drop_ins = g_strconcat(place->file, ".d", NULL);
    g_mkdir(place->drop_ins, 0700);
    *state = place;
    return 0;
}

static void empty(const char *path)
{
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    for (const char *name; dir && (name = g_dir_read_name(dir));) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        g_remove(file);
    }
    g_rmdir(path);
}

static int remove_place(void **state)
{
    Place *place = *state;
    empty(place->drop_ins);
    empty(place->dir);
    g_free(place->dir);
    g_free(place->file);
    g_free(place->drop_ins);
    g_free(place);
    return 0;
}

static void write_text(const char *path, const char *text)
{
    assert_true(g_file_set_contents(path, text, -1, NULL));
}

static void write_drop_in(const Place *place, const char *name, const char *text)
{
    g_autofree char *path = g_build_filename(place->drop_ins, name, NULL);
    write_text(path, text);
}

static Config *read_right(const Place *place)
{
    g_autoptr(GPtrArray) mistakes = g_ptr_array_new_with_free_func(g_free);
    Config *config = config_read(place->file, true, mistakes);
    if (mistakes->len)
        fail_msg("%s", (const char *)mistakes->pdata[0]);
    return config;
}

// The mistakes of `text` are exactly these, ":LINE: sentence" each, in any order; ends with NULL.
static void assert_mistakes(const Place *place, const char *text, const char *const *wanted)
{
    write_text(place->file, text);
    g_autoptr(GPtrArray) mistakes = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(Config) config = config_read(place->file, false, mistakes);
    assert_non_null(config);
    guint n = 0;
    for (; wanted[n]; n++) {
        g_autofree char *whole = g_strconcat(place->file, wanted[n], NULL);
        guint i = 0;
        while (i < mistakes->len && !g_str_equal(mistakes->pdata[i], whole))
            i++;
        if (i == mistakes->len)
            fail_msg("not said: %s; but: %s", whole,
                     mistakes->len ? (const char *)mistakes->pdata[0] : "nothing");
    }
    assert_int_equal(mistakes->len, n);
}

static void defaults_hold_where_nothing_is_said(void **state)
{
    g_autoptr(Config) config = read_right(*state);
    const DaemonSettings *daemon = config_daemon(config);
    assert_int_equal(config->paths->len, 0);
    assert_null(daemon->state_dir);
    assert_int_equal(daemon->n_loops, 0);
    assert_int_equal(daemon->map_memory_bytes, 32 << 20);
    assert_int_equal(daemon->busy_poll_us, 50);
    assert_int_equal(daemon->log_level, LOG_INFO);
}

static void keys_and_comments_are_read(void **state)
{
    const Place *place = *state;
    write_text(place->file, "# a comment\n\n[ daemon ]\n  state = /srv/it\\sis\n\tlog=debug\n"
                            "loops =3\nmap-memory = 2G\nbusy-poll = 0\nmax-connections= 10\r\n");
    g_autoptr(Config) config = read_right(place);
    const DaemonSettings *daemon = config_daemon(config);
    assert_string_equal(daemon->state_dir, "/srv/it is");
    assert_int_equal(daemon->log_level, LOG_DEBUG);
    assert_int_equal(daemon->n_loops, 3);
    assert_int_equal(daemon->map_memory_bytes, (uint64_t)2 << 30);
    assert_int_equal(daemon->busy_poll_us, 0);
    assert_int_equal(daemon->max_connections, 10);
}

static void later_drop_ins_win_key_by_key(void **state)
{
    const Place *place = *state;
    write_text(place->file, "[daemon]\nloops = 1\nbusy-poll = 1\nmap-memory = 1M\n");
    write_drop_in(place, "20.conf", "[daemon]\nloops = 3\n");
    write_drop_in(place, "10.conf", "[daemon]\nloops = 2\nbusy-poll = 2\n");
    write_drop_in(place, "30.conf~", "[daemon]\nloops = 4\n");
    write_drop_in(place, ".40.conf", "[daemon]\nloops = 4\n");
    g_autoptr(Config) config = read_right(place);
    const DaemonSettings *daemon = config_daemon(config);
    assert_int_equal(config->paths->len, 3);
    assert_int_equal(daemon->n_loops, 3);
    assert_int_equal(daemon->busy_poll_us, 2);
    assert_int_equal(daemon->map_memory_bytes, 1 << 20);
}

static void an_empty_value_takes_back_what_was_said(void **state)
{
    const Place *place = *state;
    write_text(place->file, "[daemon]\nstate = /srv\nbusy-poll = 7\n");
    write_drop_in(place, "10.conf", "[daemon]\nstate =\nbusy-poll=\n");
    g_autoptr(Config) config = read_right(place);
    assert_null(config_daemon(config)->state_dir);
    assert_int_equal(config_daemon(config)->busy_poll_us, 50);
}

static void drop_ins_are_read_without_the_file(void **state)
{
    write_drop_in(*state, "10.conf", "[daemon]\nloops = 2\n");
    g_autoptr(Config) config = read_right(*state);
    assert_int_equal(config_daemon(config)->n_loops, 2);
}

static void a_file_that_was_named_must_be_there(void **state)
{
    const Place *place = *state;
    g_autoptr(GPtrArray) mistakes = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(Config) config = config_read(place->file, false, mistakes);
    assert_non_null(config);
    assert_int_equal(mistakes->len, 1);
    assert_non_null(strstr(mistakes->pdata[0], "c.conf: cannot be read: No such file"));
}

static void every_mistake_is_named_with_its_line(void **state)
{
    assert_mistakes(*state,
                    "loops = 1\n"          // 1
                    "[daemon]\n"           // 2
                    "stat = /a\n"          // 3
                    "loops = 999\n"        // 4
                    "log = loud\n"         // 5
                    "map-memory = 64M #\n" // 6
                    "state = here\n"       // 7
                    "bogus\n"              // 8
                    "something = 1\n"      // 9
                    "loops = 2\n"          // 10
                    "[deamon]\n"           // 11
                    "loops = 3\n"          // 12
                    "[daemon one]\n"       // 13
                    "[daemon\n"            // 14
                    "[daemon]\n"           // 15
                    "busy-poll = \\x\n",   // 16
                    (const char *const[]){
                        ":1: 'loops' belongs to no section: write a [NAME] above it",
                        ":3: [daemon] has no 'stat': did you mean 'state'?",
                        ":4: 'loops' is a number from 1 to 256, not '999'",
                        ":5: 'log' is error, warning, info or debug, not 'loud'",
                        ":6: 'map-memory' is a size of at least 1M, such as 64M, not '64M #'; a "
                        "comment has a line of its own",
                        ":7: 'state' is an absolute path, not 'here'",
                        ":8: 'bogus' is no setting: write KEY = VALUE; comments begin with '#'",
                        ":9: [daemon] has no 'something': chaind.conf(5) lists what there is",
                        ":10: 'loops' is already set in line 4: remove one of the two",
                        ":11: there is no section 'deamon': did you mean 'daemon'?",
                        ":13: there is one section 'daemon': write [daemon]",
                        ":14: '[daemon' is no section: write [NAME], alone on its line",
                        ":16: 'busy-poll' has a single backslash: write \\\\ for one",
                        NULL,
                    });
}

// A piece of a file: right, wrong, or half of either.
static void append_piece(GString *text, GRand *rand)
{
    static const char *const pieces[] = {"[daemon]", "[listen a]", "[export *]", "[",      "]",
                                         "address",  "loops",      "allow-uid",  "mode",   "=",
                                         "= :1",     "= /a/b",     "= 64M",      "= 0660", "\n",
                                         "\n",       "\n",         " ",          "\\",     "#",
                                         "\t;,",     "\xff",       "= yes",      "\r\n",   "\\s"};
    if (g_rand_int_range(rand, 0, 20))
        g_string_append(text, pieces[g_rand_int_range(rand, 0, G_N_ELEMENTS(pieces))]);
    else
        g_string_append_c(text, (char)g_rand_int_range(rand, 1, 256));
}

static void random_files_are_read_or_their_mistakes_told(void **state)
{
    const Place *place = *state;
    GRand *rand = g_rand_new_with_seed(1);
    unsigned n_right = 0, n_wrong = 0;
    for (unsigned i = 0; i < 3000; i++) {
        g_autoptr(GString) text = g_string_new(NULL);
        g_autoptr(GPtrArray) mistakes = g_ptr_array_new_with_free_func(g_free);
        for (int n = g_rand_int_range(rand, 0, 12); n > 0; n--)
            append_piece(text, rand);
        write_text(place->file, text->str);
        g_autoptr(Config) config = config_read(place->file, false, mistakes);
        assert_non_null(config);
        for (guint k = 0; k < mistakes->len; k++)
            assert_true(g_str_has_prefix(mistakes->pdata[k], place->file));
        n_right += !mistakes->len;
        n_wrong += mistakes->len != 0;
    }
    g_rand_free(rand);
    assert_true(n_right > 100 && n_wrong > 100);
}

static void what_is_no_text_is_refused(void **state)
{
    assert_mistakes(*state, "[daemon]\nstate = /\xff\n",
                    (const char *const[]){": this is not a text in UTF-8", NULL});
}

static void what_may_have_no_end_is_refused(void **state)
{
    const Place *place = *state;
    g_autoptr(GPtrArray) mistakes = g_ptr_array_new_with_free_func(g_free);
    assert_int_equal(mkfifo(place->file, 0600), 0);
    g_autofree char *pipe = g_build_filename(place->drop_ins, "a.conf", NULL);
    assert_int_equal(symlink("/dev/zero", pipe), 0);
    g_autofree char *large = g_build_filename(place->drop_ins, "b.conf", NULL);
    g_autofree char *text = g_strnfill(5 << 20, '#');
    write_text(large, text);
    config_free(config_read(place->file, false, mistakes));
    assert_int_equal(mistakes->len, 3);
    assert_true(
        g_str_has_suffix(mistakes->pdata[0], "c.conf: cannot be read: it is no regular file"));
    assert_true(
        g_str_has_suffix(mistakes->pdata[1], "a.conf: cannot be read: it is no regular file"));
    assert_true(
        g_str_has_suffix(mistakes->pdata[2], "b.conf: is larger than the 4 MiB that chaind reads"));
}

static const ListenSettings *listener(const Config *config, const char *label)
{
    const ConfigEntry *entry = config_find(config, &settings_listen, label);
    return entry ? entry->values : NULL;
}

static void sections_with_names_are_put_together_from_all_files(void **state)
{
    const Place *place = *state;
    write_text(place->file, "[listen a]\naddress = :1\n[listen  b ]\naddress = /b\nmode = 0640\n");
    write_drop_in(place, "10.conf", "[listen b]\nowner = 12\n[listen a]\naddress =\n");
    g_autoptr(Config) config = read_right(place);
    assert_null(listener(config, "a"));
    assert_string_equal(listener(config, "b")->address, "/b");
    assert_int_equal(listener(config, "b")->mode, 0640);
    assert_int_equal(listener(config, "b")->owner, 12);
    assert_true(listener(config, "b")->group == (gid_t)-1);
    const ConfigPlace *where = config_place(config_find(config, &settings_listen, "b"), "owner");
    assert_int_equal(where->line, 2);
    assert_true(g_str_has_suffix(where->path, "10.conf"));
}

static void credentials_are_meant_to_be_used(void **state)
{
    const Place *place = *state;
    write_text(place->file, "[listen a]\naddress = :1\ntls-psk = /k\n"
                            "[listen b]\naddress = :2\ntls-psk = /k\ntls = on\n"
                            "[listen c]\naddress = :3\n");
    g_autoptr(Config) config = read_right(place);
    assert_int_equal(settings_tls_mode(listener(config, "a")), NBDS_TLS_REQUIRED);
    assert_int_equal(settings_tls_mode(listener(config, "b")), NBDS_TLS_OPTIONAL);
    assert_int_equal(settings_tls_mode(listener(config, "c")), NBDS_TLS_OFF);
}

static uint32_t only_id(const GArray *ids)
{
    assert_non_null(ids);
    assert_int_equal(ids->len, 1);
    return g_array_index(ids, uint32_t, 0);
}

static void the_exact_name_wins_over_patterns_and_later_patterns_over_earlier_ones(void **state)
{
    const Place *place = *state;
    write_text(place->file, "[export web]\nallow-uid = 1\n"
                            "[export *]\nallow-uid = 2\nallow-gid = 2\n"
                            "[export w*]\nallow-uid = 3\n");
    g_autoptr(Config) config = read_right(place);
    ExportSettings web, wiki, db;
    config_resolve(config, &settings_export, "web", &web);
    config_resolve(config, &settings_export, "wiki", &wiki);
    config_resolve(config, &settings_export, "db", &db);
    assert_int_equal(only_id(web.allow_uid), 1);
    assert_int_equal(only_id(web.allow_gid), 2);
    assert_int_equal(only_id(wiki.allow_uid), 3);
    assert_int_equal(only_id(db.allow_uid), 2);
    assert_null(db.allow_address);
}

// "section.key" or "section label.key" of each change, with '*' where nobody says it any more.
static char *changes_of(const Config *before, const Config *now)
{
    g_autoptr(GArray) changes = config_compare(before, now);
    GString *text = g_string_new(NULL);
    for (guint i = 0; i < changes->len; i++) {
        const ConfigChange *change = &g_array_index(changes, ConfigChange, i);
        g_string_append_printf(text, "%s%s%s%s.%s%s", i ? "; " : "", change->section->name,
                               change->label ? " " : "", change->label ? change->label : "",
                               change->key->name, change->place ? "" : "*");
    }
    return g_string_free(text, false);
}

static void each_of_many_sections_is_found(void **state)
{
    enum { N = 3000 };
    const Place *place = *state;
    g_autoptr(GString) text = g_string_new("[export *]\nallow-gid = 7\n");
    for (unsigned i = 0; i < N; i++)
        g_string_append_printf(text, "[export e%u]\nallow-uid = %u\n", i, i);
    write_text(place->file, text->str);
    g_autoptr(Config) config = read_right(place);
    for (unsigned i = 0; i < N; i++) {
        ExportSettings settings;
        g_autofree char *name = g_strdup_printf("e%u", i);
        config_resolve(config, &settings_export, name, &settings);
        assert_int_equal(g_array_index(settings.allow_uid, uid_t, 0), i);
        assert_int_equal(g_array_index(settings.allow_gid, gid_t, 0), 7);
    }
}

static void what_differs_between_two_configurations_is_told_key_by_key(void **state)
{
    const Place *place = *state;
    write_text(place->file, "[daemon]\nloops = 1\nlog = debug\n[listen a]\naddress = :1\n"
                            "[export x]\nallow-uid = 1\n");
    g_autoptr(Config) before = read_right(place);
    write_text(place->file, "[daemon]\nloops = 2\n[listen b]\naddress = :1\n"
                            "[export x]\nallow-uid = 1\n");
    g_autoptr(Config) now = read_right(place);
    g_autofree char *changes = changes_of(before, now);
    assert_string_equal(changes, "daemon.log*; daemon.loops; listen b.address; listen a.address*");
    g_autofree char *nothing = changes_of(now, now);
    assert_string_equal(nothing, "");
}

static bool is_in(const char *range_text, const char *address)
{
    AddressRange range;
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    assert_true(address_range_parse(range_text, &range));
    if (inet_pton(AF_INET, address, &v4.sin_addr) == 1)
        return address_range_has(&range, (const struct sockaddr *)&v4);
    assert_int_equal(inet_pton(AF_INET6, address, &v6.sin6_addr), 1);
    return address_range_has(&range, (const struct sockaddr *)&v6);
}

static void ranges_have_the_addresses_with_their_prefix(void **state)
{
    AddressRange range;
    assert_true(is_in("10.1.0.0/16", "10.1.255.255"));
    assert_false(is_in("10.1.0.0/16", "10.2.0.0"));
    assert_true(is_in("10.1.2.3", "10.1.2.3"));
    assert_false(is_in("10.1.2.3", "10.1.2.2"));
    assert_true(is_in("0.0.0.0/0", "255.1.1.1"));
    assert_false(is_in("0.0.0.0/0", "::1"));
    assert_true(is_in("0.0.0.0/0", "::ffff:1.2.3.4"));
    assert_true(is_in("2001:db8::/33", "2001:db8:7fff::1"));
    assert_false(is_in("2001:db8::/33", "2001:db8:8000::1"));
    assert_true(is_in("::/0", "10.0.0.1"));
    static const char *const wrong[] = {"10.0.0.1/8", "10.0.0.0/33", "10.0.0", "10.0.0.0/",  "x",
                                        "::1/129",    "::1/64",      "",       "10.0.0.0/-1"};
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++)
        if (address_range_parse(wrong[i], &range))
            fail_msg("%s was taken", wrong[i]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_place, remove_place)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(defaults_hold_where_nothing_is_said),
        TEST(keys_and_comments_are_read),
        TEST(later_drop_ins_win_key_by_key),
        TEST(an_empty_value_takes_back_what_was_said),
        TEST(drop_ins_are_read_without_the_file),
        TEST(a_file_that_was_named_must_be_there),
        TEST(every_mistake_is_named_with_its_line),
        TEST(random_files_are_read_or_their_mistakes_told),
        TEST(what_is_no_text_is_refused),
        TEST(what_may_have_no_end_is_refused),
        TEST(each_of_many_sections_is_found),
        TEST(sections_with_names_are_put_together_from_all_files),
        TEST(credentials_are_meant_to_be_used),
        TEST(the_exact_name_wins_over_patterns_and_later_patterns_over_earlier_ones),
        TEST(what_differs_between_two_configurations_is_told_key_by_key),
        TEST(ranges_have_the_addresses_with_their_prefix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
