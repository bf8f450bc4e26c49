// SPDX-License-Identifier: LGPL-2.1-or-later
// Files that an image names, where only some folders are allowed (CVE-2015-5163, -1850, -1851), and
// where no data files are (CVE-2024-4467, -32498).
#include <errno.h>
#include <stdio.h>

#include "chain-fixture.h"
#include "chain/allowed-dirs.h"

static const char *allowed[3];

// Opens `name` in the test's folder with backing and data files allowed below "in" only.
static int open_allowed(const char *name, bool writable, const char *word)
{
    g_autofree char *in = in_dir("in"), *path = in_dir(name);
    allowed[0] = "/nonexistent";
    allowed[1] = in;
    OpenTest t = {.path = path,
                  .options = {.read_only = !writable, .allowed_dirs = allowed},
                  .with = reads_11_at_0};
    on_loop(open_and_close, &t);
    if (word && (t.result >= 0 || !strstr(t.message, word)))
        fail_msg("%s: '%s' does not speak of '%s'", name, t.message, word);
    if (!word && t.result < 0)
        fail_msg("%s: %s", name, t.message);
    int r = t.result;
    open_test_clear(&t);
    return r;
}

static void make_folders(void)
{
    shell("mkdir -p in/sub away");
    make_base("in/base.qcow2");
    make_base("in/sub/base.qcow2");
    make_base("away/secret.qcow2");
}

static void make_overlay(const char *name, const char *backing)
{
    shell("qemu-img create -q -u -f qcow2 -b '%s' -F qcow2 %s 1M", backing, name);
}

static void backing_files_below_an_allowed_folder_are_opened(void **state)
{
    make_folders();
    g_autofree char *absolute = in_dir("in/base.qcow2"),
                    *file = g_strconcat("file:", absolute, NULL);
    shell("ln -s sub/base.qcow2 in/link.qcow2; ln -s \"$PWD/in/sub\" in/dirlink; "
          "ln -s in alias");
    const char *const names[] = {
        "base.qcow2", "sub/base.qcow2",     "../in/base.qcow2",       "link.qcow2", absolute,
        file,         "dirlink/base.qcow2", "../alias/sub/base.qcow2"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        make_overlay("in/over.qcow2", names[i]);
        open_allowed("in/over.qcow2", false, NULL);
        open_allowed("in/over.qcow2", true, NULL);
    }
}

static void the_top_itself_may_lie_anywhere(void **state)
{
    make_folders();
    make_overlay("away/over.qcow2", "../in/base.qcow2");
    open_allowed("away/over.qcow2", false, NULL);
}

static void backing_files_elsewhere_are_refused(void **state)
{
    make_folders();
    shell("ln -s ../away/secret.qcow2 in/link.qcow2; ln -s ../away in/dirlink; cp -r in inside; "
          "ln -s in/../away dots");
    g_autofree char *absolute = in_dir("away/secret.qcow2");
    g_autofree char *json =
        g_strdup_printf("json:{\"driver\":\"qcow2\",\"file.filename\":\"%s\"}", absolute);
    const char *const names[] = {"../away/secret.qcow2",
                                 absolute,
                                 json,
                                 "link.qcow2",
                                 "dirlink/secret.qcow2",
                                 "../inside/base.qcow2" /* a name that begins like the folder's */,
                                 "sub/../../away/secret.qcow2",
                                 "../dots/secret.qcow2"};
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        make_overlay("in/over.qcow2", names[i]);
        shell("cp in/over.qcow2 before");
        assert_int_equal(open_allowed("in/over.qcow2", false, "not below the folders"), -EACCES);
        assert_int_equal(open_allowed("in/over.qcow2", true, "not below the folders"), -EACCES);
        shell("cmp in/over.qcow2 before");
    }
    make_overlay("in/over.qcow2", "/dev/null");
    assert_int_equal(open_allowed("in/over.qcow2", false, "/dev/null"), -EACCES);
    make_overlay("in/over.qcow2", "gone.qcow2");
    assert_int_equal(open_allowed("in/over.qcow2", false, "gone.qcow2"), -ENOENT);
}

