"""The reference itself, held against cases done by hand, identities, and finite differences."""

from types import SimpleNamespace

import numpy as np
import pytest

from cuflash import Alibi, masks, reference
from cuflash.errors import ProblemError

LN2, LN3 = np.log(2.0), np.log(3.0)
NO = -np.inf


def column(*numbers):
    return np.array(numbers, float)[:, None]


# Cases done by hand: one feature, scale 1, so that the scores are q * k.


@pytest.mark.parametrize(
    ("q", "k", "v", "options", "out", "lse"),
    [
        pytest.param([1], [0, LN3], [0, 4], {}, [3], [np.log(4)], id="weights 1/4 and 3/4"),
        pytest.param([1], [0, LN3], [0, 4], {"scale": 0}, [2], [LN2], id="scale 0 is the mean"),
        pytest.param([2], [0, LN3], [0, 10], {"scale": 0.5}, [7.5], [np.log(4)], id="scale 1/2"),
        pytest.param([0, 0], [5, 6], [2, 4], {"causal": True}, [2, 3], [0, LN2], id="causal, square"),
        pytest.param([0], [5, 6], [2, 4], {"causal": True}, [3], [LN2], id="causal: the last query sees all"),
        pytest.param([0, 0], [9], [2], {"causal": True}, [0, 2], [NO, 0], id="causal: more queries than keys"),
        pytest.param([0, 0], [5, 6, 7], [3, 6, 9], {"causal": True, "q_offset": 0}, [3, 4.5], [0, LN2], id="top-left"),
        pytest.param([0] * 3, [1, 1, 1], [3, 6, 9], {"window": 0}, [3, 6, 9], [0, 0, 0], id="window 0"),
        pytest.param([0] * 3, [1, 1, 1], [3, 6, 9], {"window": 1}, [4.5, 6, 7.5], [LN2, LN3, LN2], id="window 1"),
        pytest.param([0] * 3, [1, 1, 1], [3, 6, 9], {"window": (1, 0)}, [3, 4.5, 7.5], [0, LN2, LN2], id="window left"),
        pytest.param([0] * 3, [1] * 3, [3, 6, 9], {"window": (2**70, 0)}, [3, 4.5, 6], [0, LN2, LN3], id="wide window"),
        pytest.param([0] * 3, [1] * 3, [3, 6, 9], {"window": (None, 0)}, [3, 4.5, 6], [0, LN2, LN3], id="window None"),
        pytest.param([0, 0], [1] * 2, [3, 6], {"mask": masks.Window(0, 1)}, [4.5, 6], [LN2, 0], id="a structured mask"),
        pytest.param([0, 0], [1, 1], [2, 4], {"mask": [[True, False], [False, False]]}, [2, 0], [0, NO], id="mask"),
        pytest.param([0], [9, 9, 9], [2, 4, np.nan], {"kv_lengths": 2}, [3], [LN2], id="kv_lengths"),
        pytest.param([0], [9], [7], {"kv_lengths": 0}, [0], [NO], id="kv_lengths 0"),
        pytest.param([0], [1, 1], [0, 4], {"bias": [0, LN3]}, [3], [np.log(4)], id="bias"),
        pytest.param([0], [1, 1], [0, 4], {"bias": [0, NO]}, [0], [0], id="bias -inf hides"),
        pytest.param([0], [1] * 3, [7, 0, 0], {"bias": Alibi([LN2])}, [1], [np.log(7 / 4)], id="Alibi"),
        pytest.param([0], [1] * 3, [7, 0, 0], {"bias": Alibi([LN2]), "q_offset": 0}, [4], [np.log(7 / 4)], id="Alibi+"),
        pytest.param([1], [0, 1e9], [0, 1], {"softcap": LN3}, [0.75], [np.log(4)], id="softcap: at most LN3"),
        pytest.param([0], [1, 1, 1], [4, 8, 12], {"sinks": [0]}, [6], [np.log(4)], id="a sink takes its share"),
        pytest.param([0], [1, 1], [4, 8], {"sinks": [LN2]}, [3], [np.log(4)], id="a sink as heavy as two keys"),
        pytest.param([0], [1, 1], [4, 8], {"sinks": [NO]}, [6], [LN2], id="a sink of -inf is none"),
        pytest.param([0], [1], [4], {"sinks": [LN2], "kv_lengths": 0}, [0], [LN2], id="nothing but a sink"),
    ],
)
def test_attention_by_hand(q, k, v, options, out, lse):
    options = {"scale": 1} | options
    got_out, got_lse = reference.attention(column(*q), column(*k), column(*v), **options, return_lse=True)
    np.testing.assert_allclose(got_out, column(*out), rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(got_lse, lse, rtol=1e-15, atol=1e-15)


def test_scale_is_one_over_root_d_by_default():
    q, k, v = np.full((1, 4), LN3), np.array([[0.0] * 4, [0.5] * 4]), column(0, 4)
    np.testing.assert_allclose(reference.attention(q, k, v), [[3]])


def test_no_feature_means_equal_scores():
    out, lse = reference.attention(np.ones((2, 0)), np.ones((4, 0)), column(1, 2, 3, 6), return_lse=True)
    assert (out == 3).all()
    np.testing.assert_allclose(lse, np.log(4))


def test_weights_by_hand():
    q, k = np.zeros((2, 1)), np.zeros((3, 1))
    expected = np.array([[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(reference.attention_weights(q, k, causal=True), expected)
    np.testing.assert_allclose(reference.attention_weights(q, k, sinks=[0.0])[0], [0.25] * 3)


def test_backward_by_hand():
    """Two keys of equal score, values 1 and 3, dout 1: P = 1/2, delta = 2, dS = (-1/2, 1/2)."""
    q, k, v = column(2), column(0, 0), column(1, 3)
    grads = reference.attention_backward(column(1), q, k, v, scale=3, bias=np.zeros(2), dlse=np.zeros(1))
    np.testing.assert_allclose(grads.dv, column(0.5, 0.5))
    np.testing.assert_allclose(grads.dk, column(-3, 3))  # scale * q * dS
    np.testing.assert_allclose(grads.dbias, [-0.5, 0.5])
    assert grads.dsinks is None
    only_lse = reference.attention_backward(column(0), q, column(0, 1), v, scale=1, dlse=np.ones(1), sinks=np.zeros(1))
    shares = np.exp([0.0, 0.0, 2.0]) / np.exp([0.0, 0.0, 2.0]).sum()  # of the sink and of both keys
    np.testing.assert_allclose(only_lse.dsinks, shares[:1])
    np.testing.assert_allclose(only_lse.dk, column(*(2 * shares[1:])))
    np.testing.assert_allclose(only_lse.dq, [[shares[2]]])


def test_merge_by_hand():
    out, lse = reference.merge([[[0.0], [7.0]], [[4.0], [9.0]]], [[0.0, NO], [LN3, NO]])
    np.testing.assert_allclose(out, [[3], [0]])
    np.testing.assert_allclose(lse, [np.log(4), NO])


@pytest.mark.parametrize(("interleaved", "expected"), [(False, [-3, -4, 1, 2, 9]), (True, [-2, 1, -4, 3, 9])])
def test_rotary_by_hand(interleaved, expected):
    x = np.array([[1.0, 2, 3, 4, 9]])
    out = reference.rotary(x, [1], dim=4, freqs=np.full(2, np.pi / 2), interleaved=interleaved)
    np.testing.assert_allclose(out, [expected], atol=1e-15)


def test_decode_by_hand():
    keys = np.zeros((2, 4, 1, 1))
    values = np.array([[2, 4, 6, np.nan], [8, np.nan, np.nan, np.nan]])[:, :, None, None]
    cache = SimpleNamespace(k=keys, v=values, lengths=np.array([3, 1]))
    out, lse = reference.decode(np.zeros((2, 1, 2, 1)), cache, return_lse=True)
    np.testing.assert_allclose(out[..., 0], [[[3, 4]], [[0, 8]]])
    np.testing.assert_allclose(lse, [[[LN2, LN3]], [[NO, 0]]])
    assert reference.decode(np.zeros((2, 1, 1)), cache, seqs=[1, 0])[:, 0, 0].tolist() == [8, 4]
    assert reference.decode(np.zeros((2, 1, 2, 1)), cache, causal=False)[..., 0].tolist() == [[[4, 4]], [[0, 8]]]
    bias = np.array([NO, 0, NO, np.nan])  # by absolute position
    assert reference.decode(np.zeros((1, 1, 1)), cache, bias=bias)[0, 0, 0] == 4


def test_varlen_by_hand():
    """Members of 2, 0 and 1 queries over 3, 1 and 0 keys, then 1 over 1."""
    q, k, v = np.zeros((4, 1, 1)), np.zeros((5, 1, 1)), np.array([2.0, 4, 9, np.nan, 7])[:, None, None]
    starts = [0, 2, 2, 3, 4], [0, 3, 4, 4, 5]
    out, lse = reference.attention_varlen(q, k, v, *starts, causal=True, return_lse=True)
    np.testing.assert_allclose(out[:, 0, 0], [3, 5, 0, 7])
    np.testing.assert_allclose(lse, [[LN2, LN3, NO, 0]])
    own = {"kv_lengths": [2, 0, 0, 1], "q_offset": [0, 0, 0, 5], "causal": True}
    assert reference.attention_varlen(q, k, v, *starts, **own)[:, 0, 0].tolist() == [2, 3, 0, 7]
    mask = np.ones((4, 1, 2, 3), bool)
    mask[0, 0, 1, 2] = mask[3, 0, 0, 0] = False
    assert reference.attention_varlen(q, k, v, *starts, mask=mask)[:, 0, 0].tolist() == [5, 3, 0, 0]
    bias = np.array([0, NO, NO])
    assert reference.attention_varlen(q, k, v, *starts, bias=bias)[:, 0, 0].tolist() == [2, 2, 0, 7]
    sinks = reference.attention_varlen(q, k, v, *starts, sinks=[LN3], return_lse=True)
    np.testing.assert_allclose(sinks[0][:, 0, 0], [2.5, 2.5, 0, 7 / 4])
    np.testing.assert_allclose(sinks[1], [np.log([6, 6, 3, 4])])


def test_heads_that_do_not_divide_are_an_error():
    with pytest.raises(ProblemError, match=r"`k` has hk=2 heads"):
        reference.attention(np.ones((3, 1, 1)), np.ones((2, 1, 1)), np.ones((2, 1, 1)))


# Identities.


def results(*args, **options):
    return reference.attention(*args, **options, return_lse=True)


def assert_same(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


def test_order_of_keys_does_not_matter(qkv, normal):
    q, k, v = qkv(2, 4, 2, 5, 7, 3, dtype="float64")
    bias, order = normal(4, 5, 7), np.random.default_rng(1).permutation(7)
    assert_same(results(q, k[..., order, :], v[..., order, :], bias=bias[..., order]), results(q, k, v, bias=bias))


def test_shifted_scores_move_lse_alone(qkv):
    q, k, v = qkv(2, 2, 2, 5, 7, 3, dtype="float64")
    out, lse = results(q, k, v, causal=True)
    assert_same(results(q, k, v, causal=True, bias=np.full((5, 1), 2.5)), (out, lse + 2.5))


def test_merged_halves_are_the_whole(qkv):
    q, k, v = qkv(2, 4, 2, 5, 9, 3, dtype="float64")
    parts = [results(q, k[..., part, :], v[..., part, :]) for part in (slice(0, 4), slice(4, 4), slice(4, 9))]
    assert_same(reference.merge(*zip(*parts, strict=True)), results(q, k, v))
    outs, lses = (np.stack(arrays, axis=-3) for arrays in zip(*[(o, e[..., None]) for o, e in parts], strict=True))
    assert_same(reference.merge(outs, lses[..., 0], axis=-2), results(q, k, v))


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({"causal": True}, lambda i, j: j > i + 4),
        ({"causal": True, "q_offset": -2}, lambda i, j: j > i - 2),
        ({"window": (3, 1)}, lambda i, j: (j < i + 1) | (j > i + 5)),
        ({"window": (None, 2), "q_offset": 1}, lambda i, j: j > i + 3),
        ({"kv_lengths": 6}, lambda i, j: j + 0 * i >= 6),
        ({"mask": masks.Causal()}, lambda i, j: j > i + 4),
        ({"mask": masks.Window(2, None), "causal": True}, lambda i, j: (j < i + 2) | (j > i + 4)),
    ],
)
def test_options_that_hide_are_masks(qkv, options, hidden):
    q, k, v = qkv(2, 2, 1, 5, 9, 3, dtype="float64")
    mask = ~hidden(np.arange(5)[:, None], np.arange(9))
    assert_same(results(q, k, v, **options), results(q, k, v, mask=mask))
    assert_same(results(q, k, v, **options), results(q, k, v, bias=np.where(mask, 0, NO)))


def test_per_batch_lengths_and_offsets_are_each_their_own(qkv):
    q, k, v = qkv(3, 2, 2, 4, 6, 3, dtype="float64")
    lengths, offsets = np.array([6, 1, 4]), np.array([2, -1, 0])
    together = results(q, k, v, causal=True, kv_lengths=lengths, q_offset=offsets)
    for i in range(3):
        own = results(q[i], k[i, :, : lengths[i]], v[i, :, : lengths[i]], causal=True, q_offset=offsets[i])
        assert_same([x[i] for x in together], own)


def test_grouped_heads_are_repeated_heads(qkv):
    q, k, v = qkv(2, 6, 2, 4, 5, 3, dtype="float64")
    assert_same(results(q, k, v), results(q, np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1)))


def test_alibi_is_its_bias(qkv):
    q, k, v = qkv(2, 3, 1, 4, 6, 3, dtype="float64")
    slopes = np.array([0.5, 0.25, 2.0])
    distance = np.abs(np.arange(4)[:, None] + 2 - np.arange(6))
    assert_same(results(q, k, v, bias=Alibi(slopes)), results(q, k, v, bias=-slopes[:, None, None] * distance))


def test_sinks_are_an_extra_key_without_value(qkv):
    q, k, v = qkv(2, 3, 3, 4, 6, 5, dtype="float64")
    sinks = np.array([0.5, -2.0, 3.0])
    padded = [np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))) for x in (k, v)]
    bias = np.zeros((3, 1, 7))
    bias[:, 0, 6] = sinks
    assert_same(results(q, k, v, sinks=sinks), results(q, *padded, bias=bias))


