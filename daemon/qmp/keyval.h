// SPDX-License-Identifier: LGPL-2.1-or-later
// The argument of an option: `driver=qcow2,file.driver=file,file.filename=a.img`, or the same as
// JSON. Pure.
#pragma once

#include <jansson.h>

#include "type.h"

// An object (new), for qmp_type_check() with `*ret_input`; NULL with QEMU's words. In dotted keys a
// first word without a key has `implied_key`; a value's comma is written twice; members that are
// all numbers from 0 on make an array; of equal keys the last counts.
json_t *qmp_keyval_parse(const char *text, const char *implied_key, QmpInput *ret_input,
                         GError **error);

// Words without a key, as older options allow them: "server,nowait" becomes "server=on,wait=off",
// but for the first word. Owned.
char *qmp_keyval_expand(const char *text);
