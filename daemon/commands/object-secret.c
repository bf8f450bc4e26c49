// SPDX-License-Identifier: LGPL-2.1-or-later
// A secret: bytes that are given, or that a file has. Secrets that others encrypt are refused.
#include "object-secret.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "daemon/qmp/args.h"
#include "object-kind.h"

enum { MAX_FILE_BYTES = 1 << 20 }; // a key or a password is smaller; a device has no end

static const QmpType format = {
    .name = "QCryptoSecretFormat",
    .kind = QMP_ENUM,
    .values = (const char *const[]){"raw", "base64", NULL},
};
static const QmpType properties = {
    .name = "SecretProperties",
    .kind = QMP_OBJECT,
    .members =
        (const QmpMember[]){{"data", &qmp_str, true, "the secret itself"},
                            {"file", &qmp_str, true, "where it stands, at most 1 MiB"},
                            {"format", &format, true, "what it is given in; raw without it"},
                            {"keyid", &qmp_str, true, "refused: secrets cannot be encrypted"},
                            {"iv", &qmp_str, true, "does nothing without a key"},
                            {0}},
};

// On a worker: the file may be a pipe.
typedef struct Reading {
    const char *path;
    GString *bytes;
    GError *error;
} Reading;

static int fail(Reading *reading, const char *what, int number)
{
    return qmp_fail(&reading->error, "Unable to read %s: %s “%s”: %s", reading->path, what,
                    reading->path, g_strerror(number));
}

static int read_file(void *arg)
{
    Reading *reading = arg;
    char buffer[4096];
    ssize_t n;
    int fd = open(reading->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail(reading, "Failed to open file", errno);
    while ((n = read(fd, buffer, sizeof buffer)) > 0 && reading->bytes->len <= MAX_FILE_BYTES)
        g_string_append_len(reading->bytes, buffer, n);
    int r = n < 0 ? fail(reading, "Error reading file", errno) : 0;
    close(fd);
    if (reading->bytes->len > MAX_FILE_BYTES)
        return qmp_fail(&reading->error, "Unable to read %s: it is longer than %d bytes",
                        reading->path, MAX_FILE_BYTES);
    return r;
}

static int check_base64(const char *bytes, size_t len, GError **error)
{
    static const char allowed[] =
        G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "+/=\n"; // what else there is makes no sense of it
    for (size_t i = 0; i < len; i++)
        if (!bytes[i] || !strchr(allowed, bytes[i]))
            return qmp_fail(error, "Base64 data contains invalid characters");
    return 0;
}

// Owned; NULL with a sentence.
static GString *read_and_check(Fiber *self, const char *path, bool is_base64, GError **error)
{
    Reading reading = {.path = path, .bytes = g_string_new(NULL)};
    int r = loop_work(self, read_file, &reading);
    if (r < 0)
        g_propagate_error(error, reading.error);
    else if (is_base64)
        r = check_base64(reading.bytes->str, reading.bytes->len, error);
    return r < 0 ? (g_string_free(reading.bytes, true), NULL) : reading.bytes;
}

static int check_file(Fiber *self, const char *path, bool is_base64, GError **error)
{
    GString *bytes = read_and_check(self, path, is_base64, error);
    if (bytes)
        g_string_free(bytes, true);
    return bytes ? 0 : -EINVAL;
}

char *object_secret_read(Fiber *self, const Daemon *daemon, const char *id, GError **error)
{
    const Object *object = objects_find(daemon->objects, id);
    if (!object || object->kind != &object_secret_kind) {
        qmp_fail(error, object ? "Object with id '%s' is not a secret" : "No secret with id '%s'",
                 id);
        return NULL;
    }
    json_auto_t *values = json_incref(object->values); // it may go while this suspends
    const char *file = qmp_args_str(values, "file"), *data = qmp_args_str(values, "data");
    bool is_base64 = g_str_equal(qmp_args_str(values, "format"), "base64");
    GString *bytes = *file ? read_and_check(self, file, is_base64, error) : g_string_new(data);
    if (!bytes || !is_base64)
        return bytes ? g_string_free(bytes, false) : NULL;
    gsize n;
    g_autofree guchar *decoded = g_base64_decode(bytes->str, &n);
    g_string_free(bytes, true);
    return g_strndup((const char *)decoded, n);
}

static int make(Fiber *self, Daemon *daemon, Object *object, const json_t *args, GError **error)
{
    const char *data = qmp_args_str(args, "data"), *file = qmp_args_str(args, "file");
    bool is_base64 = g_strcmp0(qmp_args_str(args, "format"), "base64") == 0;
    if (data && file)
        return qmp_fail(error, "'file' and 'data' are mutually exclusive");
    if (!data && !file)
        return qmp_fail(error, "Either 'file' or 'data' must be provided");
    if (qmp_args_have(args, "keyid"))
        return qmp_fail(error, "Encrypted secrets are not supported: leave out 'keyid'");
    object->values = json_pack("{s:s, s:s, s:s, s:s, s:s}", "data", "", "file", "", "format", "raw",
                               "keyid", "", "iv", "");
    json_object_update_existing(object->values, (json_t *)args);
    if (file)
        return check_file(self, file, is_base64, error);
    return is_base64 ? check_base64(data, strlen(data), error) : 0;
}

static int set(Daemon *daemon, Object *object, const char *property, json_t *value, GError **error)
{
    json_object_set(object->values, property, value);
    return 0;
}

const ObjectKind object_secret_kind = {
    .name = "secret",
    .parent = "secret_common",
    .properties = &properties,
    .make = make,
    .get = object_kind_get_value,
    .set = set,
};
