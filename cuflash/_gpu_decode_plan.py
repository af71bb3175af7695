"""From a decoding step and a Gpu to a plan, and the launches around a cache. Pure, as `_gpu_plan`.

The keys of a sequence are cut every `part_keys`, which follows from the queries of a key/value head, and the kernel
follows from the dims, the dtype and the kind of device; so the bits of a sequence do not depend on its batch, on the
room of its cache, or on how many multiprocessors there are. How many blocks are launched does: one for each part that a
sequence can have at all, of which those beyond its own leave at once; or, where these would be many, as many as run at
once, which take turns at the parts that there are.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from cuflash import _configs, _gpu_plan
from cuflash._configs import Variant
from cuflash._device import Gpu
from cuflash._gpu_plan import Step
from cuflash._kernels import runs_on, spec
from cuflash._params import PLACES
from cuflash._problem.attention import Problem
from cuflash.errors import UnsupportedError

APPEND_VECTORS = 32  # keys and values that a block of kv_append takes
APPEND_SMEM_BYTES = 4
FIRST_QUERIES = 32  # of a key/value head, for which a workspace suffices that was made with its cache
PART_ROW_KEYS = 64  # a part has so many keys for each query of a key/value head, of which it counts as having
PART_ROWS_LEAST = 4  # at least so many, and at most FIRST_QUERIES
WAVES_MOST = 2  # times as many blocks as run at once, before these take turns: launching an empty one takes time, too


class DecodePlan(NamedTuple):
    """A decoding step over a cache."""

    step: Step  # the launch for sequences that fill the cache
    resident: int  # blocks that run at once
    tiles: int  # of queries, over all sequences and key/value heads: each has a counter in the workspace
    part_keys: int
    parts: int  # that a sequence as long as the cache allows is cut into
    why: str


@lru_cache(maxsize=1024)
def plan_decode(problem: Problem, gpu: Gpu) -> DecodePlan:
    """The blocks and the workspace of a decoding step."""
    _gpu_plan.check_sizes(problem, None)
    p = problem
    rows = p.group * p.lq
    if rows > _gpu_plan.SIZE_MOST:
        raise UnsupportedError(
            f"decode: {p.group} heads x lq={p.lq} share a key/value head, but GPU kernels count up to "
            f"{_gpu_plan.SIZE_MOST}; split the queries"
        )
    variant = choose_decode(problem, gpu, rows)
    tile = variant.tiles
    part_keys = part_size(rows)
    parts = count_parts(p, part_keys, p.lk)
    tiles = p.batch[0] * p.hk * -(-rows // tile.q_tile)
    step = Step(variant.spec, 0, tile.smem_bytes, tile.threads)
    resident = gpu.sms * _configs.blocks_at_once(tile, gpu.smem_block)
    plan = DecodePlan(step, resident, tiles, part_keys, parts, "")
    plan = plan._replace(step=decode_step(plan, parts))
    cut = f"into {parts} part(s), as asked" if p.splits else f"every {part_keys}"
    turns = f", which take turns at up to {tiles * parts} parts" if takes_turns(plan, parts) else ""
    why = (
        f"{variant.spec.kernel}: a block owns {say_queries(rows, tile.q_tile)}, and a part of the keys, which are cut "
        f"{cut}; the last block of a sequence to be done merges its parts; where all sequences fill the cache, "
        f"{_gpu_plan.say_busy(plan.step, gpu)}{turns}; {_gpu_plan.say_units(p, gpu, variant)}"
    )
    return plan._replace(why=why)


def choose_decode(problem: Problem, gpu: Gpu, rows: int) -> Variant:
    """What streams the cache, as far as there are tiles for the dims: for queries of 16 bits to the tensor cores, for
    float32 stored as such to the plain units.
    """
    p, codes = problem, problem.stored or "none"
    for find in (_configs.decode_mma, _configs.decode_fma) if p.d and p.dv else ():
        variant = find(p.dtype, codes, p.d, p.dv, rows)
        if variant and variant.tiles.smem_bytes <= gpu.smem_block and runs_on(variant.spec, gpu.arch):
            return variant
    return _configs.decode_simt(p.dtype, codes, p.d, p.dv, rows)


def say_queries(rows: int, q_tile: int) -> str:
    """A block's queries, of so many rows of a key/value head."""
    if rows == 1:
        return "the query of a key/value head"
    return f"{f'{q_tile} of the' if rows > q_tile else 'all'} {rows} queries that share a key/value head"


