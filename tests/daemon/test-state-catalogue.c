// SPDX-License-Identifier: LGPL-2.1-or-later
// The catalogue: after each kind of change, memory says what a new start reads from the database.
#include "../loop/in-fiber.h"

#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "state/catalogue.h"
#include "state/merges.h"
#include "state/stop-point.h"

void log_line(LogLevel level, const char *format, ...)
{
}

void log_about(LogLevel level, const LogAbout *about, const char *format, ...)
{
}

void stop_point(const char *name)
{
}

typedef struct World {
    char *dir;
    Catalogue *catalogue;
} World;

static void load(World *w)
{
    g_autoptr(GError) error = NULL;
    Database *database = database_open(w->dir, &error);
    w->catalogue = database ? catalogue_load(database, w->dir, &error) : NULL;
    if (!w->catalogue)
        g_error("%s", error->message);
}

static World begin(void)
{
    World w = {.dir = g_dir_make_tmp("chaind-test-catalogue-XXXXXX", NULL)};
    load(&w);
    return w;
}

static void end(World *w)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", w->dir);
    catalogue_free(w->catalogue);
    fiber_assert_equal(system(command), 0);
    g_free(w->dir);
}

// -- all that it says -----------------------------------------------------------------------------

static void dump_layers(const Catalogue *c, GString *text)
{
    for (int64_t id = 1; id <= c->last_layer; id++) {
        const DiskLayer *l = catalogue_layer(c, id);
        if (!l)
            continue;
        g_string_append_printf(text, "layer %d %s %s on %d%s%s, %u users\n", (int)l->id, l->file,
                               l->format, l->below ? (int)l->below->id : 0,
                               l->is_ours ? " ours" : "", l->is_merging ? " merging" : "",
                               l->n_users);
    }
}

static void dump_disk(const Disk *disk, GString *text)
{
    g_autofree char *policy = json_dumps(disk->policy, JSON_SORT_KEYS);
    g_string_append_printf(text, "disk %s head %d %s\n", disk->name, (int)disk->head->id, policy);
    for (guint i = 0; i < disk->points->len; i++) {
        const Point *p = disk->points->pdata[i];
        g_string_append_printf(text, " point %s on %d of %d\n", p->name, (int)p->layer->id,
                               (int)p->created_s);
    }
    for (guint i = 0; i < disk->exports->len; i++) {
        const DiskExport *e = disk->exports->pdata[i];
        g_autofree char *options = json_dumps(e->options, JSON_SORT_KEYS);
        g_string_append_printf(text, " export %s as %s of %s %s\n", e->id, e->name,
                               e->point ?: "the head", options);
    }
    for (guint i = 0; i < disk->checkpoints->len; i++) {
        const Checkpoint *p = disk->checkpoints->pdata[i];
        g_string_append_printf(text, " checkpoint %s on %d in %s of %d\n", p->name,
                               (int)p->layer->id, p->target ?: "nothing", (int)p->created_s);
    }
}

static char *dump(const Catalogue *c)
{
    GString *text = g_string_new(NULL);
    g_string_append_printf(text, "layer %d job %d\n", (int)c->last_layer, (int)c->last_job);
    dump_layers(c, text);
    for (guint i = 0; i < c->disks->len; i++)
        dump_disk(c->disks->pdata[i], text);
    return g_string_free(text, FALSE);
}

static void starts_again(World *w)
{
    catalogue_free(w->catalogue);
    load(w);
}

// Writes `change`; a new start says the same then as memory does now.
static void agrees(Fiber *self, World *w, DatabaseChange *change)
{
    g_autoptr(GError) error = NULL;
    if (database_write(self, w->catalogue->database, change, &error) < 0)
        g_error("%s", error->message);
    g_autofree char *before = dump(w->catalogue);
    starts_again(w);
    g_autofree char *after = dump(w->catalogue);
    if (!g_str_equal(before, after))
        g_error("before:\n%s\nafter:\n%s", before, after);
}

// -- a small world --------------------------------------------------------------------------------

static DiskLayer *layer(Catalogue *c, DatabaseChange *change, DiskLayer *below)
{
    int64_t id = catalogue_next_layer(c, change);
    g_autofree char *file = g_strdup_printf("/images/it's-%d", (int)id);
    return catalogue_add_layer(
        c, change,
        &(DiskLayer){.id = id, .file = file, .format = "qcow2", .below = below, .is_ours = true});
}

