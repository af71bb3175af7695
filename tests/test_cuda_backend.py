"""What the GPU backend hands to its kernels, without a GPU or a kernel: addresses, strides, sizes, memory, order.

What the kernels make of it is tested where they run. Here a look at memory through a launch's own struct must find the
numbers of the operands, and any look at an array on the way is an error of the array.
"""

import itertools
import weakref

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from problems import VIEWS, ZERO_SIZES
from recorder import DTYPES, expect, fill, integers_seen, look, on_device, operands, seen, values_of

import cuflash
from cuflash import Alibi, ProblemError, UnsupportedError, masks
from cuflash._cuda.operands import CONSTANTS, merge_axes
from cuflash._params import FARTHEST
from cuflash._problem.views import overlap

# Operands.


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_kernels_find_strided_operands_without_copies(view, layout, recorder, normal):
    q, k, v = operands(normal, [(2,)] * 3)
    laid_out, look_at = VIEWS[view]
    views = [look_at(laid_out(x)) for x in (q, k, v)]
    arrays = [on_device(x.swapaxes(-3, -2) if layout == "blhd" else x) for x in views]
    cuflash.attention(*arrays, layout=layout)
    (launch,) = recorder.launches
    assert (launch.kernel, recorder.moved) == ("fwd_simt", [])
    for name, array in zip("qkv", (q, k, v)):
        expect(seen(launch, name, array.shape[1:], array.dtype), array, (2,), array.shape[1:])
    problem = launch.params["problem"]
    assert [problem[name] for name in ("hq", "group", "lq", "lk", "d", "dv")] == [4, 2, 9, 7, 3, 2]


@pytest.mark.parametrize(
    "batches",
    [
        [(), (), ()],
        [(3,), (1,), ()],
        [(2, 1), (3,), (1, 3)],
        [(2, 3, 1, 2), (1, 2, 1), (2, 1, 1, 1)],
        [(2, 1, 3, 2, 2), (2, 1, 3, 2, 2), (2, 1, 3, 2, 2)],
        [(2, 2, 3, 2, 2, 2), (1, 1, 1, 1, 2, 2), (1, 1, 3, 2, 2, 2)],
    ],
)
def test_batch_axes_broadcast_and_merge(batches, recorder, normal):
    q, k, v = operands(normal, batches)
    batch = np.broadcast_shapes(*batches)
    mask = np.arange(9 * 7).reshape(9, 7) % 3 > 0
    bias = normal(*batches[1], 1, 9, 1)
    lengths = np.arange(np.prod(batches[2], dtype=int)).reshape(batches[2])
    options = {name: on_device(array) for name, array in (("mask", mask), ("bias", bias), ("kv_lengths", lengths))}
    out, lse = cuflash.attention(*map(on_device, (q, k, v)), **options, return_lse=True)
    (launch,) = recorder.launches
    assert np.prod(launch.params["problem"]["batch"]) == np.prod(batch)
    for name, array in zip("qkv", (q, k, v)):
        expect(seen(launch, name, array.shape[-3:], array.dtype), array, batch, array.shape[-3:])
    expect(seen(launch, "mask", (4, 9, 7), bool), mask, batch, (4, 9, 7))
    expect(seen(launch, "bias", (4, 9, 7), np.float32), bias, batch, (4, 9, 7))
    np.testing.assert_array_equal(integers_seen(launch, "kv_lengths"), np.broadcast_to(lengths, batch).ravel())
    fill(launch, "out", out, (4, 9, 2))
    fill(launch, "lse", lse, (4, 9, 1))


def test_axes_that_no_merging_brings_down_to_four_are_named(recorder, normal):
    q, k, v = operands(normal, [(2, 3, 2, 3, 2)] * 3)
    turned = k.transpose(4, 3, 2, 1, 0, 5, 6, 7).copy().transpose(4, 3, 2, 1, 0, 5, 6, 7)
    with pytest.raises(UnsupportedError) as error:
        cuflash.attention(*map(on_device, (q, turned, v)))
    assert "attention: 5 of the batch axes (2, 3, 2, 3, 2) cannot be told as one with another" in str(error.value)


