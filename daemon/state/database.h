// SPDX-License-Identifier: LGPL-2.1-or-later
// The SQLite database of a state directory. One process has it, for as long as it lives, and one
// fiber at a time writes it: on a worker, so no loop waits for the disk. A write is durable when it
// returns.
#pragma once

#include <glib.h>
#include <sqlite3.h>

#include "chain-core/fiber.h"

typedef struct Database Database;

// Opens DIR/chaind.db, which is made, like DIR, where it is not there, and brings an older one to
// this version. NULL with a sentence that says what to do: another chaind has the directory, the
// database is damaged, or was written by a newer version. Blocks: before the loops run.
Database *database_open(const char *dir, GError **error);
// Accepts NULL.
void database_close(Database *database);

// Calls `row` for each row of `sql`. Blocks, like database_open().
typedef void DatabaseRowFn(void *arg, sqlite3_stmt *row);
int database_read(Database *database, const char *sql, DatabaseRowFn *row, void *arg,
                  GError **error);

// What is written in one step, all of it or nothing.
typedef struct DatabaseChange DatabaseChange;
DatabaseChange *database_change_new(void);
void database_change_free(DatabaseChange *change);
// One statement, formatted by sqlite3_mprintf(): %lld, and %Q for text. Nothing where `change` is
// NULL.
void database_change_add(DatabaseChange *change, const char *format, ...);

// Takes `change`. On failure nothing is written, and the error is one sentence. Control loop.
int database_write(Fiber *self, Database *database, DatabaseChange *change, GError **error);
// The same of what is true already: when it fails it is kept, and written before anything else is.
int database_note(Fiber *self, Database *database, DatabaseChange *change, GError **error);
