// SPDX-License-Identifier: LGPL-2.1-or-later
// Bringing a changed header to the disk, in the order of docs/ordering.md §11: at each moment the
// file has all of the old header or all of the new one. For whoever has the file to himself: an
// opened image (image_change_header()), or a check. In a fiber on the file's loop.
#pragma once

#include "chain-core/file.h"
#include "format/qcow2-header.h"

// Makes `to` durable where the disk says `from`. -ENOSPC when the first cluster has no room for
// both, -EINVAL when `to` cannot be encoded (a feature in version 2): nothing was written. Another
// -errno: the old header is in place; or, with *ret_is_unknown, nobody knows which of them is.
int header_write(Fiber *self, File *file, const Qcow2Header *from, const Qcow2Header *to,
                 bool *ret_is_unknown);
