// SPDX-License-Identifier: LGPL-2.1-or-later
// GLib parses; the table says what there is to parse, and what values may be.
#include "arguments.h"

#include <string.h>

#include "units.h"

typedef union OptionValue {
    gboolean is_set;
    char *text;
} OptionValue;

struct Arguments {
    const Verb *verb;
    GPtrArray *options; // const VerbOption *, of the verb and of all
    OptionValue *values;
    char **words;
};

const VerbOption arguments_common[] = {
    {"socket", 's', WORD_FILE, "PATH", "control socket (CHAIND_SOCKET, or the system's)"},
    {"output", 'o', WORD_TEXT, "table|json|jsonl", "table is for people, JSON for programs"},
    {"no-header", 'H', WORD_NONE, NULL, "for scripts: tabs, no header, bare numbers"},
    {"color", 0, WORD_TEXT, "auto|always|never", "auto: on a terminal without NO_COLOR"},
    {"help", 'h', WORD_NONE, NULL, "what the verb does"},
    {0},
};

static void add_options(GPtrArray *options, const VerbOption *table)
{
    for (; table && table->name; table++)
        g_ptr_array_add(options, (gpointer)table);
}

// -- words ----------------------------------------------------------------------------------------

char *arguments_usage(const Verb *verb)
{
    GString *text = g_string_new(NULL);
    for (const VerbWord *word = verb->words; word && word->name; word++)
        g_string_append_printf(text, "%s%s%s%s%s", text->len ? " " : "",
                               word->is_optional ? "[" : "", word->name,
                               word->is_optional ? "]" : "", word->is_repeated ? "..." : "");
    return g_string_free(text, FALSE);
}

static int check_choice(const char *what, const char *choices, const char *value, GError **error)
{
    g_auto(GStrv) allowed = g_strsplit(choices, "|", -1);
    if (g_strv_contains((const char *const *)allowed, value))
        return 0;
    g_autofree char *list = g_strjoinv(", ", allowed);
    return ctl_fail(error, CTL_USAGE, "%s is one of %s, not '%s'", what, list, value);
}

static int check_value(WordKind kind, const char *what, const char *value, GError **error)
{
    uint64_t n;
    double seconds;
    if (kind == WORD_ANY)
        return 0;
    if (!*value)
        return ctl_fail(error, CTL_USAGE, "%s is empty", what);
    if (!g_utf8_validate(value, -1, NULL) && kind != WORD_FILE)
        return ctl_fail(error, CTL_USAGE, "%s is not UTF-8", what);
    if (kind == WORD_SIZE && !units_parse_size(value, &n))
        return ctl_fail(error, CTL_USAGE, "%s is a number of bytes, such as 20G, not '%s'", what,
                        value);
    if (kind == WORD_NUMBER &&
        (!units_parse_size(value, &n) || !g_ascii_isdigit(value[strlen(value) - 1])))
        return ctl_fail(error, CTL_USAGE, "%s is a number, not '%s'", what, value);
    if (kind == WORD_COUNT && !units_parse_count(value, &n))
        return ctl_fail(error, CTL_USAGE, "%s is a number, such as 2k, not '%s'", what, value);
    if (kind == WORD_SECONDS && !units_parse_seconds(value, &seconds))
        return ctl_fail(error, CTL_USAGE, "%s is a number of seconds, not '%s'", what, value);
    const char *at = kind == WORD_POINT ? strchr(value, '@') : NULL;
    if (kind == WORD_POINT && (!at || at == value || !at[1]))
        return ctl_fail(error, CTL_USAGE,
                        "'%s' names no point in time: write DISK@POINT, such as web@mon", value);
    if (kind == WORD_DISK && strchr(value, '@'))
        return ctl_fail(error, CTL_USAGE, "'%s' is a point in time, and a disk is asked for",
                        value);
    return 0;
}

static int check_words(const Arguments *arguments, GError **error)
{
    const Verb *verb = arguments->verb;
    const VerbWord *word = verb->words;
    for (char **given = arguments->words; *given; given++) {
        if (!word || !word->name)
            return ctl_fail(error, CTL_USAGE, "'%s' is one word too many", *given);
        int r = check_value(word->kind, word->name, *given, error);
        if (r == 0 && word->choices)
            r = check_choice(word->name, word->choices, *given, error);
        if (r < 0)
            return r;
        word += !word->is_repeated;
    }
    guint n = g_strv_length(arguments->words);
    for (guint i = 0; word && word->name; word++, i++) {
        bool is_there = word->is_repeated && n > (guint)(word - verb->words);
        if (!word->is_optional && !is_there)
            return ctl_fail(error, CTL_USAGE, "%s is missing", word->name);
    }
    return 0;
}

// -- options --------------------------------------------------------------------------------------

