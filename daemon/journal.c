// SPDX-License-Identifier: LGPL-2.1-or-later
// A file of its own, because <syslog.h>, which systemd's header includes, has macros LOG_INFO and
// so on.
#include "journal.h"

#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#define SD_JOURNAL_SUPPRESS_LOCATION // of the source: it would always be here
#include <systemd/sd-journal.h>

enum { MAX_FIELDS = 16 };

// systemd.exec(5), JOURNAL_STREAM: the device and inode of what it connected to the journal.
// Whoever has put something else in its place wants plain lines there.
bool journal_is_behind(int fd)
{
    const char *stream = g_getenv("JOURNAL_STREAM");
    uint64_t device, inode;
    struct stat st;
    return stream && sscanf(stream, "%" SCNu64 ":%" SCNu64, &device, &inode) == 2 &&
           fstat(fd, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

bool journal_send(char *const *fields, unsigned n)
{
    struct iovec parts[MAX_FIELDS];
    g_assert(n <= MAX_FIELDS);
    for (unsigned i = 0; i < n; i++)
        parts[i] = (struct iovec){fields[i], strlen(fields[i])};
    return sd_journal_sendv(parts, (int)n) >= 0;
}
