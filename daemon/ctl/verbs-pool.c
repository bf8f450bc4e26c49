// SPDX-License-Identifier: LGPL-2.1-or-later
// A pool is a drop-in file of the service's unit (systemd.unit(5)), which names the directory in
// its first line, and the directory's group, which is the service's.
#include "verbs-pool.h"

#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl.h"

#define FIRST_LINE "# A pool of chaind: "
#define GROUP "chaind"
#define UNIT_DIR "/etc/systemd/system"

static int fail_errno(GError **error, int number, const char *what, const char *path)
{
    CtlStatus status = number == ENOENT                      ? CTL_NOT_FOUND
                       : number == EACCES || number == EPERM ? CTL_DENIED
                       : number == ENOSPC                    ? CTL_NO_SPACE
                                                             : CTL_FAILED;
    return ctl_fail(error, status, "%s '%s': %s%s", what, path, g_strerror(number),
                    status == CTL_DENIED ? "; pools are for root to change" : "");
}

// -- the drop-in ----------------------------------------------------------------------------------

static char *unit_name(const Ctl *ctl)
{
    const char *domain = arguments_text(ctl->arguments, "domain");
    return domain ? g_strdup_printf("chaind@%s.service", domain) : g_strdup("chaind.service");
}

static char *drop_in_dir(const Ctl *ctl)
{
    g_autofree char *unit = unit_name(ctl);
    return g_strdup_printf(UNIT_DIR "/%s.d", unit);
}

// As systemd-escape(1) has it.
static char *drop_in_path(const Ctl *ctl, const char *dir)
{
    g_autofree char *folder = drop_in_dir(ctl);
    GString *name = g_string_new("pool");
    for (const char *c = dir; *c; c++) {
        if (*c == '/')
            g_string_append_c(name, '-');
        else if (g_ascii_isalnum(*c) || strchr("_.", *c))
            g_string_append_c(name, *c);
        else
            g_string_append_printf(name, "\\x%02x", (unsigned char)*c);
    }
    g_string_append(name, ".conf");
    g_autofree char *base = g_string_free(name, FALSE);
    return g_build_filename(folder, base, NULL);
}

// The unit starts without a directory that is not there ("-").
static char *drop_in_text(const char *dir)
{
    g_auto(GStrv) parts = g_strsplit(dir, "%", -1); // which begins a specifier
    g_autofree char *escaped = g_strjoinv("%%", parts);
    return g_strdup_printf(FIRST_LINE "%s\n[Service]\nReadWritePaths=\"-%s\"\n", dir, escaped);
}

// NULL: it is no pool's.
static char *read_drop_in(const char *folder, const char *name)
{
    g_autofree char *path = g_build_filename(folder, name, NULL), *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL) || !g_str_has_prefix(text, FIRST_LINE))
        return NULL;
    const char *dir = text + strlen(FIRST_LINE);
    return g_strndup(dir, strcspn(dir, "\n"));
}

static void tell_systemd(const Ctl *ctl, const char *what, const char *dir)
{
    g_autofree char *unit = unit_name(ctl);
    const char *reload[] = {"systemctl", "daemon-reload", NULL};
    int status = 0;
    bool is_told = access("/run/systemd/system", F_OK) == 0 &&
                   g_spawn_sync(NULL, (char **)reload, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL,
                                NULL, &status, NULL) &&
                   status == 0;
    g_autofree char *clean = output_clean(dir);
    printf("'%s' %s from the next start on: %ssystemctl restart %s (clients that connect again go "
           "on)\n",
           clean, what, is_told ? "" : "systemctl daemon-reload; ", unit);
}

// -- add ------------------------------------------------------------------------------------------

// What the unit hides, or what no line of a unit can name.
static int check_dir(const char *dir, GError **error)
{
    static const char *const hidden[] = {"/home", "/root", "/run/user", "/tmp", "/var/tmp",
                                         "/dev",  "/proc", "/sys",      "/etc"};
    for (unsigned i = 0; i < G_N_ELEMENTS(hidden); i++) {
        size_t len = strlen(hidden[i]);
        if (g_str_has_prefix(dir, hidden[i]) && (!dir[len] || dir[len] == '/'))
            return ctl_fail(error, CTL_USAGE,
                            "'%s' cannot be a pool: the service does not see, or may not change, "
                            "what lies in %s",
                            dir, hidden[i]);
    }
    if (g_str_equal(dir, "/"))
        return ctl_fail(error, CTL_USAGE, "'/' cannot be a pool: name a directory for images");
    for (const char *c = dir; *c; c++)
        if ((unsigned char)*c < ' ' || strchr("\"\\", *c))
            return ctl_fail(error, CTL_USAGE, "a pool's path has no control characters, \" or \\");
    return 0;
}

