// SPDX-License-Identifier: LGPL-2.1-or-later
// A link to an NBD export that outlives its connections. Requests go through a session, and when
// that is lost through the next one:
//
//                 lost                      reconnect-delay is over
//     CONNECTED ───────▶ WAITING ──────────────────────────────────▶ FAILING
//         ▲                 │ a session                                 │
//         └─────────────────┴────────────────────────◀─────────────────┘
//
//     WAITING   requests wait, and are made again (a read or write made twice is one)
//     FAILING   requests answer -EIO; a fiber goes on trying to connect, unless it was given up
//
// A server may be lost again as soon as there is something to do for it. So no request is made
// again for longer than reconnect-delay, and attempts to connect keep their distance.
//
// What the server had acknowledged and not made durable may be gone with a connection: nobody can
// tell a server that lost its network from one that lost its memory. So the flush that should have
// covered it fails, once; of several that were under way, each. On the loop, in fibers.
#include "remote/nbd-link.h"

#include <errno.h>
#include <stddef.h>

#include "base/error.h"
#include "chain-core/fiber-sync.h"
#include "chain-core/mutant.h"

#define SECOND_NS UINT64_C(1000000000)
// Of a connection, and of a handshake. As long as a lost packet or two of a handshake take.
#define ATTEMPT_NS (10 * SECOND_NS)
enum { MAX_PAUSE_S = 16 }; // between attempts, which come less often the longer nothing is answered

typedef enum LinkState { LINK_CONNECTED, LINK_WAITING, LINK_FAILING } LinkState;

struct NbdLink {
    Loop *loop;
    NbdAddress *address;
    NbdLinkOptions options;
    NbdSessionFacts facts;
    NbdSession *session; // NULL while none is usable
    NbdSession *dead;    // to be closed by the connecting fiber, once n_users is 0
    unsigned n_users;    // requests inside `session` or `dead`
    LinkState state;
    Fiber *connecting;
    bool is_closing, is_given_up;
    uint64_t attempted_ns; // when the last attempt to connect ended
    unsigned pause_s;      // from then to the next one
    LoopTimer give_up;     // WAITING becomes FAILING
    FiberQueue changed;    // the state, n_users, or the end of the fiber
    // Changes without FUA, counted in the order of their acknowledgement. None of these falls.
    uint64_t n_written;  // all of them
    uint64_t n_durable;  // up to here: durable, or lost
    uint64_t n_lost;     // up to here: some may be lost; differs after each loss
    uint64_t n_reported; // up to here: a flush has failed for the lost ones
};

// --- connections ---------------------------------------------------------------------------------

static void set_state(NbdLink *link, LinkState state)
{
    link->state = state;
    fiber_queue_wake_all(&link->changed);
}

static void tell(const NbdLink *link, const char *what)
{
    if (!link->options.events || !link->options.events->notice)
        return;
    g_autofree char *sentence = g_strdup_printf("%s: %s", link->address->text, what);
    link->options.events->notice(link->options.events, sentence);
}

static void gave_up(LoopTimer *timer)
{
    NbdLink *link = (NbdLink *)((char *)timer - offsetof(NbdLink, give_up));
    if (link->state == LINK_WAITING)
        set_state(link, LINK_FAILING);
}

// Does the export look as it did when the node was opened?
static int check_same(const NbdLink *link, const NbdSession *session, GError **error)
{
    const NbdSessionFacts *facts = nbd_session_facts(session);
    if (facts->size_bytes != link->facts.size_bytes)
        return error_set(error, -EIO,
                         "%s: the server has an export of %" G_GUINT64_FORMAT
                         " bytes now, not of %" G_GUINT64_FORMAT,
                         link->address->text, facts->size_bytes, link->facts.size_bytes);
    if (facts->read_only && link->options.is_writable)
        return error_set(error, -EIO, "%s: the server has made the export read-only",
                         link->address->text);
    if (facts->min_bytes > link->facts.min_bytes || facts->max_bytes < link->facts.max_bytes)
        return error_set(error, -EIO, "%s: the server takes other sizes of requests now",
                         link->address->text);
    return 0;
}

static void start_connecting(NbdLink *link);

// The connection is gone, and with it, perhaps, what was not durable.
static void lose_writes(NbdLink *link)
{
    if (link->n_written > link->n_durable && !MUTANT("lost-connection-loses-writes"))
        link->n_lost = link->n_durable = link->n_written;
}

