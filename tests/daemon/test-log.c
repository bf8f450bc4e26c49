// SPDX-License-Identifier: LGPL-2.1-or-later
// Where lines of the log go: to the journal when it is what stderr leads to, else to stderr.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glib.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "log.h"

static GString *sent;     // fields of all entries, a line each
static int journal_fault; // negative: what the journal answers

int __wrap_sd_journal_sendv(const struct iovec *fields, int n);
int __wrap_sd_journal_sendv(const struct iovec *fields, int n)
{
    for (int i = 0; i < n; i++) {
        g_string_append_len(sent, fields[i].iov_base, (gssize)fields[i].iov_len);
        g_string_append_c(sent, '\n');
    }
    return journal_fault;
}

// GLib takes one in the life of a process.
void __real_g_log_set_writer_func(GLogWriterFunc fn, gpointer arg, GDestroyNotify free_arg);
void __wrap_g_log_set_writer_func(GLogWriterFunc fn, gpointer arg, GDestroyNotify free_arg);
void __wrap_g_log_set_writer_func(GLogWriterFunc fn, gpointer arg, GDestroyNotify free_arg)
{
    static bool is_set;
    if (!is_set)
        __real_g_log_set_writer_func(fn, arg, free_arg);
    is_set = true;
}

// stderr leads to `fds[1]` meanwhile, of which JOURNAL_STREAM has the inode plus `inode_change`.
typedef struct World {
    int fds[2], kept;
} World;

static void begin(World *w, ino_t inode_change)
{
    struct stat st;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, w->fds), 0);
    assert_int_equal(fstat(w->fds[1], &st), 0);
    w->kept = dup(STDERR_FILENO);
    dup2(w->fds[1], STDERR_FILENO);
    g_autofree char *stream =
        g_strdup_printf("%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)(st.st_ino + inode_change));
    g_setenv("JOURNAL_STREAM", stream, true);
    sent = g_string_new(NULL);
    journal_fault = 0;
    log_init(LOG_INFO);
}

static void end(World *w, const char *want_sent, const char *want_stderr)
{
    char text[256] = "";
    dup2(w->kept, STDERR_FILENO);
    if (read(w->fds[0], text, sizeof text - 1) < 0)
        text[0] = '\0';
    close(w->kept);
    close(w->fds[0]);
    close(w->fds[1]);
    assert_string_equal(sent->str, want_sent);
    assert_string_equal(text, want_stderr);
    g_string_free(sent, true);
}

static void an_entry_has_the_fields_that_it_is_about(void **state)
{
    World w;
    begin(&w, 0);
    log_about(LOG_ERROR, &(LogAbout){"id", "web", "/a.qcow2", "n1", "j1", "unix:/s"}, "%d two", 1);
    end(&w,
        "MESSAGE=1 two\nPRIORITY=3\nSYSLOG_IDENTIFIER=chaind\nMESSAGE_ID=id\nCHAIND_DISK=web\n"
        "CHAIND_FILE=/a.qcow2\nCHAIND_NODE=n1\nCHAIND_JOB=j1\nCHAIND_CLIENT=unix:/s\n",
        "");
}

static void a_plain_line_is_an_entry_with_its_priority(void **state)
{
    World w;
    begin(&w, 0);
    log_line(LOG_WARNING, "a");
    log_line(LOG_INFO, "b");
    log_line(LOG_DEBUG, "not told");
    g_log_structured(NULL, G_LOG_LEVEL_MESSAGE, "MESSAGE", "of a library");
    end(&w,
        "MESSAGE=a\nPRIORITY=4\nSYSLOG_IDENTIFIER=chaind\n"
        "MESSAGE=b\nPRIORITY=6\nSYSLOG_IDENTIFIER=chaind\n"
        "MESSAGE=of a library\nPRIORITY=6\nSYSLOG_IDENTIFIER=chaind\n",
        "");
}

static void a_stderr_that_is_not_the_journal_gets_lines(void **state)
{
    World w;
    begin(&w, 1);
    log_about(LOG_ERROR, &(LogAbout){.disk = "web"}, "one");
    end(&w, "", "chaind: one\n");
}

static void what_the_journal_does_not_take_goes_to_stderr(void **state)
{
    World w;
    begin(&w, 0);
    journal_fault = -1;
    log_line(LOG_ERROR, "one");
    end(&w, "MESSAGE=one\nPRIORITY=3\nSYSLOG_IDENTIFIER=chaind\n", "chaind: one\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_entry_has_the_fields_that_it_is_about),
        cmocka_unit_test(a_plain_line_is_an_entry_with_its_priority),
        cmocka_unit_test(a_stderr_that_is_not_the_journal_gets_lines),
        cmocka_unit_test(what_the_journal_does_not_take_goes_to_stderr),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
