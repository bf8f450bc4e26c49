// SPDX-License-Identifier: LGPL-2.1-or-later
// Rules about identities. Any thread.
#include "chain-core/tls-authz.h"

#include <errno.h>
#include <fnmatch.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"

struct TlsAuthz {
    gatomicrefcount n_refs;
    char *identity; // the only one; NULL: the list says
    char *path;     // of a file that is read again; NULL: none
    GMutex lock;    // of what follows
    json_t *list;
    struct stat st; // of the file as it was read
};

// --- Lists ---

static int check_policy(const json_t *policy, GError **error)
{
    const char *text = json_string_value(policy);
    if (!policy || (text && (g_str_equal(text, "allow") || g_str_equal(text, "deny"))))
        return 0;
    return error_set(error, -EINVAL, "a policy is 'allow' or 'deny'");
}

static int check_rule(const json_t *rule, GError **error)
{
    const json_t *format = json_object_get(rule, "format");
    const char *text = json_string_value(format);
    if (!json_is_string(json_object_get(rule, "match")) || !json_object_get(rule, "policy"))
        return error_set(error, -EINVAL, "a rule has a 'match' and a 'policy'");
    if (format && (!text || (!g_str_equal(text, "exact") && !g_str_equal(text, "glob"))))
        return error_set(error, -EINVAL, "the format of a rule is 'exact' or 'glob'");
    return check_policy(json_object_get(rule, "policy"), error);
}

static int check_list(const json_t *list, GError **error)
{
    const json_t *rules = json_object_get(list, "rules"), *rule;
    size_t i;
    if (!json_is_object(list) || (rules && !json_is_array(rules)))
        return error_set(error, -EINVAL, "it is not an object with an array of 'rules'");
    json_array_foreach(rules, i, rule)
    {
        int r = check_rule(rule, error);
        if (r < 0)
            return r;
    }
    return check_policy(json_object_get(list, "policy"), error);
}

static bool is_allow(const json_t *of)
{
    return g_strcmp0(json_string_value(json_object_get(of, "policy")), "allow") == 0;
}

static bool rule_matches(const json_t *rule, const char *identity)
{
    const char *match = json_string_value(json_object_get(rule, "match"));
    const char *format = json_string_value(json_object_get(rule, "format"));
    return g_strcmp0(format, "glob") == 0 ? fnmatch(match, identity, 0) == 0
                                          : g_str_equal(match, identity);
}

static bool list_allows(const json_t *list, const char *identity)
{
    size_t i;
    const json_t *rule;
    json_array_foreach(json_object_get(list, "rules"), i, rule)
    {
        if (rule_matches(rule, identity))
            return is_allow(rule);
    }
    return is_allow(list);
}

// --- Files ---

static int read_list(TlsAuthz *authz, const char *path, GError **error)
{
    json_error_t fault;
    struct stat st = {0};
    g_autoptr(GError) why = NULL;
    if (stat(path, &st) < 0)
        return error_set(error, -errno, "Unable to read '%s': %s", path, g_strerror(errno));
    json_auto_t *list = json_load_file(path, JSON_REJECT_DUPLICATES, &fault);
    if (!list)
        return error_set(error, -EINVAL, "Unable to read '%s': %s", path, fault.text);
    if (check_list(list, &why) < 0)
        return error_set(error, -EINVAL, "Unable to read '%s': %s", path, why->message);
    json_decref(authz->list);
    authz->list = g_steal_pointer(&list);
    authz->st = st;
    return 0;
}

// With the lock held.
static void refresh(TlsAuthz *authz)
{
    struct stat now;
    const struct stat *was = &authz->st;
    bool is_as_it_was = stat(authz->path, &now) == 0 && now.st_ino == was->st_ino &&
                        now.st_size == was->st_size && now.st_dev == was->st_dev &&
                        now.st_mtim.tv_sec == was->st_mtim.tv_sec &&
                        now.st_mtim.tv_nsec == was->st_mtim.tv_nsec;
    if (!is_as_it_was)
        read_list(authz, authz->path, NULL);
}

// --- Life ---

static TlsAuthz *authz_new(void)
{
    TlsAuthz *authz = g_new0(TlsAuthz, 1);
    g_atomic_ref_count_init(&authz->n_refs);
    g_mutex_init(&authz->lock);
    return authz;
}

TlsAuthz *tls_authz_new_simple(const char *identity)
{
    TlsAuthz *authz = authz_new();
    authz->identity = g_strdup(identity);
    return authz;
}

TlsAuthz *tls_authz_new_list(const json_t *list, GError **error)
{
    if (check_list(list, error) < 0)
        return NULL;
    TlsAuthz *authz = authz_new();
    authz->list = json_deep_copy(list);
    return authz;
}

int tls_authz_set_list(TlsAuthz *authz, const json_t *list, GError **error)
{
    int r = check_list(list, error);
    if (r < 0)
        return r;
    g_mutex_lock(&authz->lock);
    json_decref(authz->list);
    authz->list = json_deep_copy(list);
    g_mutex_unlock(&authz->lock);
    return 0;
}

TlsAuthz *tls_authz_new_list_file(const char *path, bool refreshes, GError **error)
{
    TlsAuthz *authz = authz_new();
    if (read_list(authz, path, error) < 0)
        g_clear_pointer(&authz, tls_authz_unref);
    else if (refreshes)
        authz->path = g_strdup(path);
    return authz;
}

TlsAuthz *tls_authz_ref(TlsAuthz *authz)
{
    g_atomic_ref_count_inc(&authz->n_refs);
    return authz;
}

void tls_authz_unref(TlsAuthz *authz)
{
    if (!authz || !g_atomic_ref_count_dec(&authz->n_refs))
        return;
    g_free(authz->identity);
    g_free(authz->path);
    json_decref(authz->list);
    g_mutex_clear(&authz->lock);
    g_free(authz);
}

bool tls_authz_allows(TlsAuthz *authz, const char *identity)
{
    if (authz->identity)
        return g_str_equal(authz->identity, identity);
    g_mutex_lock(&authz->lock);
    if (authz->path)
        refresh(authz);
    bool is_allowed = list_allows(authz->list, identity);
    g_mutex_unlock(&authz->lock);
    return is_allowed;
}
