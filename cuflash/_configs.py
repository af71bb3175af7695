"""Variants: what a kernel is compiled for by dtype and dims, from the tables of `_tuning`. Both the register of kernels
and planning read it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from cuflash import _tuning

ITEMSIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
DIM_MOST = 512  # of d and dv
# Bytes of shared memory that a block may have on every GPU whose tensor cores take the dtype: 7.5, 8.6.
MMA_SMEM_BLOCK = {"float16": 64 << 10, "bfloat16": 99 << 10}
SMEM_RESERVED = 1024  # bytes that a block takes of a multiprocessor besides its own (on 7.5 none)
# Dims that some kernel tells apart from those above: from one of these to the next all are served alike.
WIDTHS = sorted(
    {dim for pair in _tuning.FWD_MMA for dim in pair}
    | {
        columns
        for table in (
            _tuning.FWD_SIMT, _tuning.BWD_Q_SIMT, _tuning.BWD_KV_SIMT, _tuning.BWD_BIAS_SIMT, _tuning.WEIGHTS_SIMT,
            _tuning.DECODE_SIMT, _tuning.DECODE_MMA, _tuning.DECODE_FMA,
        )
        for _, columns in table
    }
)  # fmt: skip
WARP = 32
THREADS = 128  # of a block, in every kernel without tiles for its warps
COPY_CHUNK_BYTES = 16384  # of a page of an array, that a block of copy_pages takes

# Tiles of keys of a warp.
DECODE_MMA_KEYS = 16
DECODE_FMA_KEYS = 8

Value = int | str
Config = tuple[tuple[str, Value], ...]


class Tiles(NamedTuple):
    """A row of a table of `_tuning`."""

    q_tile: int  # queries
    kv_tile: int  # keys
    blocks: int  # that a multiprocessor is to hold
    smem_bytes: int  # of a block: sizeof(Smem), which tests/test_gpu_plan.py has NVRTC compare

    @property
    def threads(self) -> int:
        """Of a block."""
        return THREADS


class MmaTiles(NamedTuple):
    """A row of a table of `_tuning` for tensor cores."""

    q_tile: int
    kv_tile: int
    warps: int
    blocks: int
    smem_bytes: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * self.warps


class DecodeTiles(NamedTuple):
    """The same for decoding by warps that walk keys of their own."""

    q_tile: int
    stages: int  # tiles of keys that a warp has under way
    warps: int
    blocks: int
    smem_bytes: int
    keys: int  # of a warp's tile

    @property
    def kv_tile(self) -> int:
        """Keys that all warps walk at a time."""
        return self.keys * self.warps

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * self.warps


class KernelSpec(NamedTuple):
    """One variant: all that compiling it depends on, but for the architecture."""

    kernel: str
    config: Config  # members of `Config` in the order of C++; text is a C++ expression, such as "Dtype::float32"


class Variant(NamedTuple):
    """A variant, and the tiles that its blocks own and walk."""

    spec: KernelSpec
    tiles: Tiles | MmaTiles | DecodeTiles
    columns: int  # that a block has room for


@lru_cache
def fwd_mma(dtype: str, d: int, dv: int) -> list[Variant]:
    """fwd_mma for queries of d and values of dv columns, best first; none where there is none."""
    if ITEMSIZES[dtype] != 2 or not (dims := [pair for pair in _tuning.FWD_MMA if d <= pair[0] and dv <= pair[1]]):
        return []
    rows = [MmaTiles(*row) for row in _tuning.FWD_MMA[dims[0]]]
    for_all = [i for i, tiles in enumerate(rows) if blocks_at_once(tiles, MMA_SMEM_BLOCK[dtype]) == tiles.blocks]
    rows = rows[: for_all[0] + 1] if for_all else rows
    head_dim, value_dim = dims[0]
    return [_variant("fwd_mma", dtype, tiles, value_dim, head_dim=head_dim, value_dim=value_dim) for tiles in rows]


def best_fwd_mma(dtype: str, d: int, dv: int, smem_block: int) -> Variant | None:
    """The first of them of which a multiprocessor has room for as many blocks as it should hold, else for one."""
    fitting = [variant for variant in fwd_mma(dtype, d, dv) if variant.tiles.smem_bytes <= smem_block]
    full = [variant for variant in fitting if blocks_at_once(variant.tiles, smem_block) == variant.tiles.blocks]
    return next(iter(full or fitting), None)


def blocks_at_once(tiles: Tiles | MmaTiles | DecodeTiles, smem_block: int) -> int:
    """Blocks that run at once on a multiprocessor, a block of which may ask for so many bytes of shared memory."""
    return min(tiles.blocks, (smem_block + SMEM_RESERVED) // (tiles.smem_bytes + SMEM_RESERVED))


@lru_cache
def fwd_simt(dtype: str, d: int, dv: int) -> Variant:
    """fwd_simt for queries of d and values of dv columns."""
    columns = _class(_kept(dv, d), dtype, _tuning.FWD_SIMT)
    return _simt("fwd_simt", _tuning.FWD_SIMT, dtype, columns, value_dim=columns)


@lru_cache
def bwd_q_simt(dtype: str, d: int, dv: int) -> Variant:
    """bwd_q_simt for queries of d and values of dv columns."""
    columns = _class(_kept(d, dv), dtype, _tuning.BWD_Q_SIMT)
    return _simt("bwd_q_simt", _tuning.BWD_Q_SIMT, dtype, columns, columns=columns)


@lru_cache
def bwd_kv_simt(dtype: str, dim: int) -> Variant:
    """bwd_kv_simt for keys and values of which the wider have `dim` columns; wider ones are cut into slices."""
    columns = _class(dim, dtype, _tuning.BWD_KV_SIMT)
    return _simt("bwd_kv_simt", _tuning.BWD_KV_SIMT, dtype, columns, columns=columns)


@lru_cache
def bwd_bias_simt(dtype: str, dim: int) -> Variant:
    """bwd_bias_simt for keys and values of which the wider have `dim` columns; it keeps a tile of the bias."""
    columns = _class(dim, dtype, _tuning.BWD_BIAS_SIMT)
    return _simt("bwd_bias_simt", _tuning.BWD_BIAS_SIMT, dtype, columns, columns=columns)


@lru_cache
def weights_simt(dtype: str, d: int) -> Variant:
    """weights_simt for queries of d columns, behind a forward pass without values; it keeps a tile of the weights."""
    columns = _class(d, dtype, _tuning.WEIGHTS_SIMT)
    return _simt("weights_simt", _tuning.WEIGHTS_SIMT, dtype, columns, value_dim=columns)


@lru_cache(maxsize=1024)
def decode_simt(dtype: str, codes: str, d: int, dv: int, rows: int) -> Variant:
    """decode_simt for queries of d and values of dv columns, so many for a key/value head, in the fewest tiles."""
    number = max(4, ITEMSIZES[dtype])
    columns = _least(_kept(dv, d), number, _tuning.DECODE_SIMT)
    known = [Tiles(*tiles) for tiles in _tuning.DECODE_SIMT[number, columns]]
    tiles = next((one for one in known if rows <= one.q_tile), known[-1])
    if codes != "none":
        tiles = tiles._replace(smem_bytes=tiles.smem_bytes + tiles.kv_tile * _tuning.DECODE_SCALE_BYTES)
    return _variant("decode_simt", dtype, tiles, columns, codes=f"Codes::{codes}", value_dim=columns)


@lru_cache(maxsize=1024)
def decode_mma(dtype: str, codes: str, d: int, dv: int, rows: int) -> Variant | None:
    """decode_mma for so many queries of a key/value head, in the fewest tiles; None where there is none."""
    number = ITEMSIZES[dtype] if codes == "none" else 1
    columns = _streamed(d, dv, number, _tuning.DECODE_MMA) if ITEMSIZES[dtype] == 2 else None
    if columns is None:
        return None
    tiles = _decode_tiles(_tuning.DECODE_MMA[number, columns], rows, DECODE_MMA_KEYS)
    dims = {"head_dim": columns, "value_dim": columns}
    return _variant("decode_mma", dtype, tiles, columns, codes=f"Codes::{codes}", **dims)


@lru_cache(maxsize=1024)
def decode_fma(dtype: str, codes: str, d: int, dv: int, rows: int) -> Variant | None:
    """decode_fma, likewise."""
    columns = _streamed(d, dv, 4, _tuning.DECODE_FMA) if (dtype, codes) == ("float32", "none") else None
    if columns is None:
        return None
    tiles = _decode_tiles(_tuning.DECODE_FMA[4, columns], rows, DECODE_FMA_KEYS)
    return _variant("decode_fma", dtype, tiles, columns, head_dim=columns, value_dim=columns)


def _streamed(d: int, dv: int, number: int, table: _tuning.DecodeTable) -> int | None:
    """The least number of columns that holds keys and values of numbers of so many bytes; None where there is none."""
    return next((columns for size, columns in table if size == number and max(d, dv) <= columns), None)


def _decode_tiles(table_rows: tuple[tuple[int, int, int, int, int], ...], rows: int, keys: int) -> DecodeTiles:
    """The tiles for so many queries."""
    known = [DecodeTiles(*row, keys) for row in table_rows]
    return next((one for one in known if rows <= one.q_tile), known[-1])


def _simt(kernel: str, table: _tuning.Table, dtype: str, columns: int, /, **member: int) -> Variant:
    return _variant(kernel, dtype, Tiles(*table[ITEMSIZES[dtype], columns]), columns, **member)


def _variant(
    kernel: str, dtype: str, tiles: Tiles | MmaTiles | DecodeTiles, columns: int, /, **members: Value
) -> Variant:
    """Its tiles are compiled in, but for what follows from the rest."""
    members = {"dtype": f"Dtype::{dtype}", **members, **tiles._asdict()}
    for follows in ("smem_bytes", "keys"):
        members.pop(follows, None)
    return Variant(KernelSpec(kernel, tuple(members.items())), tiles, columns)


def _kept(columns: int, features: int) -> int:
    """Columns that a block must have room for: blocks of the least class cannot sum many features in two steps."""
    return max(columns, min(features, 128))


def _class(dim: int, dtype: str, table: _tuning.Table) -> int:
    return _least(dim, ITEMSIZES[dtype], table)


def _least(dim: int, number: int, table: Mapping[tuple[int, int], object]) -> int:
    """The least number of columns of a table, for numbers of so many bytes, that holds `dim`; else the largest."""
    known = sorted(columns for size, columns in table if size == number)
    return next((columns for columns in known if dim <= columns), known[-1])
