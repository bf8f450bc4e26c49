// SPDX-License-Identifier: LGPL-2.1-or-later
// Hostile images (tests/README.md has the table): a good image with a few bytes changed. What is
// wrong with header and directories is refused at open with one sentence and without a write; what
// is wrong with an entry is EIO where it matters, and never a write into metadata. Then thousands
// of images with random bytes of metadata changed, opened, read, written, and checked: anything may
// come out but a crash. On the simulation; run it with sanitizers.
#include "host.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain-core/fiber-sync.h"
#include "chain-core/map-memory.h"
#include "chain-core/qcow2-check.h"
#include "chain-core/qcow2.h"
#include "chain-core/sim.h"
#include "format/qcow2-header.h"
#include "format/qcow2-table.h"

#define PATH "/image.qcow2"

// --- A good image, as bytes to be changed

typedef struct Image {
    uint8_t *data;
    gsize len;
    Qcow2Header h;
    Qcow2Geometry g;
    uint64_t l2;    // the first L2 table
    uint64_t block; // the first refcount block
} Image;

typedef enum Kind { KIND_PLAIN, KIND_COMPRESSED, KIND_EXTENDED, KIND_V2_SMALL, N_KINDS } Kind;

static const char *const recipes[N_KINDS] = {
    [KIND_PLAIN] = "qemu-img create -q -f qcow2 -o cluster_size=4k i.qcow2 4M && "
                   "qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 3M 20k' i.qcow2 && "
                   "qemu-img snapshot -c s1 i.qcow2 && qemu-io -c 'write -P 3 8k 20k' i.qcow2 && "
                   "qemu-img bitmap --add i.qcow2 b0",
    [KIND_COMPRESSED] =
        "qemu-img create -q -f raw c.raw 1M && qemu-io -f raw -c 'write -P 1 0 200k' c.raw && "
        "qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k c.raw i.qcow2",
    [KIND_EXTENDED] =
        "qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on i.qcow2 4M && "
        "qemu-io -c 'write -P 1 0 65k' -c 'write -z 100k 3k' -c 'write -P 2 3M 2k' i.qcow2",
    [KIND_V2_SMALL] = "qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=512 i.qcow2 1M && "
                      "qemu-io -c 'write -P 1 0 20k' -c 'write -P 2 500k 20k' i.qcow2 && "
                      "qemu-img snapshot -c s1 i.qcow2",
};

typedef struct Fixture {
    Image images[N_KINDS];
} Fixture;

static Image make_image(const char *recipe)
{
    g_autofree char *dir = host_make_dir(), *path = g_build_filename(dir, "i.qcow2", NULL);
    host_shell(dir, "%s", recipe);
    Image i = {0};
    assert_true(g_file_get_contents(path, (char **)&i.data, &i.len, NULL));
    assert_int_equal(qcow2_header_decode(i.data, i.len, i.len, &i.h, NULL), 0);
    qcow2_geometry_init(&i.g, i.h.cluster_bits, i.h.refcount_order,
                        i.h.incompatible & QCOW2_INCOMPAT_EXTENDED_L2, false, i.h.size_bytes);
    i.l2 = host_get64(i.data, i.h.l1.v) & QCOW2_ENTRY_OFFSET_MASK;
    i.block = host_get64(i.data, i.h.refcount_table.v);
    host_remove_dir(g_steal_pointer(&dir));
    return i;
}

static int make_images(void **state)
{
    Fixture *f = g_new0(Fixture, 1);
    for (unsigned i = 0; i < N_KINDS; i++)
        f->images[i] = make_image(recipes[i]);
    *state = f;
    return 0;
}

static int free_images(void **state)
{
    Fixture *f = *state;
    for (unsigned i = 0; i < N_KINDS; i++) {
        g_free(f->images[i].data);
        qcow2_header_clear(&f->images[i].h);
    }
    g_free(f);
    return 0;
}

// --- An opened image

typedef struct Session Session;
typedef void SessionFn(Fiber *self, Session *s);
struct Session {
    SessionFn *fn; // what to do with the head; NULL: nothing
    bool read_only;
    const char *snapshot;
    Node *node;
    HostRandom random;
    int result;    // of opening
    GError *error; // of opening
    int io;        // of `fn`
    uint64_t off, len;
};

static void session_fiber(Fiber *self, void *arg)
{
    Session *s = arg;
    MapMemory *memory = map_memory_new(1 << 20);
    Qcow2OpenOptions options = {.read_only = s->read_only, .memory = memory};
    File *file;
    Qcow2Image *image = NULL;
    s->result = file_open(self, PATH, s->read_only ? 0 : FILE_WRITABLE, &file, &s->error);
    if (s->result >= 0)
        s->result = qcow2_image_open(self, file, &options, &image, &s->error);
    if (s->result >= 0) {
        s->result = qcow2_view_new(self, image, s->snapshot, &s->node, &s->error);
        if (s->result >= 0) {
            if (s->fn)
                s->fn(self, s);
            node_unref_close(self, s->node);
        }
        qcow2_image_unref_close(self, image);
    }
    map_memory_free(memory);
}