def test_axes_merge_only_where_every_array_allows():
    assert merge_axes((2, 3, 4), [(12, 4, 1)]) == (2,)
    assert merge_axes((2, 3, 4), [(12, 4, 1), (0, 0, 0)]) == (2,)
    assert merge_axes((2, 3, 4), [(12, 4, 1), (0, 4, 1)]) == (0, 2)
    assert merge_axes((2, 1, 4), [(4, 99, 1)]) == (2,)
    assert merge_axes((2, 3, 4), [(-12, -4, -1)]) == (2,)
    assert merge_axes((1, 1), [(5, 5)]) == ()


def test_strides_that_are_no_whole_elements_are_unsupported(recorder):
    odd = np.zeros((2, 5, 13), np.uint8)[..., :12].view(np.float32)
    with pytest.raises(UnsupportedError, match="strides in elements of 4 bytes"):
        cuflash.attention(*[on_device(odd)] * 3)


def test_options_arrive(dtype, recorder, normal):
    q, k, v = operands(normal, [(2,)] * 3, lq=40, dtype=dtype)
    sinks, bias = normal(4, dtype=dtype), normal(7, dtype=dtype)
    options = {"causal": True, "window": (3, None), "scale": 0.25, "softcap": 1.5, "sinks": on_device(sinks)}
    cuflash.attention(*map(on_device, (q, k, v)), **options, bias=on_device(bias))
    (launch,) = recorder.launches
    problem = launch.params["problem"]
    assert [problem[name] for name in ("left", "right", "scale", "softcap")] == [3, 0, 0.25, 1.5]
    assert launch.config["dtype"] == f"Dtype::{dtype.name}"
    assert [problem[name]["dtype"] for name in ("sinks", "bias")] == [[x == dtype for x in DTYPES].index(True)] * 2
    found = look(problem["sinks"]["data"], (4,), [problem["sinks"]["strides"]["head"]], dtype)
    np.testing.assert_array_equal(found, sinks)
    assert not any(problem[name]["data"] for name in ("slopes",)) and not problem["mask"]


@pytest.mark.parametrize("lk", [7, 1200])
@pytest.mark.parametrize("batch", [(), (3,), (1, 3)])
def test_few_queries_arrive_as_those_of_a_cache(batch, lk, recorder, normal):
    """Of a key/value head, 16-bit: keys and values are rows of a cache, and results leave room for parts."""
    q, k, v = operands(normal, [batch, (), batch], lk=lk, d=16, dv=8, dtype="float16")
    sinks, bias = normal(4, dtype="float16"), normal(lk, dtype="float32")
    options = {"q_offset": -2, "window": (3000, None), "kv_lengths": lk - 1, "softcap": 1.5}
    moved = [on_device(np.swapaxes(x, -3, -2).copy()) for x in (q, k, v)]
    out = cuflash.attention(*moved, layout="blhd", **options, sinks=on_device(sinks), bias=on_device(bias))
    launch, *others = recorder.launches
    params, b, parts = launch.params, int(np.prod(batch)), 1 if lk == 7 else 4
    assert recorder.names() == ["decode_mma", "merge"][: 1 + (parts > 1)]
    assert [params[name] for name in ("b", "hq", "hk", "lq", "d", "dv", "parts")] == [b, 4, 2, 9, 16, 8, parts]
    assert [params[name] for name in ("q_offset", "left", "right", "softcap", "limit")] == [
        -2,
        3000,
        FARTHEST,
        1.5,
        lk - 1,
    ]
    assert [params[name] for name in ("seqs", "lengths", "tickets", "splits")] == [0] * 4
    one = (1, 1, 1, b)
    expect(launch.read(params["q"], params["q_strides"], (*one, 4, 9, 16), q.dtype), q, batch, (4, 9, 16))
    for name, array, dim in (("k", k, 16), ("v", v, 8)):
        steps = [params["cache"][f"{name}_strides"][axis] for axis in ("row", "head", "token", "col")]
        found = look(params["cache"][name], (b, 2, lk, dim), steps, array.dtype)
        expect(found, array, batch, (2, lk, dim))
    found = launch.read(params["bias"]["data"], params["bias"]["strides"], (*one, 4, 9, lk), bias.dtype)
    expect(found, bias, batch, (4, 9, lk))
    if parts == 1:
        target = launch.read(params["out"], params["out_strides"], (*one, 4, 9, 8), out.dtype)
        target[...] = np.arange(target.size).reshape(target.shape)
        found = np.swapaxes(values_of(out), -3, -2)
        np.testing.assert_array_equal(found.ravel(), np.arange(target.size))
        return
    rows = b * 4 * 9
    assert recorder.made[-1] == ((parts * rows * 10,), np.float32)
    merge = others[0].params
    given = merge["given"][0]
    heads = given["out_strides"]["head"], given["out_strides"]["row"]
    assert given["out"] == params["part_outs"]
    assert given["lse"] == params["part_sums"] == params["part_outs"] + 4 * parts * rows * 8
    assert heads == (parts * 8, 2 * parts * 8)  # heads of a group lie side by side, then its queries
    assert (merge["out_step"], merge["lse_step"], merge["parts"], merge["sums"]) == (8, 2, parts, 1)
    assert merge["lse"] == 0


