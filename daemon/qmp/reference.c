// SPDX-License-Identifier: LGPL-2.1-or-later
// Writes docs/qmp.md: the commands, actions and events of each family, then the types that they
// name, by name. Pure.
#include "reference.h"

#include <string.h>

typedef struct Reference {
    GString *text;
    GTree *types; // by name: QmpType, that are still to be written or were
} Reference;

// Of a place that names a type: `str`, [`str`], or a link.
static char *type_text(const QmpType *type)
{
    if (type->kind == QMP_ARRAY) {
        g_autofree char *element = type_text(type->element);
        return g_strdup_printf("array of %s", element);
    }
    bool is_built_in = type->kind <= QMP_ANY;
    if (is_built_in && type->kind == QMP_SIZE)
        return g_strdup("`size`");
    return is_built_in ? g_strdup_printf("`%s`", type->name)
                       : g_strdup_printf("[%s](#%s)", type->name, type->name);
}

static void note_members(Reference *reference, const QmpType *type);

// Will have the type written, and those that it uses.
static void note_type(Reference *reference, const QmpType *type)
{
    if (!type)
        return;
    if (type->kind == QMP_ARRAY) {
        note_type(reference, type->element);
    } else if (type->kind > QMP_ANY && !g_tree_lookup(reference->types, type->name)) {
        g_tree_insert(reference->types, (gpointer)type->name, (gpointer)type);
        note_members(reference, type);
    }
}

static void note_members(Reference *reference, const QmpType *type)
{
    for (const QmpMember *member = type->members; member && member->type; member++)
        note_type(reference, member->type);
    for (const QmpVariant *variant = type->variants; variant && variant->value; variant++)
        if (variant->type)
            note_members(reference, variant->type);
}

static void write_member(Reference *reference, const QmpMember *member)
{
    g_autofree char *type = type_text(member->type);
    g_string_append(reference->text, "- ");
    if (member->name)
        g_string_append_printf(reference->text, "`%s`: ", member->name);
    g_string_append_printf(reference->text, "%s%s%s%s\n", type,
                           member->is_optional ? ", optional" : "", member->doc ? "; " : "",
                           member->doc ? member->doc : "");
}

static void write_members(Reference *reference, const QmpType *type)
{
    for (const QmpMember *member = type->members; member && member->type; member++)
        write_member(reference, member);
    for (const QmpVariant *variant = type->variants; variant && variant->value; variant++) {
        if (!variant->type || !variant->type->members)
            continue;
        g_string_append_printf(reference->text, "\nand with `%s` `%s`:\n\n", type->tag,
                               variant->value);
        write_members(reference, variant->type);
    }
}

static void write_heading(Reference *reference, const char *kind, const char *name, const char *doc)
{
    g_string_append_printf(reference->text, "\n### %s%s\n\n%s\n", kind, name, doc ? doc : "");
}

static void write_object(Reference *reference, const char *title, const QmpType *type)
{
    if (!type || (!type->members && !type->variants))
        return;
    g_string_append_printf(reference->text, "\n%s:\n\n", title);
    write_members(reference, type);
    note_members(reference, type);
}

static void write_command(Reference *reference, const QmpCommand *command)
{
    write_heading(reference, "", command->name, command->doc);
    if (command->is_query)
        g_string_append(reference->text, "\nA query.\n");
    write_object(reference, "Arguments", command->args);
    if (!command->reply)
        return;
    if (command->reply->kind == QMP_OBJECT && !command->reply->name) {
        write_object(reference, "Returns", command->reply);
    } else {
        g_autofree char *type = type_text(command->reply);
        g_string_append_printf(reference->text, "\nReturns: %s\n", type);
        note_type(reference, command->reply);
    }
}

static void write_family(Reference *reference, const QmpFamily *family)
{
    g_autofree char *text = family->text ? family->text() : NULL;
    g_string_append_printf(reference->text, "\n## %s\n%s%s", family->title, text ? "\n" : "",
                           text ?: "");
    for (const QmpCommand *command = family->commands; command && command->name; command++)
        write_command(reference, command);
    for (const QmpAction *action = family->actions; action && action->name; action++) {
        write_heading(reference, "Action ", action->name, action->doc);
        write_object(reference, "Data", action->data);
    }
    for (const QmpEvent *event = family->events; event && event->name; event++) {
        write_heading(reference, "Event ", event->name, event->doc);
        write_object(reference, "Data", event->data);
    }
}

static gboolean write_type(gpointer name, gpointer value, gpointer arg)
{
    Reference *reference = arg;
    const QmpType *type = value;
    write_heading(reference, "", type->name, NULL);
    g_string_truncate(reference->text, reference->text->len - 1);
    if (type->doc)
        g_string_append_printf(reference->text, "%s\n\n", type->doc);
    if (type->kind == QMP_ENUM) {
        g_string_append(reference->text, "One of");
        for (const char *const *known = type->values; *known; known++)
            g_string_append_printf(reference->text, "%s `%s`", known == type->values ? "" : ",",
                                   *known);
        g_string_append_c(reference->text, '\n');
    } else if (type->kind == QMP_ALTERNATE) {
        g_string_append(reference->text, "One of these types:\n\n");
    }
    if (type->kind != QMP_ENUM)
        write_members(reference, type);
    return false;
}

static gint compare_names(gconstpointer a, gconstpointer b, gpointer arg)
{
    return strcmp(a, b);
}

char *qmp_reference_make(const QmpFamily *const *families)
{
    Reference reference = {
        .text =
            g_string_new("# QMP\n\n"
                         "Made by `chaind --qmp-reference` from the tables of the commands; the "
                         "same as JSON: `query-qmp-schema`.\n"),
        .types = g_tree_new_full(compare_names, NULL, NULL, NULL),
    };
    for (; *families; families++)
        write_family(&reference, *families);
    g_string_append(reference.text, "\n## Types\n\n"
                                    "`size` is a number of bytes; as an option of the command line "
                                    "it may have a suffix, as in `64M`.\n");
    g_tree_foreach(reference.types, write_type, &reference);
    g_tree_unref(reference.types);
    return g_string_free(reference.text, false);
}
