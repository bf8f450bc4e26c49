// SPDX-License-Identifier: LGPL-2.1-or-later
// The table grows by doubling, stays at most half full and keeps no tombstones: a removal moves
// later entries of the same run of slots back.
#include "chain/region-table.h"

#include <errno.h>
#include <stddef.h>

#include "chain/region-cache.h"

enum { FIRST_SLOTS = 8, STEPS = 64, DROPS_WHEN_ASKED = 2 };

static RegionSlot no_slots[1];

static void give_back(MemoryUser *user);

void region_table_init(RegionTable *table, Loop *loop, MapMemory *memory)
{
    *table = (RegionTable){.slots = no_slots,
                           .loop = loop,
                           .memory = memory,
                           .user = {.use = MAP_MEMORY_REGIONS, .give_back = give_back}};
}

static int64_t slots_bytes(const RegionTable *table)
{
    return table->slots == no_slots ? 0 : ((int64_t)table->mask + 1) * (int64_t)sizeof(RegionSlot);
}

void region_table_clear(RegionTable *table)
{
    for (uint32_t i = 0; table->n_used > 0; i++) {
        if (!table->slots[i].key)
            continue;
        region_unref(table->slots[i].region);
        table->n_used--;
    }
    map_memory_add(table->memory, MAP_MEMORY_REGIONS, -slots_bytes(table));
    if (table->slots != no_slots)
        g_free(table->slots);
    table->slots = no_slots;
    table->mask = table->hand = 0;
}

void region_table_detach(Fiber *self, RegionTable *table)
{
    if (table->is_user)
        memory_user_leave(self, &table->user);
    table->is_user = false;
}

static void join(RegionTable *table)
{
    if (!table->is_user)
        memory_user_join(&table->user, table->loop, table->memory);
    table->is_user = true;
}

void region_table_attach(RegionTable *table, Loop *loop)
{
    table->loop = loop;
    if (table->n_used > 0)
        join(table);
}

void region_table_close(Fiber *self, RegionTable *table)
{
    region_table_detach(self, table);
    region_table_clear(table);
}

static void put(RegionTable *table, RegionSlot slot)
{
    uint32_t i = region_table_home(table, slot.region->number);
    while (table->slots[i].key)
        i = (i + 1) & table->mask;
    table->slots[i] = slot;
}

static int grow(RegionTable *table)
{
    uint32_t n_old = table->slots == no_slots ? 0 : table->mask + 1;
    uint32_t n_slots = n_old ? n_old * 2 : FIRST_SLOTS;
    RegionSlot *old = table->slots, *slots = g_try_new0(RegionSlot, n_slots);
    if (!slots)
        return -ENOMEM;
    map_memory_add(table->memory, MAP_MEMORY_REGIONS, -slots_bytes(table));
    table->slots = slots;
    table->mask = n_slots - 1;
    for (uint32_t i = 0; i < n_old; i++) {
        if (old[i].key)
            put(table, old[i]);
    }
    map_memory_add(table->memory, MAP_MEMORY_REGIONS, slots_bytes(table));
    if (old != no_slots)
        g_free(old);
    return 0;
}

static void drop_slot(RegionTable *table, uint32_t hole)
{
    region_unref(table->slots[hole].region);
    table->n_used--;
    for (uint32_t i = (hole + 1) & table->mask; table->slots[i].key; i = (i + 1) & table->mask) {
        uint32_t home = region_table_home(table, table->slots[i].region->number);
        if (((i - home) & table->mask) < ((i - hole) & table->mask))
            continue; // its home lies after the hole
        table->slots[hole] = table->slots[i];
        hole = i;
    }
    table->slots[hole] = (RegionSlot){0};
}

void region_table_drop(RegionTable *table, uint64_t number)
{
    uint32_t i = region_table_home(table, number);
    while (table->slots[i].key && table->slots[i].region->number != number)
        i = (i + 1) & table->mask;
    if (table->slots[i].key)
        drop_slot(table, i);
    if (table->n_used == 0)
        region_table_clear(table);
}

// Moves the hand on: an entry that was used loses its mark, one that was not is dropped. Ends after
// `n_steps`, or when `n_drops` were dropped and the memory is inside its share.
static void sweep(RegionTable *table, uint32_t n_steps, uint32_t n_drops)
{
    while (n_steps-- > 0 && table->n_used > 0 &&
           (n_drops > 0 || map_memory_excess(table->memory, MAP_MEMORY_REGIONS) > 0)) {
        RegionSlot *slot = &table->slots[table->hand];
        if (slot->key && !(slot->key & 1)) {
            drop_slot(table, table->hand); // another entry may have moved here: look again
            n_drops -= n_drops > 0;
            continue;
        }
        slot->key &= ~UINT64_C(1);
        table->hand = (table->hand + 1) & table->mask;
    }
}

// Gives something back even if the asking table has made room meanwhile: it did so by dropping what
// it uses, and what lies idle here should go first.
static void give_back(MemoryUser *user)
{
    sweep((RegionTable *)((char *)user - offsetof(RegionTable, user)), STEPS, DROPS_WHEN_ASKED);
}

// Room is made before the new region goes in, so that it cannot be the one that is dropped. While
// the memory is far over its share (others hold it and have not answered yet), even what is in use
// is dropped, so that the excess stays bounded.
static void make_room(RegionTable *table)
{
    if (!map_memory_excess(table->memory, MAP_MEMORY_REGIONS))
        return;
    memory_user_ask_others(&table->user);
    sweep(table, STEPS, 0);
    uint64_t excess = map_memory_excess(table->memory, MAP_MEMORY_REGIONS);
    if (excess > map_memory_limit(table->memory) / 16)
        sweep(table, 2 * (table->mask + 1), 0);
}

int region_table_insert(RegionTable *table, Region *region)
{
    join(table);
    memory_user_miss(&table->user);
    make_room(table);
    if (2 * (table->n_used + 1) > table->mask + 1 && grow(table) < 0) {
        region_unref(region);
        return -ENOMEM;
    }
    put(table, (RegionSlot){.key = region->number * 2 + 2, .region = region});
    table->n_used++;
    return 0;
}
