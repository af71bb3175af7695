"""rotary and merge against the reference, and their identities."""

from itertools import pairwise

import numpy as np
import pytest
from backends import anything, host
from hypothesis import strategies as st

import cuflash
from cuflash import reference

NO = -np.inf


def rotate(check, x, positions, /, **options):
    """`cuflash.rotary` on a backend, held against the reference; the result as a NumPy array."""
    give = check.backend.give
    out = check.backend.to_numpy(cuflash.rotary(give(x), give(positions), **give(options)))
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    check.hold([out], reference.rotary, x.dtype, x, positions, **options)
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [None, 8, 2, 0])
@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_rotary(interleaved, dim, layout, dtype, check, normal):
    x = normal(2, 3, 11, 16, dtype=dtype)
    x = x.swapaxes(1, 2) if layout == "blhd" else x
    out = rotate(check, x, np.arange(11), interleaved=interleaved, dim=dim, layout=layout)
    kept = x.shape[-1] if dim is None else dim
    np.testing.assert_array_equal(out[..., kept:], x[..., kept:])


@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ((5, 4), np.arange(5)),
        ((5, 4), 3),
        ((5, 4), np.array([7])),
        ((3, 5, 4), [0, 1, 2, 3, 4]),
        ((2, 3, 5, 4), np.arange(10).reshape(2, 5)),
        ((2, 3, 5, 4), np.array([[3], [100]])),
        ((2, 2, 3, 5, 4), np.arange(10).reshape(2, 1, 5)),
        ((2, 3, 5, 4), np.linspace(0, 1, 5)),
        ((2, 3, 5, 4), -np.arange(5)),
        ((2, 3, 5, 4), np.arange(5, dtype=np.uint8)),
        ((0, 3, 5, 4), np.arange(5)),
        ((2, 3, 0, 4), np.arange(0)),
        ((2, 3, 5, 0), np.arange(5)),
    ],
)
@pytest.mark.parametrize("interleaved", [False, True])
def test_shapes_of_rotary(shape, positions, interleaved, check, normal):
    rotate(check, normal(*shape), positions, interleaved=interleaved)


@pytest.mark.parametrize(
    "options", [{"base": 500.0}, {"freqs": [0.1, 2.0, 0.0]}, {"freqs": np.array([1, 2, 3], np.float32)}]
)
def test_frequencies(options, check, normal):
    x = normal(2, 5, 8)
    rotate(check, x, np.arange(5), dim=6, **options)


def test_far_positions_keep_their_accuracy(check, normal):
    """Angles of 1e6 radians are not rounded to float32, which would leave an error of 0.06 radians."""
    x = normal(2, 3, 64)
    positions = np.array([0, 1_000_003, 12_345_677])
    out = rotate(check, x, positions)
    np.testing.assert_allclose(out, reference.rotary(x, positions), atol=2e-6)


def test_views_of_rotary(view, check, normal):
    x = normal(2, 3, 5, 8)
    (moved,) = check.move((x,), view)
    out = check.backend.to_numpy(cuflash.rotary(moved, check.backend.asarray(np.arange(5))))
    np.testing.assert_allclose(out, reference.rotary(x, np.arange(5)), atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotating_back_is_the_gradient_and_the_inverse(interleaved, backend, normal, assert_close):
    x, dout = (backend.asarray(normal(2, 3, 5, 8, dtype="float64", seed=seed)) for seed in range(2))
    positions = backend.asarray(np.arange(5) * 7)
    out = cuflash.rotary(x, positions, interleaved=interleaved)
    assert_close(backend.to_numpy(cuflash.rotary(out, -positions, interleaved=interleaved)), backend.to_numpy(x))
    dx = cuflash.rotary(dout, -positions, interleaved=interleaved)
    assert float(host((dout * out).sum())) == pytest.approx(float(host((dx * x).sum())), rel=1e-12)


def test_scores_depend_on_distances_alone(backend, qkv, assert_close):
    q, k, v = map(backend.asarray, qkv(1, 2, 1, 6, 6, 8, dtype="float64"))
    results = []
    for start in (0, 1000):
        positions = backend.asarray(start + np.arange(6))
        turned = [cuflash.rotary(x, positions) for x in (q, k)]
        results.append(backend.to_numpy(cuflash.attention(*turned, v, causal=True)))
    assert_close(results[0], results[1], ulps=4096)


def test_out_of_rotary(backend, normal, same_bytes):
    x, positions = backend.asarray(normal(2, 3, 5, 8)), backend.asarray(np.arange(5))
    expected = cuflash.rotary(x, positions, dim=4)
    out = backend.asarray(np.full((2, 3, 5, 8), np.nan, np.float32))
    assert cuflash.rotary(x, positions, dim=4, out=out) is out
    same_bytes(backend.to_numpy(out), backend.to_numpy(expected))
    turned = backend.asarray(normal(2, 5, 3, 8)).swapaxes(1, 2)
    assert cuflash.rotary(turned, positions).swapaxes(1, 2).flags.c_contiguous
    with pytest.raises(cuflash.ProblemError):
        cuflash.rotary(x, positions, dim=3, out=out)
    same_bytes(backend.to_numpy(out), backend.to_numpy(expected))


# merge


def parts_of(backend, q, k, v, cuts, **options):
    """Attention over each part of the keys."""
    edges = [0, *cuts, k.shape[-2]]
    pieces = [slice(*edge) for edge in pairwise(edges)]
    given = [[backend.asarray(x) for x in (q, k[..., piece, :], v[..., piece, :])] for piece in pieces]
    return [cuflash.attention(*operands, **options, return_lse=True) for operands in given]


@pytest.mark.parametrize("cuts", [[], [20], [0, 20], [5, 5, 30], [1, 2, 3, 39]])
def test_merged_parts_are_the_whole(cuts, dtype, check, qkv):
    backend = check.backend
    q, k, v = qkv(2, 4, 2, 7, 40, 16, dtype=dtype)
    outs, lses = zip(*parts_of(backend, q, k, v, cuts), strict=True)
    out, lse = map(backend.to_numpy, cuflash.merge(outs, lses))
    assert (out.dtype, lse.dtype) == (dtype, backend.to_numpy(lses[0]).dtype)
    exact, exact_lse = reference.attention(q, k, v, return_lse=True)
    tolerance = float(2.0**-7 if dtype.name == "bfloat16" else np.finfo(dtype).eps)
    np.testing.assert_allclose(out.astype(float), exact, rtol=8 * tolerance, atol=8 * tolerance)
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-6 if dtype != np.float64 else 1e-13)
    check.hold((out, lse), reference.merge, dtype, np.stack([*map(host, outs)]), np.stack([*map(host, lses)]))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_stacked_along_any_axis_of_the_lse(axis, backend, normal, same_bytes):
    outs, lses = normal(3, 2, 5, 4), normal(3, 2, 5, seed=1)
    sequences = [[backend.asarray(x) for x in array] for array in (outs, lses)]
    expected = cuflash.merge(*sequences)
    lse_axis = axis % 3
    stacked = [backend.asarray(np.moveaxis(array, 0, lse_axis).copy()) for array in (outs, lses)]
    for one, other in zip(cuflash.merge(*stacked, axis=axis), expected, strict=True):
        same_bytes(backend.to_numpy(one), backend.to_numpy(other))
    for one, other in zip(reference.merge(*map(backend.to_numpy, stacked), axis=axis), expected, strict=True):
        np.testing.assert_allclose(one, backend.to_numpy(other), rtol=1e-5, atol=1e-6)


