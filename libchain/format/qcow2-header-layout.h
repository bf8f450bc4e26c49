// SPDX-License-Identifier: LGPL-2.1-or-later
// The header's bytes, for its decoder and its encoder only (qcow2 specification, "Header", "Header
// extensions").
#pragma once

#include "base/endian.h"

typedef struct HeaderLayout {
    Be32 magic;
    Be32 version;
    Be64 backing_offset;
    Be32 backing_bytes;
    Be32 cluster_bits;
    Be64 size_bytes;
    Be32 crypt_method;
    Be32 l1_entries;
    Be64 l1;
    Be64 refcount_table;
    Be32 refcount_table_clusters;
    Be32 n_snapshots;
    Be64 snapshot_table;
    // Version 3 from here.
    Be64 incompatible;
    Be64 compatible;
    Be64 autoclear;
    Be32 refcount_order;
    Be32 header_bytes;
    // Additional fields: there when header_bytes reaches past them.
    uint8_t compression;
    uint8_t padding[7];
} HeaderLayout;
_Static_assert(sizeof(HeaderLayout) == 112, "the header has no gaps");

typedef struct ExtensionLayout {
    Be32 type;
    Be32 len;
} ExtensionLayout;

enum {
    EXTENSION_END = 0,
    EXTENSION_BACKING_FORMAT = 0xe2792aca,
    EXTENSION_FEATURE_NAMES = 0x6803f857,
    EXTENSION_BITMAPS = 0x23852875,
    EXTENSION_ENCRYPTION = 0x0537be77,
    EXTENSION_DATA_FILE = 0x44415441,
};

typedef struct BitmapsLayout {
    Be32 n_bitmaps;
    Be32 reserved;
    Be64 directory_bytes;
    Be64 directory;
} BitmapsLayout;
_Static_assert(sizeof(BitmapsLayout) == 24, "the bitmaps extension has no gaps");

// One entry of the feature name table.
enum { FEATURE_NAME_BYTES = 46 };
typedef struct FeatureLayout {
    uint8_t type; // 0 incompatible, 1 compatible, 2 autoclear
    uint8_t bit;
    char name[FEATURE_NAME_BYTES]; // padded with NULs, which a full name lacks
} FeatureLayout;
_Static_assert(sizeof(FeatureLayout) == 48, "a feature's name has no gaps");
