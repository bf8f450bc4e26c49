// SPDX-License-Identifier: LGPL-2.1-or-later
// A verb of chainctl: what it takes, what it says of itself, and what it does. Constant tables;
// from one table come the check of the command line, the help and the completion. A family of verbs
// is a file; verbs.c lists them.
#pragma once

#include <stdbool.h>

#include "fail.h"

typedef struct Ctl Ctl;

// What a word of the command line names: what completion offers.
typedef enum WordKind {
    WORD_NONE, // of an option: takes no value
    WORD_ANY,  // may be empty, and is not looked at
    WORD_TEXT,
    WORD_DISK,
    WORD_POINT, // DISK@POINT
    WORD_DISK_OR_POINT,
    WORD_JOB,
    WORD_FILE,
    WORD_NODE,
    WORD_SIZE,    // bytes, with K, M, G, T
    WORD_NUMBER,  // at least 0
    WORD_COUNT,   // the same with k, M
    WORD_SECONDS, // may have a fraction
    WORD_VERB,
} WordKind;

typedef struct VerbWord {
    const char *name; // as help shows it; NULL: ends a table
    WordKind kind;
    bool is_optional;
    bool is_repeated; // the last one only: any number of them
    // What it may be; separated by '|'. NULL: anything of its kind.
    const char *choices;
} VerbWord;

typedef struct VerbOption {
    const char *name; // without dashes; NULL: ends a table
    char letter;      // 0: none
    WordKind kind;
    const char *value; // as help shows it; for WORD_TEXT it may be choices, separated by '|'
    const char *doc;
} VerbOption;

typedef struct Verb {
    const char *name;          // NULL: ends a table
    const char *summary;       // one line; NULL: not for people
    const char *text;          // paragraphs for help, lines of at most 78 bytes; NULL: none
    const char *examples;      // lines
    const VerbWord *words;     // NULL: takes none
    const VerbOption *options; // NULL: none but those of every verb
    // The exit status where there is something to say beyond an error: CTL_OK, CTL_PARTIAL, ….
    // Negative: `error`, which has it.
    int (*run)(Ctl *ctl, GError **error);
} Verb;

typedef struct VerbFamily {
    const char *title; // a heading of the help; NULL: under that of the family before
    const Verb *verbs;
} VerbFamily;

// Among families, which end with NULL. NULL: there is none of that name.
const Verb *verb_find(const VerbFamily *const *families, const char *name);
// The one whose name is nearest, for who mistyped; NULL: none is near.
const Verb *verb_find_near(const VerbFamily *const *families, const char *name);
