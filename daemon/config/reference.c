// SPDX-License-Identifier: LGPL-2.1-or-later
// From the tables alone. Lines are as long as they come: POD fills them.
#include "reference.h"

#include "settings.h"

static void append_key(GString *text, const ConfigKey *key)
{
    g_autofree char *kind = config_value_describe(key->type);
    kind[0] = g_ascii_toupper(kind[0]);
    g_string_append_printf(text, "=item B<%s>\n\n%s %s", key->name, key->doc, kind);
    if (key->fallback)
        g_string_append_printf(text, "; without it C<%s>", key->fallback);
    g_string_append(text, ".\n\n");
}

static void append_section(GString *text, const ConfigSection *section)
{
    g_autofree char *label = section->label ? g_strdup_printf(" I<%s>", section->label) : NULL;
    g_string_append_printf(text, "=head2 [%s%s]\n\n%s", section->name, label ? label : "",
                           section->doc);
    if (section->needs)
        g_string_append_printf(text, " It needs the key B<%s>.", section->needs);
    g_string_append(text, "\n\n=over\n\n");
    for (const ConfigKey *key = section->keys; key->name; key++)
        append_key(text, key);
    g_string_append(text, "=back\n\n");
}

static void append_live(GString *text)
{
    g_string_append(text, "=head2 What a reload changes\n\n");
    for (unsigned i = 0; settings_sections[i]; i++) {
        const ConfigSection *section = settings_sections[i];
        g_autoptr(GString) names = g_string_new(NULL);
        bool is_all = true;
        for (const ConfigKey *key = section->keys; key->name; key++) {
            is_all &= key->effect == CONFIG_LIVE;
            if (key->effect == CONFIG_LIVE)
                g_string_append_printf(names, "%sB<%s>", names->len ? ", " : "", key->name);
        }
        g_string_append_printf(text, "Of [%s]: %s.\n\n", section->name,
                               is_all ? "everything" : (names->len ? names->str : "nothing"));
    }
}

char *config_reference_make(void)
{
    GString *text = g_string_new(NULL);
    for (unsigned i = 0; settings_sections[i]; i++)
        append_section(text, settings_sections[i]);
    append_live(text);
    return g_string_free(text, false);
}
