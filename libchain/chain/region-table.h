// SPDX-License-Identifier: LGPL-2.1-or-later
// One merged node's own table of regions: a hash table with open addressing whose entries each hold
// a reference. A hit reads it and sets a mark, touching nothing that another thread uses. What is
// not marked is dropped first when memory runs short (the clock algorithm). On the node's loop.
#pragma once

#include "chain-core/loop.h"
#include "chain/region.h"
#include "node/memory-user.h"

typedef struct RegionSlot {
    uint64_t key; // region number × 2 + 2, plus 1 when used since the hand passed; 0: empty
    Region *region;
} RegionSlot;

typedef struct RegionTable {
    RegionSlot *slots;
    uint32_t mask; // n_slots - 1
    uint32_t n_used;
    uint32_t hand;
    Loop *loop;
    MapMemory *memory;
    MemoryUser user; // joined at the first insert
    bool is_user;
} RegionTable;

void region_table_init(RegionTable *table, Loop *loop, MapMemory *memory);
// Waits for a message that is on its way to the table.
void region_table_close(Fiber *self, RegionTable *table);
// To another loop, with its regions. The first waits like region_table_close().
void region_table_detach(Fiber *self, RegionTable *table);
void region_table_attach(RegionTable *table, Loop *loop);
// Drops one that may be there, or all.
void region_table_drop(RegionTable *table, uint64_t number);
void region_table_clear(RegionTable *table);

static inline uint32_t region_table_home(const RegionTable *table, uint64_t number)
{
    return (uint32_t)((number * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & table->mask;
}

// Borrowed until the next insert, or until the caller suspends; NULL if absent.
static inline const Region *region_table_find(RegionTable *table, uint64_t number)
{
    uint64_t key = number * 2 + 3;
    for (uint32_t i = region_table_home(table, number);; i = (i + 1) & table->mask) {
        RegionSlot *slot = &table->slots[i];
        if (__builtin_expect(slot->key == key, 1)) {
            memory_user_hit(&table->user);
            return slot->region;
        }
        if (slot->key == key - 1) {
            slot->key = key;
            memory_user_hit(&table->user);
            return slot->region;
        }
        if (!slot->key)
            return NULL;
    }
}

// Takes the reference on `region`, whose number is not in the table. Drops others when the memory's
// share is used up. -ENOMEM (reference dropped) when the table cannot grow.
int region_table_insert(RegionTable *table, Region *region);
