// SPDX-License-Identifier: LGPL-2.1-or-later
// Images made by qcow2_create(): qemu-img accepts each combination of options and says the same
// about it; what cannot be is refused and leaves no file.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2-create.h"

typedef struct Job {
    const char *path;
    Qcow2CreateOptions options;
    int result;
    GError *error;
    Qcow2CheckResult check;
} Job;

static void create_fiber(Fiber *self, void *arg)
{
    Job *job = arg;
    job->result = qcow2_create(self, job->path, &job->options, &job->error);
}

// Creates, then checks with our own checker.
static void create_and_check_fiber(Fiber *self, void *arg)
{
    Job *job = arg;
    create_fiber(self, job);
    if (job->result < 0)
        return;
    File *file;
    job->result = file_open(self, job->path, 0, &file, &job->error);
    if (job->result < 0)
        return;
    job->result = qcow2_check(self, file, 0, &job->check, &job->error);
    file_close(self, file);
}

static int set_up(void **state)
{
    *state = host_make_dir();
    return 0;
}

static int tear_down(void **state)
{
    host_remove_dir(*state);
    return 0;
}

// qemu-img's info must contain each of the given lines.
static void assert_info(const char *dir, const char *image, ...)
{
    g_autofree char *info = NULL;
    assert_int_equal(host_try_shell(dir, &info, "qemu-img info %s", image), 0);
    va_list args;
    va_start(args, image);
    for (const char *line; (line = va_arg(args, const char *));)
        if (!strstr(info, line))
            fail_msg("no '%s' in: %s", line, info);
    va_end(args);
}

static void make(const char *dir, const Qcow2CreateOptions *options)
{
    g_autofree char *path = g_build_filename(dir, "new.qcow2", NULL);
    Job job = {.path = path, .options = *options};
    host_run(create_and_check_fiber, &job);
    if (job.result < 0)
        fail_msg("cluster %" PRIu64 " refcounts %" PRIu64 ": %s", options->cluster_bytes,
                 options->refcount_bits, job.error->message);
    if (job.check.n_corruptions || job.check.n_leaks || job.check.n_check_errors)
        fail_msg("cluster %" PRIu64 " refcounts %" PRIu64 ": %s", options->cluster_bytes,
                 options->refcount_bits, (char *)g_ptr_array_index(job.check.messages, 0));
    qcow2_check_result_clear(&job.check);
    host_shell(dir, "qemu-img check -q new.qcow2");
}

// One combination: made, checked twice, described the same, and still right after a write by QEMU.
static void try_one(const char *dir, const Qcow2CreateOptions *options)
{
    make(dir, options);
    g_autofree char *cluster = g_strdup_printf("cluster_size: %" PRIu64, options->cluster_bytes);
    g_autofree char *size = g_strdup_printf("(%" PRIu64 " bytes)", options->size_bytes);
    g_autofree char *refcounts = g_strdup_printf("refcount bits: %" PRIu64, options->refcount_bits);
    bool v3 = options->version == 3;
    assert_info(dir, "new.qcow2", cluster, size, v3 ? refcounts : "compat: 0.10",
                !v3                    ? "compat"
                : options->extended_l2 ? "extended l2: true"
                                       : "extended l2: false",
                options->zstd ? "compression type: zstd" : "compression type: zlib",
                !v3                       ? "compat"
                : options->lazy_refcounts ? "lazy refcounts: true"
                                          : "lazy refcounts: false",
                NULL);
    host_shell(dir, "qemu-io -f qcow2 -c 'write -P 7 1000 100000' -c 'read -P 7 1000 100000' "
                    "-c 'read -P 0 101000 50000' new.qcow2 && "
                    "qemu-img check -q new.qcow2 && rm new.qcow2");
}

static void every_combination_of_options_agrees_with_qemu_img(void **state)
{
    for (unsigned cluster_bits = 9; cluster_bits <= 21; cluster_bits++) {
        for (unsigned order = 0; order <= 6; order++) {
            // The other options run through their values as the first two vary.
            unsigned n = cluster_bits * 7 + order;
            Qcow2CreateOptions o = {
                .size_bytes = (UINT64_C(5) << 20) + 512 * n,
                .version = 3,
                .cluster_bytes = 1u << cluster_bits,
                .refcount_bits = 1u << order,
                .zstd = n % 2,
                .extended_l2 = cluster_bits >= 14 && n % 3 == 0,
                .lazy_refcounts = n % 5 == 0,
                .preallocate_metadata = n / 2 % 2,
            };
            try_one(*state, &o);
        }
        Qcow2CreateOptions v2 = {.size_bytes = 3 << 20,
                                 .version = 2,
                                 .cluster_bytes = 1u << cluster_bits,
                                 .refcount_bits = 16,
                                 .preallocate_metadata = cluster_bits % 2};
        try_one(*state, &v2);
    }
}

static void defaults_are_64_KiB_clusters_and_16_bit_refcounts(void **state)
{
    make(*state, &(Qcow2CreateOptions){.size_bytes = 1000});
    assert_info(*state, "new.qcow2", "(1024 bytes)", "cluster_size: 65536", "refcount bits: 16",
                "compat: 1.1", NULL);
}

static void an_image_of_size_0_is_valid(void **state)
{
    make(*state, &(Qcow2CreateOptions){.preallocate_metadata = true});
    assert_info(*state, "new.qcow2", "(0 bytes)", NULL);
}

