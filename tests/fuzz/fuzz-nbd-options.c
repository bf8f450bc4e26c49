// SPDX-License-Identifier: LGPL-2.1-or-later
// The options of the handshake, fed with anything. Input: one byte of settings, then options, each
// its type (1 byte), its length (2 bytes, big-endian) and data. Besides not crashing, the answers
// must be whole reply packets that end with a final one, and a choice must be an export of the
// table.
#include <assert.h>
#include <string.h>

#include "contexts.h"
#include "options.h"

enum { MANY_EXPORTS = 1, STOPPING = 2, NO_ZEROES = 4, TLS_SHIFT = 3 };

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
    static GPtrArray *contexts;
    if (!contexts)
        contexts = nbds_contexts_new(NULL);
    const NbdsExportInfo infos[] = {
        {.serial = 1,
         .name = "web",
         .description = "web: 20 GiB qcow2",
         .size_bytes = 20ull << 30,
         .preferred_bytes = 65536,
         .contexts = contexts},
        {.serial = 2,
         .name = "",
         .description = "",
         .preferred_bytes = 512,
         .read_only = true,
         .contexts = contexts},
        {.serial = 3,
         .name = "\xc3\xbc",
         .description = "",
         .size_bytes = 512,
         .padding_bytes = 511,
         .preferred_bytes = 4096,
         .contexts = contexts},
    };
    if (!size)
        return 0;
    uint8_t settings = *data++;
    size--;
    unsigned n_exports = settings & MANY_EXPORTS ? 3 : 1;
    g_autoptr(NbdsExportTable) table =
        nbds_export_table_new(g_memdup2(infos, n_exports * sizeof infos[0]), n_exports, NULL);
    NbdsOptions h = {.no_zeroes = settings & NO_ZEROES, .tls = (settings >> TLS_SHIFT & 3) % 3};
    g_autoptr(GByteArray) out = g_byte_array_new();
    NbdsVerdict verdict = NBDS_VERDICT_CONTINUE;
    while (size >= 3 && verdict != NBDS_VERDICT_TRANSMIT && verdict != NBDS_VERDICT_CLOSE) {
        uint32_t option = data[0], len = nbds_wire_get_u16(data + 1);
        data += 3;
        size -= 3;
        len = MIN(len, MIN(size, NBDS_MAX_OPTION_BYTES));
        // A copy of its own, so that reading past its end is seen.
        g_autofree uint8_t *own = g_memdup2(data, len);
        const NbdsExportInfo *chosen = NULL;
        g_byte_array_set_size(out, 0);
        verdict =
            nbds_options_execute(&h, table, settings & STOPPING, option, own, len, out, &chosen);
        if (option != NBDS_OPT_EXPORT_NAME)
            check_replies(verdict == NBDS_VERDICT_LIST ? table->list : out, option, verdict);
        bool is_open = h.tls != NBDS_TLS_REQUIRED || h.is_secure;
        assert(is_open || (verdict != NBDS_VERDICT_LIST && verdict != NBDS_VERDICT_TRANSMIT));
        if (verdict == NBDS_VERDICT_START_TLS) {
            assert(h.tls != NBDS_TLS_OFF && !h.is_secure);
            nbds_options_secured(&h);
            assert(h.style == NBDS_STYLE_SIMPLE && !h.contexts);
        }
        if (verdict == NBDS_VERDICT_TRANSMIT) {
            assert(chosen >= table->exports && chosen < table->exports + n_exports);
            assert(h.style != NBDS_STYLE_SIMPLE || !h.contexts);
            assert(!h.contexts || h.contexts_serial == chosen->serial);
            assert(!h.contexts || (h.contexts->len && h.contexts->len <= contexts->len));
        }
        data += len;
        size -= len;
    }
    nbds_options_done(&h);
    return 0;
}
