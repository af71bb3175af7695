"""fwd_mma beyond what the contract's tests ask of every kernel: how it loads, and what it costs on the emulator."""

import time

import numpy as np
import pytest
from backends import on_emulator
from emulator.library import counters

import cuflash
from cuflash import reference


@on_emulator
@pytest.mark.parametrize(("d", "dv"), [(32, 32), (64, 64), (96, 96), (96, 64)])
def test_rows_are_read_from_shared_memory_without_conflicts(d, dv, check, backend, qkv):
    with backend.tiles("small"):
        check.attention(*qkv(1, 1, 1, 5, 40, d, dv, dtype="float16"))
    assert backend.runtime.launches[-1] == "fwd_mma"
    assert counters().matrix_loads > 0
    assert counters().bank_conflicts == 0


@on_emulator
@pytest.mark.parametrize("skip", [0, 1, 8], ids="skip {}".format)
@pytest.mark.parametrize("columns", [24, 21, 8], ids="columns {}".format)
def test_rows_in_vectors_and_number_by_number(columns, skip, check, backend, normal):
    """Only what starts, and is spaced, by multiples of 16 bytes is copied asynchronously."""
    q, k, v = (normal(1, 2, n, 32, dtype="float16", seed=n)[..., skip : skip + columns] for n in (20, 37, 37))
    wide = [backend.asarray(np.ascontiguousarray(x.base)) for x in (q, k, v)]
    views = [x[..., skip : skip + columns] for x in wide]
    with backend.tiles("small"):
        out = cuflash.attention(*views)
    copies = counters().copies
    assert (copies > 0) == (skip % 8 == 0)
    check.hold((backend.to_numpy(out),), reference.attention, q.dtype, q, k, v)


@on_emulator
def test_a_small_problem_takes_a_tenth_of_a_second(backend, qkv):
    arrays = [backend.asarray(x) for x in qkv(1, 2, 1, 64, 96, 64, dtype="float16")]
    seconds = []
    with backend.tiles("small"):
        for _ in range(4):
            start = time.process_time()
            cuflash.attention(*arrays, causal=True)
            seconds.append(time.process_time() - start)
    assert counters().mmas > 0
    assert min(seconds) < 0.1
