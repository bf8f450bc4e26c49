// SPDX-License-Identifier: LGPL-2.1-or-later
// chainctl: finds the verb, has it run, and says what went wrong: what, why, and what to do next.
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "ctl.h"
#include "help.h"
#include "verbs.h"

// Options of every verb may come before it, too.
static bool takes_value(const char *word)
{
    for (const VerbOption *option = arguments_common; option->name; option++) {
        bool is_letter = word[1] == option->letter && !word[2];
        bool is_name = g_str_has_prefix(word, "--") && g_str_equal(word + 2, option->name);
        if (is_letter || is_name)
            return option->kind != WORD_NONE;
    }
    return false;
}

// The place of the verb among the words; that of the end when there is none.
static unsigned find_verb_word(char **words)
{
    unsigned i = 1;
    while (words[i] && words[i][0] == '-')
        i += takes_value(words[i]) && words[i + 1] ? 2 : 1;
    return i;
}

// What no verb is needed for. -1: there is something else.
static int run_without_verb(char **words, unsigned n)
{
    if (n == 1) {
        help_print_all(stdout, verb_families);
        return CTL_OK;
    }
    if (g_str_equal(words[1], "--version") || g_str_equal(words[1], "-V")) {
        puts("chainctl " CHAIND_VERSION);
        return CTL_OK;
    }
    if (g_str_equal(words[1], "--help") || g_str_equal(words[1], "-h")) {
        help_print_all(stdout, verb_families);
        return CTL_OK;
    }
    fputs("chainctl: no verb was given: 'chainctl help' lists them\n", stderr);
    return CTL_USAGE;
}

static int unknown_verb(const char *name)
{
    const Verb *near = verb_find_near(verb_families, name);
    if (near)
        fprintf(stderr, "chainctl: there is no verb '%s': did you mean '%s'?\n", name, near->name);
    else
        fprintf(stderr, "chainctl: there is no verb '%s': 'chainctl help' lists them\n", name);
    return CTL_USAGE;
}

// What the daemon says for programs, and how chainctl has it. The first is at the end of a
// sentence.
static const char *const translations[][2] = {
    {": query-disks lists those that there are", ""},
    {": query-disks lists those that it has", ""},
    {"with \"clients\": \"hard\"", "with --disconnect"},
    {"open read-only with --force-share", "look at it with 'chaind --force-share'"},
};

// Owned.
static char *translate(const char *message)
{
    GString *text = g_string_new(message);
    for (unsigned i = 0; i < G_N_ELEMENTS(translations); i++)
        g_string_replace(text, translations[i][0], translations[i][1], 0);
    if (g_str_has_suffix(text->str, "."))
        g_string_truncate(text, text->len - 1);
    return g_string_free(text, FALSE);
}

// What lists that which was not found. NULL: nothing does. Owned.
static char *listing_command(const Ctl *ctl)
{
    const VerbWord *words = ctl->verb->words;
    const char *word = ctl_word(ctl, 0);
    g_auto(GStrv) parts = g_strsplit(word ? word : "", "@", 2);
    switch (words ? words->kind : WORD_NONE) {
    case WORD_JOB:
        return g_strdup("'chainctl jobs' lists those there are");
    case WORD_DISK:
    case WORD_POINT:
    case WORD_DISK_OR_POINT:
        return *parts && parts[1]
                   ? g_strdup_printf("'chainctl tree %s' shows those there are", *parts)
                   : g_strdup("'chainctl ls' lists those there are");
    default:
        return NULL;
    }
}

// The service may not write where FILE is to be. NULL: it is another daemon, or not about FILE.
// Owned.
static char *pool_command(const Ctl *ctl, const char *message)
{
    const VerbWord *words = ctl->verb->words;
    if (!g_str_equal(ctl->socket, CHAIND_RUN_DIR "/control.sock"))
        return NULL;
    for (unsigned i = 0; words && words[i].name && ctl_word(ctl, i); i++) {
        g_autofree char *path = g_canonicalize_filename(ctl_word(ctl, i), NULL);
        if (words[i].kind != WORD_FILE || !strstr(message, path))
            continue;
        g_autofree char *dir = g_path_get_dirname(path), *quoted = g_shell_quote(dir);
        return g_strdup_printf("chainctl pool add %s, and a restart, let the service write there",
                               quoted);
    }
    return NULL;
}

// What helps after an error of the daemon, which does not know chainctl. NULL: it says so itself.
// Owned.
static char *next_command(const Ctl *ctl, const GError *error)
{
    bool is_of_file = strstr(error->message, "No such file") || strstr(error->message, "(pid ");
    if (strstr(error->message, "chainctl") || is_of_file)
        return NULL;
    switch (error->code) {
    case CTL_NOT_FOUND:
        return strstr(error->message, "there is no disk")
                   ? g_strdup("'chainctl ls' lists those there are")
                   : listing_command(ctl);
    case CTL_BUSY:
        return g_strdup("'chainctl tree' shows who uses what");
    case CTL_NO_SPACE:
        return g_strdup("make room, or use another place");
    case CTL_DENIED:
        return pool_command(ctl, error->message);
    default:
        return NULL;
    }
}

static int report(const Ctl *ctl, const GError *error)
{
    g_autofree char *text = translate(error->message);
    g_autofree char *next = error->code == CTL_USAGE ? NULL : next_command(ctl, error);
    const Verb *verb = ctl->verb;
    if (error->code == CTL_USAGE)
        fprintf(stderr, "chainctl %s: %s: see 'chainctl help %s'\n", verb->name, text, verb->name);
    else
        fprintf(stderr, "chainctl: %s%s%s\n", text, next ? ": " : "", next ? next : "");
    return error->code;
}

static int run(const Verb *verb, char **words)
{
    g_autoptr(GError) error = NULL;
    Ctl ctl;
    int r = ctl_init(&ctl, verb_families, verb, words, &error);
    if (r == 0 && arguments_flag(ctl.arguments, "help"))
        help_print_verb(stdout, verb);
    else if (r == 0)
        r = verb->run(&ctl, &error);
    if (r < 0)
        r = report(&ctl, error);
    ctl_done(&ctl);
    return fflush(stdout) != 0 && r == 0 ? CTL_FAILED : r;
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "");
    signal(SIGPIPE, SIG_DFL);
    unsigned at = find_verb_word(argv), n = (unsigned)argc;
    if (at >= n)
        return run_without_verb(argv, n);
    const Verb *verb = verb_find(verb_families, argv[at]);
    if (!verb)
        return unknown_verb(argv[at]);
    char **words = g_new0(char *, n);
    unsigned n_words = 0;
    for (unsigned i = 1; i < n; i++)
        if (i != at)
            words[n_words++] = argv[i];
    int status = run(verb, words);
    g_free(words);
    return status;
}