static void deeper_layers_are_held_to_it_too(void **state)
{
    make_folders();
    make_overlay("in/mid.qcow2", "../away/secret.qcow2");
    make_overlay("in/over.qcow2", "mid.qcow2");
    assert_int_equal(open_allowed("in/over.qcow2", false, "secret.qcow2"), -EACCES);
}

static void data_files_are_held_to_it_and_can_be_refused_altogether(void **state)
{
    make_folders();
    shell("cd in && qemu-img create -q -f qcow2 -o data_file=data.raw ext.qcow2 1M && "
          "qemu-io -c 'write -P 0x11 0 64k' ext.qcow2");
    open_allowed("in/ext.qcow2", false, NULL);
    shell("mv in/data.raw away && ln -s ../away/data.raw in/data.raw && cp in/ext.qcow2 before");
    assert_int_equal(open_allowed("in/ext.qcow2", false, "data.raw"), -EACCES);
    assert_int_equal(open_allowed("in/ext.qcow2", true, "data.raw"), -EACCES);

    shell("mv in/ext.qcow2 away");
    g_autofree char *ext = in_dir("away/ext.qcow2");
    OpenTest with = {.path = ext, .options = {.read_only = true}, .with = reads_11_at_0};
    on_loop(open_and_close, &with);
    assert_int_equal(with.result, 0);
    open_test_clear(&with);
    for (int writable = 0; writable < 2; writable++) {
        OpenTest t = {.path = ext, .options = {.read_only = !writable, .no_data_files = true}};
        on_loop(open_and_close, &t);
        assert_int_equal(t.result, -EACCES);
        assert_non_null(strstr(t.message, "data.raw"));
        open_test_clear(&t);
    }
    shell("cmp away/ext.qcow2 before");
}

// The name leads to an allowed file when it is checked, and to another when it is opened.
static void swap_between_check_and_open(Fiber *self, void *arg)
{
    g_autofree char *in = in_dir("in"), *path = in_dir("in/link.qcow2");
    const char *const dirs[] = {in, NULL};
    AllowedFile checked;
    g_autoptr(GError) error = NULL;
    File *file;
    shell("ln -sfn sub/base.qcow2 in/link.qcow2");
    assert_int_equal(allowed_dirs_check(self, dirs, path, &checked, &error), 0);
    shell("ln -sfn ../away/secret.qcow2 in/link.qcow2");
    assert_int_equal(file_open(self, path, 0, &file, &error), 0);
    assert_int_equal(allowed_dirs_confirm(dirs, file, &checked, &error), -EACCES);
    allowed_file_release(&checked);
    assert_non_null(error);
    file_close(self, file);
}

static void a_link_that_changes_after_the_check_gains_nothing(void **state)
{
    make_folders();
    on_loop(swap_between_check_and_open, NULL);
}

static void the_root_folder_allows_everything(void **state)
{
    make_folders();
    make_overlay("in/over.qcow2", "../away/secret.qcow2");
    static const char *const root[] = {"/", NULL};
    g_autofree char *path = in_dir("in/over.qcow2");
    OpenTest t = {
        .path = path, .options = {.read_only = true, .allowed_dirs = root}, .with = reads_11_at_0};
    on_loop(open_and_close, &t);
    assert_int_equal(t.result, 0);
    open_test_clear(&t);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)

int main(void)
{
    g_autofree char *qemu_io = g_find_program_in_path("qemu-io");
    if (!qemu_io) {
        print_message("1..0 # SKIP qemu-io is not installed\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        TEST(backing_files_below_an_allowed_folder_are_opened),
        TEST(the_top_itself_may_lie_anywhere),
        TEST(backing_files_elsewhere_are_refused),
        TEST(deeper_layers_are_held_to_it_too),
        TEST(data_files_are_held_to_it_and_can_be_refused_altogether),
        TEST(a_link_that_changes_after_the_check_gains_nothing),
        TEST(the_root_folder_allows_everything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