def test_merge_is_associative_and_commutative_up_to_rounding(backend, normal, assert_close):
    outs = [backend.asarray(normal(2, 5, 4, dtype="float64", seed=seed)) for seed in range(4)]
    lses = [backend.asarray(30 * normal(2, 5, dtype="float64", seed=9 + seed)) for seed in range(4)]
    whole = cuflash.merge(outs, lses)
    left = (outs[0], lses[0])
    for part in zip(outs[1:], lses[1:], strict=True):
        left = cuflash.merge(*zip(left, part, strict=True))
    pairs = [cuflash.merge(outs[i : i + 2], lses[i : i + 2]) for i in (0, 2)]
    for other in (left, cuflash.merge(*zip(*pairs, strict=True)), cuflash.merge(outs[::-1], lses[::-1])):
        for one, two in zip(whole, other, strict=True):
            assert_close(backend.to_numpy(one), backend.to_numpy(two))


def test_parts_that_saw_nothing(backend, normal, same_bytes):
    """lse -inf adds nothing, whatever the output there holds; where no part saw a key, out is 0 and lse -inf."""
    outs, lses = normal(2, 3, 4), normal(2, 3, seed=1)
    lses[0, 1] = lses[:, 2] = NO
    results = []
    for poison in (0, np.nan, np.inf):
        outs[0, 1] = outs[:, 2] = poison
        moved = [[backend.asarray(x.copy()) for x in array] for array in (outs, lses)]
        results.append([backend.to_numpy(x) for x in cuflash.merge(*moved)])
    out, lse = results[0]
    np.testing.assert_array_equal(out[1], outs[1, 1])
    assert lse[1] == lses[1, 1]
    assert not out[2].any()
    assert lse[2] == NO
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            same_bytes(one, other)


def test_merge_does_not_overflow(backend):
    outs = [backend.asarray(np.full((1, 1, 2), x, np.float32)) for x in (1, 3)]
    lses = [backend.asarray(np.full((1, 1), x, np.float32)) for x in (1e30, 1e30)]
    out, lse = cuflash.merge(outs, lses)
    assert (backend.to_numpy(out) == 2).all()
    assert (backend.to_numpy(lse) == np.float32(1e30)).all()
    out, lse = cuflash.merge(outs, [lses[0], -lses[1]])
    assert (backend.to_numpy(out) == 1).all()


@anything(
    sizes=st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)),
    seed=st.integers(0, 2**32 - 1),
    hidden=st.floats(0, 1),
    spread=st.sampled_from([1, 100]),
)
def test_any_parts(backend, check_same, sizes, seed, hidden, spread):
    rng = np.random.default_rng(seed)
    outs, lses = rng.standard_normal(sizes), spread * rng.standard_normal(sizes[:-1])
    lses[rng.random(lses.shape) < hidden] = NO
    found = cuflash.merge(backend.asarray(outs), backend.asarray(lses))
    check_same.hold([backend.to_numpy(x) for x in found], reference.merge, outs.dtype, outs, lses)
