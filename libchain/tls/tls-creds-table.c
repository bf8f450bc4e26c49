// SPDX-License-Identifier: LGPL-2.1-or-later
// Credentials by name. Any thread.
#include <errno.h>
#include <pthread.h>

#include "base/error.h"
#include "chain-core/tls-creds.h"

struct TlsCredsTable {
    pthread_mutex_t lock; // sanitizers do not see GLib's
    GHashTable *creds;    // name to TlsCreds, both owned
};

TlsCredsTable *tls_creds_table_new(void)
{
    TlsCredsTable *table = g_new0(TlsCredsTable, 1);
    pthread_mutex_init(&table->lock, NULL);
    table->creds =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)tls_creds_unref);
    return table;
}

void tls_creds_table_free(TlsCredsTable *table)
{
    if (!table)
        return;
    g_hash_table_unref(table->creds);
    pthread_mutex_destroy(&table->lock);
    g_free(table);
}

void tls_creds_table_set(TlsCredsTable *table, const char *name, TlsCreds *creds)
{
    pthread_mutex_lock(&table->lock);
    if (creds)
        g_hash_table_replace(table->creds, g_strdup(name), creds);
    else
        g_hash_table_remove(table->creds, name);
    pthread_mutex_unlock(&table->lock);
}

int tls_creds_table_find(TlsCredsTable *table, const char *name, TlsEnd end, TlsCreds **ret_creds,
                         GError **error)
{
    TlsCreds *creds = NULL;
    if (table) {
        pthread_mutex_lock(&table->lock);
        creds = g_hash_table_lookup(table->creds, name);
        creds = creds ? tls_creds_ref(creds) : NULL;
        pthread_mutex_unlock(&table->lock);
    }
    if (!creds)
        return error_set(error, -ENOENT, "No TLS credentials with id '%s'", name);
    if (tls_creds_end(creds) != end) {
        tls_creds_unref(creds);
        return error_set(error, -EINVAL, "Expected TLS credentials for a %s endpoint",
                         end == TLS_SERVER ? "server" : "client");
    }
    *ret_creds = creds;
    return 0;
}