def part_size(rows: int) -> int:
    """Keys of a part: the more queries, the more, so that partial results stay few beside the keys."""
    return PART_ROW_KEYS * min(FIRST_QUERIES, max(PART_ROWS_LEAST, 1 << (rows - 1).bit_length()))


def count_parts(problem: Problem, part_keys: int, limit: int) -> int:
    """Parts that a sequence of up to `limit` keys can have, each of a key or more."""
    if problem.left is not None and problem.right is not None:
        limit = min(limit, problem.left + problem.right + problem.lq)
    return max(1, -(-limit // part_keys) if problem.splits is None else min(problem.splits, limit))


def count_numbers(problem: Problem, parts: int) -> int:
    """Numbers of the partial results of so many parts; none of one part, which is the result."""
    p = problem
    return p.batch[0] * p.hq * p.lq * parts * (p.dv + 2) if parts > 1 else 0


def longest_for(problem: Problem, part_keys: int, numbers: int) -> int:
    """Keys of the longest sequence whose partial results are no more than so many numbers, whatever it sees of them."""
    parts = max(1, numbers * 2 // count_numbers(problem, 2))
    return parts * (part_keys if problem.splits is None else 1)


def decode_step(plan: DecodePlan, parts: int) -> Step:
    """The launch for sequences of so many parts at the most; none where there is nothing to fill."""
    return plan.step._replace(grid=plan.resident if takes_turns(plan, parts) else plan.tiles * parts)


def takes_turns(plan: DecodePlan, parts: int) -> bool:
    """Whether blocks go on to other parts when they have done one."""
    return plan.tiles * parts > WAVES_MOST * plan.resident


def first_workspace(tokens: int, sequences: int, kv_heads: int, value_dim: int) -> tuple[int, int]:
    """Counters and numbers for a cache to begin with, which holds so many tokens in all.

    They suffice for a batch of all rows of a KVCache with up to FIRST_QUERIES queries for each key/value head: partial
    results are then 1 / PART_ROW_KEYS of the values, or twice that where sequences have few parts.
    """
    rows = -(-tokens // PART_ROW_KEYS)
    rows += min(rows, sequences * FIRST_QUERIES)
    return sequences * kv_heads * 4, rows * kv_heads * (value_dim + 2)


@lru_cache(maxsize=256)
def append_step(dtype: str, codes: str, b: int, vectors: int) -> Step:
    """The launch for so many keys and values of each of b sequences."""
    variant = spec("kv_append", dtype=f"Dtype::{dtype}", codes=f"Codes::{codes}")
    return Step(variant, b * append_blocks(vectors), APPEND_SMEM_BYTES)


def append_blocks(vectors: int) -> int:
    """Blocks that share the keys and values of a sequence."""
    return -(-vectors // APPEND_VECTORS)


def copy_pages_step(pages: int, page_bytes: int) -> Step:
    """The launch that copies so many pages, the largest of an array of so many bytes."""
    return Step(spec("copy_pages", chunk_bytes=_configs.COPY_CHUNK_BYTES), pages * 4 * copy_chunks(page_bytes), 0)


def copy_chunks(page_bytes: int) -> int:
    """Blocks that share a page of an array."""
    return -(-page_bytes // _configs.COPY_CHUNK_BYTES)


def scatter_step() -> Step:
    """The launch that writes up to PLACES integers."""
    return Step(spec("scatter", places=PLACES), 1, 0, PLACES)
