// SPDX-License-Identifier: LGPL-2.1-or-later
// Requests fed with anything. Input: style, contexts, read-only and size of the export (11 bytes),
// then the stream from the client. What the rules let through must keep their promise.
#include <assert.h>
#include <string.h>

#include "contexts.h"
#include "request-check.h"

static void check_promise(const NbdsSession *session, const NbdsRequestHead *head)
{
    assert(head->type <= NBDS_CMD_BLOCK_STATUS && head->type != NBDS_CMD_DISC);
    assert(head->offset <= session->size_bytes);
    assert(head->length <= session->size_bytes - head->offset);
    if (head->type == NBDS_CMD_READ || head->type == NBDS_CMD_WRITE)
        assert(head->length <= NBDS_MAX_PAYLOAD);
    if (head->type == NBDS_CMD_WRITE || head->type == NBDS_CMD_WRITE_ZEROES ||
        head->type == NBDS_CMD_TRIM)
        assert(!session->read_only);
    if (head->type == NBDS_CMD_BLOCK_STATUS)
        assert(head->length && session->contexts);
}

// Bit i of `bits`: whether the i-th one is.
static GPtrArray *select_contexts(uint8_t bits)
{
    g_autoptr(GPtrArray) all = nbds_contexts_new(NULL);
    g_autofree bool *marks = g_new0(bool, all->len);
    for (unsigned i = 0; i < all->len && i < 8; i++)
        marks[i] = bits >> i & 1;
    return nbds_context_select(all, marks);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 11)
        return 0;
    g_autoptr(GPtrArray) contexts = select_contexts(data[1]);
    NbdsSession session = {data[0] % 3, contexts->len ? contexts : NULL,
                           nbds_wire_get_u64(data + 3), data[2] & 1};
    if (session.style == NBDS_STYLE_SIMPLE)
        session.contexts = NULL;
    data += 11;
    size -= 11;
    size_t head_bytes = nbds_wire_request_head_bytes(session.style);
    while (size >= head_bytes) {
        NbdsRequestHead head;
        if (!nbds_wire_get_request_head(data, session.style, &head))
            return 0;
        data += head_bytes;
        size -= head_bytes;
        NbdsCheck check = nbds_request_check(&session, &head);
        if (check.action == NBDS_ACTION_BREACH || check.action == NBDS_ACTION_DISCONNECT)
            return 0;
        assert(check.payload_bytes <= 2 * NBDS_MAX_PAYLOAD);
        if (check.payload_bytes > size)
            return 0;
        if (check.action == NBDS_ACTION_REFUSE) {
            assert(check.error != NBDS_OK && check.message);
        } else {
            g_autoptr(GPtrArray) filtered = NULL;
            if (head.type == NBDS_CMD_BLOCK_STATUS && check.payload_bytes)
                check.action =
                    nbds_request_check_filter(&session, data, check.payload_bytes, &head, &filtered)
                        .action;
            if (check.action == NBDS_ACTION_EXECUTE) {
                check_promise(&session, &head);
                assert(!filtered || (filtered->len && filtered->len <= session.contexts->len));
            }
        }
        data += check.payload_bytes;
        size -= check.payload_bytes;
    }
    return 0;
}