def test_softcap_far_above_the_scores_does_nothing(qkv):
    q, k, v = qkv(2, 2, 2, 4, 6, 3, dtype="float64")
    assert_same(results(q, k, v, softcap=1e8), results(q, k, v))


def test_layouts_are_transposes(qkv):
    q, k, v = qkv(2, 4, 2, 5, 7, 3, dtype="float64")
    turned = [x.swapaxes(1, 2) for x in (q, k, v)]
    out, lse = results(q, k, v, causal=True)
    assert_same(results(*turned, causal=True, layout="blhd"), (out.swapaxes(1, 2), lse))
    grads = reference.attention_backward(out, q, k, v, dlse=lse)
    for grad, turned_grad in zip(
        grads[:3], reference.attention_backward(out.swapaxes(1, 2), *turned, dlse=lse, layout="blhd"), strict=False
    ):
        np.testing.assert_array_equal(grad, turned_grad.swapaxes(1, 2))


def test_leading_axes_broadcast(qkv):
    q, k, v = qkv(2, 4, 2, 5, 7, 3, dtype="float64")
    assert_same(results(q, k[0], v[:1]), results(q, np.stack([k[0]] * 2), np.stack([v[0]] * 2)))
    assert reference.attention(q[None], k, v[:, None]).shape == (2, 2, 4, 5, 3)


