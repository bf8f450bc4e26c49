// SPDX-License-Identifier: LGPL-2.1-or-later
// Which known word somebody meant who mistyped it. Pure; for the daemon, too.
#pragma once

// How near `candidate` is to what was typed: fewer is nearer; NEAR_WORD_FAR: it was not meant.
enum { NEAR_WORD_FAR = 3 };
unsigned near_word(const char *typed, const char *candidate);
