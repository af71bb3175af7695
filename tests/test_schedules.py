"""Kernels whose copies are under way while they compute have the same bits in every order of threads, wherever shared
memory starts, and whenever copies land.
"""

import pytest
from backends import on_emulator

import cuflash

SEEDS = 24
ONE_WARP_AHEAD = {"schedule": 0, "block_order": 1}  # each thread runs as far as it can: warps drift apart


@pytest.fixture
def orders(backend):
    """The settings of each run, as changes to those of the runtime; they are undone."""
    before = backend.runtime.settings

    def each():
        for seed in range(SEEDS):
            order = ONE_WARP_AHEAD if seed % 4 == 0 else {"schedule": seed % 3, "block_order": seed % 3}
            moved = {"seed": seed, "shared_base": (0x400, 0x480)[seed % 2], "landing": seed // 2 % 3}
            backend.runtime.settings = before | order | moved
            yield seed

    yield each
    backend.runtime.settings = before


@on_emulator
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "options", [{"causal": True}, {"window": (9, 3), "sinks": 2}, {"softcap": 2.0, "bias": 61}], ids=list
)
def test_fwd_mma_has_the_same_bits_in_every_order(options, dtype, backend, orders, qkv, normal):
    q, k, v = qkv(1, 2, 1, 45, 61, 40, 24, dtype=dtype)
    arrays = [backend.asarray(x) for x in (q, k, v)]
    options = {name: normal(n, dtype="float32") if name in ("sinks", "bias") else n for name, n in options.items()}
    options = backend.give(options)
    results = []
    with backend.tiles("small"):
        for _ in orders():
            out, lse = cuflash.attention(*arrays, return_lse=True, **options)
            results.append((backend.to_numpy(out).tobytes(), backend.to_numpy(lse).tobytes()))
        assert backend.runtime.launches[-1] == "fwd_mma"
    assert len(results) == SEEDS
    assert set(results) == {results[0]}


@on_emulator
@pytest.mark.parametrize(
    ("dtype", "stored", "splits", "kernel"),
    [
        ("float16", None, 1, "decode_mma"),
        ("float16", None, None, "decode_mma"),
        ("float16", "int8", 1, "decode_mma"),
        ("float16", "float8_e4m3fn", None, "decode_mma"),
        ("float32", None, 1, "decode_fma"),
        ("float32", None, None, "decode_fma"),
    ],
)
def test_decoding_has_the_same_bits_in_every_order(dtype, stored, splits, kernel, backend, orders, make_cache, normal):
    k, v = normal(2, 1, 90, 48, dtype=dtype), normal(2, 1, 90, 24, dtype=dtype, seed=1)
    with backend.tiles("small"):
        cache = make_cache(k, v, [90, 35], dtype=stored)
        q = backend.asarray(normal(2, 4, 1, 48, dtype=dtype, seed=2))
        results = []
        for _ in orders():
            out, lse = cuflash.decode(q, cache, splits=splits, return_lse=True)
            results.append((backend.to_numpy(out).tobytes(), backend.to_numpy(lse).tobytes()))
        assert backend.runtime.launches[-1] == kernel
    assert len(results) == SEEDS
    assert set(results) == {results[0]}
