"""Small calls of the public functions on the emulator, each held against the reference: what tests/mutants.py breaks.

Tiles are the smallest there are, so that 40 keys have several, and every launch runs with all checks of the machine.
"""

import re
import shutil
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from backends import EmulatorBackend, host
from emulator import memory
from emulator.device_array import DeviceArray
from emulator.runtime import Finding
from mutant_caches import CACHE_PROBES
from mutants import MUTANTS

import cuflash
from cuflash import _sources, reference


class Wrong(AssertionError):
    """A result differs from the reference."""


class Stale(AssertionError):
    """A kernel was not that of the sources as they are."""


class Probe:
    """What the calls need of a backend. `patch` is undone after the probe."""

    def __init__(self, root, folder, patch):
        self.root, self.folder, self.patch = root, folder, patch
        self.rng = np.random.default_rng(0)
        patch.setattr(_sources, "folder", lambda: root)
        self.forget()

    def forget(self):
        """As a new process: no kernel is loaded yet."""
        self.backend = EmulatorBackend(self.folder)

    def normal(self, *shape):
        return self.rng.standard_normal(shape, dtype=np.float32)

    def qkv(self, b, hq, hk, lq, lk, d=40, dv=9):
        return self.normal(b, hq, lq, d), self.normal(b, hk, lk, d), self.normal(b, hk, lk, dv)

    def move(self, options):
        return {name: self.backend.asarray(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}

    def hold(self, found, right):
        """Results of a few dozen numbers, equal but for rounding."""
        for one, other in zip(map(host, found), right, strict=True):
            rounding = 1e-2 if one.dtype == np.float16 else 1e-4
            same = np.isclose(one, other, rounding, rounding)
            if one.shape != other.shape or not same.all():
                raise Wrong(f"{np.sum(~same)} of {same.size} numbers differ from the reference: {one[~same]}")

    def attention(self, q, k, v, **options):
        found = cuflash.attention(*map(self.backend.asarray, (q, k, v)), return_lse=True, **self.move(options))
        self.hold(found, reference.attention(q, k, v, return_lse=True, **options))

    def gradients(self, q, k, v, dlse=None, **options):
        moved, moved_options = list(map(self.backend.asarray, (q, k, v))), self.move(options)
        results = cuflash.attention(*moved, return_lse=True, **moved_options)
        dout = self.normal(*results[0].shape)
        moved_dlse = None if dlse is None else self.backend.asarray(dlse)
        moved.insert(0, self.backend.asarray(dout))
        grads = cuflash.attention_backward(*moved, *results, dlse=moved_dlse, **moved_options)
        right = reference.attention_backward(dout, q, k, v, dlse=dlse, **options)
        self.hold([x for x in grads if x is not None], [x for x in right if x is not None])

    def same(self, cache, model, names):
        """A cache on the device against one on the host, bit by bit."""
        for name in names:
            one, other = host(getattr(cache, name)), getattr(model, name)
            if one.tobytes() != other.astype(one.dtype).tobytes():
                raise Wrong(f"{name} is not that of the host: {one[one != other]}")

    def decode(self, q, cache, model, splits=None, **options):
        found = cuflash.decode(self.backend.asarray(q), cache, splits=splits, return_lse=True, **self.move(options))
        self.hold(found, reference.decode(q, model, return_lse=True, **options))


def forward(p):
    """Tails of queries, keys and columns, two chunks of features, grouped heads."""
    p.attention(*p.qkv(1, 6, 2, 21, 37))


def many_features(p):
    """Two keys, of which one adds 128 times 1 to a product of 2**24, behind which each 1 alone would vanish."""
    q, k, v = p.qkv(1, 1, 1, 5, 2, d=160)
    q[...], k[...] = 1, np.array([[1], [0]])
    q[..., 1:32] = 0  # the first chunk of features has the large product alone
    q[..., 0] = k[..., 0] = 4096
    p.attention(q, k, v, scale=1 / 64)


def tensor_cores(p):
    """float16: several tiles of queries and keys with tails of rows and columns; rows, and a tile, that see nothing."""
    q, k, v = (x.astype(np.float16) for x in p.qkv(1, 4, 2, 70, 61, d=40, dv=24))
    p.attention(q, k, v)
    p.attention(q, k, v, causal=True, window=(20, 0))
    p.attention(q, k[:, :, :10], v[:, :, :10], causal=True)


def tensor_options(p):
    """All that a score passes through, sinks that outweigh the keys, and scores that fall as products rise."""
    q, k, v = (x.astype(np.float16) for x in p.qkv(1, 2, 2, 45, 40, d=8))
    options = {"softcap": 1.5, "bias": p.normal(2, 45, 40), "sinks": np.array([0.5, 9], np.float32)}
    p.attention(q, k, v, mask=p.rng.random((45, 40)) < 0.6, **options)
    p.attention(q, k, v, scale=-2)


def tensor_unaligned(p):
    """Rows that do not start at multiples of 16 bytes."""
    p.attention(*(x.astype(np.float16) for x in p.qkv(1, 2, 1, 20, 40, d=9, dv=7)))


def tensor_growth(p):
    """Scores that rise by hundreds from tile to tile."""
    q, k, v = p.qkv(1, 1, 1, 20, 64, d=8)
    q[..., 0], k[..., 0] = 4, np.arange(64) / 2
    p.attention(*(x.astype(np.float16) for x in (q, k, v)), scale=1.5)
    q[...], k[...] = 6e4, 5.5e4  # and such as have no digits left for their differences
    p.attention(*(x.astype(np.float16) for x in (q, k, v)))


def cut(p):
    """float32 keys in two parts, tails of rows and columns, sinks, rows that see one part or none."""
    q, k, v = p.qkv(1, 2, 1, 5, 90)
    p.attention(q, k, v, sinks=p.normal(2))
    p.attention(q, k, v, causal=True, q_offset=61)


def cut_tensor_cores(p):
    """The same of float16."""
    q, k, v = (x.astype(np.float16) for x in p.qkv(1, 2, 1, 5, 90, d=40, dv=24))
    p.attention(q, k, v, sinks=p.normal(2))
    p.attention(q, k, v, causal=True, q_offset=61)


def cut_few_queries(p):
    """float16, few enough for the kernels of decoding: all parts, one of them, queries before the first key."""
    q, k, v = (x.astype(np.float16) for x in p.qkv(1, 2, 1, 2, 200, d=40, dv=24))
    p.attention(q, k, v, sinks=p.normal(2))
    p.attention(q, k, v, kv_lengths=20)
    p.attention(q, k, v, q_offset=-5)


def masked(p):
    """Windows that begin and end inside tiles, at their edges, and leave whole ones out."""
    q, k, v = p.qkv(1, 1, 1, 32, 48)
    p.attention(q, k, v, causal=True)
    p.attention(q, k, v, window=(15, 0))
    p.attention(q, k, v, window=(3, 5))


def empty_rows(p):
    """Queries before the first key, and a sequence without keys."""
    q, k, v = p.qkv(2, 1, 1, 20, 18)
    p.attention(q, k, v, causal=True)
    p.attention(q, k, v, kv_lengths=np.array([0, 5]))


def far(p, dtype=np.float32):
    """Heads, and rows, so far from the first to the last that int32 does not count the elements."""
    step = 1_200_000_000
    q, k, v = (x.astype(dtype) for x in p.qkv(1, 5, 1, 6, 3))
    wide = memory.empty(2 * step + k.size, dtype, "keys", memory.SPARSE)
    rows = np.ndarray(k.shape, k.dtype, wide, strides=(0, 0, k.itemsize * step, k.itemsize))
    rows[...] = k
    for near_q, far_k, near_v in ((q, rows, v), (x.swapaxes(1, 2) for x in (q, rows, v))):
        arrays = p.backend.asarray(near_q), DeviceArray(far_k), p.backend.asarray(near_v)
        p.hold([cuflash.attention(*arrays)], [reference.attention(near_q, far_k, near_v)])


def tensor_far(p):
    """The same of float16."""
    far(p, np.float16)


def options(p):
    """All that changes a score, and sinks."""
    q, k, v = p.qkv(1, 2, 1, 20, 24, d=8)
    slopes = np.array([0.5, 0.25])
    p.attention(q, k, v, softcap=1.5, bias=p.normal(1, 2, 20, 24), sinks=np.array([0.5, -1.0], np.float32))
    p.attention(q, k, v, softcap=1.5, bias=cuflash.Alibi(slopes), mask=p.rng.random((20, 24)) < 0.6)


def gradients(p):
    """Grouped heads, tails, windows that leave tiles out; then softcap and the gradient of the lse."""
    q, k, v = p.qkv(1, 4, 2, 37, 40)
    p.gradients(q, k, v, causal=True)
    p.gradients(q, k, v, window=(6, 3), softcap=1.5, dlse=p.normal(1, 4, 37))


def broadcast(p):
    """Gradients of what several rows, heads and entries share, and of sinks."""
    q, k, v = p.normal(2, 3, 2, 1, 20, 8), p.normal(1, 3, 1, 1, 24, 8), p.normal(1, 3, 1, 1, 24, 9)
    p.gradients(q, k, v, bias=p.normal(20, 24), sinks=p.normal(1))
    p.gradients(q, k, v, bias=p.normal(3, 1, 1, 1, 24), sinks=p.normal(1))


def packed(p):
    """Members that end inside tiles, one without queries."""
    q, k, v = p.normal(40, 2, 8), p.normal(53, 1, 8), p.normal(53, 1, 9)
    starts = np.array([0, 5, 5, 40]), np.array([0, 20, 23, 53])
    moved = [p.backend.asarray(x) for x in (q, k, v, *starts)]
    found = cuflash.attention_varlen(*moved, causal=True, return_lse=True)
    p.hold(found, reference.attention_varlen(q, k, v, *starts, causal=True, return_lse=True))


def weights(p):
    """A mask, rows that see nothing or only scores of -inf, tiles in which nothing is seen."""
    q, k, _ = p.qkv(1, 2, 1, 40, 37)
    bias = p.normal(40, 37)
    bias[3] = bias[:, 5] = -np.inf
    for given in ({"causal": True}, {"mask": p.rng.random((40, 37)) < 0.6, "causal": True}, {"bias": bias}):
        found = cuflash.attention_weights(p.backend.asarray(q), p.backend.asarray(k), **p.move(given))
        p.hold([found], [reference.attention_weights(q, k, **given)])


def no_features(p):
    """No products, and none of their barriers."""
    q, k, v = p.qkv(1, 2, 1, 40, 37, d=0)
    found = cuflash.attention_weights(p.backend.asarray(q), p.backend.asarray(k))
    p.hold([found], [reference.attention_weights(q, k)])
    p.gradients(q, k, v)


def merge(p):
    """Five stacked parts of more columns than a warp takes at once; some saw nothing and hold NaN."""
    outs, lses = p.normal(5, 1, 2, 3, 150), p.normal(5, 1, 2, 3)
    p.hold(cuflash.merge(p.backend.asarray(outs), p.backend.asarray(lses)), reference.merge(outs, lses))
    lses[:, 0, 0, 0] = lses[2] = -np.inf
    right = reference.merge(outs, lses)
    outs[lses == -np.inf] = np.nan
    p.hold(cuflash.merge(p.backend.asarray(outs), p.backend.asarray(lses)), right)


def rotary(p):
    """Both kinds of pairs."""
    x, positions = p.normal(1, 3, 5, 12), np.arange(5) * 7
    for interleaved in (False, True):
        found = cuflash.rotary(p.backend.asarray(x), p.backend.asarray(positions), interleaved=interleaved, dim=8)
        p.hold([found], [reference.rotary(x, positions, interleaved=interleaved, dim=8)])


def edited_header(p):
    """A header is edited between two processes that share a cache."""
    p.patch.setenv("CUFLASH_CACHE_DIR", str(p.root / "cache"))
    forward(p)
    header = p.root / "attention" / "row_sum.cuh"
    header.write_text(header.read_text().replace("A(0) : number / sum", "A(0) : number"))
    p.forget()
    try:
        forward(p)
    except Wrong:
        return
    raise Stale("the kernel is still that of the header as it was")


def outcome(name, folder):
    """What was wrong ("wrong", "stale" or kinds of findings; nothing where all was right) and what was told of it.

    `name` is a mutant's, or a probe's for the sources as they are.
    """
    mutant = next((one for one in MUTANTS if one.name == name), None)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as scratch:
        patch.delenv("CUFLASH_CUBIN_DIR", raising=False)
        root = Path(shutil.copytree(_sources.folder(), Path(scratch, "rawkernels")))
        if mutant is not None:
            plant(mutant, root, patch)
        try:
            probe = Probe(root, folder, patch)
            with probe.backend.tiles("small"):
                chosen = name if mutant is None else mutant.probe
                (CACHE_PROBES.get(chosen) or globals()[chosen])(probe)
        except Finding as error:
            return re.findall(r"^\[([a-z-]+)\] ", str(error), re.MULTILINE), str(error)
        except (Wrong, Stale) as error:
            return [type(error).__name__.lower()], str(error)
    return [], ""


def place(mutant, root):
    """The file that a mutant changes."""
    return Path(_sources.__file__) if mutant.file == "_sources.py" else root / mutant.file


def plant(mutant, root, patch):
    """Change a copy of the kernels, or the loader."""
    path = place(mutant, root)
    text = path.read_text(encoding="utf-8").replace(mutant.old, mutant.new)
    if path.suffix != ".py":
        path.write_text(text, encoding="utf-8")
        return
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(text, path, "exec"), module.__dict__)
    patch.setattr(_sources, "read_closure", module.read_closure)
