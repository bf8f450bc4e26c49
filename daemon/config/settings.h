// SPDX-License-Identifier: LGPL-2.1-or-later
// What can be configured: the sections of the configuration's files, their keys, and the structs
// that these fill. A key is one line of a table: the parser, its mistakes, --check-config, a reload
// and the manual come from there. Pure.
#pragma once

#include <stddef.h>
#include <sys/types.h>

#include "chain-core/throttle-group.h"
#include "nbd/server.h"
#include "value.h"

// When a key that was changed in the files takes effect.
typedef enum ConfigEffect {
    CONFIG_AT_START, // at the next start; a reload says so
    CONFIG_LIVE,     // with a reload
} ConfigEffect;

typedef struct ConfigSection ConfigSection;

typedef struct ConfigKey {
    const char *name;
    const ConfigType *type;
    size_t offset; // in the section's struct
    ConfigEffect effect;
    const char *doc;      // one paragraph of the manual (POD)
    const char *fallback; // what holds when it is not said; NULL: zeros
    // Its text is the label of such a section, which must be there. NULL: it is not.
    const ConfigSection *names;
} ConfigKey;

struct ConfigSection {
    const char *name;      // [NAME], or
    const char *label;     // [NAME LABEL]: many of a kind; what the label is, in a word. NULL: one
    size_t size;           // of its struct
    const ConfigKey *keys; // end with {0}
    const char *doc;
    // The key that such a section is about: it must be set, and each has another value. Where a
    // later file takes it back, the section is taken back. NULL: none.
    const char *needs;
    // What must hold between the keys: -EINVAL with a sentence, and the key that it is about. NULL:
    // nothing.
    int (*check)(const void *values, const char **ret_key, GError **error);
};

// [daemon]. On the command line each has an option of the same name.
typedef struct DaemonSettings {
    char *state_dir;          // where disks are remembered; NULL: nowhere
    unsigned max_connections; // 0: as many as there is memory for
    unsigned n_loops;         // 0: as many as there are disks, at most one per CPU
    uint64_t map_memory_bytes;
    unsigned busy_poll_us; // LoopConfig's, where there is more than one CPU
    unsigned log_level;    // LogLevel
    char *metrics_path;    // a file for them; NULL: none
    unsigned metrics_interval_s;
    char *metrics_address; // a socket for them: a path or HOST:PORT; NULL: none
} DaemonSettings;

// [control NAME]: a socket for commands. --qmp replaces all of them.
typedef struct ControlSettings {
    char *path;
    bool is_read_only; // for queries only
    mode_t mode;
    uid_t owner; // -1: whose the daemon is; likewise:
    gid_t group;
    GArray *allow_uid, *allow_gid; // uid_t, gid_t; both NULL: whoever can connect
} ControlSettings;

// [listen NAME]: where NBD clients are served. --nbd replaces all of them.
typedef struct ListenSettings {
    char *address;
    mode_t mode; // of a unix socket, like:
    uid_t owner; // -1: whose the daemon is; likewise:
    gid_t group;
    unsigned tls; // settings_tls_mode()
    char *tls_certificates, *tls_psk;
    bool tls_verify_peer;
    char *tls_authz; // a file of authz-list-file; NULL: none
} ListenSettings;

// [throttle-group NAME]: how much the clients of its exports may do together, a second; 0: no
// limit.
typedef struct ThrottleGroupSettings {
    uint64_t bps, read_bps, write_bps;
    unsigned iops, read_iops, write_iops;
} ThrottleGroupSettings;

// [export PATTERN]: who may use the exports whose names match, and how much. allow_…: NULL: that
// way nobody, but if all are NULL everybody.
typedef struct ExportSettings {
    GArray *allow_uid;     // uid_t
    GArray *allow_gid;     // gid_t
    GArray *allow_address; // AddressRange
    GPtrArray *allow_tls;  // char *: patterns of TLS's identities
    char *throttle_group;  // NULL: none
} ExportSettings;

extern const ConfigSection settings_daemon, settings_control, settings_listen,
    settings_throttle_group, settings_export;
// All of them; ends with NULL.
extern const ConfigSection *const settings_sections[];

// NULL: there is none.
const ConfigKey *settings_find_key(const ConfigSection *section, const char *name);
// What holds when nothing is said, into zeros; settings_clear().
void settings_init(const ConfigSection *section, void *values);
void settings_clear(const ConfigSection *section, void *values);
NbdsTlsMode settings_tls_mode(const ListenSettings *listen);
void settings_throttle_limits(const ThrottleGroupSettings *group, ThrottleLimits *ret_limits);
static inline void *settings_value(const ConfigKey *key, void *values)
{
    return (char *)values + key->offset;
}