def test_without_options_every_pointer_is_null(recorder, normal):
    cuflash.attention(*map(on_device, operands(normal, [()] * 3)))
    launch = recorder.launches[0]
    problem = launch.params["problem"]
    assert [problem[name]["data"] for name in ("bias", "slopes", "sinks", "q_offset", "kv_lengths")] == [0] * 5
    assert [problem[name] for name in ("mask", "q_starts", "kv_starts", "softcap")] == [0] * 4
    assert (problem["left"], problem["right"]) == (FARTHEST, FARTHEST)
    assert (problem["q_offset"]["value"], problem["kv_lengths"]["value"]) == (-2, 7)
    assert launch.params["lse"] == launch.params["sum"] == 0


def test_a_structured_mask_is_a_window(recorder, normal):
    cuflash.attention(*map(on_device, operands(normal, [()] * 3)), mask=masks.Window(2, 1))
    problem = recorder.launches[0].params["problem"]
    assert (problem["left"], problem["right"], problem["mask"]) == (2, 1, 0)


@pytest.mark.parametrize("name", ["q_offset", "kv_lengths"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "list"])
def test_integers_that_kernels_read_arrive_as_they_lie(name, dtype, recorder, normal):
    check_integers(name, dtype, recorder, normal)


@pytest.mark.parametrize("name", ["q_offset", "kv_lengths"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint32", "uint64"])
def test_other_integers_are_converted_on_the_device(name, dtype, stand_in, normal):
    check_integers(name, dtype, stand_in, normal)


def check_integers(name, dtype, recorder, normal):
    given = [3, 1, 5]
    value = given if dtype == "list" else on_device(np.repeat(np.array(given, dtype), 2)[::2])
    cuflash.attention(*map(on_device, operands(normal, [(3,)] * 3)), **{name: value})
    (launch,) = recorder.launches
    assert integers_seen(launch, name).tolist() == given
    if dtype != "list":
        assert (launch.params["problem"][name]["data"] == value.data.ptr) == (dtype in ("int32", "int64"))
    assert len(recorder.moved) == (dtype == "list")


def test_integers_on_the_device_are_never_looked_at(recorder, normal):
    """They may be of no axis, and far out of range: kernels clamp them."""
    q, k, v = map(on_device, operands(normal, [(2,)] * 3))
    cuflash.attention(q, k, v, kv_lengths=on_device(np.array(99)), q_offset=on_device(np.array([[2**40]])[0]))
    (launch,) = recorder.launches
    assert integers_seen(launch, "kv_lengths").tolist() == [99, 99]
    assert integers_seen(launch, "q_offset").tolist() == [2**40] * 2
    with pytest.raises(ProblemError, match=r"`kv_lengths` is 8 at \(1,\), but must lie in 0\.\.7"):
        cuflash.attention(q, k, v, kv_lengths=[1, 8])
    with pytest.raises(TypeError, match=f"`q` is a {recorder.home} array, but `kv_lengths` is a numpy array"):
        cuflash.attention(q, k, v, kv_lengths=np.array([1, 7]))


@pytest.mark.parametrize("offset", [2**62, -(2**62), 2**63 + 5])
def test_offsets_are_held_within_what_kernels_can_add_to(offset, recorder, normal):
    arrays = list(map(on_device, operands(normal, [(1,)] * 3)))
    cuflash.attention(*arrays, q_offset=offset, window=(2**70, 2**70))
    cuflash.attention(*arrays, q_offset=[offset])
    for launch in recorder.launches:
        assert integers_seen(launch, "q_offset").tolist() == [FARTHEST if offset > 0 else -FARTHEST]
    problem = recorder.launches[0].params["problem"]
    assert (problem["left"], problem["right"]) == (FARTHEST // 4, FARTHEST // 4)


def test_slopes_are_copied_to_a_device_once(recorder, normal):
    arrays = list(map(on_device, operands(normal, [()] * 3)))
    slopes = [0.5, 0.25, 0.125, float(np.pi)]
    for device in (0, 0, 1, 0, 1):
        recorder.current = device
        cuflash.attention(*arrays, bias=Alibi(slopes))
    assert [x.tolist() for x in recorder.moved] == [slopes, slopes]
    given = recorder.launches[-1].params["problem"]["slopes"]
    assert look(given["data"], (4,), [given["strides"]["head"]], np.float64).tolist() == slopes

    assert given["dtype"] == 3


def test_slopes_that_a_graph_reads_stay(recorder, normal, monkeypatch):
    """However many others are used after them; those that no graph reads are let go."""
    arrays, made, asarray = list(map(on_device, operands(normal, [()] * 3))), [], recorder.asarray

    def keep_no_array(host):
        array = asarray(host)
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr(recorder, "asarray", keep_no_array)
    used = [Alibi([0.5, 0.25, 0.125, 1 / (i + 1)]) for i in range(CONSTANTS + 2)]
    for bias in used[:2]:
        cuflash.attention(*arrays, bias=bias)
    with monkeypatch.context() as capture:
        capture.setattr(recorder, "capturing", lambda: True)
        cuflash.attention(*arrays, bias=used[0])
    for bias in used[2:]:
        cuflash.attention(*arrays, bias=bias)
    assert [array() is not None for array in made[:3]] == [True, False, True]
    cuflash.attention(*arrays, bias=used[0])
    first, *_, last = (launch.params["problem"]["slopes"]["data"] for launch in recorder.launches)
    assert (first, len(made)) == (last, len(used))


def test_every_array_is_checked_to_lie_on_the_current_device(recorder, normal):
    q, k, v = map(on_device, operands(normal, [(2,)] * 3))
    options = {
        "mask": on_device(np.ones((9, 7), bool)),
        "bias": on_device(normal(7)),
        "sinks": on_device(normal(4)),
    }
    options |= {name: on_device(np.array([2, 3])) for name in ("q_offset", "kv_lengths")}
    out, lse = on_device(normal(2, 4, 9, 2)), on_device(normal(2, 4, 9))
    cuflash.attention(q, k, v, **options, out=out, lse_out=lse)
    assert set(recorder.checked) == {"q", "k", "v", "mask", "bias", "sinks", "q_offset", "kv_lengths", "out", "lse_out"}
    cuflash.attention_backward(out, q, k, v, out, lse, dlse=lse)
    assert {"dout", "lse", "dlse"} <= set(recorder.checked)


# Results.


def test_results_take_the_memory_order_of_q(view, recorder, normal):
    """As on NumPy, for which np.empty_like does it."""
    q, k, v = operands(normal, [(2,)] * 3)
    laid_out, look_at = VIEWS[view]
    q = look_at(laid_out(q))
    out = cuflash.attention(*map(on_device, (q, k, v)))
    assert out.strides == cuflash.attention(q, k, v).strides
    back = cuflash.attention_backward(out, *map(on_device, (q, k, v)), out, on_device(normal(2, 4, 9))).dq
    assert back.strides == np.empty_like(q).strides
    turned = cuflash.rotary(on_device(q), [1] * 9, dim=2)
    assert turned.strides == np.empty_like(q).strides


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_results_take_any_order_of_axes(order, recorder, normal):
    q, k, v = operands(normal, [(2,)] * 3)
    q = q.transpose(order).copy().transpose(np.argsort(order))
    assert cuflash.attention(*map(on_device, (q, k, v))).strides == cuflash.attention(q, k, v).strides


def test_memory_that_is_handed_in_is_all_that_is_used(recorder, normal):
    q, k, v = map(on_device, operands(normal, [(2,)] * 3))
    out, lse = on_device(normal(2, 4, 2, 9).swapaxes(2, 3)), on_device(normal(2, 4, 18)[..., ::2])
    found = cuflash.attention(q, k, v, out=out, lse_out=lse, return_lse=True)
    assert found[0] is out and found[1] is lse
    assert (recorder.made, recorder.moved) == ([], [])
    fill(recorder.launches[0], "out", out, (4, 9, 2))
    fill(recorder.launches[0], "lse", lse, (4, 9, 1))


def test_an_lse_that_nobody_wants_takes_no_memory(recorder, normal):
    arrays = list(map(on_device, operands(normal, [()] * 3)))
    cuflash.attention(*arrays)
    assert recorder.made == [((4, 9, 2), np.float32)]


def test_arrays_of_a_device_overlap_where_those_of_the_host_do(recorder):
    """Side by side, one among the gaps of the other, backwards, without elements, or over each other."""
    memory = np.zeros((4, 6), np.float32)
    looks = [
        memory[:2],
        memory[2:],
        memory[:, ::2],
        memory[:, 1::2],
        memory[::-1],
        memory[1:1],
        memory[3],
        memory[2, 5:],
    ]
    for one, other in itertools.product([*looks, np.zeros(3)], repeat=2):
        assert overlap(on_device(one), on_device(other)) == np.shares_memory(one, other)


def test_an_output_over_an_operand_is_refused_without_a_look_at_either(recorder, normal):
    memory = normal(2, 4, 9, 4)
    arrays = [on_device(memory[..., :2]), *map(on_device, operands(normal, [(2,)] * 3, d=2)[1:])]
    cuflash.attention(*arrays, out=on_device(memory[..., 2:]))
    with pytest.raises(ProblemError, match="`out` overlaps `q` in memory"):
        cuflash.attention(*arrays, out=on_device(memory[..., 1:3]))
    with pytest.raises(ProblemError, match="`out` overlaps itself in memory"):
        cuflash.attention(*arrays, out=on_device(as_strided(memory[:, :, :1, 2:], (2, 4, 9, 2), (576, 144, 0, 4))))
    assert recorder.names() == ["fwd_simt"]


@pytest.mark.parametrize("sizes", ZERO_SIZES)
def test_nothing_is_launched_for_nothing(sizes, recorder, normal):
    b, hq, hk, lq, lk, d, dv = sizes
    q, k, v = map(on_device, operands(normal, [(b,)] * 3, hq, hk, lq, lk, d, dv))
    out, lse = cuflash.attention(q, k, v, return_lse=True)
    assert out.shape == (b, hq, lq, dv) and lse.shape == (b, hq, lq)
    assert len(recorder.names()) == bool(lse.size)
    recorder.launches.clear()
    cuflash.attention(q, k, v)
    assert len(recorder.names()) == bool(out.size)
    recorder.launches.clear()
    cuflash.attention_weights(q, k)
    assert recorder.names() == ["fwd_simt", "weights_simt"] * bool(b * hq * lq * lk)
    recorder.launches.clear()
    grads = cuflash.attention_backward(out, q, k, v, out, lse)
    assert [grad.shape for grad in grads[:3]] == [x.shape for x in (q, k, v)]
    expected = ["bwd_prepare"] * bool(lse.size) + ["bwd_q_simt"] * bool(q.size)
    assert recorder.names() == expected + ["bwd_kv_simt"] * bool(k.size or v.size)


def test_weights_take_maxima_and_sums_from_a_launch_of_their_own(recorder, normal):
    q, k, _ = operands(normal, [(2,), (1,), ()])
    weights = cuflash.attention_weights(on_device(q), on_device(k), causal=True)
    first, second = recorder.launches
    assert (first.kernel, first.params["out"], second.kernel) == ("fwd_simt", 0, "weights_simt")
    assert first.params["lse"] == second.params["max"] != 0
    assert first.params["sum"] == second.params["sum"] not in (0, second.params["max"])
    assert first.params["lse_strides"] == second.params["row_strides"]
    assert (second.params["problem"]["q_tiles"], second.params["kv_tiles"]) == (1, 1)
    assert second.params["problem"]["dv"] == 0
    fill(second, "weights", weights, (4, 9, 7))
    assert recorder.made == [((2, 4, 9, 7), np.float32), *[((2, 4, 9), np.float32)] * 2]
