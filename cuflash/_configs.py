"""What the kernels are compiled for: the `Config` of each by dtype and dims, from the tables of
`_tuning`. Both the register of kernels and planning read it here.
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
COPY_CHUNK_BYTES = 16384  # of a page of an array, that a block of copy_pages takes

Members = Mapping[str, int | bool | str]


class Tiles(NamedTuple):
    """A row of a table of `_tuning`."""

    q_tile: int  # queries
    kv_tile: int  # keys
    blocks: int  # that a multiprocessor is to hold
    smem_bytes: int  # of a block: sizeof(Smem), which tests/test_gpu_plan.py has NVRTC compare


class MmaTiles(NamedTuple):
    """A row of a table of `_tuning` for tensor cores."""

    q_tile: int  # queries
    kv_tile: int  # keys
    warps: int
    blocks: int  # that a multiprocessor is to hold
    smem_bytes: int  # of a block


class DecodeTiles(NamedTuple):
    """The same for decoding."""

    q_tile: int
    stages: int  # tiles of keys that a warp has under way
    warps: int
    blocks: int
    smem_bytes: int

    @property
    def kv_tile(self) -> int:
        """Keys that the warps of decode_mma walk at a time, 16 each."""
        return 16 * self.warps


class Mma(NamedTuple):
    """A variant of a kernel on tensor cores."""

    config: tuple[tuple[str, int | bool | str], ...]  # members in the order of C++
    tiles: MmaTiles


class DecodeMma(NamedTuple):
    """The same for decoding."""

    config: tuple[tuple[str, int | bool | str], ...]
    tiles: DecodeTiles


class DecodeFma(NamedTuple):
    """The same for decoding on the plain units."""

    config: tuple[tuple[str, int | bool | str], ...]
    tiles: DecodeTiles


class Simt(NamedTuple):
    """A variant of a kernel."""

    config: tuple[tuple[str, int | bool | str], ...]  # members in the order of C++
    columns: int  # that a block keeps in registers
    tiles: Tiles


@lru_cache
def fwd_mma(dtype: str, d: int, dv: int) -> list[Mma]:
    """fwd_mma for queries of d and values of dv columns, best first; none where there is none."""
    if ITEMSIZES[dtype] != 2 or not (dims := [pair for pair in _tuning.FWD_MMA if d <= pair[0] and dv <= pair[1]]):
        return []
    members: Members = {"dtype": f"Dtype::{dtype}", "head_dim": dims[0][0], "value_dim": dims[0][1]}
    rows = [MmaTiles(*row) for row in _tuning.FWD_MMA[dims[0]]]
    for_all = [i for i, tiles in enumerate(rows) if blocks_at_once(tiles, MMA_SMEM_BLOCK[dtype]) == tiles.blocks]
    rows = rows[: for_all[0] + 1] if for_all else rows
    return [Mma((*members.items(), *_members(tiles)), tiles) for tiles in rows]


def best_fwd_mma(dtype: str, d: int, dv: int, smem_block: int) -> Mma | None:
    """The first of them of which a multiprocessor has room for as many blocks as it should hold, else for one."""
    fitting = [variant for variant in fwd_mma(dtype, d, dv) if variant.tiles.smem_bytes <= smem_block]
    full = [variant for variant in fitting if blocks_at_once(variant.tiles, smem_block) == variant.tiles.blocks]
    return next(iter(full or fitting), None)


def blocks_at_once(tiles: Tiles | MmaTiles | DecodeTiles, smem_block: int) -> int:
    """Blocks that run at once on a multiprocessor, a block of which may ask for so many bytes of shared memory."""
    return min(tiles.blocks, (smem_block + SMEM_RESERVED) // (tiles.smem_bytes + SMEM_RESERVED))


@lru_cache
def fwd_simt(dtype: str, d: int, dv: int) -> Simt:
    """fwd_simt for queries of d and values of dv columns."""
    columns = _class(_kept(dv, d), _tuning.FWD_SIMT)
    return _simt(_tuning.FWD_SIMT, dtype, columns, value_dim=columns)


@lru_cache
def bwd_q_simt(dtype: str, d: int, dv: int) -> Simt:
    """bwd_q_simt for queries of d and values of dv columns."""
    columns = _class(_kept(d, dv), _tuning.BWD_Q_SIMT)
    return _simt(_tuning.BWD_Q_SIMT, dtype, columns, columns=columns)


@lru_cache
def bwd_kv_simt(dtype: str, dim: int) -> Simt:
    """bwd_kv_simt for keys and values of which the wider have `dim` columns; wider ones are cut into slices."""
    columns = _class(dim, _tuning.BWD_KV_SIMT)
    return _simt(_tuning.BWD_KV_SIMT, dtype, columns, columns=columns)


@lru_cache
def bwd_bias_simt(dtype: str) -> Simt:
    """bwd_bias_simt, which keeps a tile of the bias."""
    return _simt(_tuning.BWD_BIAS_SIMT, dtype, 0, columns=0)


@lru_cache
def weights_simt(dtype: str) -> Simt:
    """weights_simt, which keeps a tile of the weights."""
    return _simt(_tuning.WEIGHTS_SIMT, dtype, 0, value_dim=0)


@lru_cache(maxsize=1024)
def decode_simt(dtype: str, codes: str, d: int, dv: int, rows: int) -> Simt:
    """decode_simt for queries of d and values of dv columns, so many for a key/value head, in the fewest tiles."""
    number = max(4, ITEMSIZES[dtype])
    columns = _class(_kept(dv, d), _tuning.DECODE_SIMT)
    known = [Tiles(*tiles) for tiles in _tuning.DECODE_SIMT[number, columns]]
    tiles = next((one for one in known if rows <= one.q_tile), known[-1])
    if codes != "none":
        tiles = tiles._replace(smem_bytes=tiles.smem_bytes + tiles.kv_tile * _tuning.DECODE_SCALE_BYTES)
    members: Members = {"dtype": f"Dtype::{dtype}", "codes": f"Codes::{codes}", "value_dim": columns}
    return Simt((*members.items(), *_members(tiles)), columns, tiles)


@lru_cache(maxsize=1024)
def decode_mma(dtype: str, codes: str, d: int, dv: int, rows: int) -> DecodeMma | None:
    """decode_mma for so many queries of a key/value head, in the fewest tiles; None where there is none."""
    found = _decode_tiles(_tuning.DECODE_MMA, dtype, codes, d, dv, rows) if ITEMSIZES[dtype] == 2 else None
    if found is None:
        return None
    columns, tiles = found
    members: Members = {"dtype": f"Dtype::{dtype}", "codes": f"Codes::{codes}"}
    members = {**members, "head_dim": columns, "value_dim": columns}
    return DecodeMma((*members.items(), *_members(tiles)), tiles)


@lru_cache(maxsize=1024)
def decode_fma(dtype: str, codes: str, d: int, dv: int, rows: int) -> DecodeFma | None:
    """decode_fma, likewise."""
    found = _decode_tiles(_tuning.DECODE_FMA, dtype, codes, d, dv, rows) if dtype == "float32" else None
    if found is None:
        return None
    columns, tiles = found
    members: Members = {"dtype": f"Dtype::{dtype}", "head_dim": columns, "value_dim": columns}
    return DecodeFma((*members.items(), *_members(tiles)), tiles)


def _decode_tiles(
    table: _tuning.DecodeTable, dtype: str, codes: str, d: int, dv: int, rows: int
) -> tuple[int, DecodeTiles] | None:
    """The least number of columns that holds keys and values, and its tiles."""
    number = ITEMSIZES[dtype] if codes == "none" else 1
    columns = next((most for size, most in table if size == number and max(d, dv) <= most), None)
    if columns is None:
        return None
    known = [DecodeTiles(*tiles) for tiles in table[number, columns]]
    return columns, next((one for one in known if rows <= one.q_tile), known[-1])


def _simt(table: _tuning.Table, dtype: str, columns: int, /, **member: int) -> Simt:
    tiles = Tiles(*table[ITEMSIZES[dtype], columns])
    members: Members = {"dtype": f"Dtype::{dtype}", **member}
    return Simt((*members.items(), *_members(tiles)), columns, tiles)


def _members(tiles: Tiles | MmaTiles | DecodeTiles) -> list[tuple[str, int]]:
    """What of a row is compiled in: all but the bytes of shared memory that follow from it."""
    return list(tiles._asdict().items())[:-1]


def _kept(columns: int, features: int) -> int:
    """Columns that a block must have room for: blocks of the least class cannot sum many features in two steps."""
    return max(columns, min(features, 128))


def _class(dim: int, table: Mapping[tuple[int, int], object]) -> int:
    """The least number of columns in a table that holds `dim`, else the largest."""
    known = sorted({columns for _, columns in table})
    return next((columns for columns in known if dim <= columns), known[-1])