// 1 ← 2 ← 3, head of web, whose points are mon (1) and tue (2); 4 on 2, head of clone.
static DatabaseChange *populate(Catalogue *c)
{
    DatabaseChange *change = database_change_new();
    DiskLayer *base = layer(c, change, NULL), *middle = layer(c, change, base);
    Disk *web = catalogue_add_disk(c, change, "web", layer(c, change, middle),
                                   json_pack("{s:b}", "direct", 1));
    disk_add_point(change, web, "mon", base, 100);
    disk_add_point(change, web, "tue", middle, 200);
    catalogue_add_disk(c, change, "clone", layer(c, change, middle), json_object());
    return change;
}

static World populated(Fiber *self)
{
    World w = begin();
    agrees(self, &w, populate(w.catalogue));
    return w;
}

static Disk *disk_of(const World *w, const char *name)
{
    Disk *disk = catalogue_find_disk(w->catalogue, name);
    fiber_assert(disk);
    return disk;
}

// -- tests ----------------------------------------------------------------------------------------

FIBER_TEST(disks_layers_and_points_are_there_again)
{
    World w = populated(self);
    fiber_assert_equal(w.catalogue->disks->len, 2);
    fiber_assert_equal(catalogue_layer(w.catalogue, 2)->n_users, 3); // two overlays and a point
    fiber_assert(catalogue_find_file(w.catalogue, "/images/it's-3") == disk_of(&w, "web")->head);
    fiber_assert(disk_has_layer(disk_of(&w, "clone"), catalogue_layer(w.catalogue, 1)));
    fiber_assert(!disk_has_layer(disk_of(&w, "clone"), catalogue_layer(w.catalogue, 3)));
    end(&w);
}

FIBER_TEST(disks_are_by_name_and_points_by_age)
{
    World w = populated(self);
    DatabaseChange *change = database_change_new();
    Disk *web = disk_of(&w, "web");
    disk_add_point(change, web, "a", catalogue_layer(w.catalogue, 2), 200); // of the same second
    disk_add_point(change, web, "later", catalogue_layer(w.catalogue, 2), 300);
    catalogue_add_disk(w.catalogue, change, "m", layer(w.catalogue, change, NULL), json_object());
    agrees(self, &w, change);
    fiber_assert(g_str_equal(((Disk *)w.catalogue->disks->pdata[1])->name, "m"));
    fiber_assert(g_str_equal(((Point *)disk_of(&w, "web")->points->pdata[2])->name, "a"));
    end(&w);
}

FIBER_TEST(heads_and_chains_change)
{
    World w = populated(self);
    Catalogue *c = w.catalogue;
    DatabaseChange *change = database_change_new();
    Disk *web = disk_of(&w, "web");
    disk_set_head(change, web, layer(c, change, web->head));
    agrees(self, &w, change);
    change = database_change_new();
    disk_layer_set_below(change, catalogue_layer(w.catalogue, 3), NULL);
    disk_layer_set_merging(change, catalogue_layer(w.catalogue, 1), true);
    agrees(self, &w, change);
    change = database_change_new();
    disk_layer_set_below(change, catalogue_layer(w.catalogue, 3), catalogue_layer(w.catalogue, 1));
    disk_layer_set_merging(change, catalogue_layer(w.catalogue, 1), false);
    agrees(self, &w, change);
    end(&w);
}

FIBER_TEST(points_move_and_go)
{
    World w = populated(self);
    DatabaseChange *change = database_change_new();
    Disk *web = disk_of(&w, "web");
    disk_move_point(change, web, disk_find_point(web, "tue"), catalogue_layer(w.catalogue, 1));
    agrees(self, &w, change);
    change = database_change_new();
    web = disk_of(&w, "web");
    disk_remove_point(change, web, disk_find_point(web, "mon"));
    agrees(self, &w, change);
    fiber_assert_equal(catalogue_layer(w.catalogue, 1)->n_users, 2);
    end(&w);
}

FIBER_TEST(exports_and_checkpoints_come_and_go)
{
    World w = populated(self);
    Disk *web = disk_of(&w, "web");
    json_t *options = json_pack("{s:b, s:s}", "writable", 1, "description", "it's \"mine\"");
    DatabaseChange *change = database_change_new();
    disk_add_export(change, web, &(DiskExport){.id = "web", .name = "web", .options = options});
    disk_add_export(change, web,
                    &(DiskExport){.id = "m", .name = "x", .point = "mon", .options = options});
    disk_add_checkpoint(change, web, &(Checkpoint){"day1", web->head, "/backups/it's 1", 10});
    disk_add_checkpoint(change, web, &(Checkpoint){"day2", web->head, NULL, 10});
    json_decref(options);
    agrees(self, &w, change);
    change = database_change_new();
    web = disk_of(&w, "web");
    Disk *whose;
    disk_remove_export(change, web, catalogue_find_export(w.catalogue, "m", &whose));
    disk_remove_checkpoint(change, web, web->checkpoints->pdata[0]);
    agrees(self, &w, change);
    fiber_assert(!catalogue_find_export(w.catalogue, "m", &whose));
    fiber_assert(catalogue_find_export(w.catalogue, "web", &whose) && whose == disk_of(&w, "web"));
    end(&w);
}

