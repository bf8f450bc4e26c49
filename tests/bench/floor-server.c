// SPDX-License-Identifier: LGPL-2.1-or-later
// The floor of a benchmark: what an NBD server costs that does nothing but the system calls. One
// export, a raw file; a thread for each client with blocking preads and pwrites, simple replies,
// and one send for all requests that one receive brought. It trusts its client: for benchmarks
// only.
//
// usage: floor-server SOCKET FILE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    // Numbers of the NBD protocol.
    OPT_EXPORT_NAME = 1,
    OPT_ABORT = 2,
    OPT_INFO = 6,
    OPT_GO = 7,
    REP_ACK = 1,
    REP_INFO = 3,
    INFO_EXPORT = 0,
    FLAG_NO_ZEROES = 1 << 1,
    FLAGS_FIXED_NEWSTYLE = 1 << 0 | FLAG_NO_ZEROES,
    EXPORT_FLAGS = 1 << 0 | 1 << 2 | 1 << 8, // flags, flush, multi-conn
    CMD_READ = 0,
    CMD_WRITE = 1,
    CMD_DISC = 2,
    CMD_FLUSH = 3,
    MAX_PAYLOAD = 32 << 20,
    BUFFER_BYTES = MAX_PAYLOAD + (1 << 16),
};
static const uint32_t REP_ERR_UNSUP = 1u << 31 | 1;
static const uint64_t OPTION_MAGIC = 0x49484156454f5054, REPLY_MAGIC = 0x3e889045565a9;
static const uint32_t REQUEST_MAGIC = 0x25609513, SIMPLE_REPLY_MAGIC = 0x67446698;

typedef struct __attribute__((packed)) Option {
    uint64_t magic;
    uint32_t option, len;
} Option;

typedef struct __attribute__((packed)) OptionReply {
    uint64_t magic;
    uint32_t option, type, len;
} OptionReply;

typedef struct __attribute__((packed)) Request {
    uint32_t magic;
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t len;
} Request;

typedef struct __attribute__((packed)) Reply {
    uint32_t magic, error;
    uint64_t cookie;
} Reply;

typedef struct Client {
    int socket, file;
    uint64_t size_bytes;
    uint8_t *in, *out;
    size_t n_in, n_out; // bytes
} Client;

