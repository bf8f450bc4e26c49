// SPDX-License-Identifier: LGPL-2.1-or-later
// The verbs' tables say what may come where.
#include "complete.h"

#include <stdio.h>
#include <string.h>

#include "disk-view.h"

// The command line up to the word that is being typed.
typedef struct Typed {
    const Verb *verb;         // NULL: none yet
    const VerbOption *awaits; // an option whose value comes next; NULL: none
    unsigned n_words;         // after the verb, options and their values left out
    bool is_past_options;     // after "--"
    bool is_lost;             // after a verb that there is not
    const char *last;
} Typed;

static void offer(const Typed *typed, const char *word, const char *end)
{
    if (g_str_has_prefix(word, typed->last))
        printf("%s%s\n", word, end);
}

static const VerbOption *find_in(const VerbOption *options, const char *word)
{
    for (; options && options->name; options++) {
        bool is_letter = options->letter && word[1] == options->letter && !word[2];
        if (is_letter || (g_str_has_prefix(word, "--") && g_str_equal(word + 2, options->name)))
            return options;
    }
    return NULL;
}

static const VerbOption *find_option(const Verb *verb, const char *word)
{
    const VerbOption *option = find_in(verb ? verb->options : NULL, word);
    return option ? option : find_in(arguments_common, word);
}

static Typed read_words(const Ctl *ctl, char **words)
{
    Typed typed = {.last = ""};
    for (; *words; words++) {
        if (!words[1]) {
            typed.last = *words;
        } else if (typed.awaits) {
            typed.awaits = NULL;
        } else if (g_str_equal(*words, "--")) {
            typed.is_past_options = true;
        } else if (words[0][0] == '-' && !typed.is_past_options) {
            const VerbOption *option = find_option(typed.verb, *words);
            typed.awaits = option && option->kind != WORD_NONE ? option : NULL;
        } else if (!typed.verb) {
            typed.verb = verb_find(ctl->families, *words);
            typed.is_lost = !typed.verb;
            if (!typed.verb)
                break;
        } else {
            typed.n_words++;
        }
    }
    return typed;
}

// -- live names -----------------------------------------------------------------------------------

static void offer_members(Ctl *ctl, const Typed *typed, const char *command, const char *key)
{
    json_auto_t *rows = ctl_run(ctl, command, NULL, NULL);
    size_t i;
    const json_t *row;
    json_array_foreach(rows, i, row)
    {
        const char *name = json_string_value(json_object_get(row, key));
        if (name)
            offer(typed, name, "");
    }
}

static void offer_disks(Ctl *ctl, const Typed *typed)
{
    json_auto_t *disks = disk_view_load(ctl, NULL, NULL);
    size_t i;
    const json_t *disk;
    json_array_foreach(disks, i, disk)
        offer(typed, json_string_value(json_object_get(disk, "name")), "");
}

// DISK@POINT, of all that are remembered.
static void offer_points(Ctl *ctl, const Typed *typed)
{
    json_auto_t *disks = ctl_run(ctl, "query-disks", NULL, NULL);
    size_t i, j;
    const json_t *disk, *point;
    json_array_foreach(disks, i, disk)
    {
        json_array_foreach(json_object_get(disk, "points"), j, point)
        {
            g_autofree char *word =
                g_strdup_printf("%s@%s", json_string_value(json_object_get(disk, "name")),
                                json_string_value(json_object_get(point, "name")));
            offer(typed, word, "");
        }
    }
}

static void offer_verbs(const Ctl *ctl, const Typed *typed)
{
    for (const VerbFamily *const *family = ctl->families; *family; family++)
        for (const Verb *verb = (*family)->verbs; verb->name; verb++)
            if (verb->summary)
                offer(typed, verb->name, "");
}

static void offer_choices(const Typed *typed, const char *choices)
{
    g_auto(GStrv) all = g_strsplit(choices, "|", -1);
    for (char **choice = all; *choice; choice++)
        offer(typed, *choice, "");
}

static void offer_kind(Ctl *ctl, const Typed *typed, WordKind kind, const char *choices)
{
    switch (kind) {
    case WORD_DISK:
        offer_disks(ctl, typed);
        break;
    case WORD_POINT:
        offer_points(ctl, typed);
        break;
    case WORD_DISK_OR_POINT:
        offer_disks(ctl, typed);
        offer_points(ctl, typed);
        break;
    case WORD_JOB:
        offer_members(ctl, typed, "query-jobs", "id");
        break;
    case WORD_NODE:
        offer_members(ctl, typed, "query-named-block-nodes", "node-name");
        break;
    case WORD_VERB:
        offer_verbs(ctl, typed);
        break;
    case WORD_FILE:
        puts("FILES");
        break;
    case WORD_TEXT:
        if (choices && strchr(choices, '|'))
            offer_choices(typed, choices);
        break;
    case WORD_NONE:
    case WORD_ANY:
    case WORD_SIZE:
    case WORD_NUMBER:
    case WORD_COUNT:
    case WORD_SECONDS:
        break;
    }
}

// -- places ---------------------------------------------------------------------------------------

static void offer_options(const Typed *typed, const VerbOption *options)
{
    for (; options && options->name; options++) {
        g_autofree char *word = g_strconcat("--", options->name, NULL);
        offer(typed, word, options->kind == WORD_NONE ? "" : "=");
    }
}

// "--output=js": the value, after the sign.
static bool offer_value_of_option(Ctl *ctl, Typed *typed)
{
    const char *sign = strchr(typed->last, '=');
    if (!g_str_has_prefix(typed->last, "--") || !sign)
        return false;
    g_autofree char *name = g_strndup(typed->last, (gsize)(sign - typed->last));
    const VerbOption *option = find_option(typed->verb, name);
    typed->last = sign + 1;
    if (option)
        offer_kind(ctl, typed, option->kind, option->value);
    return true;
}

static void offer_word(Ctl *ctl, const Typed *typed)
{
    const VerbWord *word = typed->verb->words;
    for (unsigned i = 0; word && word->name && i < typed->n_words && !word->is_repeated; i++)
        word++;
    if (word && word->name)
        offer_kind(ctl, typed, word->kind, word->choices);
}

void complete_print(Ctl *ctl, char **words)
{
    Typed typed = read_words(ctl, words);
    if (typed.is_lost)
        return;
    if (typed.awaits)
        offer_kind(ctl, &typed, typed.awaits->kind, typed.awaits->value);
    else if (typed.is_past_options && typed.verb)
        offer_word(ctl, &typed);
    else if (offer_value_of_option(ctl, &typed))
        return;
    else if (typed.last[0] == '-')
        offer_options(&typed, typed.verb ? typed.verb->options : NULL),
            offer_options(&typed, arguments_common);
    else if (typed.verb)
        offer_word(ctl, &typed);
    else
        offer_verbs(ctl, &typed);
}