def test_weights_times_values_are_the_output(qkv):
    q, k, v = qkv(2, 2, 2, 5, 7, 3, dtype="float64")
    options = {"causal": True, "window": 3, "softcap": 2.0, "sinks": np.ones(2)}
    weights = reference.attention_weights(q, k, **options)
    np.testing.assert_allclose(weights @ v, reference.attention(q, k, v, **options), rtol=1e-13)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotated_products_depend_on_the_distance_alone(normal, interleaved):
    q, k = (normal(1, 1, 8, dtype="float64", seed=seed) for seed in (0, 1))
    turn = lambda x, position: reference.rotary(x, [position], dim=6, interleaved=interleaved)  # noqa: E731
    near, far = (turn(q, 3 + shift) @ turn(k, 1 + shift).swapaxes(1, 2) for shift in (0, 1000))
    np.testing.assert_allclose(near, far, rtol=1e-11)
    np.testing.assert_allclose(turn(turn(q, 7), -7), q, rtol=1e-14)
    np.testing.assert_array_equal(turn(q, 7)[..., 6:], q[..., 6:])


def test_rotary_frequencies_and_layouts(normal):
    x = normal(2, 3, 5, 8, dtype="float64")
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    freqs = 100.0 ** (-np.arange(4) / 4)
    out = reference.rotary(x, positions, base=100.0)
    np.testing.assert_allclose(out, reference.rotary(x, positions, freqs=freqs), rtol=1e-14)
    turned = reference.rotary(x.swapaxes(1, 2), positions, layout="blhd", base=100.0)
    np.testing.assert_array_equal(out, turned.swapaxes(1, 2))
    angle = 9 * freqs[1]
    assert out[1, 0, 2, 1] == pytest.approx(x[1, 0, 2, 1] * np.cos(angle) - x[1, 0, 2, 5] * np.sin(angle), rel=1e-13)


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "longdouble"])
def test_dtype_chooses_the_arithmetic(qkv, name):
    dtype = np.dtype(name)
    q, k, v = qkv(1, 2, 2, 5, 7, 4, dtype="float16")
    out, lse = results(q, k, v, sinks=np.ones(2, np.float32), dtype=dtype)
    grads = reference.attention_backward(out, q, k, v, dlse=lse, sinks=np.ones(2, np.float32), dtype=dtype)
    assert {x.dtype for x in (out, *grads) if x is not None} == {dtype}
    assert lse.dtype == (np.float32 if name == "float16" else dtype)
    exact = reference.attention(q, k, v, sinks=np.ones(2), dtype=np.longdouble)
    error = np.abs(out.astype(np.longdouble) - exact).max()
    assert error <= 32 * np.finfo(dtype).eps
    assert error > 0 or name == "longdouble"


