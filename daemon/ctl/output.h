// SPDX-License-Identifier: LGPL-2.1-or-later
// What verbs print on standard output: tables for people, tabs for scripts, JSON for programs. A
// row is a JSON object; a column says which member is shown, and how. JSON output has every member,
// and its names do not change.
#pragma once

#include <jansson.h>
#include <stdbool.h>

typedef enum OutputFormat { OUTPUT_TABLE, OUTPUT_JSON, OUTPUT_JSONL } OutputFormat;

typedef struct Output {
    OutputFormat format;
    bool is_bare;   // -H
    bool has_color; // on stdout
    unsigned width; // columns of the terminal; 0: it is none
} Output;

typedef enum OutputStyle {
    STYLE_PLAIN,
    STYLE_BOLD,
    STYLE_DIM,
    STYLE_GOOD,
    STYLE_WARNING,
    STYLE_BAD,
    STYLE_NAME,
} OutputStyle;

typedef enum CellKind {
    CELL_TEXT,
    CELL_STATE, // a word, coloured by what it says
    CELL_NAME,  // of the row
    CELL_LIST,  // of strings
    CELL_NUMBER,
    CELL_LENGTH, // how many an array has
    CELL_COUNT,  // with k, M
    CELL_SIZE,   // bytes
    CELL_RATE,   // bytes a second
    CELL_CLOCK,  // seconds
    CELL_PERCENT,
    CELL_LATENCY, // microseconds
    CELL_BOOL,
} CellKind;

typedef struct Column {
    const char *key;   // of the row's member; one that is not there is shown as "-"
    const char *title; // NULL: ends a table
    CellKind kind;
} Column;

// How stdout is, and what the options say: `color` may be NULL.
Output output_new(OutputFormat format, bool is_bare, const char *color);

// `rows` is an array. `empty`: a sentence for a person who would see an empty table; may be NULL.
void output_rows(const Output *output, const json_t *rows, const Column *columns,
                 const char *empty);
// One object: a line for each field that it has.
void output_fields(const Output *output, const json_t *object, const Column *columns);
// For what has its own look on a terminal. JSON and JSON lines are the same for one value.
void output_json(const Output *output, const json_t *value);

// "" without colour.
const char *output_style(const Output *output, OutputStyle style);
// The style of a state's word: "running", "failed", …
OutputStyle output_style_of_state(const char *word);
// As a cell shows it; owned.
char *output_cell(const Output *output, const json_t *value, CellKind kind);
// Without what would change the terminal; owned.
char *output_clean(const char *text);
// How many columns of a terminal a text takes.
unsigned output_width(const char *text);