FIBER_TEST(a_disk_goes_with_all_that_is_its_own_and_what_others_need_stays)
{
    World w = populated(self);
    json_t *options = json_object(), *files = json_array();
    DatabaseChange *change = database_change_new();
    Disk *web = disk_of(&w, "web");
    disk_add_export(change, web, &(DiskExport){.id = "w", .name = "w", .options = options});
    disk_add_checkpoint(change, web, &(Checkpoint){"c", web->head, "/c", 1});
    agrees(self, &w, change);
    change = database_change_new();
    catalogue_remove_disk(w.catalogue, change, disk_of(&w, "web"));
    catalogue_drop_unneeded(w.catalogue, change, files);
    fiber_assert_equal(json_array_size(files), 1); // 1 and 2 are below the clone
    fiber_assert(g_str_equal(json_string_value(json_array_get(files, 0)), "/images/it's-3"));
    agrees(self, &w, change);
    change = database_change_new();
    catalogue_remove_disk(w.catalogue, change, disk_of(&w, "clone"));
    catalogue_drop_unneeded(w.catalogue, change, files);
    fiber_assert_equal(json_array_size(files), 4);
    agrees(self, &w, change);
    fiber_assert_equal(g_hash_table_size(w.catalogue->layers), 0);
    json_decref(options);
    json_decref(files);
    end(&w);
}

FIBER_TEST(what_is_not_ours_is_forgotten_but_no_file)
{
    World w = populated(self);
    json_t *files = json_array();
    DatabaseChange *change = database_change_new();
    catalogue_add_layer(w.catalogue, change,
                        &(DiskLayer){.id = catalogue_next_layer(w.catalogue, change),
                                     .file = "/theirs",
                                     .format = "raw"});
    catalogue_drop_unneeded(w.catalogue, change, files);
    fiber_assert_equal(json_array_size(files), 0);
    fiber_assert(!catalogue_find_file(w.catalogue, "/theirs"));
    agrees(self, &w, change);
    json_decref(files);
    end(&w);
}

FIBER_TEST(intents_are_there_until_they_end)
{
    World w = populated(self);
    int64_t one =
        catalogue_intend(self, w.catalogue, "make", json_pack("{s:[s]}", "files", "/it's"), NULL);
    int64_t two = catalogue_intend(self, w.catalogue, "remove", json_object(), NULL);
    fiber_assert(one > 0 && two > one);
    starts_again(&w);
    fiber_assert_equal(w.catalogue->intents->len, 2);
    const Intent *intent = w.catalogue->intents->pdata[0];
    fiber_assert(intent->id == one && g_str_equal(intent->kind, "make"));
    const char *file =
        json_string_value(json_array_get(json_object_get(intent->detail, "files"), 0));
    fiber_assert(g_strcmp0(file, "/it's") == 0);
    DatabaseChange *change = database_change_new();
    catalogue_end_intent(change, one);
    int64_t three = catalogue_add_intent(w.catalogue, change, "commit", json_object());
    fiber_assert(three > two); // a number is never given again
    agrees(self, &w, change);
    fiber_assert_equal(w.catalogue->intents->len, 2);
    end(&w);
}

FIBER_TEST(numbers_are_not_given_again)
{
    World w = populated(self);
    int64_t last = catalogue_next_layer(w.catalogue, NULL),
            job = catalogue_next_job(w.catalogue, NULL);
    // Nothing was written of them yet; an intent, which names what they are for, does.
    fiber_assert(catalogue_intend(self, w.catalogue, "make", json_object(), NULL) > 0);
    starts_again(&w);
    fiber_assert(catalogue_next_layer(w.catalogue, NULL) > last);
    fiber_assert(catalogue_next_job(w.catalogue, NULL) > job);
    DatabaseChange *change = database_change_new();
    job = catalogue_next_job(w.catalogue, change);
    fiber_assert_equal(database_write(self, w.catalogue->database, change, NULL), 0);
    starts_again(&w);
    fiber_assert(catalogue_next_job(w.catalogue, NULL) > job);
    end(&w);
}

