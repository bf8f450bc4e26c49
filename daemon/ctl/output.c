// SPDX-License-Identifier: LGPL-2.1-or-later
#include "output.h"

#include <glib.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "units.h"

static bool wants_color(const char *color)
{
    const char *no_color = g_getenv("NO_COLOR"), *term = g_getenv("TERM");
    if (g_strcmp0(color, "always") == 0)
        return true;
    if (g_strcmp0(color, "never") == 0 || (no_color && *no_color))
        return false;
    return isatty(STDOUT_FILENO) && g_strcmp0(term, "dumb") != 0;
}

static unsigned terminal_width(void)
{
    struct winsize size;
    if (!isatty(STDOUT_FILENO))
        return 0;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

Output output_new(OutputFormat format, bool is_bare, const char *color)
{
    return (Output){format, is_bare, wants_color(color) && !is_bare, terminal_width()};
}

// -- text -----------------------------------------------------------------------------------------

const char *output_style(const Output *output, OutputStyle style)
{
    static const char *const codes[] = {
        [STYLE_PLAIN] = "\033[0m",   [STYLE_BOLD] = "\033[1m",     [STYLE_DIM] = "\033[2m",
        [STYLE_GOOD] = "\033[32m",   [STYLE_WARNING] = "\033[33m", [STYLE_BAD] = "\033[31m",
        [STYLE_NAME] = "\033[1;36m",
    };
    return output->has_color ? codes[style] : "";
}

OutputStyle output_style_of_state(const char *word)
{
    static const char *const good[] = {"running", "ready", "ok", "completed", "up", NULL};
    static const char *const warning[] = {"paused",  "standby",  "pending", "cancelled",
                                          "warning", "aborting", "busy",    NULL};
    static const char *const bad[] = {"failed", "error", "down", "nospace", NULL};
    return g_strv_contains(good, word)      ? STYLE_GOOD
           : g_strv_contains(warning, word) ? STYLE_WARNING
           : g_strv_contains(bad, word)     ? STYLE_BAD
                                            : STYLE_PLAIN;
}

char *output_clean(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    GString *clean = g_string_new(NULL);
    for (const char *c = valid; *c; c = g_utf8_next_char(c)) {
        gunichar letter = g_utf8_get_char(c);
        if (g_unichar_iscntrl(letter))
            g_string_append_printf(clean, "\\x%02x", letter);
        else
            g_string_append_unichar(clean, letter);
    }
    return g_string_free(clean, FALSE);
}

unsigned output_width(const char *text)
{
    unsigned width = 0;
    for (const char *c = text; *c; c = g_utf8_next_char(c)) {
        gunichar letter = g_utf8_get_char(c);
        width += g_unichar_iszerowidth(letter) ? 0 : g_unichar_iswide(letter) ? 2 : 1;
    }
    return width;
}

static char *list_text(const json_t *list)
{
    GString *text = g_string_new(NULL);
    size_t i;
    const json_t *item;
    json_array_foreach(list, i, item)
    {
        g_string_append_printf(text, "%s%s", i ? " " : "",
                               json_is_string(item) ? json_string_value(item) : "?");
    }
    return g_string_free(text, FALSE);
}

static char *bare_text(const json_t *value)
{
    if (json_is_string(value))
        return output_clean(json_string_value(value));
    if (json_is_array(value)) {
        g_autofree char *list = list_text(value);
        return output_clean(list);
    }
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6));
    char *owned = g_strdup(text);
    free(text);
    return owned;
}

char *output_cell(const Output *output, const json_t *value, CellKind kind)
{
    if (kind == CELL_LENGTH)
        return g_strdup_printf("%zu", json_array_size(value));
    if (!value || json_is_null(value) || (json_is_array(value) && !json_array_size(value)))
        return g_strdup("-");
    if (output->is_bare)
        return bare_text(value);
    double n = json_number_value(value);
    switch (kind) {
    case CELL_SIZE:
        return units_size((uint64_t)n);
    case CELL_RATE:
        return units_rate((uint64_t)n);
    case CELL_CLOCK:
        return units_clock((uint64_t)n);
    case CELL_COUNT:
        return units_count(n);
    case CELL_LATENCY:
        return units_latency(n);
    case CELL_PERCENT:
        return g_strdup_printf("%.0f%%", n);
    case CELL_BOOL:
        return g_strdup(json_is_true(value) ? "yes" : "no");
    case CELL_TEXT:
    case CELL_STATE:
    case CELL_NAME:
    case CELL_LIST:
    case CELL_NUMBER:
    case CELL_LENGTH:
        break;
    }
    return bare_text(value);
}

