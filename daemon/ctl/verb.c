// SPDX-License-Identifier: LGPL-2.1-or-later
#include "verb.h"

#include "near-word.h"

const Verb *verb_find(const VerbFamily *const *families, const char *name)
{
    for (; *families; families++)
        for (const Verb *verb = (*families)->verbs; verb->name; verb++)
            if (g_str_equal(verb->name, name))
                return verb;
    return NULL;
}

const Verb *verb_find_near(const VerbFamily *const *families, const char *name)
{
    const Verb *near = NULL;
    unsigned least = NEAR_WORD_FAR;
    for (; *families; families++)
        for (const Verb *verb = (*families)->verbs; verb->name; verb++) {
            unsigned slips = near_word(name, verb->name);
            if (slips < least) {
                least = slips;
                near = verb;
            }
        }
    return near;
}
