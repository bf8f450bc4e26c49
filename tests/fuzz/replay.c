// SPDX-License-Identifier: LGPL-2.1-or-later
// Feeds each file of a corpus directory to a fuzz target once, so that a build without libFuzzer
// still tests every input that once mattered. A crash names the input that was printed last.
#include <dirent.h>
#include <glib.h>
#include <stdint.h>
#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GDir) dir = g_dir_open(argc == 2 ? argv[1] : "corpus", 0, &error);
    if (!dir) {
        printf("not ok 1 - %s\n", error->message);
        return 1;
    }

    unsigned n = 0;
    for (const char *name; (name = g_dir_read_name(dir));) {
        g_autofree char *path = g_build_filename(argv[1], name, NULL);
        g_autofree char *data = NULL;
        gsize size = 0;
        if (!g_file_get_contents(path, &data, &size, NULL))
            continue;
        printf("# %s\n", path);
        fflush(stdout);
        LLVMFuzzerTestOneInput((const uint8_t *)data, size);
        n++;
    }
    printf("%s 1 - %u inputs\n", n ? "ok" : "not ok", n);
    return n ? 0 : 1;
}
