// SPDX-License-Identifier: LGPL-2.1-or-later
// How what guests write gets to the target of a job that copies what they go on writing.
#pragma once

typedef enum CopyMode {
    // In the background; write-blocking once guests make work more than half as fast as it is done.
    COPY_MODE_AUTOMATIC,
    COPY_MODE_BACKGROUND,
    COPY_MODE_WRITE_BLOCKING,
} CopyMode;

// Which of the two a job begins in.
static inline CopyMode copy_mode_at_first(CopyMode mode)
{
    return mode == COPY_MODE_WRITE_BLOCKING ? mode : COPY_MODE_BACKGROUND;
}
