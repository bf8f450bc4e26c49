/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program that uses the installed libchain, and nothing else of this project: makes a base and an
 * overlay in the folder given to it, writes from several threads, reads back, looks at the map,
 * checks. Built by installed.sh with what pkg-config says; prints TAP.
 */
#include <chain/chain.h>
#include <chain/image.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 4 << 20, BLOCK = 4096, THREADS = 4, BLOCKS_EACH = 64 };

static int n_tests, n_failed;

static void ok(int good, const char *what)
{
    n_failed += !good;
    printf("%sok %d - %s\n", good ? "" : "not ", ++n_tests, what);
}

typedef struct Writer {
    LibChain *chain;
    int index, failed;
} Writer;

static void *writer(void *arg)
{
    Writer *w = arg;
    unsigned char buf[BLOCK];
    for (int i = 0; i < BLOCKS_EACH; i++) {
        uint64_t off = (uint64_t)(w->index * BLOCKS_EACH + i) * BLOCK;
        memset(buf, w->index + 1, sizeof buf);
        w->failed |= libchain_write(w->chain, off, buf, sizeof buf, 0);
        memset(buf, 0, sizeof buf);
        w->failed |= libchain_read(w->chain, off, buf, sizeof buf);
        w->failed |= buf[0] != w->index + 1 || buf[BLOCK - 1] != w->index + 1;
    }
    return NULL;
}

static void write_from_threads(LibChain *chain)
{
    pthread_t threads[THREADS];
    Writer writers[THREADS];
    int failed = 0;
    for (int i = 0; i < THREADS; i++) {
        writers[i] = (Writer){chain, i, 0};
        pthread_create(&threads[i], NULL, writer, &writers[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        failed |= writers[i].failed;
    }
    ok(!failed, "several threads write and read one chain");
}

static void look_at(LibChain *chain)
{
    LibChainInfo info;
    LibChainExtent extent;
    char byte;
    libchain_get_info(chain, &info);
    ok(info.size_bytes == SIZE && info.n_layers == 2 && strcmp(info.format, "qcow2") == 0 &&
           !info.read_only,
       "the info is right");
    ok(libchain_map(chain, 0, SIZE, &extent) == 0 && extent.kind == LIBCHAIN_DATA &&
           extent.depth == 0 && extent.file && strstr(extent.file, "over.qcow2"),
       "what was written is in the overlay's file");
    ok(libchain_map(chain, SIZE / 2, SIZE / 2, &extent) == 0 && extent.kind == LIBCHAIN_UNALLOCATED,
       "what was not is nowhere");
    ok(libchain_read(chain, SIZE, &byte, 1) == -EINVAL, "a read past the end is refused");
    ok(libchain_zero(chain, 0, BLOCK, LIBCHAIN_FUA) == 0 &&
           libchain_read(chain, 1, &byte, 1) == 0 && byte == 0,
       "zeroes are zeros");
    ok(libchain_discard(chain, BLOCK, BLOCK, 0) == 0 && libchain_flush(chain) == 0,
       "discard and flush work");
}

/* An image that nobody vouches for: the folders that its backing file may lie in. */
static void open_untrusted(void)
{
    const char *const elsewhere[] = {"/nonexistent", NULL}, *const here[] = {"/proc", ".", NULL};
    LibChainOpenOptions options = {
        .read_only = true, .no_data_files = true, .allowed_dirs = elsewhere};
    LibChain *chain = NULL;
    char *error = NULL;
    ok(libchain_open("over.qcow2", &options, &chain, &error) == -EACCES &&
           strstr(error, "base.qcow2"),
       "a backing file outside of the allowed folders is refused");
    free(error);
    options.allowed_dirs = here;
    ok(libchain_open("over.qcow2", &options, &chain, NULL) == 0 && libchain_close(chain) == 0,
       "one inside is opened");
}

int main(int argc, char **argv)
{
    LibChainCreateOptions base = {.size_bytes = SIZE};
    LibChainCreateOptions over = {
        .size_bytes = SIZE, .backing_name = "base.qcow2", .backing_format = "qcow2"};
    LibChain *chain = NULL, *second = NULL;
    LibChainCheck check;
    char *error = NULL;

    if (argc != 2 || chdir(argv[1]) != 0)
        return 2;
    ok(libchain_create("base.qcow2", &base, NULL) == 0, "a base is made");
    ok(libchain_create("over.qcow2", &over, &error) == 0, "an overlay is made");
    ok(libchain_create("over.qcow2", &over, &error) < 0 && error, "but not over another file");
    free(error);
    error = NULL;
    ok(libchain_open("nothing", NULL, &chain, &error) == -ENOENT && strstr(error, "nothing"),
       "a missing file is named");
    free(error);
    error = NULL;
    ok(libchain_open("over.qcow2", NULL, &chain, &error) == 0, "the chain opens");
    if (error)
        printf("# %s\n", error);
    if (!chain)
        return 1;
    ok(libchain_open("over.qcow2", NULL, &second, NULL) < 0, "a second writer is kept out");
    write_from_threads(chain);
    look_at(chain);
    ok(libchain_close(chain) == 0, "it closes");
    ok(libchain_check("over.qcow2", 0, &check, NULL) == 0 && check.n_corruptions == 0 &&
           check.n_leaks == 0 && check.n_allocated_clusters > 0,
       "its check finds nothing");
    libchain_check_clear(&check);
    ok(libchain_close(NULL) == 0, "closing nothing is fine");
    open_untrusted();
    printf("1..%d\n", n_tests);
    return n_failed != 0;
}
