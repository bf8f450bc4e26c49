// SPDX-License-Identifier: LGPL-2.1-or-later
// Finds the holder of a lock. The kernel names no process for OFD locks (their pid is -1), but
// /proc/PID/fdinfo/N lists the locks of each open file description. Blocking; any thread.
#include "host/host-file-holder.h"

#include <dirent.h>
#include <fcntl.h>
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_number(const char *name)
{
    return name[0] >= '1' && name[0] <= '9';
}

static char *describe(long pid)
{
    char path[64], name[64] = "";
    snprintf(path, sizeof(path), "/proc/%ld/comm", pid);
    FILE *f = fopen(path, "re");
    if (f) {
        if (!fgets(name, sizeof(name), f))
            name[0] = '\0';
        fclose(f);
    }
    name[strcspn(name, "\n")] = '\0';
    g_autofree char *valid = g_utf8_make_valid(name[0] ? name : "a process", -1);
    if (pid == getpid())
        return g_strdup_printf("%s (pid %ld, this process)", valid, pid);
    return g_strdup_printf("%s (pid %ld)", valid, pid);
}

// fdinfo has lines "lock: 1: OFDLCK ADVISORY READ -1 fe:00:1234 201 201" (the end may be EOF).
static bool has_lock(long pid, const char *fd_name, int byte)
{
    char path[96], line[256];
    bool found = false;
    snprintf(path, sizeof(path), "/proc/%ld/fdinfo/%.16s", pid, fd_name);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    while (!found && fgets(line, sizeof(line), f)) {
        long long start, end = INT64_MAX;
        int n = sscanf(line, "lock: %*s %*s %*s %*s %*s %*s %lld %lld", &start, &end);
        found = n >= 1 && start <= byte && byte <= end;
    }
    fclose(f);
    return found;
}

static bool is_same_file(int dir_fd, const char *name, const struct stat *st)
{
    struct stat other;
    return fstatat(dir_fd, name, &other, 0) == 0 && other.st_ino == st->st_ino &&
           other.st_dev == st->st_dev;
}

// `own_fd` is our own description of the file, in this process; else -1.
static bool process_has_lock(long pid, const struct stat *st, int byte, int own_fd)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%ld/fd", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return false;
    bool found = false;
    struct dirent *e;
    while (!found && (e = readdir(dir)))
        found = e->d_name[0] != '.' && atoi(e->d_name) != own_fd &&
                is_same_file(dirfd(dir), e->d_name, st) && has_lock(pid, e->d_name, byte);
    closedir(dir);
    return found;
}

char *host_file_find_holder(int fd, int byte, pid_t pid)
{
    struct stat st;
    if (pid > 0)
        return describe(pid);
    DIR *proc = opendir("/proc");
    if (!proc)
        return NULL;
    char *result = NULL;
    struct dirent *e;
    if (fstat(fd, &st) == 0)
        while (!result && (e = readdir(proc))) {
            long other = is_number(e->d_name) ? atol(e->d_name) : 0;
            if (other && process_has_lock(other, &st, byte, other == getpid() ? fd : -1))
                result = describe(other);
        }
    closedir(proc);
    return result;
}
