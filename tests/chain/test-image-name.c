// SPDX-License-Identifier: LGPL-2.1-or-later
// Names of images: where they lead, and which are refused.
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "chain/image-name.h"

static void assert_path_of(const NodeConfig *config, const char *path)
{
    const NodeConfig *file = node_config_file(config);
    assert_non_null(file);
    assert_string_equal(driver_value_str(file->values, "filename", NULL), path);
}

static void assert_path(const char *text, const char *overlay, const char *path)
{
    g_autoptr(NodeConfig) name = NULL;
    g_autoptr(GError) error = NULL;
    if (image_name_parse(text, overlay, &name, &error) < 0)
        fail_msg("%s: %s", text, error->message);
    assert_path_of(name, path);
}

static void assert_refused(const char *text, int r, const char *word)
{
    g_autoptr(NodeConfig) name = NULL;
    g_autoptr(GError) error = NULL;
    assert_int_equal(image_name_parse(text, "/dir/top.qcow2", &name, &error), r);
    assert_non_null(error);
    if (!strstr(error->message, word))
        fail_msg("'%s' does not speak of '%s'", error->message, word);
}

static void relative_names_start_from_the_overlays_folder(void **state)
{
    assert_path("base.img", "/dir/top.qcow2", "/dir/base.img");
    assert_path("base.img", "top.qcow2", "base.img");
    assert_path("../b/base.img", "a/top.qcow2", "a/../b/base.img");
    assert_path("/abs/base.img", "/dir/top.qcow2", "/abs/base.img");
    assert_path("base.img", "/top.qcow2", "/base.img");
    assert_path("base.img", NULL, "base.img");
}

static void spaces_and_utf8_are_kept(void **state)
{
    assert_path(" an image ", "/my dir/t", "/my dir/ an image ");
    assert_path("größe-日本.img", "/ü/t", "/ü/größe-日本.img");
}

static void a_colon_is_a_protocol_only_where_one_is_known(void **state)
{
    assert_path("/dir/a:b", "/dir/t", "/dir/a:b");
    assert_path("./nbd:b", "/dir/t", "/dir/./nbd:b");
    assert_path("2024-01-01 12:00.img", "/dir/t", "/dir/2024-01-01 12:00.img");
    assert_path("file:/x/y", "/dir/t", "/x/y");
    assert_path("file:y", "/dir/t", "y");
    assert_path("file:///x/y", "/dir/t", "///x/y");
    assert_path("file://y", "/dir/t", "//y");
    assert_path("file:nbd:y", "/dir/t", "nbd:y");
    assert_path("host_device:///dev/sda", "/dir/t", "///dev/sda");
    assert_path("host_device:/dev/sda", "/dir/t", "/dev/sda");
    assert_refused("nbd:localhost:10809", -ENOTSUP, "nbd");
    assert_refused("nbds+unix:///x?socket=s", -ENOTSUP, "nbds+unix");
    assert_refused("https://host/x", -ENOTSUP, "https");
    assert_refused("strange://host/x", -ENOTSUP, "strange");
    assert_refused("fat:rw:/tmp", -ENOTSUP, "fat");
    assert_refused("file:", -EINVAL, "empty");
}

static void a_name_of_1023_bytes_is_whole(void **state)
{
    char text[1024], path[1100];
    memset(text, 'n', 1023);
    text[1023] = '\0';
    g_snprintf(path, sizeof path, "/dir/%s", text);
    assert_path(text, "/dir/t", path);
}

static void assert_json(const char *text, const char *path, const char *format)
{
    g_autoptr(NodeConfig) name = NULL;
    g_autoptr(GError) error = NULL;
    if (image_name_parse(text, "/dir/t", &name, &error) < 0)
        fail_msg("%s: %s", text, error->message);
    assert_path_of(name, path);
    if (format)
        assert_string_equal(name->driver->name, format);
    else
        assert_null(name->driver);
}

static void json_names_nested_and_flat_mean_the_same(void **state)
{
    assert_json("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/a\"}}",
                "/a", "qcow2");
    assert_json("json:{\"driver\":\"qcow2\",\"file.driver\":\"file\",\"file.filename\":\"/a\"}",
                "/a", "qcow2");
    assert_json("json:{\"driver\":\"raw\",\"file.driver\":\"host_device\","
                "\"file.filename\":\"/dev/x\"}",
                "/dev/x", "raw");
    assert_json("json:{\"driver\":\"file\",\"filename\":\"rel a:b\"}", "rel a:b", NULL);
    assert_json("json:{\"file\":{\"filename\":\"/a\"}}", "/a", NULL);
    assert_json("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"raw\",\"file\":"
                "{\"driver\":\"file\",\"filename\":\"/a\"}}}",
                "/a", "qcow2");
    assert_json("json:{\"driver\":\"qcow2\",\"file.file.filename\":\"/a\"}", "/a", "qcow2");
    assert_json("json:{\"driver\":\"raw\",\"read-only\":true,\"cache\":{\"direct\":true},"
                "\"file\":{\"driver\":\"file\",\"filename\":\"json:{\",\"locking\":\"off\"}}",
                "json:{", "raw");
}

