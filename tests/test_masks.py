"""Structured masks as values, and as `mask=` of attention."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cuflash
from cuflash import masks

WIDTHS = st.none() | st.integers(0, 6)


@given(left=WIDTHS, right=WIDTHS)
def test_visible_is_the_definition(left, right):
    q_idx, kv_idx = np.arange(-3, 9)[:, None], np.arange(7)
    expected = np.array([
        [(left is None or key >= query - left) and (right is None or key <= query + right) for key in range(7)]
        for query in range(-3, 9)
    ])  # fmt: skip
    visible = masks.Window(left, right).visible(q_idx, kv_idx)
    assert visible.dtype == bool
    np.testing.assert_array_equal(visible, expected)
    if (left, right) == (None, 0):
        np.testing.assert_array_equal(masks.Causal().visible(q_idx, kv_idx), expected)


def test_visible_broadcasts_and_takes_numbers():
    assert masks.Causal().visible(3, 3)
    assert not masks.Causal().visible(3, 4)
    assert masks.Window(1, 0).visible(np.zeros((2, 1, 5, 1)), np.zeros(7)).shape == (2, 1, 5, 7)


@given(one=st.tuples(WIDTHS, WIDTHS), other=st.tuples(WIDTHS, WIDTHS))
def test_and_shows_what_both_show(one, other):
    q_idx, kv_idx = np.arange(20)[:, None], np.arange(20)
    one, other = masks.Window(*one), masks.Window(*other)
    both = one & other
    assert isinstance(both, masks.Window)
    np.testing.assert_array_equal(
        both.visible(q_idx, kv_idx), one.visible(q_idx, kv_idx) & other.visible(q_idx, kv_idx)
    )
    assert both == other & one


def test_and_with_causal():
    assert masks.Causal() & masks.Window(3, 4) == masks.Window(3, 0)
    assert masks.Window(3, 4) & masks.Causal() == masks.Window(3, 0)
    with pytest.raises(TypeError):
        masks.Causal() & np.ones((3, 3), bool)


def test_values_are_frozen_equal_and_hashable():
    assert masks.Window(2, None) == masks.Window(np.int64(2), None)
    assert hash(masks.Window(2, None)) == hash(masks.Window(2, None))
    assert masks.Window(2, None) != masks.Window(2, 0)
    assert masks.Causal() == masks.Causal()
    assert {masks.Causal(), masks.Causal()} == {masks.Causal()}
    assert repr(masks.Causal()) == "Causal()"
    assert repr(masks.Window(2, None)) == "Window(left=2, right=None)"
    with pytest.raises(AttributeError):
        masks.Window(2, 0).left = 3


def test_causal_and_the_window_it_equals_hash_alike():
    """Equal values must have equal hashes, whichever way the two are compared."""
    one, other = masks.Causal(), masks.Window(None, 0)
    assert (one == other) == (other == one)
    assert one != other or hash(one) == hash(other)


@pytest.mark.parametrize(
    ("width", "error"), [(-1, cuflash.ProblemError), (1.5, TypeError), (True, TypeError), ("1", TypeError)]
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_wrong_widths(width, error, side):
    with pytest.raises(error, match=side):
        masks.Window(**{"left": 0, "right": 0} | {side: width})


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (masks.Causal(), {"causal": True}),
        (masks.Window(3, 1), {"window": (3, 1)}),
        (masks.Window(2, 2), {"window": 2}),
        (masks.Window(None, None), {}),
        (masks.Window(4, None) & masks.Causal(), {"causal": True, "window": (4, None)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("offset", [None, -2, 30])
def test_masks_are_the_options_they_stand_for(mask, options, offset, backend, qkv, same_bytes):
    q, k, v = map(backend.asarray, qkv(2, 2, 1, 9, 21, 4))
    one = cuflash.attention(q, k, v, mask=mask, q_offset=offset, return_lse=True)
    other = cuflash.attention(q, k, v, **options, q_offset=offset, return_lse=True)
    drawn = mask.visible(np.arange(9)[:, None] + (12 if offset is None else offset), np.arange(21))
    array = cuflash.attention(q, k, v, mask=backend.asarray(drawn), q_offset=offset, return_lse=True)
    for x, y, z in zip(one, other, array, strict=True):
        same_bytes(backend.to_numpy(x), backend.to_numpy(y))
        np.testing.assert_allclose(backend.to_numpy(x), backend.to_numpy(z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", [masks.Causal(), masks.Window(3, None)], ids=str)
def test_masks_compose_with_options(mask, check, qkv):
    q, k, v = qkv(2, 2, 1, 9, 21, 4)
    check.attention(q, k, v, mask=mask, causal=True, window=(5, 2), kv_lengths=np.array([21, 15]))
    check.backward(normal_like(q), q, k, v, mask=mask, window=(5, 2))
    check.weights(q, k, mask=mask, window=(5, 2))


def normal_like(x):
    return np.random.default_rng(1).standard_normal(x.shape).astype(x.dtype)


def test_masks_that_show_the_same_are_equal():
    assert masks.Causal() == masks.Window(None, 0)
    assert hash(masks.Causal()) == hash(masks.Window(None, 0))
    assert masks.Causal() != masks.Window(None, 1)
    assert masks.Window(1, 0) != (1, 0)
