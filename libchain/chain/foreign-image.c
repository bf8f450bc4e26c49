// SPDX-License-Identifier: LGPL-2.1-or-later
// A table of magics, and the commands that lead from such a file to one that chaind serves. In a
// fiber.
#include "chain/foreign-image.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/shell-word.h"

typedef struct ForeignFormat {
    const char *what;
    uint32_t off; // of the magic; FROM_END + n: n bytes before the end of the file
    const char *magic;
    uint8_t magic_len;
    // A command, in which %1 is the file and %2 a name for the result, both quoted.
    const char *command;
    const char *result_suffix; // instead of the file's own; NULL: without its own
} ForeignFormat;

#define FROM_END 0x80000000u
#define CONVERT(driver) "convert it: qemu-img convert -O qcow2 -f " driver " %1 %2", ".qcow2"
#define UNPACK(command) "unpack it: " command, NULL
#define MAGIC(text) text, sizeof(text) - 1

// Where several match, the first one is meant.
static const ForeignFormat formats[] = {
    {"a VMDK image", 0, MAGIC("KDMV"), CONVERT("vmdk")},
    {"a VMDK image", 0, MAGIC("COWD"), CONVERT("vmdk")},
    {"the descriptor of a VMDK image", 0, MAGIC("# Disk DescriptorFile"), CONVERT("vmdk")},
    {"a VHDX image", 0, MAGIC("vhdxfile"), CONVERT("vhdx")},
    {"a VHD image", 0, MAGIC("conectix"), CONVERT("vpc")},
    {"a VDI image", 64, MAGIC("\x7f\x10\xda\xbe"), CONVERT("vdi")},
    {"a QED image", 0, MAGIC("QED\0"), CONVERT("qed")},
    {"a Parallels image", 0, MAGIC("WithoutFreeSpace"), CONVERT("parallels")},
    {"a Parallels image", 0, MAGIC("WithouFreSpacExt"), CONVERT("parallels")},
    {"a qcow image of version 1", 0, MAGIC("QFI\xfb\0\0\0\1"), CONVERT("qcow")},
    {"encrypted with LUKS", 0, MAGIC("LUKS\xba\xbe\0\1"),
     "convert it, with its passphrase in KEYFILE: qemu-img convert -O qcow2 --object "
     "secret,id=key,file=KEYFILE --image-opts driver=luks,key-secret=key,file.filename=%1 %2",
     ".qcow2"},
    {"encrypted with LUKS", 0, MAGIC("LUKS\xba\xbe"),
     "unlock it: cryptsetup open %1 NAME, and convert what that makes: qemu-img convert -O qcow2 "
     "-f raw /dev/mapper/NAME %2",
     ".qcow2"},
    {"compressed with gzip", 0, MAGIC("\x1f\x8b"), UNPACK("gzip -dc %1 >%2")},
    {"compressed with xz", 0,
     MAGIC("\xfd"
           "7zXZ\0"),
     UNPACK("xz -dc %1 >%2")},
    {"compressed with zstd", 0, MAGIC("\x28\xb5\x2f\xfd"), UNPACK("zstd -dc %1 >%2")},
    {"compressed with bzip2", 0, MAGIC("BZh"), UNPACK("bzip2 -dc %1 >%2")},
    {"a zip archive", 0, MAGIC("PK\3\4"), UNPACK("unzip %1")},
    {"a 7z archive", 0, MAGIC("7z\xbc\xaf\x27\x1c"), UNPACK("7z x %1")},
    {"an ISO 9660 image", 32769, MAGIC("CD001"), CONVERT("raw")},
    {"a tar archive", 257, MAGIC("ustar"), UNPACK("tar -xf %1")},
    {"a VHD image", FROM_END + 512, MAGIC("conectix"), CONVERT("vpc")},
    {"a VHD image", FROM_END + 511, MAGIC("conectix"), CONVERT("vpc")}, // of old Virtual PCs
};

static bool matches(Fiber *self, File *file, const ForeignFormat *format)
{
    uint8_t bytes[32];
    uint64_t off = format->off, size = file_size(file);
    g_assert(format->magic_len <= sizeof bytes);
    if (off >= FROM_END) {
        if (size < off - FROM_END)
            return false;
        off = size - (off - FROM_END);
    }
    return file_read(self, file, host_off(off), bytes, format->magic_len) == 0 &&
           memcmp(bytes, format->magic, format->magic_len) == 0;
}

// The file's name with another suffix, which is not its own name.
static char *result_name(const char *path, const char *suffix)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    size_t len = dot && dot > name ? (size_t)(dot - path) : strlen(path);
    char *result = g_strdup_printf("%.*s%s", (int)len, path, suffix ? suffix : "");
    if (!g_str_equal(result, path))
        return result;
    g_free(result);
    return g_strdup_printf("%.*s.new%s", (int)len, path, suffix ? suffix : "");
}

static char *command_for(const ForeignFormat *format, const char *path)
{
    g_autofree char *result = result_name(path, format->result_suffix);
    g_autofree char *quoted = shell_word(path), *quoted_result = shell_word(result);
    GString *command = g_string_new(NULL);
    for (const char *p = format->command; *p; p++) {
        if (*p == '%')
            g_string_append(command, *++p == '1' ? quoted : quoted_result);
        else
            g_string_append_c(command, *p);
    }
    return g_string_free(command, FALSE);
}

int foreign_image_check(Fiber *self, File *file, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(formats); i++) {
        if (!matches(self, file, &formats[i]))
            continue;
        g_autofree char *command = command_for(&formats[i], file_path(file));
        return error_set(error, -EINVAL, "%s: it is %s, which chaind does not open; %s",
                         file_path(file), formats[i].what, command);
    }
    return 0;
}