static void json_names_in_single_quotes_are_taken_as_qemu_takes_them(void **state)
{
    assert_json("json:{'driver':'qcow2','file':{'driver':'file','filename':'/a'}}", "/a", "qcow2");
    assert_json("json:{'driver':\"raw\",\"file.filename\":'/a'}", "/a", "raw");
    assert_json("json:{'file.filename':'say \"x\"'}", "say \"x\"", NULL);
    assert_json("json:{\"file.filename\":\"it's\"}", "it's", NULL);
    assert_json("json:{'file.filename':'it\\'s \\\"so\\\" \\\\'}", "it's \"so\" \\", NULL);
    assert_json("json:{\"file.filename\":\"it\\'s\"}", "it's", NULL);
    assert_json("json:{'file.filename':'json:{'}", "json:{", NULL);
    assert_refused("json:{'driver\":'qcow2'}", -EINVAL, "JSON");
    assert_refused("json:{'file.filename':'x}", -EINVAL, "JSON");
    assert_refused("json:{'file.filename':'x\\", -EINVAL, "JSON");
}

static void json_names_that_are_not_understood_are_refused(void **state)
{
    assert_refused("json:", -EINVAL, "JSON");
    assert_refused("json:[]", -EINVAL, "not a JSON object");
    assert_refused("json:{\"driver\":", -EINVAL, "JSON");
    assert_refused("json:{\"driver\":\"ssh\",\"host\":\"x\"}", -ENOTSUP, "'ssh'");
    assert_refused("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"ssh\",\"host\":\"x\"}}",
                   -ENOTSUP, "'ssh'");
    assert_refused("json:{\"driver\":\"vmdk\",\"file.filename\":\"x\"}", -ENOTSUP, "'vmdk'");
    assert_refused("json:{\"driver\":\"qcow2\",\"offset\":512,\"file.filename\":\"x\"}", -ENOTSUP,
                   "'offset'");
    assert_refused("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"raw\",\"size\":true,"
                   "\"file.filename\":\"x\"}}",
                   -EINVAL, "\"size\"");
    assert_refused("json:{\"offset\":512,\"file.filename\":\"x\"}", -ENOTSUP, "'offset'");
    assert_refused("json:{\"driver\":\"raw\",\"offset\":true,\"file.filename\":\"x\"}", -EINVAL,
                   "\"offset\"");
    assert_refused("json:{\"driver\":\"qcow2\",\"file\":\"node0\"}", -ENOTSUP, "\"file\"");
    assert_refused("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\"}}", -EINVAL,
                   "\"filename\"");
    assert_refused("json:{\"driver\":7,\"filename\":\"x\"}", -EINVAL, "\"driver\"");
    assert_refused("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"qcow2\",\"file.filename\":"
                   "\"x\"}}",
                   -ENOTSUP, "inside");
    assert_refused("json:{\"driver\":\"qcow2\",\"backing\":{\"driver\":\"raw\"},"
                   "\"file.filename\":\"x\"}",
                   -EINVAL, "\"file\"");
    assert_refused("json:{\"driver\":\"qcow2\",\"backing\":\"node0\",\"file.filename\":\"x\"}",
                   -ENOTSUP, "node");
    assert_refused("json:{\"driver\":\"qcow2\",\"backing\":7,\"file.filename\":\"x\"}", -EINVAL,
                   "\"backing\"");
    assert_refused("json:{\"driver\":\"raw\",\"backing.file.filename\":\"y\","
                   "\"file.filename\":\"x\"}",
                   -EINVAL, "raw");
}

static void json_backing_null_cuts_the_chain(void **state)
{
    g_autoptr(NodeConfig) name = NULL;
    assert_int_equal(image_name_parse("json:{\"driver\":\"qcow2\",\"backing\":null,"
                                      "\"file.filename\":\"x\"}",
                                      NULL, &name, NULL),
                     0);
    const NodeConfigChild *backing = node_config_child(name, "backing");
    assert_non_null(backing);
    assert_null(backing->config);
}

static void assert_part(const NodeConfig *config, uint64_t offset, uint64_t size)
{
    assert_int_equal(driver_value_int(config->values, "offset", 0), offset);
    assert_int_equal(driver_value_int(config->values, "size", UINT64_MAX), size);
}