static void lengthen_pause(NbdLink *link, bool has_answered)
{
    link->pause_s = has_answered || !link->pause_s ? 1 : MIN(link->pause_s * 2, MAX_PAUSE_S);
}

static void connection_lost(void *arg)
{
    NbdLink *link = arg;
    link->dead = g_steal_pointer(&link->session);
    lose_writes(link);
    if (link->state != LINK_CONNECTED) // lost before anybody used it
        return;
    lengthen_pause(link, nbd_session_has_answered(link->dead));
    tell(link, "the connection is lost");
    bool waits = link->options.reconnect_delay_ns && !link->is_given_up;
    set_state(link, waits ? LINK_WAITING : LINK_FAILING);
    if (waits)
        loop_timer_start(link->loop, &link->give_up, link->options.reconnect_delay_ns);
    start_connecting(link);
}

static void close_dead(Fiber *self, NbdLink *link)
{
    while (link->dead && link->n_users)
        fiber_queue_wait(self, &link->changed, false, "nbd: requests on a lost connection");
    nbd_session_close(self, g_steal_pointer(&link->dead));
}

static int connect_again(Fiber *self, NbdLink *link, GError **error)
{
    NbdSession *session;
    int r = nbd_session_open(self, link->address, ATTEMPT_NS, &session, error);
    if (r < 0)
        return r;
    r = check_same(link, session, error);
    if (r < 0 || link->is_closing || link->is_given_up) {
        nbd_session_close(self, session);
        return r < 0 ? r : -ECANCELED;
    }
    // Requests that wait were made for the sizes that there were.
    NbdSessionFacts facts = *nbd_session_facts(session);
    facts.min_bytes = link->facts.min_bytes;
    facts.max_bytes = link->facts.max_bytes;
    link->session = session;
    link->facts = facts;
    r = nbd_session_start(session, link->loop, connection_lost, link);
    if (r < 0 || link->session != session) { // lost again already
        link->dead = g_steal_pointer(&link->session) ?: link->dead;
        close_dead(self, link);
        return error_set(error, -ECONNRESET, "%s: the connection is lost", link->address->text);
    }
    loop_timer_stop(link->loop, &link->give_up);
    tell(link, "connected again");
    set_state(link, LINK_CONNECTED);
    return 0;
}

static int pause_before_attempt(Fiber *self, const NbdLink *link)
{
    uint64_t now_ns = loop_now_ns(link->loop);
    uint64_t next_ns = link->attempted_ns + link->pause_s * SECOND_NS;
    return now_ns < next_ns ? fiber_sleep(self, next_ns - now_ns) : 0;
}

static void connect_fiber(Fiber *self, void *arg)
{
    NbdLink *link = arg;
    close_dead(self, link);
    g_autofree char *told = NULL;
    while (!link->is_closing && !link->is_given_up && pause_before_attempt(self, link) == 0) {
        g_autoptr(GError) error = NULL;
        int r = connect_again(self, link, &error);
        link->attempted_ns = loop_now_ns(link->loop);
        if (r == 0 || link->is_closing)
            break;
        lengthen_pause(link, false);
        if (g_strcmp0(told, error->message) != 0 && link->options.events &&
            link->options.events->notice)
            link->options.events->notice(link->options.events, error->message);
        g_free(told);
        told = g_strdup(error->message);
    }
    link->connecting = NULL;
    fiber_queue_wake_all(&link->changed);
    if (link->dead && !link->is_closing)
        start_connecting(link); // lost again meanwhile
}

static void start_connecting(NbdLink *link)
{
    if (link->connecting || link->is_closing || link->is_given_up)
        return;
    if (fiber_spawn(link->loop, "nbd client: connects", connect_fiber, link, &link->connecting) < 0)
        link->connecting = NULL; // no stack: the next request tries
}

static void stop_connecting(Fiber *self, NbdLink *link)
{
    link->is_closing = true;
    if (link->connecting)
        fiber_cancel(link->connecting);
    while (link->connecting)
        fiber_queue_wait(self, &link->changed, false, "nbd: the end of connecting");
    loop_timer_stop(link->loop, &link->give_up);
}

// --- requests ------------------------------------------------------------------------------------

