// SPDX-License-Identifier: LGPL-2.1-or-later
// ring-bench's groups that concern sockets. The server is the main thread with one ring, shaped as
// the NBD server is: one receive armed for each connection, one send under way, which takes all
// answers that are due. Each client is a thread. Only byte counts are looked at.
#include "ring-bench.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    MAX_CONNS = 4,
    MAX_IN_FLIGHT = 32,
    REQUEST = 28,
    ANSWER = 16 + 4096,
    INPUT = 32 * 1024, // what one receive takes of small requests
    MAX_REQUEST = REQUEST + 256 * 1024,
    POOL_BUFFERS = 32, // provided ones
    POOL_BUFFER = 64 * 1024,
};

static uint8_t answers[MAX_IN_FLIGHT * ANSWER], client_output[MAX_CONNS * MAX_REQUEST];

typedef struct Workload {
    unsigned n_conns, n_in_flight;
    size_t request, answer;
} Workload;

typedef struct Conn {
    unsigned index;
    int fd, peer_fd;
    pthread_t client;
    const Workload *work;
    size_t part;         // bytes there of a request that is not complete
    size_t due, sending; // bytes of answers
    bool is_receiving, is_drained;
    uint8_t input[MAX_REQUEST] __attribute__((aligned(64)));
} Conn;

typedef struct Server {
    struct io_uring ring;
    unsigned flags;
    const Workload *work;
    uint64_t n_answered;
    struct io_uring_buf_ring *pool;
} Server;

static Conn conns[MAX_CONNS];
static uint8_t pool_bytes[POOL_BUFFERS][POOL_BUFFER];

// Takes one answer at a time and asks for the next, as NBD clients do.
static void *client(void *arg)
{
    Conn *c = arg;
    const Workload *work = c->work;
    uint8_t input[ANSWER];
    size_t to_send = work->n_in_flight * work->request;
    use_processor(1);
    do {
        while (to_send) {
            ssize_t n = send(c->peer_fd, client_output, to_send, MSG_NOSIGNAL);
            if (n < 0)
                return NULL;
            to_send -= (size_t)n;
        }
        to_send = work->request;
    } while (recv(c->peer_fd, input, work->answer, MSG_WAITALL) > 0);
    return NULL;
}

static void pool_give(Server *s, unsigned id)
{
    io_uring_buf_ring_add(s->pool, pool_bytes[id], POOL_BUFFER, (unsigned short)id,
                          io_uring_buf_ring_mask(POOL_BUFFERS), 0);
    io_uring_buf_ring_advance(s->pool, 1);
}

static void pool_init(Server *s)
{
    s->pool = mmap(NULL, POOL_BUFFERS * sizeof(struct io_uring_buf), PROT_READ | PROT_WRITE,
                   MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    struct io_uring_buf_reg reg = {.ring_addr = (uintptr_t)s->pool, .ring_entries = POOL_BUFFERS};
    check(io_uring_register_buf_ring(&s->ring, &reg, 0), "buffer ring");
    for (unsigned id = 0; id < POOL_BUFFERS; id++)
        pool_give(s, id);
}

static struct io_uring_sqe *get_sqe(Server *s, Conn *c, bool is_send)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&s->ring);
    io_uring_sqe_set_data64(sqe, c->index * 2 + is_send);
    return sqe;
}

static void set_file(Server *s, Conn *c, struct io_uring_sqe *sqe)
{
    if (!(s->flags & FIXED_FILES))
        return;
    sqe->fd = (int)c->index;
    sqe->flags |= IOSQE_FIXED_FILE;
}

// As the NBD receiver does: small requests into a big buffer, a large one to where it shall be.
static void arm_recv(Server *s, Conn *c)
{
    struct io_uring_sqe *sqe = get_sqe(s, c, false);
    bool is_large = s->work->request > INPUT;
    if (s->flags & MULTISHOT) {
        io_uring_prep_recv_multishot(sqe, c->fd, NULL, 0, 0);
        sqe->flags |= IOSQE_BUFFER_SELECT;
    } else {
        io_uring_prep_recv(sqe, c->fd, is_large ? c->input + c->part : c->input,
                           is_large ? s->work->request - c->part : INPUT,
                           s->flags & WAIT_ALL ? MSG_WAITALL : 0);
    }
    if (s->flags & POLL_FIRST && c->is_drained)
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
    set_file(s, c, sqe);
    c->is_receiving = true;
}

