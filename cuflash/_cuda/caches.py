"""Caches on a device: decoding over them, appending to them, copying their pages, changing their lengths and tables.

Lengths and page tables are read by kernels alone. What a cache needs beside its arrays is `Kept` between its calls, so
that calls allocate nothing once it is there, and a graph may be made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cuflash._cuda.operands import (
    NO_TOKENS,
    Batch,
    Remembered,
    constant,
    converted,
    empty_like,
    in_elements,
    integers,
    launch,
    of_array,
    reals,
    side,
)
from cuflash._gpu_decode_plan import (
    DecodePlan,
    append_blocks,
    append_step,
    copy_chunks,
    copy_pages_step,
    count_numbers,
    count_parts,
    decode_step,
    longest_for,
    plan_decode,
    scatter_step,
    takes_turns,
)
from cuflash._params import APPEND, COPY_PAGES, DECODE, FARTHEST, PLACES, SCATTER, UNSET
from cuflash._problem.attention import Call, Problem
from cuflash._problem.caches import Append, Store
from cuflash._runtime import Runtime
from cuflash.errors import CacheFullError

Array = Any
Write = tuple[Array, Any, Any]  # an int32 array in C order, places in it, and what is to stand there

ENTRIES = Batch((1, 1, 1, 1))  # strides of arrays (b, ...): their first axis is the last of the batch
ROWS_KEPT = 64  # lists of sequences that stay on the device: the last ones used


class Kept:
    """What a cache keeps on the device beside its arrays: counters, room for partial results, lists of sequences.

    Whatever a captured graph uses stays as long as the cache. A copy of the cache is held by no graph. Calls on several
    streams must be ordered by whoever makes them, since all of them write here as they do into the cache itself.
    """

    def __init__(self, runtime: Runtime, sequences: int) -> None:
        self.dropped = runtime.zeros((sequences,), np.int32)  # tokens that found no room
        # Of sequences in pages: tokens in pages that others hold too, and where room ends. int32 (sequences,)
        self.shared: Array | None = None
        self.reserved: Array | None = None
        self.pages: Any = None  # the `MirroredPages`
        self.tickets = runtime.zeros((0,), np.uint32)
        self.numbers: Array | None = None
        self.captured = False
        self.looked_at = FARTHEST  # tokens of a sequence that every graph looks at, if there are so many
        self._rows = Remembered(ROWS_KEPT)
        self._held: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"captured": False, "looked_at": FARTHEST, "_held": []}

    def check_replaceable(self, function: str) -> None:
        """Arrays of which a graph knows the addresses cannot make place for larger ones."""
        if self.captured:
            raise CacheFullError(
                f"{function}: needs larger arrays than a captured graph knows of; make room before the capture begins "
                "(a cache of larger capacity, `reserve`, `add`), or go on with a copy of the cache"
            )

    def rows(self, runtime: Runtime, rows: np.ndarray | None) -> Array | None:
        """A list of sequences as kernels read it, int32."""
        if rows is None:
            return None
        return self._rows.get(rows.tobytes(), lambda: runtime.asarray(rows.astype(np.int32)))

    def make_room(self, runtime: Runtime, tickets: int, numbers: int = 0, dtype: Any = np.float32) -> None:
        """Have so many counters, all 0, and numbers.

        At least twice as many take the place of those that are too few, which stay: a graph may know them, and what
        other streams were given before may still write there.
        """
        if tickets > self.tickets.size:
            more = runtime.zeros((max(tickets, 2 * self.tickets.size),), np.uint32)
            self._held.append(self.tickets)
            self.tickets = more
        if self.numbers is None:
            self.numbers = runtime.empty((numbers,), dtype) if numbers else None
        elif numbers > self.numbers.size:
            more = runtime.empty((max(numbers, 2 * self.numbers.size),), dtype)
            self._held.append(self.numbers)
            self.numbers = more

    def launched(self, runtime: Runtime, rows: Array | None, looks_at: int = FARTHEST) -> None:
        """After a launch: what a graph that is being captured knows of stays."""
        if runtime.capturing():
            self.captured, self.looked_at = True, min(self.looked_at, looks_at)
            self._held += [] if rows is None else [rows]


def decode(runtime: Runtime, call: Call) -> tuple[Array, Array | None]:
    """Output and lse of a decoding step, in the arrays that it brought or in new ones."""
    p, o = call.problem, call.operands
    store: Store = o.store
    kept: Kept = store.kept
    given = {"q": o.q, "cache": store.k, "bias": o.bias, "sinks": o.sinks, "out": call.out}
    runtime.check_current(p.function, **{name: array for name, array in given.items() if array is not None})
    plan = plan_decode(p, runtime.gpu())
    out = empty_like(runtime, call.like, call.out_shape) if call.out is None else call.out
    lse = runtime.empty(call.lse_shape, p.accumulator) if call.return_lse else None
    if plan.tiles and (out.size or lse is not None):
        limit = _make_room(runtime, call, plan)
        parts = count_parts(p, plan.part_keys, limit)
        rows, slopes = kept.rows(runtime.lasting, o.seqs), None if o.slopes is None else constant(runtime, o.slopes)
        out_at, out_strides = of_array(runtime, call.canonical(out) if out.size else None, ENTRIES)
        lse_at, lse_strides = of_array(runtime, None if lse is None else call.canonical_lse(lse), ENTRIES, 2)
        launch(
            runtime, decode_step(plan, parts), DECODE, q=runtime.pointer(o.q), q_strides=ENTRIES.strides(o.q),
            cache=_cache_fields(runtime, store), seqs=_address(runtime, rows), lengths=runtime.pointer(store.lengths),
            q_offset=UNSET, bias=reals(runtime, o.bias, ENTRIES), slopes=reals(runtime, slopes, ENTRIES, 1),
            sinks=reals(runtime, o.sinks, ENTRIES, 1), left=side(p.left), right=side(p.right), scale=p.scale,
            softcap=p.softcap or 0.0, out=out_at, out_strides=out_strides, lse=lse_at, lse_strides=lse_strides,
            **_workspace(runtime, kept, p, parts), b=p.batch[0], hq=p.hq, hk=p.hk, lq=p.lq, d=p.d, dv=p.dv,
            part_keys=plan.part_keys, splits=parts if p.splits else 0, parts=parts,
            listed=int(takes_turns(plan, parts)), limit=limit,
        )  # fmt: skip
        kept.launched(runtime, rows, limit if limit < _limits(call)[1] else FARTHEST)
    return out, lse


def explain_decode(runtime: Runtime, call: Call) -> DecodePlan:
    """The plan of a decoding step, and how much its partial results take."""
    p, plan = call.problem, plan_decode(call.problem, runtime.gpu())
    parts = count_parts(p, plan.part_keys, _limits(call)[0])
    size = count_numbers(p, parts) * np.dtype(p.accumulator).itemsize
    taken = f"up to {parts} part(s) of a sequence now, for which a workspace of {size} bytes is taken"
    return plan._replace(why=f"{plan.why}; {taken}")


def _make_room(runtime: Runtime, call: Call, plan: DecodePlan) -> int:
    """Have a workspace; returns the position from which on no key is looked at, whatever the lengths say.

    It is for sequences as long as their pages are now. A graph may be replayed when they have more, so it looks at all
    that the table can list, or where that takes a larger workspace, as far as this one allows: then no sequence of the
    cache gets pages beyond that.
    """
    p, kept = call.problem, call.operands.store.kept
    now, most = _limits(call)
    kept.make_room(runtime.lasting, plan.tiles, count_numbers(p, count_parts(p, plan.part_keys, now)), p.accumulator)
    if now == most or not runtime.capturing():
        return now
    room = 0 if kept.numbers is None else kept.numbers.size
    if count_numbers(p, count_parts(p, plan.part_keys, most)) <= room:
        return most
    return longest_for(p, plan.part_keys, room)


def _limits(call: Call) -> tuple[int, int]:
    """The longest that a sequence can be as its pages are now, and as many as the table can list."""
    pages, bias, most = call.operands.store.kept.pages, call.operands.bias, call.problem.lk
    if bias is not None:
        most = min(most, bias.shape[-1])
    return most if pages is None else min(most, pages.reach), most


def _workspace(runtime: Runtime, kept: Kept, problem: Problem, parts: int) -> dict[str, int]:
    """Where partial outputs, their maxima and sums, and counters lie."""
    tickets = runtime.pointer(kept.tickets)
    if kept.numbers is None or parts == 1:
        return {"part_outs": 0, "part_sums": 0, "tickets": tickets}
    start, rows = runtime.pointer(kept.numbers), count_numbers(problem, parts) // (problem.dv + 2)
    return {
        "part_outs": start, "part_sums": start + rows * problem.dv * kept.numbers.dtype.itemsize, "tickets": tickets,
    }  # fmt: skip


def append(runtime: Runtime, new: Append, store: Store) -> None:
    """The first `counts[i]` tokens of entry i go behind those of its sequence, whose length rises."""
    kept: Kept = store.kept
    (b, hk, l, d), dv = new.k.shape, new.v.shape[-1]
    counts = _counts(runtime, new)
    on_device = {} if type(counts) is int else {"lengths": counts}
    runtime.check_current(new.function, k=new.k, v=new.v, cache=store.k, **on_device)
    codes = "none" if store.k_scale is None else store.dtype.name
    rows = kept.rows(runtime.lasting, new.rows)
    kept.make_room(runtime.lasting, b)
    vectors = 2 * hk * l
    launch(
        runtime, append_step(new.dtype, codes, b, vectors), APPEND, k=runtime.pointer(new.k), v=runtime.pointer(new.v),
        k_strides=ENTRIES.strides(new.k), v_strides=ENTRIES.strides(new.v), cache=_cache_fields(runtime, store),
        seqs=_address(runtime, rows), counts=integers(runtime, counts, ENTRIES),
        lengths=runtime.pointer(store.lengths), shared=_address(runtime, kept.shared),
        reserved=_address(runtime, kept.reserved), dropped=runtime.pointer(kept.dropped),
        tickets=runtime.pointer(kept.tickets), b=b, hk=hk, l=l, d=d, dv=dv, blocks=append_blocks(vectors),
    )  # fmt: skip
    kept.launched(runtime, rows)


def _counts(runtime: Runtime, new: Append) -> int | Array:
    """How many tokens are real: a number for all, or integers on the device."""
    if new.counts is not new.most:
        return new.counts if new.counts.dtype in (np.int32, np.int64) else converted(runtime, new.counts, np.int64)
    if new.whole or (new.counts == new.counts[:1]).all():
        return int(new.counts[0]) if new.counts.size else 0
    return runtime.asarray(np.ascontiguousarray(new.counts))


def _cache_fields(runtime: Runtime, store: Store) -> tuple[float, ...]:
    """The fields of `Cache`."""
    arrays = (store.k, store.v, store.k_scale, store.v_scale)
    table = store.page_table
    rows, tokens = store.k.shape[:2]
    where = (0, 0) if table is None else (runtime.pointer(table), *in_elements(table.strides[:1], table))
    addresses = (_address(runtime, x) for x in arrays)
    k, v, k_scale, v_scale = (NO_TOKENS if x is None else (*in_elements(x.strides, x), 0)[:4] for x in arrays)
    entries = 1 if table is None else table.shape[1]
    return (*addresses, *k, *v, *k_scale, *v_scale, *where, rows, tokens, entries)


def _address(runtime: Runtime, array: Array | None) -> int:
    return 0 if array is None else runtime.pointer(array)


def copy_pages(runtime: Runtime, store: Store, sources: Sequence[int], targets: Sequence[int]) -> None:
    """Whole pages, whatever lies behind a sequence's length in them."""
    pages = [x for x in (store.k, store.v, store.k_scale, store.v_scale) if x is not None]
    sizes = [x.nbytes // len(x) for x in pages]
    places = runtime.asarray(np.array([sources, targets], np.int32))
    none = (0,) * (4 - len(pages))
    launch(
        runtime, copy_pages_step(len(sources), max(sizes)), COPY_PAGES,
        arrays=(*map(runtime.pointer, pages), *none), bytes=(*sizes, *none),
        sources=runtime.pointer(places[0]), targets=runtime.pointer(places[1]),
        count=len(sources), chunks=copy_chunks(max(sizes)),
    )  # fmt: skip


def scatter(runtime: Runtime, writes: Sequence[Write]) -> None:
    """Write integers into arrays in the order of the stream; no place twice, and never in a graph."""
    assert not runtime.capturing()
    at: list[int] = []
    values: list[int] = []
    for array, places, numbers in writes:
        runtime.check_current("cache", lengths=array)
        start = runtime.pointer(array)
        at += [start + 4 * place for place in np.ravel(places).tolist()]
        values += np.ravel(numbers).tolist()
    for start in range(0, len(at), PLACES):
        some, numbers = at[start : start + PLACES], values[start : start + PLACES]
        none = (0,) * (PLACES - len(some))
        launch(runtime, scatter_step(), SCATTER, at=(*some, *none), values=(*numbers, *none), count=len(some))
