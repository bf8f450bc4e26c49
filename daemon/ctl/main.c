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

// What helps after an error of the daemon, which does not know chainctl. NULL: it says so itself.
static const char *next_command(const GError *error)
{
    switch (error->code) {
    case CTL_NOT_FOUND:
        return "'chainctl ls' and 'chainctl jobs' list what there is";
    case CTL_BUSY:
        return "'chainctl tree' shows who uses what";
    case CTL_NO_SPACE:
        return "make room, or use another place";
    default:
        return NULL;
    }
}

static int report(const Verb *verb, const GError *error)
{
    const char *next =
        error->code == CTL_USAGE || strstr(error->message, "chainctl") ? NULL : next_command(error);
    gsize len = strlen(error->message);
    int text_len = (int)(len && error->message[len - 1] == '.' ? len - 1 : len);
    if (error->code == CTL_USAGE)
        fprintf(stderr, "chainctl %s: %.*s: see 'chainctl help %s'\n", verb->name, text_len,
                error->message, verb->name);
    else
        fprintf(stderr, "chainctl: %.*s%s%s\n", text_len, error->message, next ? ": " : "",
                next ? next : "");
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
    ctl_done(&ctl);
    if (fflush(stdout) != 0 && r == 0)
        return CTL_FAILED;
    return r < 0 ? report(verb, error) : r;
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
