// SPDX-License-Identifier: LGPL-2.1-or-later
// Who holds and shares what. An overlay relies on what lies below it, so nobody may change that; a
// format relies on its file to be its own to change. Who looks on from outside relies on nothing.
#include "chain-core/node-perm.h"

static const char *const names[] = {
    "consistent-read", "write", "write-unchanged", "resize", "place", "backing-link", "place",
};
_Static_assert(1 << G_N_ELEMENTS(names) == NODE_PERM_ALL + 1, "each has a name");

NodePerms node_perms_of(NodeUser user, bool writes)
{
    const unsigned content = NODE_PERM_WRITE | NODE_PERM_RESIZE;
    NodePerms perms = {.held = NODE_PERM_CONSISTENT_READ, .shared = NODE_PERM_ALL};
    switch (user) {
    case NODE_USER_OUTSIDE:
    case NODE_USER_FILTER:
        perms.held |= writes ? NODE_PERM_WRITE : 0;
        break;
    case NODE_USER_BACKING:
        perms.shared &= ~content;
        break;
    case NODE_USER_FORMAT:
        perms.held |= writes ? content : 0;
        perms.shared &= ~content;
        break;
    case NODE_USER_TARGET:
        perms.held = NODE_PERM_WRITE;
        perms.shared &= ~NODE_PERM_RESIZE;
        break;
    case NODE_USER_SNAPSHOT:
    case NODE_USER_VIEW:
        perms.held = 0;
        break;
    }
    return perms;
}

const char *node_perm_name(unsigned bit)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        if (bit == 1u << i)
            return names[i];
    return NULL;
}

char *node_perms_text(unsigned perms)
{
    GString *text = g_string_new(NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        if (perms & 1u << i)
            g_string_append_printf(text, "%s%s", text->len ? ", " : "", names[i]);
    for (char *c = text->str; *c; c++)
        if (*c == '-')
            *c = ' '; // QEMU's sentences have no hyphens there
    return g_string_free(text->len ? text : g_string_append(text, "none"), FALSE);
}