static Sim *make_sim(const uint8_t *data, gsize len, uint64_t seed)
{
    Sim *sim = sim_new(&(SimConfig){.seed = seed, .short_transfers = true});
    assert_int_equal(sim_write_file(sim, PATH, data, len), 0);
    return sim;
}

static void assert_one_sentence(const GError *error)
{
    assert_non_null(error);
    assert_null(strchr(error->message, '\n'));
    assert_true(g_utf8_validate(error->message, -1, NULL));
    assert_in_range(strlen(error->message), 10, 4000);
}

static bool same_bytes(Sim *sim, const uint8_t *data, gsize len)
{
    void *now;
    uint64_t now_len;
    assert_int_equal(sim_read_file(sim, PATH, &now, &now_len), 0);
    bool same = now_len == len && memcmp(now, data, len) == 0;
    g_free(now);
    return same;
}

// --- Refused at open

static void refuse_bytes(const char *what, const uint8_t *data, gsize len)
{
    for (unsigned read_only = 0; read_only < 2; read_only++) {
        Sim *sim = make_sim(data, len, 1);
        Session s = {.read_only = read_only};
        assert_true(sim_run(sim, session_fiber, &s));
        if (s.result >= 0)
            fail_msg("%s: opened", what);
        assert_one_sentence(s.error);
        g_clear_error(&s.error);
        if (!same_bytes(sim, data, len))
            fail_msg("%s: refused, but changed", what);
        sim_free(sim);
    }
}

// One field of the header, or at an offset from one of the tables.
typedef struct Patch {
    const char *known_as;
    uint64_t off;
    unsigned bytes;
    uint64_t value;
} Patch;

static void apply(uint8_t *data, const Patch *p)
{
    if (p->bytes == 8)
        host_put64(data, p->off, p->value);
    else
        host_put32(data, p->off, p->value);
}

static void refuse_patched(const Image *image, const Patch *patches, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        g_autofree uint8_t *data = g_memdup2(image->data, image->len);
        apply(data, &patches[i]);
        refuse_bytes(patches[i].known_as, data, image->len);
    }
}

static void absurd_headers_are_refused_without_a_write(void **state)
{
    static const Patch patches[] = {
        {"CVE-2014-0144 cluster bits 0", 20, 4, 0},
        {"CVE-2014-0144 cluster bits 63", 20, 4, 63},
        {"CVE-2014-0144 header length", 100, 4, 0xfffffff8},
        {"CVE-2014-0143 snapshots", 60, 4, 0x7fffffff},
        {"CVE-2014-0145 snapshot table offset", 64, 8, 0xfffffffffffff000},
        {"CVE-2014-0145 refcount table clusters", 56, 4, 0x7fffffff},
        {"CVE-2014-0147 refcount order", 96, 4, 32},
        {"CVE-2014-0222 L1 entries", 36, 4, 0xffffffff},
        {"CVE-2014-0223 size for the L1 table", 24, 8, INT64_MAX},
        {"size over the L1 table", 24, 8, UINT64_C(1) << 40},
        {"L1 table past the end", 40, 8, UINT64_C(1) << 40},
        {"L1 table unaligned", 40, 8, 1},
        {"L1 table is the header", 40, 8, 0},
        {"refcount table past the end", 48, 8, UINT64_C(1) << 40},
        {"refcount table is the header", 48, 8, 0},
        {"refcount table of nothing", 56, 4, 0},
        {"backing name outside", 8, 8, UINT64_C(1) << 40},
        {"backing name inside the header", 8, 8, 16},
        {"encrypted", 32, 4, 1},
        {"unknown feature", 72, 8, UINT64_C(1) << 40},
        {"compression type without its bit", 104, 4, 0x01000000},
        {"an extension past the end", 116, 4, 0xffffffff},
        {"version 1", 4, 4, 1},
        {"version 4", 4, 4, 4},
    };
    Fixture *f = *state;
    refuse_patched(&f->images[KIND_PLAIN], patches, G_N_ELEMENTS(patches));
}

static void bad_snapshot_tables_are_refused_without_a_write(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    uint64_t table = image->h.snapshot_table.v;
    const Patch patches[] = {
        {"CVE-2014-0146 extra data", table + 36, 4, 0xffffffff},
        {"CVE-2014-0143 snapshot's L1 over the limit", table + 8, 4, (32 << 20) / 8 + 1},
        {"CVE-2014-0143 snapshot's L1 entries", table + 8, 4, 0xffffffff},
        {"snapshot's L1 unaligned", table, 8, 0x1001},
        {"snapshot's L1 past the end", table, 8, UINT64_C(1) << 50},
        {"snapshot's L1 is the header", table, 8, 0},
        {"snapshot larger than can be", table + 48, 8, UINT64_MAX},
        {"more snapshots than the table", 60, 4, 60000},
    };
    refuse_patched(image, patches, G_N_ELEMENTS(patches));
}