FIBER_TEST(the_history_has_the_last_hundred_jobs)
{
    World w = begin();
    for (int i = 1; i <= CATALOGUE_MAX_HISTORY + 5; i++) {
        DatabaseChange *change = database_change_new();
        json_t *entry = json_pack("{s:i}", "number", i);
        catalogue_add_history(change, entry);
        json_decref(entry);
        fiber_assert_equal(database_write(self, w.catalogue->database, change, NULL), 0);
    }
    starts_again(&w);
    fiber_assert_equal(g_queue_get_length(&w.catalogue->history), CATALOGUE_MAX_HISTORY);
    int i = CATALOGUE_MAX_HISTORY + 5;
    for (const GList *l = w.catalogue->history.head; l; l = l->next, i--)
        fiber_assert_equal(json_integer_value(json_object_get(l->data, "number")), i);
    end(&w);
}

// -- merges ---------------------------------------------------------------------------------------

FIBER_TEST(a_stream_that_is_noted_takes_the_point_and_leaves_the_intent_to_remove)
{
    World w = populated(self);
    DatabaseChange *change = database_change_new();
    json_t *files = json_array();
    catalogue_remove_disk(w.catalogue, change, disk_of(&w, "clone"));
    catalogue_drop_unneeded(w.catalogue, change, files);
    json_decref(files);
    agrees(self, &w, change);
    Catalogue *c = w.catalogue;
    StreamMerge merge = {catalogue_layer(c, 3), catalogue_layer(c, 1), disk_of(&w, "web"), "tue"};
    json_t *detail = stream_merge_detail(&merge);
    int64_t intent = catalogue_intend(self, c, "stream", json_incref(detail), NULL);
    fiber_assert(stream_merge_parse(c, detail, &merge));
    MergeLeft left;
    stream_merge_note(self, c, intent, &merge, &left);
    fiber_assert_equal(json_array_size(left.files), 1);
    agrees(self, &w, database_change_new());
    fiber_assert(!disk_find_point(disk_of(&w, "web"), "tue"));
    fiber_assert(!catalogue_layer(w.catalogue, 2));
    fiber_assert_equal(w.catalogue->intents->len, 1);
    const Intent *remove = w.catalogue->intents->pdata[0];
    fiber_assert(remove->id == left.intent && g_str_equal(remove->kind, "remove"));
    // The same again, after a crash, finds that it speaks of what is gone, or has been done.
    fiber_assert(stream_merge_parse(w.catalogue, detail, &merge) &&
                 merge.image->below == merge.base);
    merge_left_clear(&left);
    json_decref(detail);
    end(&w);
}

static bool is_clone(void *arg, const DiskLayer *overlay)
{
    return overlay->id == 4;
}

static bool is_any(void *arg, const DiskLayer *overlay)
{
    return true;
}

static int64_t begin_commit(Fiber *self, World *w, CommitMerge *ret_merge)
{
    Catalogue *c = w->catalogue;
    DatabaseChange *change = database_change_new();
    Disk *web = disk_of(w, "web");
    disk_remove_point(change, web, disk_find_point(web, "mon"));
    disk_layer_set_merging(change, catalogue_layer(c, 1), true);
    *ret_merge = (CommitMerge){catalogue_layer(c, 2), catalogue_layer(c, 1)};
    json_t *detail = commit_merge_detail(ret_merge);
    int64_t intent = catalogue_add_intent(c, change, "commit", json_incref(detail));
    agrees(self, w, change);
    fiber_assert(commit_merge_parse(w->catalogue, detail, ret_merge));
    json_decref(detail);
    return intent;
}

FIBER_TEST(a_commit_at_a_branch_moves_all_overlays_and_points)
{
    World w = populated(self);
    CommitMerge merge;
    MergeLeft left;
    int64_t intent = begin_commit(self, &w, &merge);
    commit_merge_note(self, w.catalogue, intent, &merge, is_any, NULL, &left);
    agrees(self, &w, database_change_new());
    DiskLayer *base = catalogue_layer(w.catalogue, 1);
    fiber_assert(!base->is_merging && !catalogue_layer(w.catalogue, 2));
    fiber_assert(disk_of(&w, "web")->head->below == base);
    fiber_assert(disk_of(&w, "clone")->head->below == base);
    fiber_assert(disk_find_point(disk_of(&w, "web"), "tue")->layer == base);
    fiber_assert_equal(json_array_size(left.files), 1);
    merge_left_clear(&left);
    end(&w);
}