// Whoever made the request may have known another server, before the connection was lost: what this
// one has not is -ENOTSUP, and a trim, which is a hint, done.
static int submit(Fiber *self, NbdSession *s, NbdCommand *c)
{
    const NbdSessionFacts *facts = nbd_session_facts(s);
    bool is_fua = c->flags & NODE_IO_FUA && facts->can_fua;
    if (c->op == NBD_TRIM && !facts->can_trim)
        return 0;
    if ((c->op == NBD_ZERO && !facts->can_zero) || (c->op == NBD_STATUS && !facts->has_status) ||
        (c->flags & NODE_IO_FAST_ZERO && !facts->can_fast_zero))
        return -ENOTSUP;
    switch (c->op) {
    case NBD_READ:
        return nbd_session_read(self, s, c->off, c->buf, c->len);
    case NBD_WRITE:
        return nbd_session_write(self, s, c->off, c->buf, c->len, is_fua);
    case NBD_ZERO:
        return nbd_session_zero(self, s, c->off, c->len,
                                is_fua ? c->flags : c->flags & ~NODE_IO_FUA);
    case NBD_TRIM:
        return nbd_session_trim(self, s, c->off, c->len, is_fua);
    case NBD_STATUS:
        return nbd_session_status(self, s, c->off, c->len, &c->extent);
    }
    g_assert_not_reached();
}

// A session to use, or -EIO. Waits where requests wait.
static int get_session(Fiber *self, NbdLink *link, NbdSession **ret_session)
{
    while (link->state == LINK_WAITING)
        fiber_queue_wait(self, &link->changed, false, "nbd: a new connection");
    if (link->state == LINK_FAILING) {
        start_connecting(link);
        return -EIO;
    }
    *ret_session = link->session;
    return 0;
}

// ENOTSUP and ENOSPC mean something above; the rest is a failure.
static int translate(int r)
{
    return r == 0 || r == -ENOSPC || r == -ENOTSUP || r == -ENOMEM ? r : -EIO;
}

// `session` has acknowledged the command (NULL: a flush).
static void count_change(NbdLink *link, const NbdSession *session, const NbdCommand *command)
{
    bool can_fua = nbd_session_facts(session)->can_fua;
    if (!command || command->op == NBD_READ || command->op == NBD_STATUS ||
        (command->flags & NODE_IO_FUA && can_fua))
        return;
    link->n_written++;
    if (link->session != session &&
        !MUTANT("lost-before-its-answer-counts")) // lost between the answer and this fiber's turn
        lose_writes(link);
}

// Until there is a connection that carries it out, or none in time. A server that knows no FUA gets
// a flush after the change.
static int carry_out(Fiber *self, NbdLink *link, NbdCommand *command)
{
    for (uint64_t lost_ns = 0;;) { // when it was lost with a connection for the first time
        NbdSession *session;
        int r = get_session(self, link, &session);
        if (r < 0)
            return r;
        link->n_users++;
        r = command ? submit(self, session, command) : nbd_session_flush(self, session);
        bool lacks_fua =
            command && command->flags & NODE_IO_FUA && !nbd_session_facts(session)->can_fua;
        if (r == 0) // while `session` is in use: no other one can have its address
            count_change(link, session, command);
        if (--link->n_users == 0)
            fiber_queue_wake_all(&link->changed);
        if (r == 0 && lacks_fua)
            return nbd_link_flush(self, link);
        if (r != -ENOTCONN)
            return translate(r);
        if (link->session == session)
            return -EIO; // it was not sent, for some reason that another time would not mend
        uint64_t now_ns = loop_now_ns(link->loop);
        lost_ns = lost_ns ? lost_ns : now_ns;
        if (now_ns - lost_ns > link->options.reconnect_delay_ns)
            return -EIO;
    }
}

int nbd_link_request(Fiber *self, NbdLink *link, NbdCommand *command)
{
    return carry_out(self, link, command);
}

int nbd_link_flush(Fiber *self, NbdLink *link)
{
    uint64_t n_covered = link->n_written, n_lost = link->n_lost;
    int r = 0;
    if (n_covered > link->n_durable && link->n_lost <= link->n_reported && link->facts.can_flush)
        r = carry_out(self, link, NULL);
    // Perhaps while it waited.
    if (link->n_lost > link->n_reported ||
        (link->n_lost != n_lost && !MUTANT("each-flush-under-way-fails"))) {
        link->n_reported = MAX(link->n_reported, n_covered);
        return -EIO;
    }
    if (r == 0)
        link->n_durable =
            MAX(link->n_durable,
                MUTANT("remote-flush-covers-what-came-before") ? link->n_written : n_covered);
    return r;
}

