// SPDX-License-Identifier: LGPL-2.1-or-later
#include "ctl.h"

const char *ctl_default_socket(void)
{
    const char *socket = g_getenv("CHAIND_SOCKET");
    return socket && *socket ? socket : CHAIND_RUN_DIR "/control.sock";
}

static OutputFormat format_of(const char *text)
{
    return g_strcmp0(text, "json") == 0    ? OUTPUT_JSON
           : g_strcmp0(text, "jsonl") == 0 ? OUTPUT_JSONL
                                           : OUTPUT_TABLE;
}

int ctl_init(Ctl *ctl, const VerbFamily *const *families, const Verb *verb, char **words,
             GError **error)
{
    *ctl = (Ctl){.families = families, .verb = verb};
    ctl->arguments = arguments_parse(verb, words, error);
    if (!ctl->arguments)
        return -1;
    const char *socket = arguments_text(ctl->arguments, "socket");
    ctl->socket = g_strdup(socket ? socket : ctl_default_socket());
    ctl->output = output_new(format_of(arguments_text(ctl->arguments, "output")),
                             arguments_flag(ctl->arguments, "no-header"),
                             arguments_text(ctl->arguments, "color"));
    return 0;
}

void ctl_done(Ctl *ctl)
{
    arguments_free(ctl->arguments);
    qmp_client_free(ctl->client);
    g_free(ctl->socket);
}

const char *ctl_word(const Ctl *ctl, unsigned i)
{
    char **words = arguments_words(ctl->arguments);
    return i < g_strv_length(words) ? words[i] : NULL;
}

// Beside the control socket; owned.
static char *query_socket(const Ctl *ctl)
{
    g_autofree char *folder = g_path_get_dirname(ctl->socket);
    return g_build_filename(folder, "query.sock", NULL);
}

// Whoever may not use the control socket may perhaps ask.
static QmpClient *open_client(Ctl *ctl, GError **error)
{
    g_autoptr(GError) refusal = NULL;
    QmpClient *client = qmp_client_open(ctl->socket, &refusal);
    if (!client && g_error_matches(refusal, CTL_ERROR, CTL_DENIED)) {
        g_autofree char *path = query_socket(ctl);
        client = qmp_client_open(path, NULL);
    }
    if (!client)
        g_propagate_error(error, g_steal_pointer(&refusal));
    return client;
}

QmpClient *ctl_client(Ctl *ctl, GError **error)
{
    if (!ctl->client)
        ctl->client = open_client(ctl, error);
    return ctl->client;
}

json_t *ctl_run(Ctl *ctl, const char *command, json_t *args, GError **error)
{
    QmpClient *client = ctl_client(ctl, error);
    if (client)
        return qmp_client_run(client, command, args, error);
    json_decref(args);
    return NULL;
}

json_t *ctl_run_with(Ctl *ctl, const char *command, GError **error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    json_t *packed = json_vpack_ex(NULL, 0, format, args);
    va_end(args);
    g_assert(packed);
    return ctl_run(ctl, command, packed, error);
}

int ctl_do(Ctl *ctl, const char *command, json_t *args, GError **error)
{
    json_auto_t *reply = ctl_run(ctl, command, args, error);
    return reply ? 0 : -1;
}