// Its group writes it, and so has what is made in it.
static int give_access(const char *dir, GError **error)
{
    struct stat st;
    const struct group *group = getgrnam(GROUP);
    if (stat(dir, &st) < 0)
        return fail_errno(error, errno, "cannot look at", dir);
    if (!S_ISDIR(st.st_mode))
        return ctl_fail(error, CTL_FAILED, "'%s' is not a directory", dir);
    if (!group)
        return ctl_fail(error, CTL_FAILED,
                        "there is no group '" GROUP "': systemd-sysusers makes it");
    if (st.st_gid != group->gr_gid && chown(dir, (uid_t)-1, group->gr_gid) < 0)
        return fail_errno(error, errno, "cannot give the group '" GROUP "' the directory", dir);
    mode_t mode = (st.st_mode & 07777) | S_ISGID | S_IRWXG;
    if (mode != (st.st_mode & 07777) && chmod(dir, mode) < 0)
        return fail_errno(error, errno, "cannot let the group '" GROUP "' write", dir);
    return 0;
}

static int add(Ctl *ctl, const char *dir, GError **error)
{
    g_autofree char *folder = drop_in_dir(ctl), *path = drop_in_path(ctl, dir);
    g_autofree char *text = drop_in_text(dir);
    g_autoptr(GError) why = NULL;
    if (check_dir(dir, error) < 0 || give_access(dir, error) < 0)
        return -1;
    if (g_mkdir_with_parents(folder, 0755) < 0)
        return fail_errno(error, errno, "cannot make", folder);
    if (!g_file_set_contents_full(path, text, -1, G_FILE_SET_CONTENTS_CONSISTENT, 0644, &why))
        return g_error_matches(why, G_FILE_ERROR, G_FILE_ERROR_ACCES)
                   ? fail_errno(error, EACCES, "cannot write", path)
                   : ctl_fail(error, CTL_FAILED, "%s", why->message);
    tell_systemd(ctl, "is a pool", dir);
    return CTL_OK;
}

// -- remove and list ------------------------------------------------------------------------------

static int take_away(Ctl *ctl, const char *dir, GError **error)
{
    g_autofree char *path = drop_in_path(ctl, dir);
    int r = unlink(path) < 0 ? errno : 0;
    if (r == ENOENT)
        return ctl_fail(error, CTL_NOT_FOUND, "'%s' is no pool: 'chainctl pool list' lists them",
                        dir);
    if (r)
        return fail_errno(error, r, "cannot remove", path);
    tell_systemd(ctl, "is no pool", dir);
    return CTL_OK;
}

static gint by_path(gconstpointer a, gconstpointer b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int list(Ctl *ctl)
{
    static const Column columns[] = {{"path", "POOL", CELL_NAME}, {0}};
    g_autofree char *folder = drop_in_dir(ctl);
    g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func(g_free);
    json_auto_t *rows = json_array();
    g_autoptr(GDir) all = g_dir_open(folder, 0, NULL);
    for (const char *name; all && (name = g_dir_read_name(all));) {
        char *dir = read_drop_in(folder, name);
        if (dir)
            g_ptr_array_add(found, dir);
    }
    g_ptr_array_sort(found, by_path);
    for (guint i = 0; i < found->len; i++) {
        g_autofree char *valid = g_utf8_make_valid(found->pdata[i], -1);
        json_array_append_new(rows, json_pack("{s:s}", "path", valid));
    }
    output_rows(&ctl->output, rows, columns, "There are no pools but the service's own directory.");
    return CTL_OK;
}

static int run_pool(Ctl *ctl, GError **error)
{
    const char *what = ctl_word(ctl, 0), *given = ctl_word(ctl, 1);
    bool lists = g_str_equal(what, "list");
    if (lists == !!given)
        return ctl_fail(error, CTL_USAGE, lists ? "list takes no directory" : "DIR is missing");
    if (lists)
        return list(ctl);
    g_autofree char *dir = g_canonicalize_filename(given, NULL);
    return g_str_equal(what, "add") ? add(ctl, dir, error) : take_away(ctl, dir, error);
}

static const VerbWord pool_words[] = {
    {"WHAT", WORD_TEXT, .choices = "add|remove|list"},
    {"DIR", WORD_FILE, .is_optional = true},
    {0},
};
static const VerbOption pool_options[] = {
    {"domain", 'd', WORD_TEXT, "NAME", "of the storage domain chaind@NAME.service"},
    {0},
};

static const Verb verbs[] = {
    {
        .name = "pool",
        .summary = "Directories that the service may write, too",
        .text = "The service chaind.service writes nothing outside its state directory. In a pool\n"
                "it does: disks can be added and made there, and backups go there. The directory\n"
                "gets the group chaind; images that are in it already may need that, too. A pool\n"
                "takes effect with the next start of the service.",
        .examples = "chainctl pool add /srv/vm\nchainctl pool list\nchainctl pool remove /srv/vm",
        .words = pool_words,
        .options = pool_options,
        .run = run_pool,
    },
    {0},
};

const VerbFamily verbs_pool_family = {.title = NULL, .verbs = verbs};