static int check_options(const Arguments *arguments, GError **error)
{
    for (guint i = 0; i < arguments->options->len; i++) {
        const VerbOption *option = arguments->options->pdata[i];
        const char *text = option->kind == WORD_NONE ? NULL : arguments->values[i].text;
        if (!text)
            continue;
        g_autofree char *what = g_strconcat("--", option->name, NULL);
        int r = option->kind == WORD_TEXT && strchr(option->value, '|')
                    ? check_choice(what, option->value, text, error)
                    : check_value(option->kind, what, text, error);
        if (r < 0)
            return r;
    }
    return 0;
}

static GOptionEntry *entries_of(const Arguments *arguments)
{
    GOptionEntry *entries = g_new0(GOptionEntry, arguments->options->len + 1);
    for (guint i = 0; i < arguments->options->len; i++) {
        const VerbOption *option = arguments->options->pdata[i];
        GOptionArg kind = option->kind == WORD_NONE   ? G_OPTION_ARG_NONE
                          : option->kind == WORD_FILE ? G_OPTION_ARG_FILENAME
                                                      : G_OPTION_ARG_STRING;
        entries[i] = (GOptionEntry){
            .long_name = option->name,
            .short_name = option->letter,
            .arg = kind,
            .arg_data = &arguments->values[i],
        };
    }
    return entries;
}

static int parse(Arguments *arguments, char **words, GError **error)
{
    g_autoptr(GError) fault = NULL;
    g_autofree GOptionEntry *entries = entries_of(arguments);
    GOptionContext *context = g_option_context_new(NULL);
    GPtrArray *all = g_ptr_array_new();
    g_ptr_array_add(all, g_strdup("chainctl"));
    for (; *words; words++)
        g_ptr_array_add(all, g_strdup(*words));
    g_ptr_array_add(all, NULL);
    char **argv = (char **)g_ptr_array_free(all, FALSE);
    g_option_context_set_help_enabled(context, FALSE);
    g_option_context_add_main_entries(context, entries, NULL);
    bool is_parsed = g_option_context_parse_strv(context, &argv, &fault);
    g_option_context_free(context);
    if (!is_parsed) {
        g_strfreev(argv);
        return ctl_fail(error, CTL_USAGE, "%s", fault->message);
    }
    guint skip = 1;
    if (argv[1] && g_str_equal(argv[1], "--"))
        skip = 2;
    arguments->words = g_strdupv(argv + skip);
    g_strfreev(argv);
    return 0;
}

Arguments *arguments_parse(const Verb *verb, char **words, GError **error)
{
    Arguments *arguments = g_new0(Arguments, 1);
    arguments->verb = verb;
    arguments->options = g_ptr_array_new();
    add_options(arguments->options, verb->options);
    add_options(arguments->options, arguments_common);
    arguments->values = g_new0(OptionValue, arguments->options->len);
    int r = parse(arguments, words, error);
    if (r == 0)
        r = check_options(arguments, error);
    if (r == 0 && !arguments_flag(arguments, "help"))
        r = check_words(arguments, error);
    if (r == 0)
        return arguments;
    arguments_free(arguments);
    return NULL;
}

void arguments_free(Arguments *arguments)
{
    if (!arguments)
        return;
    for (guint i = 0; i < arguments->options->len; i++) {
        const VerbOption *option = arguments->options->pdata[i];
        if (option->kind != WORD_NONE)
            g_free(arguments->values[i].text);
    }
    g_free(arguments->values);
    g_ptr_array_unref(arguments->options);
    g_strfreev(arguments->words);
    g_free(arguments);
}

// -- what they are --------------------------------------------------------------------------------

static const OptionValue *value_of(const Arguments *arguments, const char *name, bool is_flag)
{
    for (guint i = 0; i < arguments->options->len; i++) {
        const VerbOption *option = arguments->options->pdata[i];
        if (g_str_equal(option->name, name) && (option->kind == WORD_NONE) == is_flag)
            return &arguments->values[i];
    }
    g_assert_not_reached(); // the verb's table does not have it
}

char **arguments_words(const Arguments *arguments)
{
    return arguments->words;
}

const char *arguments_text(const Arguments *arguments, const char *option)
{
    return value_of(arguments, option, false)->text;
}

bool arguments_flag(const Arguments *arguments, const char *option)
{
    return value_of(arguments, option, true)->is_set;
}

bool arguments_have(const Arguments *arguments, const char *option)
{
    return arguments_text(arguments, option) != NULL;
}

uint64_t arguments_size(const Arguments *arguments, const char *option, uint64_t otherwise)
{
    const char *text = arguments_text(arguments, option);
    if (text)
        units_parse_size(text, &otherwise);
    return otherwise;
}

uint64_t arguments_count(const Arguments *arguments, const char *option, uint64_t otherwise)
{
    const char *text = arguments_text(arguments, option);
    if (text)
        units_parse_count(text, &otherwise);
    return otherwise;
}

double arguments_seconds(const Arguments *arguments, const char *option, double otherwise)
{
    const char *text = arguments_text(arguments, option);
    if (text)
        units_parse_seconds(text, &otherwise);
    return otherwise;
}
