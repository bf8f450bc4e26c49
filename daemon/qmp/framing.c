// SPDX-License-Identifier: LGPL-2.1-or-later
// Finds the end of a value by counting brackets outside of strings, and lets jansson parse it. The
// quotes of strings are made those of JSON on the way. A byte that no UTF-8 text has (0xFF) begins
// afresh, as clients do that do not know what was sent before. Pure.
#include "framing.h"

#include <errno.h>
#include <string.h>

#include "error.h"

static const char TOO_LARGE[] = "JSON token size limit exceeded";
static const char TOO_DEEP[] = "JSON nesting depth limit exceeded";
static const char BAD_STRING[] = "JSON parse error, a string is not ended";
static const char BAD_BYTE[] = "JSON parse error, stray '\xff'";
static const char NO_VALUE[] = "JSON parse error, expecting value";

void qmp_framing_init(QmpFraming *framing)
{
    *framing = (QmpFraming){.text = g_string_new(NULL)};
}

void qmp_framing_done(QmpFraming *framing)
{
    g_string_free(framing->text, true);
}

static void begin_afresh(QmpFraming *framing)
{
    // A large value leaves no large buffer behind.
    enum { KEPT_BYTES = 64 << 10 };
    if (framing->text->allocated_len > KEPT_BYTES) {
        g_string_free(framing->text, true);
        framing->text = g_string_new(NULL);
    }
    g_string_truncate(framing->text, 0);
    *framing = (QmpFraming){.text = framing->text};
}

static void refuse(QmpFraming *framing, const char *fault)
{
    framing->fault = fault;
    g_string_truncate(framing->text, 0);
}

static void keep(QmpFraming *framing, const char *bytes)
{
    if (!framing->fault && framing->text->len >= QMP_FRAMING_MAX_BYTES)
        refuse(framing, TOO_LARGE);
    if (!framing->fault)
        g_string_append(framing->text, bytes);
}

static void keep_byte(QmpFraming *framing, char byte)
{
    keep(framing, (char[]){byte, '\0'});
}

// True when that ends the string (or the whole value, when it is refused).
static bool take_in_string(QmpFraming *framing, char byte)
{
    if ((unsigned char)byte < 0x20) {
        refuse(framing, BAD_STRING);
        framing->depth = 0;
        return true;
    }
    if (framing->is_escaped) {
        framing->is_escaped = false;
        if (byte == '\'')
            keep(framing, "'");
        else
            keep(framing, (char[]){'\\', byte, '\0'});
        return false;
    }
    if (byte == '\\') {
        framing->is_escaped = true;
        return false;
    }
    if (byte == framing->quote) {
        framing->quote = 0;
        keep(framing, "\"");
        return true;
    }
    if (byte == '"')
        keep(framing, "\\\"");
    else
        keep_byte(framing, byte);
    return false;
}

// True when a value, good or bad, is complete with it.
static bool take_structure(QmpFraming *framing, char byte)
{
    switch (byte) {
    case '{':
    case '[':
        if (++framing->depth > QMP_FRAMING_MAX_DEPTH)
            refuse(framing, TOO_DEEP);
        keep_byte(framing, byte);
        return false;
    case '}':
    case ']':
        if (framing->depth == 0) {
            refuse(framing, NO_VALUE);
            return true;
        }
        keep_byte(framing, byte);
        return --framing->depth == 0;
    case '"':
    case '\'':
        framing->quote = byte;
        keep(framing, "\"");
        return false;
    default:
        if (framing->depth || !g_ascii_isspace(byte))
            keep_byte(framing, byte);
        framing->is_word = framing->depth == 0 && !g_ascii_isspace(byte);
        return false;
    }
}

// A number or a word outside of brackets ends before `byte`.
static bool ends_word(const QmpFraming *framing, char byte)
{
    return framing->is_word && (g_ascii_isspace(byte) || strchr("{}[]\"'", byte));
}

// Takes `byte`; true when a value is complete with it.
static bool take_byte(QmpFraming *framing, char byte)
{
    if ((unsigned char)byte == 0xFF) {
        refuse(framing, BAD_BYTE);
        return true;
    }
    if (framing->quote)
        return take_in_string(framing, byte) && framing->depth == 0;
    return take_structure(framing, byte);
}

// Is there an integer beyond 64 bits at `text`? `*ret_len`: of the digits, with a sign.
static bool is_large_integer(const char *text, size_t *ret_len)
{
    char *end;
    errno = 0;
    g_ascii_strtoll(text, &end, 10);
    *ret_len = (size_t)(end - text);
    return errno == ERANGE && !(*end && strchr(".eE", *end));
}

// Makes fractions of integers that are too large for jansson, as QEMU does.
static GString *enlarge_integers(const GString *text)
{
    GString *all = g_string_new(NULL);
    bool in_string = false;
    for (const char *at = text->str; *at; at++) {
        size_t len;
        bool is_escape = in_string && *at == '\\';
        if (!in_string && (*at == '-' || g_ascii_isdigit(*at))) {
            bool is_large = is_large_integer(at, &len);
            g_string_append_len(all, at, (gssize)MAX(len, 1));
            if (is_large)
                g_string_append(all, ".0");
            at += MAX(len, 1) - 1;
            continue;
        }
        in_string ^= *at == '"';
        g_string_append_len(all, at, is_escape ? 2 : 1);
        at += is_escape;
    }
    return all;
}

static json_t *parse(const GString *text, json_error_t *ret_fault)
{
    static const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;
    json_t *value = json_loadb(text->str, text->len, flags, ret_fault);
    if (value || json_error_code(ret_fault) != json_error_numeric_overflow)
        return value;
    GString *enlarged = enlarge_integers(text);
    value = json_loadb(enlarged->str, enlarged->len, flags, ret_fault);
    g_string_free(enlarged, true);
    return value;
}

static QmpFrame finish(QmpFraming *framing, json_t **ret_value, GError **error)
{
    json_error_t fault;
    json_t *value = NULL;
    if (framing->fault) {
        qmp_fail(error, "%s", framing->fault);
    } else {
        value = parse(framing->text, &fault);
        if (!value)
            qmp_fail(error, "JSON parse error, %s", fault.text);
    }
    begin_afresh(framing);
    if (!value)
        return QMP_FRAME_BAD;
    *ret_value = value;
    return QMP_FRAME_VALUE;
}

QmpFrame qmp_framing_take(QmpFraming *framing, const char **bytes, size_t *len, json_t **ret_value,
                          GError **error)
{
    while (*len) {
        char byte = **bytes;
        if (ends_word(framing, byte))
            return finish(framing, ret_value, error);
        ++*bytes;
        --*len;
        if (take_byte(framing, byte))
            return finish(framing, ret_value, error);
    }
    return QMP_FRAME_NONE;
}
