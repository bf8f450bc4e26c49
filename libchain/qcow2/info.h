// SPDX-License-Identifier: LGPL-2.1-or-later
// What a view tells of its image: Driver.info. For this folder.
#pragma once

#include <jansson.h>

#include "chain-core/node.h"

json_t *qcow2_info(Node *node);