# Gradients against central differences: ||g - (f(x + h) - f(x - h)) / 2h|| is h**2 = 1e-10 of the third derivative.

B, HQ, HK, LQ, LK, D, DV = 2, 4, 2, 3, 5, 3, 2
MASK = np.random.default_rng(5).random((B, 1, LQ, LK)) < 0.6
BIAS_SHAPES = [
    (1,), (LK,), (LQ, 1), (LQ, LK), (HQ, 1, LK), (1, 1, LK),
    (1, HQ, 1, 1), (B, 1, 1, LK), (B, 1, LQ, LK), (B, HQ, LQ, LK),
]  # fmt: skip
GRADIENT_CASES = {
    "plain": {},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 0.7, "scale": 1.5},
    "causal": {"causal": True},
    "top-left": {"causal": True, "q_offset": 0},
    "causal with empty rows": {"causal": True, "q_offset": -2},
    "window": {"window": (1, 0)},
    "mask": {"mask": MASK},
    "structured mask": {"mask": masks.Window(2, 1)},
    "kv_lengths": {"kv_lengths": np.array([3, 0])},
    "q_offset": {"causal": True, "q_offset": np.array([-1, 3])},
    "sinks": {"sinks": np.array([0.5, -1.0, 2.0, 0.0])},
    "alibi": {"bias": Alibi([0.5, 0.25, 1.0, 0.0])},
    **{f"bias {shape}": {"bias": shape} for shape in BIAS_SHAPES},
    "all": {
        "causal": True,
        "window": (2, None),
        "mask": MASK,
        "softcap": 1.5,
        "sinks": np.ones(HQ),
        "bias": (HQ, 1, LK),
        "kv_lengths": np.array([4, 5]),
        "q_offset": np.array([2, 1]),
    },
}