static void send_answers(Server *s, Conn *c)
{
    if (s->flags & SEND_CALL) {
        ssize_t n = send(c->fd, answers, c->due, MSG_DONTWAIT | MSG_NOSIGNAL);
        c->due -= n > 0 ? (size_t)n : 0;
        if (!c->due)
            return;
    }
    struct io_uring_sqe *sqe = get_sqe(s, c, true);
    io_uring_prep_send(sqe, c->fd, answers, c->due, MSG_NOSIGNAL | MSG_WAITALL);
    set_file(s, c, sqe);
    c->sending = c->due;
    c->due = 0;
}

static void received(Server *s, Conn *c, const uint8_t *bytes, size_t n)
{
    size_t request = s->work->request;
    for (size_t done = 0, now; request > INPUT && bytes && done < n; done += now) {
        size_t at = (c->part + done) % request;
        now = n - done < request - at ? n - done : request - at;
        memcpy(c->input + at, bytes + done, now);
    }
    c->part += n;
    c->due += c->part / request * s->work->answer;
    s->n_answered += c->part / request;
    c->part %= request;
}

static void complete(Server *s, const struct io_uring_cqe *cqe)
{
    Conn *c = &conns[cqe->user_data / 2];
    if (cqe->user_data & 1) {
        if (cqe->res != (int)c->sending)
            check(cqe->res < 0 ? cqe->res : -EIO, "send");
        c->sending = 0;
        return;
    }
    c->is_receiving = cqe->flags & IORING_CQE_F_MORE;
    if (cqe->res == -ENOBUFS)
        return;
    size_t n = (size_t)check(cqe->res, "receive");
    const uint8_t *bytes = NULL;
    unsigned id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
    if (cqe->flags & IORING_CQE_F_BUFFER)
        bytes = pool_bytes[id];
    c->is_drained = s->work->request > INPUT ? n < s->work->request - c->part : n < INPUT;
    received(s, c, bytes, n);
    if (bytes)
        pool_give(s, id);
}

static void turn(Server *s)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;
    for (Conn *c = conns; c < conns + s->work->n_conns; c++) {
        if (c->due && !c->sending)
            send_answers(s, c);
        if (!c->is_receiving)
            arm_recv(s, c);
    }
    io_uring_submit_and_wait(&s->ring, 1);
    io_uring_for_each_cqe(&s->ring, head, cqe)
    {
        complete(s, cqe);
        n++;
    }
    io_uring_cq_advance(&s->ring, n);
}

static void blocking_turn(Server *s)
{
    ssize_t n = recv(conns->fd, conns->input, INPUT, 0);
    received(s, conns, NULL, (size_t)check_errno((int)n, "recv"));
    n = send(conns->fd, answers, conns->due, 0);
    conns->due -= (size_t)check_errno((int)n, "send");
}

static void connect_clients(Server *s)
{
    int table[MAX_CONNS];
    for (unsigned i = 0; i < s->work->n_conns; i++) {
        int fds[2];
        Conn *c = &conns[i];
        check_errno(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), "socketpair");
        memset(c, 0, offsetof(Conn, input));
        c->index = i;
        c->fd = table[i] = fds[0];
        c->peer_fd = fds[1];
        c->work = s->work;
        check(-pthread_create(&c->client, NULL, client, c), "thread");
    }
    if (s->flags & FIXED_FILES)
        check(io_uring_register_files(&s->ring, table, s->work->n_conns), "fixed files");
}

static Sample run_sockets(const Variant *v, const void *work)
{
    Server s = {.flags = v->flags, .work = work};
    Sample sample;
    Meter meter;
    ring_init(&s.ring, v->flags);
    if (v->flags & MULTISHOT)
        pool_init(&s);
    connect_clients(&s);
    meter_start(&meter, CLOCK_THREAD_CPUTIME_ID);
    uint64_t before;
    do {
        before = s.n_answered;
        if (v->flags & NO_RING)
            blocking_turn(&s);
        else
            turn(&s);
    } while (!meter_add(&meter, s.n_answered - before, &sample));
    for (Conn *c = conns; c < conns + s.work->n_conns; c++) {
        shutdown(c->fd, SHUT_RDWR);
        pthread_join(c->client, NULL);
        close(c->fd);
        close(c->peer_fd);
    }
    io_uring_queue_exit(&s.ring);
    if (s.pool)
        munmap(s.pool, POOL_BUFFERS * sizeof(struct io_uring_buf));
    return sample;
}