static void json_raw_may_be_a_part_of_a_file(void **state)
{
    static const char *const names[] = {
        "json:{\"driver\":\"raw\",\"offset\":1048576,\"size\":2048,\"file.filename\":\"x\"}",
        "json:{\"driver\":\"raw\",\"offset\":\"1M\",\"size\":\"2k\",\"file.filename\":\"x\"}",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(NodeConfig) name = NULL;
        assert_int_equal(image_name_parse(names[i], NULL, &name, NULL), 0);
        assert_part(name, 1 << 20, 2048);
    }
    g_autoptr(NodeConfig) name = NULL;
    assert_int_equal(image_name_parse("json:{\"driver\":\"raw\",\"offset\":7,"
                                      "\"file.filename\":\"x\"}",
                                      NULL, &name, NULL),
                     0);
    assert_part(name, 7, UINT64_MAX);
}

static const NodeConfig *below(const NodeConfig *config)
{
    const NodeConfigChild *backing = node_config_child(config, "backing");
    return backing ? backing->config : NULL;
}

static void json_backing_replaces_what_lies_below(void **state)
{
    static const char *const names[] = {
        "json:{\"driver\":\"qcow2\",\"file.filename\":\"x\",\"backing\":{\"driver\":\"qcow2\","
        "\"file\":{\"driver\":\"file\",\"filename\":\"y\"},\"backing\":{\"driver\":\"raw\","
        "\"offset\":512,\"file.filename\":\"z\"}}}",
        "json:{\"driver\":\"qcow2\",\"file.filename\":\"x\",\"backing.driver\":\"qcow2\","
        "\"backing.file.filename\":\"y\",\"backing.backing.driver\":\"raw\","
        "\"backing.backing.offset\":512,\"backing.backing.file.filename\":\"z\"}",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(NodeConfig) name = NULL;
        assert_int_equal(image_name_parse(names[i], "/dir/t", &name, NULL), 0);
        const NodeConfig *second = below(name), *third = below(second);
        assert_path_of(name, "x");
        assert_path_of(second, "y");
        assert_string_equal(second->driver->name, "qcow2");
        assert_path_of(third, "z");
        assert_string_equal(third->driver->name, "raw");
        assert_part(third, 512, UINT64_MAX);
        assert_null(below(third));
    }
}

static void json_options_that_only_tune_are_passed_over(void **state)
{
    assert_json("json:{\"driver\":\"qcow2\",\"l2-cache-size\":1048576,\"l2-cache-entry-size\":4096,"
                "\"refcount-cache-size\":1,\"cache-size\":\"8M\",\"cache-clean-interval\":60,"
                "\"lazy-refcounts\":\"on\",\"overlap-check\":{\"template\":\"all\"},"
                "\"overlap-check.inactive-l2\":true,\"pass-discard-request\":true,"
                "\"pass-discard-snapshot\":true,\"pass-discard-other\":true,"
                "\"discard-no-unref\":true,\"file\":{\"driver\":\"file\",\"drop-cache\":false,"
                "\"filename\":\"/a\"}}",
                "/a", "qcow2");
}

static void deep_nesting_is_refused_before_anything_recurses(void **state)
{
    g_autoptr(GString) text = g_string_new("json:");
    for (int i = 0; i < 100000; i++)
        g_string_append_c(text, '[');
    assert_refused(text->str, -EINVAL, "deeply");
    g_string_assign(text, "json:{\"");
    for (int i = 0; i < 1000; i++)
        g_string_append(text, "file.");
    g_string_append(text, "filename\":\"x\"}");
    assert_refused(text->str, -EINVAL, "deeply");
    g_string_assign(text, "json:{\"");
    for (int i = 0; i < 1000; i++)
        g_string_append(text, "backing.");
    g_string_append(text, "driver\":\"x\"}");
    assert_refused(text->str, -EINVAL, "deeply");
}

static void recorded_formats(void **state)
{
    const Driver *format;
    assert_int_equal(image_format_parse("qcow2", &format, NULL), 0);
    assert_string_equal(format->name, "qcow2");
    assert_int_equal(image_format_parse("host_device", &format, NULL), 0);
    assert_string_equal(format->name, "raw");
    assert_int_equal(image_format_parse("vmdk", &format, NULL), -ENOTSUP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(relative_names_start_from_the_overlays_folder),
        cmocka_unit_test(spaces_and_utf8_are_kept),
        cmocka_unit_test(a_colon_is_a_protocol_only_where_one_is_known),
        cmocka_unit_test(a_name_of_1023_bytes_is_whole),
        cmocka_unit_test(json_names_nested_and_flat_mean_the_same),
        cmocka_unit_test(json_names_in_single_quotes_are_taken_as_qemu_takes_them),
        cmocka_unit_test(json_names_that_are_not_understood_are_refused),
        cmocka_unit_test(json_backing_null_cuts_the_chain),
        cmocka_unit_test(json_raw_may_be_a_part_of_a_file),
        cmocka_unit_test(json_backing_replaces_what_lies_below),
        cmocka_unit_test(json_options_that_only_tune_are_passed_over),
        cmocka_unit_test(deep_nesting_is_refused_before_anything_recurses),
        cmocka_unit_test(recorded_formats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
