// SPDX-License-Identifier: LGPL-2.1-or-later
// Option haggling fed with anything. Input: one byte of settings, then options, each its type (1
// byte), its length (2 bytes, big-endian) and data. Besides not crashing, the answers must be
// whole reply packets that end with a final one, and a choice must be an export of the table.
#include <assert.h>
#include <string.h>

#include "handshake.h"

enum { MANY_EXPORTS = 1, STOPPING = 2, NO_ZEROES = 4 };

static void check_replies(const GByteArray *out, uint32_t option, NbdsVerdict verdict)
{
    uint32_t last = 0;
    for (uint32_t at = 0; at < out->len;) {
        assert(out->len - at >= NBDS_OPTION_REPLY_HEAD_BYTES);
        assert(nbds_wire_get_u32(out->data + at + 8) == option);
        last = nbds_wire_get_u32(out->data + at + 12);
        uint32_t len = nbds_wire_get_u32(out->data + at + 16);
        at += NBDS_OPTION_REPLY_HEAD_BYTES;
        assert(len <= out->len - at);
        if (last & 0x80000000)
            assert(len <= NBDS_MAX_STRING && g_utf8_validate((char *)out->data + at, len, NULL));
        at += len;
    }
    bool is_final = last == NBDS_REP_ACK || last & 0x80000000;
    assert(is_final || verdict == NBDS_VERDICT_CLOSE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const NbdsExportInfo infos[] = {
        {1, "web", "web: 20 GiB qcow2", 20ull << 30, 65536, false},
        {2, "", "", 0, 512, true},
        {3, "\xc3\xbc", "", 1, 4096, false},
    };
    const NbdsExportInfo *const pointers[] = {&infos[0], &infos[1], &infos[2]};
    if (!size)
        return 0;
    uint8_t settings = *data++;
    size--;
    NbdsExportTable table = {pointers, settings & MANY_EXPORTS ? 3 : 1};
    NbdsHandshake h = {.no_zeroes = settings & NO_ZEROES};
    g_autoptr(GByteArray) out = g_byte_array_new();
    NbdsVerdict verdict = NBDS_VERDICT_CONTINUE;
    while (size >= 3 && verdict == NBDS_VERDICT_CONTINUE) {
        uint32_t option = data[0], len = nbds_wire_get_u16(data + 1);
        data += 3;
        size -= 3;
        len = MIN(len, MIN(size, NBDS_MAX_OPTION_BYTES));
        // A copy of its own, so that reading past its end is seen.
        g_autofree uint8_t *own = g_memdup2(data, len);
        const NbdsExportInfo *chosen = NULL;
        g_byte_array_set_size(out, 0);
        verdict =
            nbds_handshake_option(&h, &table, settings & STOPPING, option, own, len, out, &chosen);
        if (option != NBDS_OPT_EXPORT_NAME)
            check_replies(out, option, verdict);
        if (verdict == NBDS_VERDICT_TRANSMIT) {
            assert(chosen >= infos && chosen < infos + 3);
            assert(h.style != NBDS_STYLE_SIMPLE || !h.contexts);
            assert(!h.contexts || h.contexts_serial == chosen->serial);
        }
        data += len;
        size -= len;
    }
    return 0;
}
