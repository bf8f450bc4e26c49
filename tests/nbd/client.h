// SPDX-License-Identifier: LGPL-2.1-or-later
// A raw NBD client for tests: it can send anything, and checks every reply header it receives. A
// socket that stays silent for HANG_S fails the test. Blocking, on the test's thread.
#pragma once

#include <glib.h>

#include "wire.h"

enum { HANG_S = 100 }; // after which something hangs, and is not merely slow

typedef struct Client {
    int fd;
    NbdsStyle style;
    uint64_t size_bytes;
    uint16_t flags;
    uint32_t context_ids[2]; // base:allocation, qemu:allocation-depth, when asked for
} Client;

typedef struct ClientConfig {
    NbdsStyle style;
    const char *export_name; // NULL: ""
    bool contexts;           // select both
    bool use_export_name;    // EXPORT_NAME instead of GO
} ClientConfig;

int client_connect(const char *path); // only the socket
Client *client_new(const char *path, const ClientConfig *config);
void client_free(Client *c);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Client, client_free)

void client_send(Client *c, const void *data, size_t len);
void client_recv(Client *c, void *data, size_t len);
bool client_at_end(Client *c); // the server closed, having sent nothing more

void client_send_option(Client *c, uint32_t option, const void *data, uint32_t len);
// One reply packet; data owned.
uint32_t client_recv_option_reply(Client *c, uint32_t option, GByteArray **ret_data);

// A request; `payload_bytes` of `payload` follow it (and the flag is set in extended style).
void client_request(Client *c, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
                    uint64_t length, const void *payload, size_t payload_bytes);

typedef struct ClientExtent {
    uint64_t length, flags;
} ClientExtent;

// A whole reply, its chunks checked: in step, inside the request, no overlap, DONE last.
typedef struct ClientReply {
    uint64_t cookie;
    uint32_t error;
    char message[256];
    unsigned n_chunks, n_data, n_holes;
    uint64_t covered_bytes;
    // BLOCK_STATUS, per context of the client.
    GArray *extents[2]; // of ClientExtent, or NULL when that context was not answered
} ClientReply;
void client_reply_clear(ClientReply *reply);

// Receives until the DONE of one reply. `data` (may be NULL) receives a READ of [offset,
// offset+length).
void client_reply(Client *c, uint16_t type, uint64_t offset, uint64_t length, void *data,
                  ClientReply *ret_reply);
// Request and reply of the only request in flight; returns the error.
uint32_t client_do(Client *c, uint16_t type, uint16_t flags, uint64_t offset, uint64_t length,
                   void *data);
