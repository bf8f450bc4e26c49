// SPDX-License-Identifier: LGPL-2.1-or-later
// Makes types of drivers' tables; they live as long as the process. Control loop.
#include "blockdev-type.h"

#include "chain-core/driver.h"

QmpType blockdev_options = {
    .name = "BlockdevOptions", .kind = QMP_OBJECT, .doc = "What to make a node of."};

const QmpType blockdev_ref = {
    .name = "BlockdevRef",
    .kind = QMP_ALTERNATE,
    .members = (const QmpMember[]){{"definition", &blockdev_options}, {"reference", &qmp_str}, {0}},
};

static const QmpType blockdev_ref_or_null = {
    .name = "BlockdevRefOrNull",
    .kind = QMP_ALTERNATE,
    .members =
        (const QmpMember[]){
            {"definition", &blockdev_options}, {"reference", &qmp_str}, {"null", &qmp_null}, {0}},
};

static unsigned count(const DriverOption *options)
{
    unsigned n = 0;
    while (options && options[n].name)
        n++;
    return n;
}

static QmpMember make_member(const DriverOption *option, const char *owner);

// Appends the options to `members`, which has room.
static void add_members(const DriverOption *options, const char *owner, QmpMember **members)
{
    for (; options && options->name; options++)
        *(*members)++ = make_member(options, owner);
}

static QmpType *type_new(const char *owner, const char *name, QmpKind kind)
{
    QmpType *type = g_new0(QmpType, 1);
    type->name = g_strdup_printf("%s-%s", owner, name);
    type->kind = kind;
    return type;
}

static const QmpType *object_type(const DriverOption *option, const char *owner)
{
    QmpType *type = type_new(owner, option->name, QMP_OBJECT);
    QmpMember *members = g_new0(QmpMember, count(option->members) + 1);
    type->members = members;
    add_members(option->members, type->name, &members);
    return type;
}

static const QmpType *enum_type(const DriverOption *option, const char *owner)
{
    QmpType *type = type_new(owner, option->name, QMP_ENUM);
    type->values = option->values;
    return type;
}

static const QmpType *alternate_type(const DriverOption *option, const char *owner)
{
    g_autofree char *name = g_strdup_printf("%s-or-flags", option->name);
    g_autofree char *inner = g_strdup_printf("%s-either", owner);
    QmpType *type = type_new(owner, name, QMP_ALTERNATE);
    QmpMember *members = g_new0(QmpMember, 3);
    members[0] = (QmpMember){"flags", object_type(option, inner)};
    members[1] = (QmpMember){"mode", enum_type(option, owner)};
    type->members = members;
    return type;
}

static const QmpType *array_type(const DriverOption *option, const char *owner)
{
    QmpType *type = g_new0(QmpType, 1);
    type->kind = QMP_ARRAY;
    type->element = object_type(option, owner);
    return type;
}

static const QmpType *type_of(const DriverOption *option, const char *owner)
{
    switch (option->type) {
    case DRIVER_OPTION_STR:
        return &qmp_str;
    case DRIVER_OPTION_BOOL:
        return &qmp_bool;
    case DRIVER_OPTION_INT:
        return &qmp_int;
    case DRIVER_OPTION_ENUM:
        return enum_type(option, owner);
    case DRIVER_OPTION_OBJECT:
        return object_type(option, owner);
    case DRIVER_OPTION_ENUM_OR_OBJECT:
        return alternate_type(option, owner);
    case DRIVER_OPTION_ARRAY:
        return array_type(option, owner);
    case DRIVER_OPTION_ANY:
        return &qmp_any;
    case DRIVER_OPTION_CHILD:
        return option->may_be_null ? &blockdev_ref_or_null : &blockdev_ref;
    }
    g_assert_not_reached();
}

static QmpMember make_member(const DriverOption *option, const char *owner)
{
    return (QmpMember){
        .name = option->name,
        .type = type_of(option, owner),
        .is_optional = !option->is_required,
        .doc = option->doc,
    };
}

static const QmpType *driver_type(const Driver *driver)
{
    QmpType *type = type_new("BlockdevOptions", driver->name, QMP_OBJECT);
    QmpMember *members = g_new0(QmpMember, count(driver->options) + 1);
    type->members = members;
    add_members(driver->options, driver->name, &members);
    return type;
}

static QmpType driver_names = {.name = "BlockdevDriver", .kind = QMP_ENUM};

void blockdev_type_init(void)
{
    unsigned n_drivers = 0;
    while (drivers_get(n_drivers))
        n_drivers++;
    const char **names = g_new0(const char *, n_drivers + 1);
    QmpVariant *variants = g_new0(QmpVariant, n_drivers + 1);
    for (unsigned i = 0; i < n_drivers; i++) {
        const Driver *driver = drivers_get(i);
        names[i] = driver->name;
        variants[i] = (QmpVariant){driver->name, driver_type(driver)};
    }
    driver_names.values = names;

    QmpMember *members = g_new0(QmpMember, count(driver_common_options) + 2);
    blockdev_options.members = members;
    blockdev_options.tag = "driver";
    blockdev_options.variants = variants;
    *members++ = (QmpMember){"driver", &driver_names, .doc = "which kind of node"};
    add_members(driver_common_options, "BlockdevOptions", &members);
}
