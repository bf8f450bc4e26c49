// SPDX-License-Identifier: LGPL-2.1-or-later
// Levenshtein's distance of two short words.
#include "near-word.h"

#include <glib.h>
#include <string.h>

static unsigned distance(const char *a, const char *b)
{
    enum { MAX_WORD = 32 };
    size_t n = strlen(b);
    unsigned row[MAX_WORD + 1];
    if (strlen(a) > MAX_WORD || n > MAX_WORD)
        return MAX_WORD;
    for (unsigned j = 0; j <= n; j++)
        row[j] = j;
    for (unsigned i = 0; a[i]; i++) {
        unsigned diagonal = row[0];
        row[0] = i + 1;
        for (unsigned j = 0; j < n; j++) {
            unsigned replace = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = MIN(replace, MIN(diagonal, row[j]) + 1);
        }
    }
    return row[n];
}

unsigned near_word(const char *typed, const char *candidate)
{
    unsigned slips = distance(typed, candidate);
    return slips < strlen(candidate) ? MIN(slips, NEAR_WORD_FAR) : NEAR_WORD_FAR;
}