static void tables_that_overlap_or_lie_outside_are_not_opened_for_writing(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    const Patch patches[] = {
        {"L1 table is the refcount table", 40, 8, image->h.refcount_table.v},
        {"refcount table is the L1 table", 48, 8, image->h.l1.v},
        {"refcount block is the header", image->h.refcount_table.v + 8, 8, 0x200},
        {"refcount block is the L1 table", image->h.refcount_table.v, 8, image->h.l1.v},
        {"refcount block unaligned", image->h.refcount_table.v, 8, image->block + 512},
        {"refcount block past the end", image->h.refcount_table.v, 8, UINT64_C(1) << 50},
        {"refcount block with reserved bits", image->h.refcount_table.v, 8, image->block | 4},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(patches); i++) {
        g_autofree uint8_t *data = g_memdup2(image->data, image->len);
        apply(data, &patches[i]);
        Sim *sim = make_sim(data, image->len, 1);
        Session s = {0};
        assert_true(sim_run(sim, session_fiber, &s));
        if (s.result >= 0)
            fail_msg("%s: opened", patches[i].known_as);
        assert_one_sentence(s.error);
        g_clear_error(&s.error);
        if (!same_bytes(sim, data, image->len))
            fail_msg("%s: refused, but changed", patches[i].known_as);
        sim_free(sim);
    }
}

static void cut_off_files_are_refused_or_give_errors(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    for (gsize len = 0; len < image->h.l1.v + 8; len += len < 512 ? 1 : 512)
        refuse_bytes("cut off", image->data, len);
}

// --- Odd, but fine

// The image with a new snapshot table at its end, of `n` entries of 64 bytes without extra data (as
// old programs wrote them) and without L1 tables, and right behind it the L1 table.
static uint8_t *with_old_snapshot_table(const Image *image, unsigned n, gsize *ret_len)
{
    uint64_t table = (image->len + 511) & ~UINT64_C(511), l1 = table + n * 64;
    uint8_t *data = g_malloc0(l1 + 512);
    memcpy(data, image->data, image->len);
    for (unsigned i = 0; i < n; i++) {
        uint8_t *entry = data + table + i * 64;
        host_put32(entry, 12, 8 << 16 | 16); // lengths of id and name
        g_snprintf((char *)entry + 40, 9, "%08u", i);
        memset(entry + 48, 'n', 16);
    }
    memcpy(data + l1, data + image->h.l1.v, image->h.l1_entries * 8);
    host_put32(data, QCOW2_HEADER_OFF_N_SNAPSHOTS, n);
    host_put64(data, QCOW2_HEADER_OFF_SNAPSHOT_TABLE, table);
    host_put64(data, QCOW2_HEADER_OFF_L1, l1);
    *ret_len = l1 + 512;
    return data;
}

typedef struct Count {
    SimHook hook;
    unsigned n_reads;
} Count;

static int count_reads(SimHook *hook, uint64_t n, SimOp op, const char *path, uint64_t off,
                       uint64_t len)
{
    ((Count *)hook)->n_reads += op == SIM_OP_READ;
    return 0;
}

static void a_snapshot_table_is_as_long_as_its_entries_say(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_V2_SMALL];
    assert_true(image->g.cluster_bytes == 512 && image->h.l1_entries <= 64);
    gsize len;
    g_autofree uint8_t *data = with_old_snapshot_table(image, 8, &len);
    Sim *sim = make_sim(data, len, 1);
    Session s = {0};
    assert_true(sim_run(sim, session_fiber, &s));
    if (s.result < 0)
        fail_msg("%s", s.error->message);
    sim_free(sim);
}

static void many_snapshots_are_read_in_few_pieces(void **state)
{
    enum { N = 16384 }; // 1 MiB
    Fixture *f = *state;
    gsize len;
    g_autofree uint8_t *data = with_old_snapshot_table(&f->images[KIND_V2_SMALL], N, &len);
    Sim *sim = sim_new(&(SimConfig){.seed = 1});
    assert_int_equal(sim_write_file(sim, PATH, data, len), 0);
    Count count = {.hook = {count_reads}};
    sim_set_hook(sim, &count.hook);
    Session s = {.read_only = true, .snapshot = "00016383"};
    assert_true(sim_run(sim, session_fiber, &s));
    assert_in_range(count.n_reads, 2, 20);
    // Its last one was found; it has no L1 table.
    assert_non_null(strstr(s.error->message, "L1 table"));
    g_clear_error(&s.error);
    sim_free(sim);
}

// --- Errors at run time

static void read_range(Fiber *self, Session *s)
{
    g_autofree uint8_t *buf = g_malloc(s->len);
    s->io = node_read(self, s->node, guest_off(s->off), buf, s->len);
}

