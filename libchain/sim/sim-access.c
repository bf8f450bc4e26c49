// SPDX-License-Identifier: LGPL-2.1-or-later
// What tests do to the files of a simulation from outside: whole contents in and out, copies to and
// from files of the host. Outside any fiber, or in one; never suspends.
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim/sim-private.h"

enum { COPY_BYTES = 64 * 1024 };

static void make_durable(SimInode *inode)
{
    SimFlush flush = sim_inode_flush_begin(inode);
    sim_inode_flush_end(inode, &flush);
}

int sim_write_file(Sim *sim, const char *path, const void *data, uint64_t len)
{
    SimInode *inode = sim_disk_provide(&sim->disk, path);
    sim_inode_change(inode, SIM_CHANGE_TRUNCATE, 0, 0, NULL);
    sim_inode_change(inode, SIM_CHANGE_WRITE, 0, len, data);
    make_durable(inode);
    return 0;
}

int sim_read_file(Sim *sim, const char *path, void **ret_data, uint64_t *ret_len)
{
    SimInode *inode = sim_disk_find(&sim->disk, path);
    if (!inode)
        return -ENOENT;
    void *data = g_try_malloc(inode->now.size + 1);
    if (!data)
        return -ENOMEM;
    sim_content_read(&inode->now, 0, data, inode->now.size);
    *ret_data = data;
    *ret_len = inode->now.size;
    return 0;
}

bool sim_file_exists(Sim *sim, const char *path)
{
    return sim_disk_find(&sim->disk, path);
}

uint64_t sim_used_bytes(const Sim *sim)
{
    uint64_t n_pages = 0;
    GHashTableIter iter;
    void *inode;
    g_hash_table_iter_init(&iter, sim->disk.now);
    while (g_hash_table_iter_next(&iter, NULL, &inode))
        n_pages += ((const SimInode *)inode)->now.n_pages;
    return n_pages * SIM_PAGE_BYTES;
}

void sim_set_space(Sim *sim, uint64_t bytes)
{
    sim->config.space_bytes = bytes;
}

bool sim_has_space(const Sim *sim, const SimInode *inode, uint64_t off, uint64_t len)
{
    if (!sim->config.space_bytes)
        return true;
    uint64_t needed = sim_content_n_holes(&inode->now, off, len) * SIM_PAGE_BYTES;
    return !needed || sim_used_bytes(sim) + needed <= sim->config.space_bytes;
}

int sim_set_direct_alignment(Sim *sim, const char *path, uint32_t bytes)
{
    SimInode *inode = sim_disk_find(&sim->disk, path);
    if (!inode)
        return -ENOENT;
    inode->direct_alignment = bytes;
    return 0;
}

int sim_set_block_device(Sim *sim, const char *path)
{
    SimInode *inode = sim_disk_find(&sim->disk, path);
    if (!inode)
        return -ENOENT;
    inode->is_device = true;
    return 0;
}

static int copy_out(const SimContent *content, int fd)
{
    uint8_t buf[COPY_BYTES / 8];
    uint64_t len;
    for (uint64_t off = 0; off < content->size; off += len) {
        bool is_data = sim_content_find(content, off, content->size - off, &len);
        if (!is_data)
            continue;
        len = MIN(len, sizeof(buf));
        sim_content_read(content, off, buf, len);
        if (pwrite(fd, buf, len, (off_t)off) != (ssize_t)len)
            return errno ? -errno : -EIO;
    }
    return ftruncate(fd, (off_t)content->size) < 0 ? -errno : 0;
}

int sim_export_file(Sim *sim, const char *path, const char *host_path)
{
    SimInode *inode = sim_disk_find(&sim->disk, path);
    if (!inode)
        return -ENOENT;
    int fd = open(host_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    int r = copy_out(&inode->now, fd);
    close(fd);
    return r;
}

static int copy_in(SimInode *inode, int fd)
{
    g_autofree uint8_t *buf = g_malloc(COPY_BYTES);
    off_t size = lseek(fd, 0, SEEK_END), off = 0;
    while ((off = lseek(fd, off, SEEK_DATA)) >= 0) {
        ssize_t n = pread(fd, buf, COPY_BYTES, off);
        if (n < 0)
            return -errno;
        sim_inode_change(inode, SIM_CHANGE_WRITE, (uint64_t)off, (uint64_t)n, buf);
        off += n;
    }
    if (size < 0 || errno != ENXIO)
        return -errno;
    sim_inode_change(inode, SIM_CHANGE_TRUNCATE, (uint64_t)size, 0, NULL);
    make_durable(inode);
    return 0;
}

int sim_import_file(Sim *sim, const char *path, const char *host_path)
{
    int fd = open(host_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    SimInode *inode = sim_disk_provide(&sim->disk, path);
    sim_inode_change(inode, SIM_CHANGE_TRUNCATE, 0, 0, NULL);
    int r = copy_in(inode, fd);
    close(fd);
    return r;
}
