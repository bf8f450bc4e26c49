// SPDX-License-Identifier: LGPL-2.1-or-later
#include "verbs-help.h"

#include "complete.h"
#include "help.h"

static int run_help(Ctl *ctl, GError **error)
{
    const char *name = ctl_word(ctl, 0);
    const Verb *verb = name ? verb_find(ctl->families, name) : NULL;
    if (name && !verb)
        return ctl_fail(error, CTL_USAGE, "there is no verb '%s'", name);
    if (verb)
        help_print_verb(stdout, verb);
    else
        help_print_all(stdout, ctl->families);
    return CTL_OK;
}

static int run_complete(Ctl *ctl, GError **error)
{
    complete_print(ctl, arguments_words(ctl->arguments));
    return CTL_OK;
}

static const VerbWord help_word[] = {{"VERB", WORD_VERB, .is_optional = true}, {0}};
static const VerbWord complete_words[] = {
    {"WORD", WORD_ANY, .is_optional = true, .is_repeated = true}, {0}};

static const Verb verbs[] = {
    {
        .name = "help",
        .summary = "Say what there is, or what a verb does",
        .examples = "chainctl help\nchainctl help wait",
        .words = help_word,
        .run = run_help,
    },
    {.name = "complete", .words = complete_words, .run = run_complete}, // for shells
    {0},
};

const VerbFamily verbs_help_family = {.title = "Help", .verbs = verbs};