static void write_range(Fiber *self, Session *s)
{
    g_autofree uint8_t *buf = g_malloc(s->len);
    memset(buf, 0x77, s->len);
    s->io = node_write(self, s->node, guest_off(s->off), buf, s->len, NODE_IO_FUA);
}

// The image with one entry changed: the range must answer EIO, to reads and to writes.
static void assert_eio(const Image *image, const Patch *p, uint64_t off, uint64_t len)
{
    g_autofree uint8_t *data = g_memdup2(image->data, image->len);
    apply(data, p);
    static SessionFn *const fns[] = {read_range, write_range};
    for (unsigned i = 0; i < G_N_ELEMENTS(fns); i++) {
        Sim *sim = make_sim(data, image->len, 1);
        Session s = {.fn = fns[i], .off = off, .len = len};
        assert_true(sim_run(sim, session_fiber, &s));
        if (s.result < 0) { // refused at open is fine too
            assert_one_sentence(s.error);
            g_clear_error(&s.error);
        } else if (s.io != -EIO) {
            fail_msg("%s: a %s of the range gives %d", p->known_as, i ? "write" : "read", s.io);
        }
        sim_free(sim);
    }
}

static void bad_l2_entries_give_eio(void **state)
{
    Fixture *f = *state;
    const Image *plain = &f->images[KIND_PLAIN], *extended = &f->images[KIND_EXTENDED];
    uint64_t copied = UINT64_C(1) << 63;
    const Patch patches[] = {
        {"unaligned", plain->l2, 8, copied | 0x5200},
        {"past the end", plain->l2, 8, copied | UINT64_C(1) << 40},
        {"past all ends", plain->l2, 8, copied | UINT64_C(0x00fffffffffff000)},
        {"reserved low bits", plain->l2, 8, copied | 0x5002},
        {"reserved high bits", plain->l2, 8, copied | UINT64_C(1) << 57 | 0x5000},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(patches); i++)
        assert_eio(plain, &patches[i], 100, 50);
    uint64_t entry = host_get64(extended->data, extended->l2);
    const Patch both[] = {
        {"alloc and zero both set", extended->l2 + 8, 8, UINT64_MAX},
        {"allocated nowhere", extended->l2, 8, 0},
        {"zero flag with extended L2", extended->l2, 8, entry | 1},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(both); i++)
        assert_eio(extended, &both[i], 100, 50);
}

static void bad_l1_entries_give_eio(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    uint64_t copied = UINT64_C(1) << 63;
    const Patch patches[] = {
        {"unaligned", image->h.l1.v, 8, copied | (image->l2 + 512)},
        {"past the end", image->h.l1.v, 8, copied | UINT64_C(1) << 40},
        {"reserved bits", image->h.l1.v, 8, copied | image->l2 | 1},
        {"reserved high bits", image->h.l1.v, 8, copied | UINT64_C(1) << 60 | image->l2},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(patches); i++)
        assert_eio(image, &patches[i], 100, 50);
}

static void bad_compressed_clusters_give_eio(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_COMPRESSED];
    uint64_t entry = host_get64(image->data, image->l2), flag = UINT64_C(1) << 62;
    assert_true(entry & flag);
    uint64_t host = entry & ((UINT64_C(1) << 58) - 1); // 4 KiB clusters: 58 bits of offset
    const Patch patches[] = {
        {"a broken stream", host, 8, 0xffffffffffffffff},
        {"over the end of the file", image->l2, 8, flag | UINT64_C(15) << 58 | (image->len - 8)},
        {"past the end of the file", image->l2, 8, flag | UINT64_C(1) << 40},
        {"in the header", image->l2, 8, flag | 8},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(patches); i++) {
        g_autofree uint8_t *data = g_memdup2(image->data, image->len);
        apply(data, &patches[i]);
        Sim *sim = make_sim(data, image->len, 1);
        Session s = {.fn = read_range, .off = 100, .len = 50, .read_only = true};
        assert_true(sim_run(sim, session_fiber, &s));
        assert_int_equal(s.result, 0);
        if (s.io != -EIO)
            fail_msg("%s: a read gives %d", patches[i].known_as, s.io);
        sim_free(sim);
    }
}

// A data entry that says "mine alone" and points at metadata: a guest write must not land there.
static void a_write_never_lands_in_metadata(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    uint64_t copied = UINT64_C(1) << 63;
    uint64_t snapshot_l1 = host_get64(image->data, image->h.snapshot_table.v);
    const struct {
        const char *what;
        uint64_t off;
    } targets[] = {
        {"the L1 table", image->h.l1.v},        {"the refcount table", image->h.refcount_table.v},
        {"a refcount block", image->block},     {"its own L2 table", image->l2},
        {"a snapshot's L1 table", snapshot_l1}, {"the snapshot table", image->h.snapshot_table.v},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(targets); i++) {
        g_autofree uint8_t *data = g_memdup2(image->data, image->len);
        host_put64(data, image->l2, copied | targets[i].off);
        Sim *sim = make_sim(data, image->len, 1);
        Session s = {.fn = write_range, .off = 0, .len = 4096};
        assert_true(sim_run(sim, session_fiber, &s));
        g_clear_error(&s.error);
        void *after;
        uint64_t len;
        assert_int_equal(sim_read_file(sim, PATH, &after, &len), 0);
        uint8_t pattern[4096];
        memset(pattern, 0x77, sizeof(pattern));
        if (memcmp((uint8_t *)after + targets[i].off, pattern, sizeof(pattern)) == 0)
            fail_msg("a guest write overwrote %s", targets[i].what);
        g_free(after);
        sim_free(sim);
    }
}