def central_difference(loss, x, step=1e-5):
    gradient = np.empty(x.shape)
    for where in np.ndindex(x.shape):
        moved = np.zeros(x.shape)
        moved[where] = step
        gradient[where] = (loss(x + moved) - loss(x - moved)) / (2 * step)
    return gradient


@pytest.mark.parametrize("broadcast", [False, True], ids=["", "k shared by the batch"])
@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradients_against_finite_differences(case, broadcast, qkv, normal):
    options = dict(GRADIENT_CASES[case])
    if isinstance(options.get("bias"), tuple):
        options["bias"] = normal(*options["bias"], dtype="float64", seed=7)
    q, k, v = qkv(B, HQ, HK, LQ, LK, D, DV, dtype="float64")
    operands = {"q": q, "k": k[0] if broadcast else k, "v": v[:1] if broadcast else v}
    operands |= {name: x for name, x in options.items() if name in ("bias", "sinks") and not isinstance(x, Alibi)}
    dout, dlse = normal(B, HQ, LQ, DV, dtype="float64", seed=8), normal(B, HQ, LQ, dtype="float64", seed=9)

    def loss(**moved):
        given = options | operands | moved
        out, lse = reference.attention(given.pop("q"), given.pop("k"), given.pop("v"), **given, return_lse=True)
        return (dout * out).sum() + (dlse * np.where(np.isneginf(lse), 0, lse)).sum()

    grads = reference.attention_backward(dout, operands["q"], operands["k"], operands["v"], dlse=dlse, **options)
    for name in ("q", "k", "v", "bias", "sinks"):
        gradient = getattr(grads, f"d{name}")
        if name not in operands:
            assert gradient is None
            continue
        expected = central_difference(lambda x, name=name: loss(**{name: x}), operands[name])
        assert gradient.shape == operands[name].shape
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("bias_shape", [(), (5,), (3, 1), (4, 1, 1), (3, 1, 1, 5), (1, 4, 3, 5), (3, 4, 3, 5)], ids=str)
def test_varlen_gradients_against_finite_differences(bias_shape, normal):
    starts = [0, 3, 3, 5], [0, 2, 6, 11]
    shapes = {"q": (5, 4, 3), "k": (11, 2, 3), "v": (11, 2, 2), "bias": bias_shape, "sinks": (4,)}
    arrays = {name: normal(*shape, dtype="float64", seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    dout, dlse = normal(5, 4, 2, dtype="float64", seed=8), normal(4, 5, dtype="float64", seed=9)
    options = {"causal": True, "softcap": 1.5, "kv_lengths": [2, 4, 3], "q_offset": [-1, 0, 2]}

    def loss(**moved):
        q, k, v, bias, sinks = (arrays | moved).values()
        out, lse = reference.attention_varlen(q, k, v, *starts, bias=bias, sinks=sinks, **options, return_lse=True)
        return (dout * out).sum() + (dlse * lse).sum()

    q, k, v, bias, sinks = arrays.values()
    grads = reference.attention_varlen_backward(
        dout, q, k, v, *starts, dlse=dlse, bias=bias, sinks=sinks, **options
    )  # fmt: skip
    for name, gradient in zip(arrays, grads, strict=True):
        expected = central_difference(lambda x, name=name: loss(**{name: x}), arrays[name])
        assert gradient.shape == arrays[name].shape
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-8, err_msg=name)


def test_rotary_gradient_is_the_rotation_back(normal):
    x, dout, positions = normal(1, 3, 6, dtype="float64"), normal(1, 3, 6, dtype="float64", seed=1), np.array([0, 5, 9])
    expected = central_difference(lambda x: (dout * reference.rotary(x, positions)).sum(), x)
    np.testing.assert_allclose(reference.rotary(dout, -positions), expected, atol=1e-9)