static void a_large_preallocated_image_is_sparse_and_right(void **state)
{
    make(*state,
         &(Qcow2CreateOptions){.size_bytes = UINT64_C(40) << 30, .preallocate_metadata = true});
    g_autofree char *path = g_build_filename(*state, "new.qcow2", NULL);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size > INT64_C(40) << 30);
    assert_true(st.st_blocks * 512 < 16 << 20);
}

static void an_overlay_records_its_backing_file(void **state)
{
    char *dir = *state;
    host_shell(dir, "qemu-img create -q -f raw './b:a s\303\244.raw' 1M && "
                    "qemu-io -f raw -c 'write -P 5 0 1M' './b:a s\303\244.raw'");
    make(dir, &(Qcow2CreateOptions){.size_bytes = 2 << 20,
                                    .backing_name = "./b:a s\303\244.raw",
                                    .backing_format = "raw"});
    assert_info(dir, "new.qcow2", "backing file: ./b:a s\303\244.raw", "backing file format: raw",
                NULL);
    host_shell(dir, "qemu-io -f qcow2 -c 'read -P 5 0 1M' -c 'read -P 0 1M 1M' new.qcow2");
}

static void the_longest_backing_name_fits(void **state)
{
    char *dir = *state;
    // Path components may not be longer than 255 bytes: ./././…/base.raw
    g_autoptr(GString) name = g_string_new("");
    while (name->len < 1023 - 9)
        g_string_append(name, "./");
    g_string_append(name, &"/base.raw"[name->len % 2]);
    g_string_set_size(name, MIN(name->len, 1023));
    host_shell(dir, "qemu-img create -q -f raw base.raw 1M");
    make(dir, &(Qcow2CreateOptions){
                  .size_bytes = 1 << 20, .backing_name = name->str, .backing_format = "raw"});
    assert_info(dir, "new.qcow2", name->str, NULL);
    host_shell(dir, "qemu-io -f qcow2 -c 'read -P 0 0 1M' new.qcow2");
}

static void refuse(const char *dir, const Qcow2CreateOptions *options, const char *part)
{
    g_autofree char *path = g_build_filename(dir, "new.qcow2", NULL);
    Job job = {.path = path, .options = *options};
    host_run(create_fiber, &job);
    assert_int_equal(job.result, -EINVAL);
    if (!strstr(job.error->message, part))
        fail_msg("'%s' lacks '%s'", job.error->message, part);
    assert_null(strchr(job.error->message, '\n'));
    g_clear_error(&job.error);
    assert_false(g_file_test(path, G_FILE_TEST_EXISTS));
}

static void impossible_options_are_refused_without_a_file(void **state)
{
    static const struct {
        Qcow2CreateOptions options;
        const char *part;
    } cases[] = {
        {{.version = 4}, "version 4"},
        {{.cluster_bytes = 256}, "Cluster size"},
        {{.cluster_bytes = 4 << 20}, "Cluster size"},
        {{.cluster_bytes = 65537}, "Cluster size"},
        {{.cluster_bytes = (UINT64_C(1) << 32) + 65536}, "Cluster size"},
        {{.refcount_bits = 3}, "Refcount width"},
        {{.refcount_bits = 128}, "Refcount width"},
        {{.version = 2, .refcount_bits = 8}, "Different refcount widths"},
        {{.version = 2, .zstd = true}, "Non-zlib"},
        {{.version = 2, .extended_l2 = true}, "version=v3"},
        {{.version = 2, .lazy_refcounts = true}, "Lazy refcounts"},
        {{.extended_l2 = true, .cluster_bytes = 8192}, "16384"},
        {{.backing_name = "a"}, "format"},
        {{.backing_format = "raw"}, "backing file"},
        {{.backing_name = "a", .backing_format = "raw", .preallocate_metadata = true},
         "extended_l2"},
        {{.raw_data = true}, "data-file-raw requires data-file"},
        {{.size_bytes = UINT64_MAX}, "size"},
        {{.size_bytes = UINT64_C(1) << 60}, "larger cluster size"},
        {{.size_bytes = UINT64_C(100) << 30,
          .cluster_bytes = 512,
          .refcount_bits = 64,
          .preallocate_metadata = true},
         "refcount table"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        refuse(*state, &cases[i].options, cases[i].part);
    g_autofree char *name = g_strnfill(1024, 'x');
    refuse(*state, &(Qcow2CreateOptions){.backing_name = name, .backing_format = "raw"}, "1024");
    name[1000] = '\0';
    refuse(
        *state,
        &(Qcow2CreateOptions){.cluster_bytes = 512, .backing_name = name, .backing_format = "raw"},
        "not fit into a cluster");
}

static void an_existing_file_stays_as_it_is(void **state)
{
    char *dir = *state;
    host_shell(dir, "echo precious > new.qcow2");
    g_autofree char *path = g_build_filename(dir, "new.qcow2", NULL);
    Job job = {.path = path, .options = {.size_bytes = 4096}};
    host_run(create_fiber, &job);
    assert_int_equal(job.result, -EEXIST);
    g_clear_error(&job.error);
    host_shell(dir, "grep -q precious new.qcow2");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(every_combination_of_options_agrees_with_qemu_img),
        TEST(defaults_are_64_KiB_clusters_and_16_bit_refcounts),
        TEST(an_image_of_size_0_is_valid),
        TEST(a_large_preallocated_image_is_sparse_and_right),
        TEST(an_overlay_records_its_backing_file),
        TEST(the_longest_backing_name_fits),
        TEST(impossible_options_are_refused_without_a_file),
        TEST(an_existing_file_stays_as_it_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