// -- tables ---------------------------------------------------------------------------------------

static bool is_right(CellKind kind)
{
    return kind >= CELL_NUMBER && kind != CELL_BOOL;
}

static OutputStyle style_of(CellKind kind, const char *text)
{
    return kind == CELL_NAME    ? STYLE_NAME
           : kind == CELL_STATE ? output_style_of_state(text)
                                : STYLE_PLAIN;
}

// The last one of a line is not padded.
static void print_padded(const Output *output, const char *text, unsigned width, bool is_at_right,
                         OutputStyle style, bool is_last)
{
    unsigned own = output_width(text), pad = width > own ? width - own : 0;
    const char *on = style ? output_style(output, style) : "";
    printf("%*s%s%s%s", is_at_right ? (int)pad : 0, "", on, text,
           *on ? output_style(output, STYLE_PLAIN) : "");
    printf("%*s", !is_at_right && !is_last ? (int)pad + 2 : is_last ? 0 : 2, "");
}

static void print_bare_row(const Output *output, const json_t *row, const Column *columns)
{
    for (const Column *c = columns; c->title; c++) {
        g_autofree char *cell = output_cell(output, json_object_get(row, c->key), c->kind);
        printf("%s%s", c == columns ? "" : "\t", cell);
    }
    putchar('\n');
}

static void print_line(const Output *output, char **cells, const unsigned *widths,
                       const Column *columns, bool is_header)
{
    for (unsigned i = 0; columns[i].title; i++) {
        OutputStyle style = is_header ? STYLE_DIM : style_of(columns[i].kind, cells[i]);
        print_padded(output, cells[i], widths[i], is_right(columns[i].kind), style,
                     !columns[i + 1].title);
    }
    putchar('\n');
}

static void print_table(const Output *output, const json_t *rows, const Column *columns)
{
    unsigned n_columns = 0;
    while (columns[n_columns].title)
        n_columns++;
    size_t n_rows = json_array_size(rows);
    g_autofree unsigned *widths = g_new0(unsigned, n_columns);
    GPtrArray *lines = g_ptr_array_new_with_free_func((GDestroyNotify)g_strfreev);
    for (size_t r = 0; r <= n_rows; r++) {
        char **cells = g_new0(char *, n_columns + 1);
        for (unsigned i = 0; i < n_columns; i++) {
            const json_t *row = r ? json_array_get(rows, r - 1) : NULL;
            cells[i] =
                r ? output_cell(output, json_object_get(row, columns[i].key), columns[i].kind)
                  : g_strdup(columns[i].title);
            widths[i] = MAX(widths[i], output_width(cells[i]));
        }
        g_ptr_array_add(lines, cells);
    }
    for (guint i = 0; i < lines->len; i++)
        print_line(output, lines->pdata[i], widths, columns, i == 0);
    g_ptr_array_unref(lines);
}

static void print_json(const json_t *value, size_t flags)
{
    json_dumpf(value, stdout, flags | JSON_ENCODE_ANY);
    putchar('\n');
}

void output_json(const Output *output, const json_t *value)
{
    print_json(value, output->format == OUTPUT_JSONL ? JSON_COMPACT : JSON_INDENT(2));
}

void output_rows(const Output *output, const json_t *rows, const Column *columns, const char *empty)
{
    size_t i;
    const json_t *row;
    if (output->format == OUTPUT_JSON) {
        output_json(output, rows);
    } else if (output->format == OUTPUT_JSONL) {
        json_array_foreach(rows, i, row) print_json(row, JSON_COMPACT);
    } else if (output->is_bare) {
        json_array_foreach(rows, i, row) print_bare_row(output, row, columns);
    } else if (json_array_size(rows)) {
        print_table(output, rows, columns);
    } else if (empty) {
        fprintf(stderr, "%s\n", empty);
    }
}

void output_fields(const Output *output, const json_t *object, const Column *columns)
{
    if (output->format != OUTPUT_TABLE) {
        output_json(output, object);
        return;
    }
    unsigned width = 0;
    for (const Column *c = columns; c->title; c++)
        if (json_object_get(object, c->key))
            width = MAX(width, output_width(c->title));
    for (const Column *c = columns; c->title; c++) {
        const json_t *value = json_object_get(object, c->key);
        if (!value)
            continue;
        g_autofree char *cell = output_cell(output, value, c->kind);
        if (output->is_bare) {
            printf("%s\t%s\n", c->key, cell);
            continue;
        }
        print_padded(output, c->title, width, false, STYLE_DIM, false);
        print_padded(output, cell, 0, false, style_of(c->kind, cell), true);
        putchar('\n');
    }
}