// All refcounts say "free": an allocation must not hand out metadata or data in use.
static void refcounts_of_zero_do_not_make_used_clusters_free(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    g_autofree uint8_t *data = g_memdup2(image->data, image->len);
    memset(data + image->block, 0, image->g.cluster_bytes);
    Sim *sim = make_sim(data, image->len, 1);
    Session s = {.fn = write_range, .off = 2 << 20, .len = 64 << 10};
    assert_true(sim_run(sim, session_fiber, &s));
    g_clear_error(&s.error);
    void *after;
    uint64_t len;
    assert_int_equal(sim_read_file(sim, PATH, &after, &len), 0);
    const uint64_t tables[] = {0, image->h.refcount_table.v, image->h.l1.v};
    uint8_t pattern[512];
    memset(pattern, 0x77, sizeof(pattern));
    for (size_t i = 0; i < G_N_ELEMENTS(tables); i++)
        assert_memory_not_equal((uint8_t *)after + tables[i], pattern, sizeof(pattern));
    assert_memory_not_equal((uint8_t *)after + image->block, pattern, sizeof(pattern));
    g_free(after);
    sim_free(sim);
}

static void write_a_cluster(Fiber *self, Session *s)
{
    uint8_t data[512] = {1};
    s->io = node_write(self, s->node, guest_off(s->off), data, sizeof(data), 0);
}

// A new refcount block would offer the header, and all that is in use, as free.
static void an_empty_refcount_table_fails_the_write(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    g_autofree uint8_t *data = g_memdup2(image->data, image->len);
    memset(data + image->h.refcount_table.v, 0, image->g.cluster_bytes);
    Sim *sim = make_sim(data, image->len, 1);
    Session s = {.fn = write_a_cluster, .off = image->h.size_bytes - 512};
    assert_true(sim_run(sim, session_fiber, &s));
    assert_int_equal(s.result, 0);
    assert_int_equal(s.io, -EIO);
    void *after;
    uint64_t len;
    assert_int_equal(sim_read_file(sim, PATH, &after, &len), 0);
    assert_true(host_get64(after, QCOW2_HEADER_OFF_INCOMPATIBLE) & QCOW2_INCOMPAT_CORRUPT);
    g_free(after);
    sim_free(sim);
}

static void discard_range(Fiber *self, Session *s)
{
    s->io = node_discard(self, s->node, guest_off(s->off), s->len, 0);
    if (s->io == 0)
        s->io = node_flush(self, s->node);
}

// Giving back [off, off+len) must find out, and say so on disk.
static void assert_marked_corrupt(const char *what, const Image *image, const uint8_t *data,
                                  uint64_t off, uint64_t len)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        Sim *sim = make_sim(data, image->len, seed);
        Session s = {.fn = discard_range, .off = off, .len = len};
        assert_true(sim_run(sim, session_fiber, &s));
        assert_int_equal(s.result, 0);
        assert_int_equal(s.io, 0); // seen only once the discard was durable
        void *after;
        uint64_t after_len;
        assert_int_equal(sim_read_file(sim, PATH, &after, &after_len), 0);
        if (!(host_get64(after, QCOW2_HEADER_OFF_INCOMPATIBLE) & QCOW2_INCOMPAT_CORRUPT))
            fail_msg("%s: not marked corrupt, seed %" PRIu64, what, seed);
        g_free(after);
        // A later writer is told.
        s = (Session){0};
        assert_true(sim_run(sim, session_fiber, &s));
        assert_int_equal(s.result, -EUCLEAN);
        assert_one_sentence(s.error);
        g_clear_error(&s.error);
        sim_free(sim);
    }
}

// Guest offset 8 KiB was written after the snapshot: the head's alone.
enum { ALONE = 8 << 10 };

static void refcount_0_under_a_used_data_cluster_marks_the_image_corrupt(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    g_autofree uint8_t *data = g_memdup2(image->data, image->len);
    uint64_t entry = host_get64(data, image->l2 + ALONE / 4096 * 8);
    assert_true(entry & QCOW2_ENTRY_COPIED);
    qcow2_refcount_set(&image->g, data + image->block, (entry & QCOW2_ENTRY_OFFSET_MASK) / 4096, 0);
    assert_marked_corrupt("refcount 0", image, data, ALONE, 4096);
}

