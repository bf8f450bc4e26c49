// SPDX-License-Identifier: LGPL-2.1-or-later
// Made of the verbs' tables.
#include "help.h"

#include <string.h>

#include "arguments.h"

void help_print_all(FILE *to, const VerbFamily *const *families)
{
    fputs("usage: chainctl VERB [WORD]... [OPTION]...\n"
          "\n"
          "Disks and their points in time, in a running chaind.\n",
          to);
    for (const VerbFamily *const *family = families; *family; family++) {
        if ((*family)->title)
            fprintf(to, "\n%s\n", (*family)->title);
        for (const Verb *verb = (*family)->verbs; verb->name; verb++) {
            if (!verb->summary)
                continue;
            g_autofree char *words = arguments_usage(verb);
            g_autofree char *usage = g_strconcat(verb->name, *words ? " " : "", words, NULL);
            fprintf(to, "  %-26s %s\n", usage, verb->summary);
        }
    }
    fputs("\n"
          "chainctl help VERB says what a verb does, with examples.\n"
          "Exit status: 0 done, 1 failed, 2 usage, 3 done in part, 4 no daemon,\n"
          "5 not found, 6 busy, 7 no space, 8 denied, 130 interrupted.\n",
          to);
}

static char *option_text(const VerbOption *option)
{
    g_autofree char *letter =
        option->letter ? g_strdup_printf("-%c, ", option->letter) : g_strdup("    ");
    return option->value ? g_strdup_printf("%s--%s=%s", letter, option->name, option->value)
                         : g_strdup_printf("%s--%s", letter, option->name);
}

static void print_options(FILE *to, const char *title, const VerbOption *options)
{
    enum { WIDTH = 27 };
    if (!options || !options->name)
        return;
    fprintf(to, "\n%s\n", title);
    for (; options->name; options++) {
        g_autofree char *text = option_text(options);
        if (strlen(text) > WIDTH)
            fprintf(to, "  %s\n  %-*s %s\n", text, WIDTH, "", options->doc);
        else
            fprintf(to, "  %-*s %s\n", WIDTH, text, options->doc);
    }
}

static void print_examples(FILE *to, const char *examples)
{
    g_auto(GStrv) lines = g_strsplit(examples, "\n", -1);
    fputs("\nExamples\n", to);
    for (char **line = lines; *line; line++)
        if (**line)
            fprintf(to, "  %s\n", *line);
}

void help_print_verb(FILE *to, const Verb *verb)
{
    g_autofree char *words = arguments_usage(verb);
    fprintf(to, "usage: chainctl %s%s%s [OPTION]...\n\n%s.\n", verb->name, *words ? " " : "", words,
            verb->summary);
    if (verb->text)
        fprintf(to, "\n%s\n", verb->text);
    print_options(to, "Options", verb->options);
    print_options(to, "Options of every verb", arguments_common);
    if (verb->examples)
        print_examples(to, verb->examples);
}
