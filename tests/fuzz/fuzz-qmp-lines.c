// SPDX-License-Identifier: LGPL-2.1-or-later
// What clients of QMP and the command line send, fed with anything. The first byte says what the
// rest is: bytes of the wire, in pieces of that many bytes, or an option's argument. Besides not
// crashing: the same values come of the same bytes in one piece; values are bounded; what the check
// accepts from dotted keys it also accepts as JSON.
#include <assert.h>
#include <string.h>

#include "daemon/qmp/framing.h"
#include "daemon/qmp/keyval.h"

static const QmpType kind = {
    .name = "Kind", .kind = QMP_ENUM, .values = (const char *const[]){"a", "b", NULL}};
static const QmpType names = {.kind = QMP_ARRAY, .element = &qmp_str};
static const QmpType variant = {
    .name = "Variant",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"names", &names, true}, {"size", &qmp_size, true}, {0}},
};
static const QmpType node;
static const QmpType reference = {
    .name = "Reference",
    .kind = QMP_ALTERNATE,
    .members = (const QmpMember[]){{NULL, &qmp_str}, {NULL, &node}, {NULL, &qmp_null}, {0}},
};
static const QmpType node = {
    .name = "Node",
    .kind = QMP_OBJECT,
    .members = (const QmpMember[]){{"kind", &kind, true},
                                   {"file", &reference, true},
                                   {"n", &qmp_uint32, true},
                                   {"ratio", &qmp_number, true},
                                   {"on", &qmp_bool, true},
                                   {"any", &qmp_any, true},
                                   {0}},
    .tag = "kind",
    .variants = (const QmpVariant[]){{"a", &variant}, {0}},
};

static void check(json_t *value, QmpInput input)
{
    g_autoptr(GError) error = NULL;
    int r = qmp_type_check(&node, value, input, &error);
    assert((r < 0) == (error != NULL));
    if (r < 0)
        return;
    assert(qmp_type_check(&node, value, QMP_INPUT_JSON, NULL) == 0);
}

static unsigned depth_of(const json_t *value)
{
    unsigned deepest = 0, depth;
    const char *name;
    size_t i;
    json_t *inner;
    json_object_foreach((json_t *)value, name, inner)
    {
        depth = depth_of(inner);
        deepest = MAX(deepest, depth);
    }
    json_array_foreach(value, i, inner)
    {
        depth = depth_of(inner);
        deepest = MAX(deepest, depth);
    }
    return deepest + (json_is_object(value) || json_is_array(value));
}

// All that comes of the bytes, a line each. Owned.
static char *frame(const uint8_t *data, size_t size, size_t piece)
{
    GString *all = g_string_new(NULL);
    QmpFraming framing;
    qmp_framing_init(&framing);
    for (size_t at = 0; at < size; at += piece) {
        size_t len = MIN(piece, size - at);
        g_autofree char *own = g_memdup2(data + at, len); // so that reading past its end is seen
        const char *bytes = own;
        QmpFrame found;
        do {
            g_autoptr(GError) error = NULL;
            json_auto_t *value = NULL;
            found = qmp_framing_take(&framing, &bytes, &len, &value, &error);
            assert((found == QMP_FRAME_VALUE) == (value != NULL));
            assert((found == QMP_FRAME_BAD) == (error != NULL));
            if (found == QMP_FRAME_VALUE) {
                assert(depth_of(value) <= QMP_FRAMING_MAX_DEPTH);
                char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
                g_string_append_printf(all, "%s\n", text);
                free(text);
                check(value, QMP_INPUT_JSON);
            } else if (found == QMP_FRAME_BAD) {
                g_string_append(all, "bad\n");
            }
        } while (found != QMP_FRAME_NONE);
        assert(len == 0);
    }
    qmp_framing_done(&framing);
    return g_string_free(all, false);
}

static void try_option(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *text = g_strndup((const char *)data, size);
    g_autofree char *expanded = qmp_keyval_expand(text);
    QmpInput input;
    json_auto_t *value = qmp_keyval_parse(expanded, "kind", &input, &error);
    assert((value == NULL) == (error != NULL));
    if (value)
        check(value, input);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    if (!data[0]) {
        try_option(data + 1, size - 1);
        return 0;
    }
    g_autofree char *pieces = frame(data + 1, size - 1, data[0]);
    g_autofree char *whole = frame(data + 1, size - 1, size - 1);
    assert(!strcmp(pieces, whole));
    return 0;
}
