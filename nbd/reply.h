// SPDX-License-Identifier: LGPL-2.1-or-later
// Replies as buffers ready to send. On the pool's loop.
#pragma once

#include "buffer.h"
#include "wire.h"

// NULL when memory is out.
NbdsBuffer *nbds_reply_ack(NbdsBufferPool *pool, NbdsStyle style, const NbdsRequestHead *head);
// `message` (≤ 256 bytes, may be NULL) reaches clients that negotiated structured replies.
NbdsBuffer *nbds_reply_error(NbdsBufferPool *pool, NbdsStyle style, const NbdsRequestHead *head,
                             NbdsErrorCode error, const char *message);

// Puts the header in front of the `head->length` > 0 bytes that were read into
// nbds_buffer_bytes(buffer): one chunk, DONE.
void nbds_reply_finish_read(NbdsBuffer *buffer, NbdsStyle style, const NbdsRequestHead *head);