static void shared_clusters_with_refcount_1_mark_the_image_corrupt(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    g_autofree uint8_t *data = g_memdup2(image->data, image->len);
    uint64_t at = image->l2 + ALONE / 4096 * 8;
    host_put64(data, at + 8, host_get64(data, at));
    assert_marked_corrupt("shared with refcount 1", image, data, ALONE, 2 * 4096);
}

// --- Two fibers that change the header

enum { BAD = 40 << 10, UNKNOWN_AUTOCLEAR = 1 << 5, CLAIM_STEPS = 60 };

typedef struct Late {
    Session *s;
    FiberWaitGroup done;
} Late;

static void read_bad(Fiber *self, void *arg)
{
    Late *late = arg;
    uint8_t data[512];
    assert_int_equal(fiber_sleep(self, late->s->len), 0);
    assert_int_equal(node_read(self, late->s->node, guest_off(BAD), data, sizeof data), -EIO);
    fiber_wait_group_done(&late->done);
}

// The first write, and `len` ns later a read that finds the damage.
static void write_while_damage_is_found(Fiber *self, Session *s)
{
    Late late = {.s = s};
    uint8_t data[512] = {7};
    fiber_wait_group_add(&late.done, 1);
    assert_int_equal(fiber_spawn(fiber_loop(self), "reader", read_bad, &late, NULL), 0);
    s->io = node_write(self, s->node, guest_off(ALONE), data, sizeof data, 0);
    fiber_wait_group_wait(self, &late.done);
}

static void the_marks_of_a_first_write_and_of_a_corrupt_image_both_stay(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    g_autofree uint8_t *data = g_memdup2(image->data, image->len);
    host_put64(data, image->l2 + BAD / 4096 * 8, UINT64_C(1) << 55);
    uint64_t autoclear = host_get64(data, QCOW2_HEADER_OFF_AUTOCLEAR);
    assert_int_equal(autoclear, QCOW2_AUTOCLEAR_BITMAPS);
    host_put64(data, QCOW2_HEADER_OFF_AUTOCLEAR, autoclear | UNKNOWN_AUTOCLEAR);
    unsigned n_written = 0;
    for (unsigned i = 0; i < CLAIM_STEPS; i++) {
        Sim *sim = make_sim(data, image->len, i + 1);
        Session s = {.fn = write_while_damage_is_found, .len = i * UINT64_C(10000)};
        assert_true(sim_run(sim, session_fiber, &s));
        assert_int_equal(s.result, 0);
        void *after;
        uint64_t after_len;
        assert_int_equal(sim_read_file(sim, PATH, &after, &after_len), 0);
        if (!(host_get64(after, QCOW2_HEADER_OFF_INCOMPATIBLE) & QCOW2_INCOMPAT_CORRUPT))
            fail_msg("step %u: not marked corrupt", i);
        if (s.io == 0 && host_get64(after, QCOW2_HEADER_OFF_AUTOCLEAR) & UNKNOWN_AUTOCLEAR)
            fail_msg("step %u: written, but an unknown autoclear bit is set", i);
        n_written += s.io == 0;
        g_free(after);
        sim_free(sim);
    }
    assert_in_range(n_written, 1, CLAIM_STEPS - 1);
}

static void two_l1_entries_naming_one_l2_are_not_opened_for_writing(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    g_autofree uint8_t *data = g_memdup2(image->data, image->len);
    host_put64(data, image->h.l1.v + 8, host_get64(data, image->h.l1.v));
    for (unsigned read_only = 0; read_only < 2; read_only++) {
        Sim *sim = make_sim(data, image->len, 1);
        Session s = {.fn = read_range, .off = 2 << 20, .len = 4096, .read_only = read_only};
        assert_true(sim_run(sim, session_fiber, &s));
        assert_int_equal(s.result, read_only ? 0 : -EUCLEAN);
        if (!read_only)
            assert_one_sentence(s.error);
        g_clear_error(&s.error);
        // Refused means not written, the corrupt mark included.
        assert_true(same_bytes(sim, data, image->len));
        sim_free(sim);
    }
}

static void garbage_in_the_bitmap_directory_does_no_harm(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    for (unsigned i = 0; i < 40; i++) {
        g_autofree uint8_t *data = g_memdup2(image->data, image->len);
        HostRandom r = {i};
        for (unsigned k = 0; k < 8; k++)
            data[image->h.bitmaps.directory.v + host_random(&r, 32)] = host_random(&r, 256);
        Sim *sim = make_sim(data, image->len, i);
        Session s = {.fn = write_range, .off = 4096, .len = 4096};
        assert_true(sim_run(sim, session_fiber, &s));
        if (s.result < 0)
            assert_one_sentence(s.error);
        else
            assert_int_equal(s.io, 0);
        g_clear_error(&s.error);
        sim_free(sim);
    }
}

