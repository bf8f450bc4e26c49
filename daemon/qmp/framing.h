// SPDX-License-Identifier: LGPL-2.1-or-later
// From a stream of bytes to JSON values, wherever they begin and end: several in one piece, one in
// several pieces, with or without newlines. Strings may stand in single quotes, as QEMU has it.
// What makes no sense is skipped up to where the next value can begin. Pure.
#pragma once

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

enum {
    QMP_FRAMING_MAX_BYTES = 4 << 20, // of one value: a transaction of ten thousand actions
    QMP_FRAMING_MAX_DEPTH = 96,      // of nesting: what recursion over a value takes of a fiber's
                                     // stack
};

// The beginning of a value that is not complete.
typedef struct QmpFraming {
    GString *text; // what jansson will parse
    size_t depth;
    char quote; // of the string that it is inside of, or 0
    bool is_escaped, is_word;
    const char *fault; // why it will be refused: it is not kept
} QmpFraming;

typedef enum QmpFrame {
    QMP_FRAME_NONE, // all bytes were taken, and nothing is complete
    QMP_FRAME_VALUE,
    QMP_FRAME_BAD,
} QmpFrame;

void qmp_framing_init(QmpFraming *framing);
void qmp_framing_done(QmpFraming *framing);

// Takes bytes off the front of `*bytes` up to the end of the next value, bad or not. VALUE sets
// `*ret_value` (a new reference), BAD sets `error`.
QmpFrame qmp_framing_take(QmpFraming *framing, const char **bytes, size_t *len, json_t **ret_value,
                          GError **error);
