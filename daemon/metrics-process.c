// SPDX-License-Identifier: LGPL-2.1-or-later
#include "metrics-process.h"

#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "metrics-text.h"

// The fields of a stat file behind the name, which may have anything in it: from "state" on.
enum { STAT_USER = 11, STAT_SYSTEM = 12, STAT_START = 19, STAT_VIRTUAL = 20, STAT_RESIDENT = 21 };

static char **read_stat(const char *path, char **ret_name)
{
    g_autofree char *content = NULL;
    if (!g_file_get_contents(path, &content, NULL, NULL))
        return NULL;
    char *begin = strchr(content, '('), *end = strrchr(content, ')');
    if (!begin || !end || end < begin || !end[1])
        return NULL;
    char **fields = g_strsplit(end + 2, " ", -1);
    if (g_strv_length(fields) <= STAT_RESIDENT) { // never of a kernel that we run on
        g_strfreev(fields);
        return NULL;
    }
    if (ret_name)
        *ret_name = g_strndup(begin + 1, (gsize)(end - begin - 1));
    return fields;
}

static double number(char **fields, unsigned i)
{
    return g_ascii_strtod(fields[i], NULL);
}

static double cpu_seconds(char **fields)
{
    return (number(fields, STAT_USER) + number(fields, STAT_SYSTEM)) / (double)sysconf(_SC_CLK_TCK);
}

static unsigned count_entries(const char *path)
{
    unsigned n = 0;
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    while (dir && g_dir_read_name(dir))
        n++;
    return n;
}

static double boot_time(void)
{
    g_autofree char *content = NULL;
    const char *line =
        g_file_get_contents("/proc/stat", &content, NULL, NULL) ? strstr(content, "btime ") : NULL;
    return line ? g_ascii_strtod(line + strlen("btime "), NULL) : 0;
}

static void append_one(GString *text, const char *name, const char *type, const char *help,
                       double value)
{
    metrics_text_family(text, name, type, help);
    metrics_text_sample(text, name, value, NULL);
}

static void append_process(GString *text)
{
    struct rlimit files = {0};
    g_auto(GStrv) stat = read_stat("/proc/self/stat", NULL);
    if (!stat)
        return;
    getrlimit(RLIMIT_NOFILE, &files);
    append_one(text, "process_cpu_seconds_total", "counter",
               "Processor time that the process has used.", cpu_seconds(stat));
    append_one(text, "process_resident_memory_bytes", "gauge", "Memory that is resident.",
               number(stat, STAT_RESIDENT) * (double)sysconf(_SC_PAGESIZE));
    append_one(text, "process_virtual_memory_bytes", "gauge", "Address space that is in use.",
               number(stat, STAT_VIRTUAL));
    append_one(text, "process_open_fds", "gauge", "Descriptors that are open.",
               count_entries("/proc/self/fd"));
    append_one(text, "process_max_fds", "gauge", "Descriptors that may be open.",
               (double)files.rlim_cur);
    append_one(text, "process_start_time_seconds", "gauge",
               "When the process was started, in seconds since 1970.",
               boot_time() + number(stat, STAT_START) / (double)sysconf(_SC_CLK_TCK));
}

// Workers, of the pool and of the kernel, come and go: of those that have gone nobody knows any
// more.
static bool is_worker(const char *thread)
{
    return g_str_equal(thread, "worker") || g_str_has_prefix(thread, "iou-");
}

static void append_threads(GString *text)
{
    static const char name[] = "chaind_thread_cpu_seconds_total";
    metrics_text_family(text, name, "counter",
                        "Processor time of threads, but for workers. Each loop has one; those of "
                        "disks are called loop.");
    g_autoptr(GDir) dir = g_dir_open("/proc/self/task", 0, NULL);
    for (const char *id; dir && (id = g_dir_read_name(dir));) {
        g_autofree char *path = g_build_filename("/proc/self/task", id, "stat", NULL);
        g_autofree char *thread = NULL;
        g_auto(GStrv) stat = read_stat(path, &thread);
        if (stat && !is_worker(thread))
            metrics_text_sample(text, name, cpu_seconds(stat), "thread", thread, "id", id, NULL);
    }
}

void metrics_process_append(GString *text)
{
    append_process(text);
    append_threads(text);
}
