// SPDX-License-Identifier: LGPL-2.1-or-later
// The reference page of QMP, made from the tables. Pure.
#pragma once

#include "command.h"

// Markdown; owned.
char *qmp_reference_make(const QmpFamily *const *families);
