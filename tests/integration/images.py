# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backing chains made by qemu-img, of shapes that a seed chooses: cluster sizes, refcount widths,
subclusters, compression, versions, internal snapshots, raw layers, layers of different lengths, a data
file of its own. QEMU looks for that in the current directory, which must be the one of the images."""
import dataclasses
import random

from harness import KIB, MIB, qemu_img, qemu_io, run

CLUSTERS = tuple(512 << i for i in range(13))


@dataclasses.dataclass
class Layer:
    fmt: str = "qcow2"
    cluster: int = 64 * KIB
    refcount_bits: int = 16
    version: int = 3
    extended_l2: bool = False
    lazy: bool = False
    compressed: str = ""  # "zlib" or "zstd": content written compressed by qemu-img convert
    snapshots: int = 0
    data_file: str = ""  # "raw" or "mapped"

    def options(self):
        if self.version == 2:
            return f"compat=0.10,cluster_size={self.cluster}"
        return (f"compat=1.1,cluster_size={self.cluster},refcount_bits={self.refcount_bits},"
                f"extended_l2={'on' if self.extended_l2 else 'off'},"
                f"lazy_refcounts={'on' if self.lazy else 'off'}"
                + (f",compression_type={self.compressed}" if self.compressed else "")
                + (f",data_file=top.data,data_file_raw={'on' if self.data_file == 'raw' else 'off'}"
                   if self.data_file else ""))

    def __str__(self):
        if self.fmt == "raw":
            return "raw"
        size = f"{self.cluster // KIB}k" if self.cluster >= KIB else str(self.cluster)
        words = [f"v{self.version}", size, f"rc{self.refcount_bits}"]
        words += ["ext-l2"] * self.extended_l2 + ["lazy"] * self.lazy
        words += [self.compressed] * bool(self.compressed)
        words += [f"{self.snapshots}snap"] * bool(self.snapshots)
        words += [f"{self.data_file} data file"] * bool(self.data_file)
        return "/".join(words)


def top_layer(seed, depth):
    """Each property follows a digit of the seed of its own, so that no two of them always go together."""
    if seed % 20 == 3:
        return Layer(fmt="raw")
    layer = Layer(cluster=CLUSTERS[seed % 13])
    if seed % 9 == 5:
        layer.version = 2
    else:
        layer.refcount_bits = 1 << seed % 7
        layer.extended_l2 = layer.cluster >= 16 * KIB and seed // 2 % 2 == 1
        layer.lazy = seed % 4 == 1
    layer.snapshots = min(seed // 3 % 4, (1 << layer.refcount_bits) - 2)
    if depth == 1 and layer.version == 3 and seed % 3 == 0:  # otherwise only the base is compressed
        layer.compressed = ("zlib", "zstd")[seed % 2]
        if layer.refcount_bits < 16:  # a host cluster is counted once for each stream in it
            layer.snapshots = 0
    if layer.version == 3 and not layer.compressed and seed % 7 in (0, 3):
        layer.data_file = "raw" if depth == 1 else "mapped"
        layer.snapshots = 0  # QEMU has none with a data file
    return layer


def lower_layer(rng, seed, number, is_base):
    if is_base and seed // 5 % 4 == 3:
        return Layer(fmt="raw")
    layer = Layer(cluster=CLUSTERS[(5 * seed + 3 * number) % 13])
    if rng.random() < 0.15:
        layer.version = 2
    else:
        layer.refcount_bits = 1 << rng.randrange(7)
        layer.extended_l2 = layer.cluster >= 16 * KIB and rng.random() < 0.5
    if is_base:
        layer.compressed = ("", "zlib", "zstd")[seed // 5 % 4]
        if layer.compressed == "zstd":
            layer.version = 3
    return layer


def random_writes(rng, path, layer, size, n):
    """A few patterned writes, zeroes and discards by qemu-io, at odd places."""
    commands = []
    for _ in range(n):
        length = rng.choice((512, 4096, 65536, 300000, MIB)) // 512 * 512
        offset = rng.randrange(max(1, size - length)) // 512 * 512
        length = min(length, (size - offset) // 512 * 512)
        if length <= 0:
            continue
        kind = rng.random()
        if kind < 0.8:
            commands.append(f"write -P {rng.randrange(1, 256)} {offset} {length}")
        elif layer.version == 3 and layer.fmt == "qcow2":
            commands.append(f"write -z {'-u ' if rng.random() < 0.5 else ''}{offset} {length}")
        else:
            commands.append(f"write -P 0 {offset} {length}")
    if commands:
        qemu_io(path, *commands, fmt=layer.fmt)


def fill_base(rng, path, layer, size):
    """The lowest layer, partly filled; compressed images get their content through convert."""
    plain = f"{path}.plain" if layer.compressed else path
    if layer.fmt == "raw" or layer.compressed:
        with open(plain, "wb") as f:
            f.truncate(size)
    else:
        qemu_img("create", "-q", "-f", "qcow2", "-o", layer.options(), plain, size)
    random_writes(rng, plain, Layer(fmt="raw") if layer.compressed else layer, size, 12)
    if layer.compressed:
        qemu_img("convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", layer.options(), plain, path)
        run("rm", plain)


def make_chain(rng, directory, layers, size):
    """Makes layers[0] ← layers[1] ← …; returns their paths and the top's snapshots as
    [(name, raw file)]. Backing layers may be a little shorter or longer than the top."""
    paths, snapshots = [], []
    for i, layer in enumerate(layers):
        is_top = i == len(layers) - 1
        path = f"{directory}/{i}.{layer.fmt}"
        here = size if is_top else max(512, size + rng.choice((0, 0, -1, 1)) * rng.randrange(MIB))
        if layer.fmt == "qcow2" or not is_top:
            here = here // 512 * 512
        if i == 0:
            fill_base(rng, path, layer, here)
        else:
            qemu_img("create", "-q", "-f", "qcow2", "-o", layer.options(), "-b", paths[-1],
                     "-F", layers[i - 1].fmt, path, here)
            random_writes(rng, path, layer, here, 6)
        paths.append(path)
        for n in range(layer.snapshots if is_top else 0):
            raw = f"{directory}/snapshot-{n}.raw"
            qemu_img("snapshot", "-c", f"s{n}", path)
            qemu_img("convert", "-q", "-f", "qcow2", "-O", "raw", path, raw)
            snapshots.append((f"s{n}", raw))
            random_writes(rng, path, layer, here, 3)
    return paths, snapshots


def random_chain(seed):
    """The layers for a seed, bottom first."""
    rng = random.Random(seed)
    depth = 1 if seed % 20 == 3 else 1 + seed % 5  # nothing is below a raw image
    layers = [lower_layer(rng, seed, i, i == 0) for i in range(depth - 1)]
    return layers + [top_layer(seed, depth)]


def properties(seed):
    """What a seed's chain is like: pairs (property, value) that a list of seeds should cover."""
    layers = random_chain(seed)
    top, base = layers[-1], layers[0]
    out = {("depth", len(layers)), ("format of the top", top.fmt)}
    out |= {("cluster of a layer", layer.cluster) for layer in layers if layer.fmt == "qcow2"}
    if top.fmt == "qcow2":
        out |= {("cluster of the top", top.cluster), ("refcount bits", top.refcount_bits),
                ("version", top.version), ("snapshots", top.snapshots > 0), ("lazy", top.lazy),
                ("data file", top.data_file)}
        if top.cluster >= 16 * KIB and top.version == 3:
            out.add(("extended L2", top.extended_l2))
    if len(layers) > 1:
        out |= {("format of the base", base.fmt), ("compressed base", base.compressed),
                ("version over backing", top.version)}
    return out


ALL_PROPERTIES = {
    "depth": range(1, 6), "format of the top": ("raw", "qcow2"), "cluster of a layer": CLUSTERS,
    "cluster of the top": CLUSTERS, "refcount bits": [1 << i for i in range(7)], "version": (2, 3),
    "snapshots": (False, True), "data file": ("", "mapped", "raw"), "lazy": (False, True), "extended L2": (False, True),
    "format of the base": ("raw", "qcow2"), "compressed base": ("", "zlib", "zstd"),
    "version over backing": (2, 3),
}
