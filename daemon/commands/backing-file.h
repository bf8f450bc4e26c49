// SPDX-License-Identifier: LGPL-2.1-or-later
// change-backing-file: what the header of an open image names as lying below it.
#pragma once

#include "daemon/qmp/command.h"

extern const QmpFamily qmp_backing_file_family;
