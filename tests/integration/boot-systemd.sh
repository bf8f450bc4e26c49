#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Runs systemd as the first process of namespaces that were made for it (machine.py), on an overlay
# of this machine's files: nothing outside changes. usage: boot-systemd.sh DIR INSTALLED
#   DIR        an empty directory
#   INSTALLED  what is put over the root (a DESTDIR)
set -e
dir=$1 installed=$2 root=$1/root
mount --make-rprivate /
mount -t tmpfs tmpfs "$dir"
mkdir "$dir"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"
cp -a "$installed"/. "$root"/
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/var/lib"
mount -t tmpfs -o mode=755 tmpfs "$root/var/log"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
# Nothing of what this machine has enabled.
rm -rf "$root"/etc/systemd/system/*.wants
mkdir "$root/.before"
cd "$root"
pivot_root . .before
umount -l /.before
exec env -i container=chaind PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --log-target=journal --show-status=0 --unit=basic.target
