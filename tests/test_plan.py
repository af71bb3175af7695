"""Plans for devices that do not exist: they cover everything exactly once, and bits never depend on the device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuflash import _tuning
from cuflash._device import Device
from cuflash._numpy.blocks import walk
from cuflash._numpy.forward import _cut
from cuflash._plan import make_backward_plan, make_plan
from cuflash._problem.attention import Operands, Problem

DEVICES = [Device(threads) for threads in (1, 2, 3, 64)]
sizes = st.integers(0, 700)


@st.composite
def problems(draw):
    hk, group = draw(st.integers(1, 8)), draw(st.integers(1, 9))
    lq, lk = draw(sizes), draw(st.integers(0, 5000))
    bias = draw(st.sampled_from([None, (lq, lk), (hk * group, lq, lk), (lk,), (lq, 1)]))
    batch = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    return Problem(
        function=draw(st.sampled_from(["attention", "decode"])), dtype="float32", batch=batch,
        hq=hk * group, hk=hk, lq=lq, lk=lk,
        d=draw(st.integers(0, 256)), dv=draw(st.integers(0, 256)), scale=1.0, softcap=None,
        left=draw(st.sampled_from([None, 0, 100])), right=draw(st.sampled_from([None, 0, 7])), mask=False, bias=bias,
        alibi=False, sinks=False, kv_lengths=False, ragged=draw(st.booleans()),
        kv_batch=tuple(draw(st.sampled_from([size, 1])) for size in batch),
        splits=draw(st.sampled_from([None, 1, 3])),
    )  # fmt: skip


def operands(problem):
    nothing = np.empty(0)
    return Operands(nothing, nothing, nothing, problem.lk - problem.lq, problem.lk)


@given(problems())
def test_every_row_meets_every_key_it_sees_exactly_once(problem):
    plan = make_plan(problem, DEVICES[0])
    visits: dict = {}
    for block in walk(problem, operands(problem), plan):
        rows = block.entries * (block.heads.stop - block.heads.start) * (block.rows.stop - block.rows.start)
        assert rows * min(plan.kv_tile, max(problem.lk, 1)) <= _tuning.SCORE_TILE
        assert rows <= max(_tuning.BLOCK_ROWS, _tuning.SCORE_TILE // max(problem.lk, 1))
        first, last = block.heads.start // problem.group, (block.heads.stop - 1) // problem.group
        assert first == last or (block.heads.start % problem.group, block.heads.stop % problem.group) == (0, 0)
        spans = [part.keys for part, _, _ in _cut(plan, block)]
        keys = [key for span in spans for key in range(span.start, span.stop)]
        assert keys == list(range(block.keys.start, block.keys.stop))
        for head in range(block.heads.start, block.heads.stop):
            for i in range(block.entries):
                entry = (*block.entry[:-1], block.entry[-1] + i) if block.entry else ()
                visits.setdefault((entry, head), []).extend(range(block.rows.start, block.rows.stop))
    entries = list(np.ndindex(problem.batch))
    assert sorted(visits) == [(entry, h) for entry in entries for h in range(problem.hq) if problem.lq]
    assert all(rows == list(range(problem.lq)) for rows in visits.values())


@given(problems())
def test_tiles_and_parts_do_not_depend_on_threads(problem):
    assert len({make_plan(problem, device)._replace(work=0, threads=0, why="") for device in DEVICES}) == 1
    assert len({make_backward_plan(problem, device)._replace(work=0, threads=0, why="") for device in DEVICES}) == 1


@given(problems(), st.integers(1, 40), st.integers(1, 100_000))
def test_a_decoding_plan_does_not_depend_on_batch_or_capacity(problem, batch, capacity):
    problem = problem._replace(function="decode", batch=(1,), bias=None, ragged=True)
    other = problem._replace(batch=(batch,), lk=capacity)
    plans = [make_plan(p, DEVICES[1])._replace(work=0, threads=0, why="") for p in (problem, other)]
    assert plans[0] == plans[1]


@given(problems())
def test_a_backward_plan_covers_the_keys_with_few_copies_of_dq(problem):
    plan = make_backward_plan(problem, DEVICES[1])
    assert (plan.parts - 1) * plan.part < max(1, problem.lk) <= plan.parts * plan.part
    assert plan.parts <= _tuning.BACKWARD_PARTS_MOST
    assert plan.score_tile <= _tuning.SCORE_TILE
    assert plan.entries == 1 or problem.bias is None


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"lq": 8, "lk": 8}, "tiny: in the caller's thread"),
        ({"lq": 4096, "lk": 4096}, "2 thread(s)"),
        ({"lq": 1, "lk": 100_000}, "few queries over many keys: keys cut every 8192, read 4096 at a time"),
        ({"lq": 256, "lk": 100_000}, "few blocks over many keys: keys cut every 1024"),
        ({"lq": 1, "lk": 100_000, "splits": 5}, "keys cut into 5 part(s) as asked"),
    ],
)
def test_a_plan_says_why(sizes, words):
    base = {"function": "attention", "dtype": "float32", "batch": (), "hq": 1, "hk": 1, "d": 64, "dv": 64, "scale": 1.0}
    none = {"softcap": None, "left": None, "right": None, "bias": None}
    flags = {"mask": False, "alibi": False, "sinks": False, "kv_lengths": False, "ragged": False, "kv_batch": ()}
    assert words in make_plan(Problem(**base, **none, **flags, **sizes), DEVICES[1]).why
