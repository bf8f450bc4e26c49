// SPDX-License-Identifier: LGPL-2.1-or-later
// The rules of the transmission phase, most of them in one table. A refusal keeps client and server
// in step whenever that costs a bounded amount of reading. Pure.
#include "request-check.h"

#include <errno.h>

// Payloads are skipped rather than the client dropped up to this. With extended headers the
// protocol asks to drop above the advertised maximum.
enum { MAX_SKIPPED_PAYLOAD = 2 * NBDS_MAX_PAYLOAD };

typedef struct Rule {
    uint16_t flags; // besides FUA, which every command takes
    bool has_range;
    bool changes_data;
    int past_end; // negative errno
} Rule;

static const Rule rules[] = {
    [NBDS_CMD_READ] = {NBDS_CMD_FLAG_DF, true, false, -EINVAL},
    [NBDS_CMD_WRITE] = {0, true, true, -ENOSPC},
    [NBDS_CMD_FLUSH] = {0, false, false, 0},
    [NBDS_CMD_TRIM] = {0, true, true, -EINVAL},
    [NBDS_CMD_CACHE] = {0, true, false, -EINVAL},
    [NBDS_CMD_WRITE_ZEROES] = {NBDS_CMD_FLAG_NO_HOLE | NBDS_CMD_FLAG_FAST_ZERO, true, true,
                               -ENOSPC},
    [NBDS_CMD_BLOCK_STATUS] = {NBDS_CMD_FLAG_REQ_ONE, true, false, -EINVAL},
};
static const unsigned n_rules = sizeof rules / sizeof rules[0];

// A WRITE has one with or without the flag that extended headers want: QEMU up to 10.0 forgets it,
// and a write of no payload would make no sense.
static uint64_t payload_bytes(const NbdsSession *session, const NbdsRequestHead *head)
{
    bool is_flagged =
        session->style == NBDS_STYLE_EXTENDED && head->flags & NBDS_CMD_FLAG_PAYLOAD_LEN;
    return is_flagged || head->type == NBDS_CMD_WRITE ? head->length : 0;
}

static uint16_t valid_flags(const NbdsSession *session, uint16_t type)
{
    uint16_t flags = rules[type].flags | NBDS_CMD_FLAG_FUA;
    if (session->style == NBDS_STYLE_SIMPLE)
        flags &= ~NBDS_CMD_FLAG_DF;
    if (session->style == NBDS_STYLE_EXTENDED &&
        (type == NBDS_CMD_WRITE || (type == NBDS_CMD_BLOCK_STATUS && session->contexts)))
        flags |= NBDS_CMD_FLAG_PAYLOAD_LEN;
    return flags;
}

static NbdsCheck refuse(uint64_t payload, NbdsErrorCode error, const char *message)
{
    return (NbdsCheck){NBDS_ACTION_REFUSE, payload, error, message};
}

bool nbds_request_changes(const NbdsRequestHead *head)
{
    return rules[head->type].changes_data;
}

int nbds_request_check_end(const NbdsRequestHead *head, uint64_t size_bytes)
{
    bool is_inside = head->offset <= size_bytes && head->length <= size_bytes - head->offset;
    return is_inside ? 0 : rules[head->type].past_end;
}

// Range and size, when `head->length` is an effect length (or a WRITE's payload).
static NbdsCheck check_range(const NbdsSession *session, const NbdsRequestHead *head,
                             uint64_t payload)
{
    const Rule *rule = &rules[head->type];
    if (!rule->has_range && (head->offset || head->length))
        return refuse(payload, NBDS_EINVAL, "offset and length must be zero");
    int past_end = nbds_request_check_end(head, session->size_bytes);
    if (past_end < 0)
        return refuse(payload, nbds_error_from_errno(past_end),
                      "the request reaches past the end of the export");
    if (head->type == NBDS_CMD_WRITE && head->length > NBDS_MAX_PAYLOAD)
        return refuse(payload, NBDS_EINVAL, "the request is larger than the maximum payload");
    if (head->type == NBDS_CMD_READ && head->length > NBDS_MAX_PAYLOAD) {
        NbdsErrorCode error = session->style == NBDS_STYLE_SIMPLE ? NBDS_EINVAL : NBDS_EOVERFLOW;
        return refuse(payload, error, "the request is larger than the maximum payload");
    }
    if (head->type == NBDS_CMD_BLOCK_STATUS && !head->length)
        return refuse(payload, NBDS_EINVAL, "a status of no bytes has no answer");
    return (NbdsCheck){NBDS_ACTION_EXECUTE, payload, NBDS_OK, NULL};
}

NbdsCheck nbds_request_check(const NbdsSession *session, const NbdsRequestHead *head)
{
    uint64_t payload = payload_bytes(session, head);
    bool extended = session->style == NBDS_STYLE_EXTENDED;
    if (payload > (extended ? NBDS_MAX_PAYLOAD : MAX_SKIPPED_PAYLOAD))
        return (NbdsCheck){NBDS_ACTION_BREACH, 0, NBDS_EINVAL, "payload too large"};
    if (head->type == NBDS_CMD_DISC)
        return (NbdsCheck){NBDS_ACTION_DISCONNECT, 0, NBDS_OK, NULL};
    if (head->type >= n_rules)
        return refuse(payload, NBDS_EINVAL, "unknown command");
    if (head->flags & ~valid_flags(session, head->type))
        return refuse(payload, NBDS_EINVAL, "a flag that this command does not take");
    if (rules[head->type].changes_data && session->read_only)
        return refuse(payload, NBDS_EPERM, "the export is read-only");
    if (head->type == NBDS_CMD_BLOCK_STATUS) {
        if (!session->contexts)
            return refuse(payload, NBDS_EINVAL, "no metadata context was negotiated");
        if (head->flags & NBDS_CMD_FLAG_PAYLOAD_LEN) {
            if (payload < 8 || payload > 8 + 4ull * session->contexts->len || payload % 4)
                return refuse(payload, NBDS_EINVAL, "malformed list of metadata contexts");
            return (NbdsCheck){NBDS_ACTION_EXECUTE, payload, NBDS_OK, NULL};
        }
    }
    return check_range(session, head, payload);
}

void nbds_session_done(NbdsSession *session)
{
    g_clear_pointer(&session->contexts, g_ptr_array_unref);
}

// False: there is none with this id, or it is marked already.
static bool mark(const GPtrArray *contexts, uint32_t id, bool *marks)
{
    for (unsigned i = 0; i < contexts->len; i++) {
        if (((const NbdsContext *)contexts->pdata[i])->id != id)
            continue;
        bool is_new = !marks[i];
        marks[i] = true;
        return is_new;
    }
    return false;
}

NbdsCheck nbds_request_check_filter(const NbdsSession *session, const uint8_t *payload,
                                    size_t payload_len, NbdsRequestHead *head,
                                    GPtrArray **ret_contexts)
{
    g_autofree bool *marks = g_new0(bool, session->contexts->len);
    for (size_t at = 8; at + 4 <= payload_len; at += 4) {
        if (!mark(session->contexts, nbds_wire_get_u32(payload + at), marks))
            return refuse(0, NBDS_EINVAL, "a metadata context that was not negotiated, or twice");
    }
    if (payload_len < 12)
        return refuse(0, NBDS_EINVAL, "no metadata context asked for");
    head->length = nbds_wire_get_u64(payload);
    NbdsCheck check = check_range(session, head, 0);
    if (check.action == NBDS_ACTION_EXECUTE)
        *ret_contexts = nbds_context_select(session->contexts, marks);
    return check;
}