static bool receive_all(int fd, void *buf, size_t len)
{
    return len == 0 || recv(fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

static bool send_all(int fd, const void *buf, size_t len)
{
    for (const uint8_t *at = buf; len > 0;) {
        ssize_t n = send(fd, at, len, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        at += n;
        len -= (size_t)n;
    }
    return true;
}

// -- handshake ------------------------------------------------------------------------------------

static bool answer(const Client *c, uint32_t option, uint32_t type, const void *data, uint32_t len)
{
    OptionReply reply = {htobe64(REPLY_MAGIC), htobe32(option), htobe32(type), htobe32(len)};
    return send_all(c->socket, &reply, sizeof reply) && send_all(c->socket, data, len);
}

static bool answer_go(const Client *c, uint32_t option)
{
    struct __attribute__((packed)) {
        uint16_t type;
        uint64_t size_bytes;
        uint16_t flags;
    } info = {htobe16(INFO_EXPORT), htobe64(c->size_bytes), htobe16(EXPORT_FLAGS)};
    return answer(c, option, REP_INFO, &info, sizeof info) && answer(c, option, REP_ACK, "", 0);
}

static bool answer_export_name(const Client *c, bool no_zeroes)
{
    struct __attribute__((packed)) {
        uint64_t size_bytes;
        uint16_t flags;
        uint8_t zeroes[124];
    } info = {htobe64(c->size_bytes), htobe16(EXPORT_FLAGS), {0}};
    return send_all(c->socket, &info, no_zeroes ? 10 : sizeof info);
}

// True when the client has chosen the export.
static bool shake_hands(const Client *c)
{
    struct __attribute__((packed)) {
        char magic[8];
        uint64_t option_magic;
        uint16_t flags;
    } hello = {"NBDMAGIC", htobe64(OPTION_MAGIC), htobe16(FLAGS_FIXED_NEWSTYLE)};
    uint32_t client_flags;
    if (!send_all(c->socket, &hello, sizeof hello) ||
        !receive_all(c->socket, &client_flags, sizeof client_flags))
        return false;
    bool no_zeroes = be32toh(client_flags) & FLAG_NO_ZEROES;
    for (;;) {
        Option option;
        if (!receive_all(c->socket, &option, sizeof option) || be32toh(option.len) > BUFFER_BYTES ||
            !receive_all(c->socket, c->in, be32toh(option.len)))
            return false;
        uint32_t number = be32toh(option.option);
        bool ok = true;
        if (number == OPT_EXPORT_NAME)
            return answer_export_name(c, no_zeroes);
        else if (number == OPT_GO)
            return answer_go(c, number);
        else if (number == OPT_INFO)
            ok = answer_go(c, number);
        else if (number == OPT_ABORT)
            ok = false;
        else
            ok = answer(c, number, REP_ERR_UNSUP, "", 0);
        if (!ok)
            return false;
    }
}

// -- requests -------------------------------------------------------------------------------------

static bool send_replies(Client *c)
{
    bool ok = send_all(c->socket, c->out, c->n_out);
    c->n_out = 0;
    return ok;
}

// Carries out one request whose payload has come, and queues its reply.
static bool execute(Client *c, const Request *request, const void *payload)
{
    uint64_t offset = be64toh(request->offset);
    uint32_t len = be32toh(request->len);
    uint16_t command = be16toh(request->command);
    size_t data = command == CMD_READ ? len : 0;
    if (data > MAX_PAYLOAD || (c->n_out + sizeof(Reply) + data > BUFFER_BYTES && !send_replies(c)))
        return false;
    Reply *reply = (Reply *)(c->out + c->n_out);
    ssize_t n = 0;
    if (command == CMD_READ)
        n = pread(c->file, reply + 1, len, (off_t)offset) - (ssize_t)len;
    else if (command == CMD_WRITE)
        n = pwrite(c->file, payload, len, (off_t)offset) - (ssize_t)len;
    else if (command == CMD_FLUSH)
        n = fdatasync(c->file);
    else
        n = -1;
    *reply = (Reply){htobe32(SIMPLE_REPLY_MAGIC), htobe32(n ? EINVAL : 0), request->cookie};
    c->n_out += sizeof(Reply) + (n ? 0 : data);
    return true;
}

// Carries out the whole requests that have come; moves what is left to the front. False at the end.
static bool execute_all(Client *c)
{
    size_t at = 0;
    while (c->n_in - at >= sizeof(Request)) {
        const Request *request = (const Request *)(c->in + at);
        uint16_t command = be16toh(request->command);
        size_t payload = command == CMD_WRITE ? be32toh(request->len) : 0;
        if (request->magic != htobe32(REQUEST_MAGIC) || payload > MAX_PAYLOAD ||
            command == CMD_DISC)
            return false;
        if (c->n_in - at < sizeof(Request) + payload)
            break;
        if (!execute(c, request, request + 1))
            return false;
        at += sizeof(Request) + payload;
    }
    c->n_in -= at;
    memmove(c->in, c->in + at, c->n_in);
    return send_replies(c);
}

static void *serve(void *arg)
{
    Client *c = arg;
    c->in = malloc(BUFFER_BYTES);
    c->out = malloc(BUFFER_BYTES);
    if (c->in && c->out && shake_hands(c)) {
        do {
            ssize_t n = recv(c->socket, c->in + c->n_in, BUFFER_BYTES - c->n_in, 0);
            if (n <= 0)
                break;
            c->n_in += (size_t)n;
        } while (execute_all(c));
    }
    close(c->socket);
    free(c->in);
    free(c->out);
    free(c);
    return NULL;
}

static int fail(const char *what)
{
    perror(what);
    return 1;
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 3 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: floor-server SOCKET FILE\n");
        return 2;
    }
    int file = open(argv[2], O_RDWR | O_CLOEXEC);
    struct stat st;
    if (file < 0 || fstat(file, &st) < 0)
        return fail(argv[2]);
    strcpy(address.sun_path, argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, 64) < 0)
        return fail(argv[1]);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        Client *c = calloc(1, sizeof *c);
        if (fd < 0 || !c)
            return fail("accept");
        *c = (Client){.socket = fd, .file = file, .size_bytes = (uint64_t)st.st_size};
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, c) != 0)
            return fail("thread");
        pthread_detach(thread);
    }
}