// A dirty image is checked when it is opened for writing; `data` must not keep that busy for good.
static void open_dirty(uint8_t *data, gsize len)
{
    host_put64(data, QCOW2_HEADER_OFF_INCOMPATIBLE, QCOW2_INCOMPAT_DIRTY);
    Sim *sim = make_sim(data, len, 1);
    Session s = {.fn = read_range, .off = 0, .len = 4096};
    assert_true(sim_run(sim, session_fiber, &s));
    if (s.result < 0)
        assert_one_sentence(s.error);
    else
        assert_int_equal(s.io, 0);
    g_clear_error(&s.error);
    sim_free(sim);
}

static void a_bitmap_directory_with_fewer_entries_than_said_ends_the_check(void **state)
{
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    uint64_t directory = image->h.bitmaps.directory.v, extension = 0;
    gsize len = MAX(image->len, directory + 3 * 32);
    g_autofree uint8_t *data = g_malloc0(len);
    memcpy(data, image->data, image->len);
    for (uint64_t off = image->h.header_bytes; !extension; off += 8 + host_get32(data, off + 4))
        if (host_get32(data, off) == 0x23852875)
            extension = off + 8;
    host_put32(data, extension, 4);
    host_put64(data, extension + 8, 3 * 32);
    // One entry is there: of 24 bytes and a name of 2. Its table becomes an empty one.
    assert_int_equal(data[directory + 19], 2);
    host_put32(data, directory + 8, 0);
    for (unsigned i = 1; i < 3; i++)
        memcpy(data + directory + i * 32, data + directory, 32);
    open_dirty(data, len);
}

static void a_snapshot_table_with_fewer_entries_than_said_ends_the_check(void **state)
{
    // A table may reach a cluster of zeros past the end of the file. 100 entries fill that exactly:
    // the first has a long name, the others are empty.
    enum { N_FIT = 100, EMPTY = 40, CLUSTER = 4096, IN_FILE = 4144 };
    Fixture *f = *state;
    const Image *image = &f->images[KIND_PLAIN];
    assert_int_equal(image->g.cluster_bytes, CLUSTER);
    uint64_t table = (image->len + CLUSTER - 1) / CLUSTER * CLUSTER;
    gsize len = table + IN_FILE;
    g_autofree uint8_t *data = g_malloc0(len);
    memcpy(data, image->data, image->len);
    host_put32(data, QCOW2_HEADER_OFF_N_SNAPSHOTS, N_FIT + 1);
    host_put64(data, QCOW2_HEADER_OFF_SNAPSHOT_TABLE, table);
    host_put32(data, table + 12, IN_FILE + CLUSTER - N_FIT * EMPTY); // lengths of id and name
    open_dirty(data, len);
}

// --- Random bytes

static uint64_t pick_metadata(const Image *image, HostRandom *r)
{
    const struct {
        uint64_t off, len;
    } areas[] = {
        {0, 160},
        {0, 512},
        {image->h.l1.v, image->h.l1_entries * 8},
        {image->l2, 256},
        {image->l2, image->g.cluster_bytes},
        {image->h.refcount_table.v, 16},
        {image->block, 128},
        {image->h.n_snapshots ? image->h.snapshot_table.v : image->l2, 100},
        {image->h.has_bitmaps_extension ? image->h.bitmaps.directory.v : image->block, 32},
        {0, image->len},
    };
    size_t i = host_random(r, G_N_ELEMENTS(areas));
    uint64_t off = areas[i].off + host_random(r, areas[i].len);
    return MIN(off, image->len - 1);
}

static void change_randomly(const Image *image, uint8_t *data, HostRandom *r)
{
    for (unsigned n = 1 + host_random(r, 4); n; n--) {
        uint64_t off = pick_metadata(image, r);
        switch (host_random(r, 4)) {
        case 0:
            data[off] ^= 1 << host_random(r, 8);
            break;
        case 1:
            data[off] = host_random(r, 2) ? 0xff : 0;
            break;
        case 2: { // another entry's value
            uint64_t from = pick_metadata(image, r) & ~UINT64_C(7);
            off = MIN(off & ~UINT64_C(7), image->len - 8);
            memcpy(data + off, data + MIN(from, image->len - 8), 8);
            break;
        }
        default:
            data[off] = host_random(r, 256);
        }
    }
}

static void use_randomly(Fiber *self, Session *s)
{
    HostRandom *r = &s->random;
    uint64_t size = MIN(s->node->size_bytes, UINT64_C(1) << 40);
    g_autofree uint8_t *buf = g_malloc0(96 << 10);
    for (unsigned i = 0; i < 12 && size; i++) {
        uint64_t off = host_random(r, host_random(r, 2) ? MIN(size, 100 << 10) : size);
        uint64_t len = 1 + host_random(r, MIN(size - off, 96 << 10));
        switch (host_random(r, 7)) {
        case 0:
        case 1:
            node_write(self, s->node, guest_off(off), buf, len, 0);
            break;
        case 2:
            node_zero(self, s->node, guest_off(off), len, 0);
            break;
        case 3:
            node_discard(self, s->node, guest_off(off), len, 0);
            break;
        case 4:
            node_flush(self, s->node);
            break;
        default:
            node_read(self, s->node, guest_off(off), buf, len);
        }
    }
    NodeExtent extent;
    for (uint64_t off = 0; off < MIN(size, 1 << 20); off += extent.len)
        if (node_map(self, s->node, guest_off(off), size - off, &extent) < 0)
            break;
}