FIBER_TEST(a_commit_that_some_overlays_have_not_seen_keeps_the_top_for_them)
{
    World w = populated(self);
    CommitMerge merge;
    MergeLeft left;
    int64_t intent = begin_commit(self, &w, &merge);
    commit_merge_note(self, w.catalogue, intent, &merge, is_clone, NULL, &left);
    agrees(self, &w, database_change_new());
    DiskLayer *base = catalogue_layer(w.catalogue, 1), *top = catalogue_layer(w.catalogue, 2);
    fiber_assert(top && top->below == base && !base->is_merging);
    fiber_assert(disk_of(&w, "web")->head->below == top);
    fiber_assert(disk_of(&w, "clone")->head->below == base);
    fiber_assert_equal(json_array_size(left.files), 0);
    merge_left_clear(&left);
    end(&w);
}

FIBER_TEST(a_head_that_is_committed_changes_at_once_or_not_at_all)
{
    World w = populated(self);
    CommitMerge merge = {catalogue_layer(w.catalogue, 3), catalogue_layer(w.catalogue, 2)};
    MergeLeft left;
    g_autoptr(GError) error = NULL;
    // The clone stands on it: not this test's.
    DatabaseChange *change = database_change_new();
    json_t *files = json_array();
    catalogue_remove_disk(w.catalogue, change, disk_of(&w, "clone"));
    catalogue_drop_unneeded(w.catalogue, change, files);
    json_decref(files);
    Disk *web = disk_of(&w, "web");
    disk_remove_point(change, web, disk_find_point(web, "tue"));
    disk_layer_set_merging(change, catalogue_layer(w.catalogue, 2), true);
    disk_add_checkpoint(change, web, &(Checkpoint){"c", web->head, "/c", 1});
    int64_t intent = catalogue_add_intent(w.catalogue, change, "commit", json_object());
    agrees(self, &w, change);
    merge = (CommitMerge){catalogue_layer(w.catalogue, 3), catalogue_layer(w.catalogue, 2)};
    int r = commit_merge_pivot(self, w.catalogue, intent, &merge, &left, &error);
    if (r < 0)
        g_error("%s", error->message);
    agrees(self, &w, database_change_new());
    fiber_assert_equal(disk_of(&w, "web")->head->id, 2);
    fiber_assert_equal(disk_of(&w, "web")->checkpoints->len, 0);
    fiber_assert_equal(json_array_size(left.files), 1);
    merge_left_clear(&left);
    end(&w);
}

FIBER_TEST(names_that_cannot_be_are_told)
{
    fiber_assert_equal(catalogue_check_disk_name("web-1.a_b", NULL), 0);
    fiber_assert_equal(catalogue_check_point_name("2026-01-01T10:00:00+01", NULL), 0);
    static const char *const bad_disks[] = {"", "1web", "a b", "a/b", "#a", "\xc3\xa4"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad_disks); i++)
        fiber_assert(catalogue_check_disk_name(bad_disks[i], NULL) < 0);
    static const char *const bad_points[] = {"", "-a", "a b", "a@b", "a/b"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad_points); i++)
        fiber_assert(catalogue_check_point_name(bad_points[i], NULL) < 0);
    g_autofree char *most = g_strnfill(64, 'a'), *more = g_strnfill(65, 'a');
    fiber_assert_equal(catalogue_check_disk_name(most, NULL), 0);
    fiber_assert(catalogue_check_disk_name(more, NULL) < 0);
    fiber_assert(catalogue_check_point_name(more, NULL) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(disks_layers_and_points_are_there_again),
        cmocka_unit_test(disks_are_by_name_and_points_by_age),
        cmocka_unit_test(heads_and_chains_change),
        cmocka_unit_test(points_move_and_go),
        cmocka_unit_test(exports_and_checkpoints_come_and_go),
        cmocka_unit_test(a_disk_goes_with_all_that_is_its_own_and_what_others_need_stays),
        cmocka_unit_test(what_is_not_ours_is_forgotten_but_no_file),
        cmocka_unit_test(intents_are_there_until_they_end),
        cmocka_unit_test(numbers_are_not_given_again),
        cmocka_unit_test(the_history_has_the_last_hundred_jobs),
        cmocka_unit_test(a_stream_that_is_noted_takes_the_point_and_leaves_the_intent_to_remove),
        cmocka_unit_test(a_commit_at_a_branch_moves_all_overlays_and_points),
        cmocka_unit_test(a_commit_that_some_overlays_have_not_seen_keeps_the_top_for_them),
        cmocka_unit_test(a_head_that_is_committed_changes_at_once_or_not_at_all),
        cmocka_unit_test(names_that_cannot_be_are_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