// --- opening and closing -------------------------------------------------------------------------

static int open_session(Fiber *self, const NbdAddress *address, uint64_t timeout_ns,
                        NbdSession **ret_session, GError **error)
{
    enum { PAUSE_NS = 1000000000 };
    uint64_t end_ns = loop_now_ns(fiber_loop(self)) + timeout_ns;
    for (;;) {
        uint64_t now_ns = loop_now_ns(fiber_loop(self));
        uint64_t left_ns = now_ns < end_ns ? end_ns - now_ns : 1;
        uint64_t attempt_ns = timeout_ns ? MIN(ATTEMPT_NS, left_ns) : ATTEMPT_NS;
        g_autoptr(GError) why = NULL;
        int r = nbd_session_open(self, address, attempt_ns, ret_session, &why);
        if (r == 0)
            return 0;
        now_ns = loop_now_ns(fiber_loop(self));
        if (now_ns + PAUSE_NS >= end_ns || fiber_sleep(self, PAUSE_NS) < 0) {
            g_propagate_error(error, g_steal_pointer(&why));
            return r;
        }
    }
}

static int check_access(const NbdLink *link, bool is_writable, GError **error)
{
    if (!is_writable || !link->facts.read_only)
        return 0;
    return error_set(error, -EACCES,
                     "request on write denied without write permission: %s is a read-only export; "
                     "read-only opens it",
                     link->address->text);
}

int nbd_link_set_writable(NbdLink *link, bool is_writable, GError **error)
{
    int r = check_access(link, is_writable, error);
    if (r == 0)
        link->options.is_writable = is_writable;
    return r;
}

int nbd_link_open(Fiber *self, NbdAddress *address, const NbdLinkOptions *options,
                  NbdLink **ret_link, GError **error)
{
    NbdLink *link = g_new0(NbdLink, 1);
    link->loop = fiber_loop(self);
    link->address = address;
    link->options = *options;
    link->give_up.fn = gave_up;
    int r = open_session(self, address, options->open_timeout_ns, &link->session, error);
    if (r == 0) {
        link->attempted_ns = loop_now_ns(link->loop);
        link->facts = *nbd_session_facts(link->session);
        r = check_access(link, link->options.is_writable, error);
    }
    if (r == 0 && nbd_session_start(link->session, link->loop, connection_lost, link) < 0)
        r = error_set(error, -ENOMEM, "%s: no stack for its fibers", address->text);
    if (r < 0)
        nbd_link_close(self, link);
    else
        *ret_link = link;
    return r;
}

void nbd_link_close(Fiber *self, NbdLink *link)
{
    stop_connecting(self, link);
    close_dead(self, link);
    nbd_session_close(self, link->session);
    nbd_address_free(link->address);
    g_free(link);
}

void nbd_link_detach(Fiber *self, NbdLink *link)
{
    stop_connecting(self, link);
    close_dead(self, link);
    if (link->session)
        nbd_session_pause(self, link->session);
    loop_timer_stop(link->loop, &link->give_up); // lost while it paused
}

void nbd_link_attach(NbdLink *link, Loop *loop)
{
    link->loop = loop;
    link->is_closing = false;
    if (link->session && nbd_session_start(link->session, loop, connection_lost, link) < 0)
        connection_lost(link);
    else if (!link->session)
        start_connecting(link);
    if (link->state == LINK_WAITING) // the delay begins again
        loop_timer_start(loop, &link->give_up, link->options.reconnect_delay_ns);
}

void nbd_link_give_up(NbdLink *link)
{
    if (link->n_users && !link->is_given_up)
        tell(link, "it does not answer, and is given up: all requests fail from now on");
    link->is_given_up = true;
    if (link->state == LINK_WAITING)
        set_state(link, LINK_FAILING);
    if (link->connecting)
        fiber_cancel(link->connecting);
    if (link->session)
        nbd_session_cut(link->session);
}

const NbdSessionFacts *nbd_link_facts(const NbdLink *link)
{
    return &link->facts;
}