typedef struct Check {
    unsigned fix;
    int result;
} Check;

static void check_fiber(Fiber *self, void *arg)
{
    Check *c = arg;
    File *file;
    Qcow2CheckResult counts = {0};
    assert_int_equal(file_open(self, PATH, FILE_WRITABLE, &file, NULL), 0);
    g_autoptr(GError) error = NULL;
    c->result = qcow2_check(self, file, c->fix, &counts, &error);
    if (c->result < 0)
        assert_one_sentence(error);
    qcow2_check_result_clear(&counts);
    file_close(self, file);
}

static bool try_random_image(const Image *image, uint64_t seed)
{
    HostRandom r = {seed};
    g_autofree uint8_t *data = g_memdup2(image->data, image->len);
    change_randomly(image, data, &r);
    Sim *sim = make_sim(data, image->len, seed);
    Session s = {.fn = use_randomly,
                 .read_only = host_random(&r, 4) == 0,
                 .snapshot = NULL,
                 .random = {seed ^ 0xabcdef}};
    if (host_random(&r, 6) == 0)
        s.read_only = true, s.snapshot = "1";
    assert_true(sim_run(sim, session_fiber, &s));
    bool opened = s.result >= 0;
    if (!opened) {
        assert_one_sentence(s.error);
        // A dirty mark by chance asks for a repair, which may write before it fails.
        bool dirty = host_get32(data, 4) == 3 && (data[79] & QCOW2_INCOMPAT_DIRTY);
        if (!dirty && !same_bytes(sim, data, image->len))
            fail_msg("refused (%s), but changed", s.error->message);
    } else if (s.read_only && !same_bytes(sim, data, image->len)) {
        fail_msg("opened read-only, but changed");
    }
    g_clear_error(&s.error);
    Check c = {.fix = host_random(&r, 4)};
    assert_true(sim_run(sim, check_fiber, &c));
    sim_free(sim);
    return opened;
}

static void random_bytes_never_crash(void **state)
{
    Fixture *f = *state;
    const char *given = g_getenv("CHAIND_TEST_ROUNDS");
    unsigned n_rounds = given ? atoi(given) : 2000, n_opened = 0;
    uint64_t seed = host_seed(0x4057);
    for (unsigned i = 0; i < n_rounds; i++) {
        if (g_getenv("CHAIND_TEST_VERBOSE"))
            fprintf(stderr, "seed %#" PRIx64 " kind %u\n", seed + i, i % N_KINDS);
        n_opened += try_random_image(&f->images[i % N_KINDS], seed + i);
    }
    print_message("# %u of %u images were opened\n", n_opened, n_rounds);
    assert_in_range(n_opened, n_rounds / 10, n_rounds - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absurd_headers_are_refused_without_a_write),
        cmocka_unit_test(bad_snapshot_tables_are_refused_without_a_write),
        cmocka_unit_test(tables_that_overlap_or_lie_outside_are_not_opened_for_writing),
        cmocka_unit_test(cut_off_files_are_refused_or_give_errors),
        cmocka_unit_test(a_snapshot_table_is_as_long_as_its_entries_say),
        cmocka_unit_test(many_snapshots_are_read_in_few_pieces),
        cmocka_unit_test(bad_l2_entries_give_eio),
        cmocka_unit_test(bad_l1_entries_give_eio),
        cmocka_unit_test(bad_compressed_clusters_give_eio),
        cmocka_unit_test(a_write_never_lands_in_metadata),
        cmocka_unit_test(an_empty_refcount_table_fails_the_write),
        cmocka_unit_test(refcounts_of_zero_do_not_make_used_clusters_free),
        cmocka_unit_test(refcount_0_under_a_used_data_cluster_marks_the_image_corrupt),
        cmocka_unit_test(shared_clusters_with_refcount_1_mark_the_image_corrupt),
        cmocka_unit_test(the_marks_of_a_first_write_and_of_a_corrupt_image_both_stay),
        cmocka_unit_test(two_l1_entries_naming_one_l2_are_not_opened_for_writing),
        cmocka_unit_test(garbage_in_the_bitmap_directory_does_no_harm),
        cmocka_unit_test(a_bitmap_directory_with_fewer_entries_than_said_ends_the_check),
        cmocka_unit_test(a_snapshot_table_with_fewer_entries_than_said_ends_the_check),
        cmocka_unit_test(random_bytes_never_crash),
    };
    return cmocka_run_group_tests(tests, make_images, free_images);
}