void bench_requests(void)
{
    static const Variant variants[] = {
        {"one-shot receive, polled first when drained", POLL_FIRST, 0},
        {"one-shot receive", 0, 0},
        {"multishot receive, provided buffers", MULTISHOT, 0},
        {"fixed files", POLL_FIRST | FIXED_FILES, 0},
        {"multishot, fixed files", MULTISHOT | FIXED_FILES, 0},
        {"send() before the ring", POLL_FIRST | SEND_CALL, 0},
        {"send() before the ring, multishot", MULTISHOT | SEND_CALL, 0},
        {"COOP_TASKRUN for DEFER_TASKRUN", POLL_FIRST | COOP, 0},
        {"the first once more: what chance makes", POLL_FIRST, 0},
        {"no ring: recv(), send()", NO_RING, 0},
    };
    static const unsigned n_in_flight[] = {1, 4, 32};
    for (unsigned n_conns = 1; n_conns <= MAX_CONNS; n_conns += MAX_CONNS - 1) {
        for (unsigned i = 0; i < 3; i++) {
            Workload work = {n_conns, n_in_flight[i], REQUEST, ANSWER};
            printf("requests of 28 bytes, answers of 4 KiB: %u connections, %u in flight each\n",
                   n_conns, n_in_flight[i]);
            measure(variants, n_conns == 1 ? 10 : 9, run_sockets, &work);
        }
    }
}

void bench_payloads(void)
{
    static const Variant variants[] = {
        {"one-shot, into place, polled first when drained", POLL_FIRST, 0},
        {"one-shot, into place", 0, 0},
        {"one-shot, into place, MSG_WAITALL", WAIT_ALL, 0},
        {"multishot, provided buffers, copied into place", MULTISHOT, 0},
    };
    for (unsigned n_conns = 1; n_conns <= MAX_CONNS; n_conns += MAX_CONNS - 1) {
        Workload work = {n_conns, 4, MAX_REQUEST, 16};
        printf("payloads of 256 KiB: %u connections\n", n_conns);
        measure(variants, 4, run_sockets, &work);
    }
}

// --- accepting -----------------------------------------------------------------------------------

static struct sockaddr_un address;
static socklen_t address_len;
static atomic_bool connects;

static void *connector(void *arg)
{
    use_processor(1);
    while (connects) {
        int fd = check_errno(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
        connect(fd, (struct sockaddr *)&address, address_len); // refused in the end
        close(fd);
    }
    return NULL;
}

static Sample run_accept(const Variant *v, const void *arg)
{
    Sample sample;
    Meter meter;
    struct io_uring ring;
    struct io_uring_cqe *cqe;
    pthread_t thread;
    bool is_armed = false, is_over = false;
    int fd = check_errno(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    address.sun_family = AF_UNIX;
    address_len = sizeof(address);
    check_errno(bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)), "bind"); // picks a name
    check_errno(getsockname(fd, (struct sockaddr *)&address, &address_len), "getsockname");
    check_errno(listen(fd, 128), "listen");
    ring_init(&ring, v->flags);
    connects = true;
    check(-pthread_create(&thread, NULL, connector, NULL), "thread");
    meter_start(&meter, CLOCK_THREAD_CPUTIME_ID);
    while (!is_over) {
        if (!is_armed && v->flags & MULTISHOT)
            io_uring_prep_multishot_accept(io_uring_get_sqe(&ring), fd, NULL, NULL, SOCK_CLOEXEC);
        else if (!is_armed)
            io_uring_prep_accept(io_uring_get_sqe(&ring), fd, NULL, NULL, SOCK_CLOEXEC);
        io_uring_submit_and_wait(&ring, 1);
        unsigned head, n = 0;
        io_uring_for_each_cqe(&ring, head, cqe)
        {
            close(check(cqe->res, "accept"));
            is_armed = cqe->flags & IORING_CQE_F_MORE;
            n++;
        }
        io_uring_cq_advance(&ring, n);
        is_over = meter_add(&meter, n, &sample);
    }
    connects = false;
    io_uring_queue_exit(&ring);
    close(fd); // ends a connect() that waits for a place
    pthread_join(thread, NULL);
    return sample;
}

void bench_accept(void)
{
    static const Variant variants[] = {
        {"one-shot accept", 0, 0},
        {"multishot accept", MULTISHOT, 0},
    };
    printf("connections accepted and closed\n");
    measure(variants, 2, run_accept, NULL);
}
