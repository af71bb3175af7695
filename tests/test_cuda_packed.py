"""Packed sequences on a device, whose starts nobody on the host may read, and calls that are no attention."""

import numpy as np
import pytest
from problems import VIEWS
from recorder import integers_seen, look, on_device, values_of

import cuflash
from cuflash import ProblemError, UnsupportedError, masks
from cuflash._params import UNSET

STARTS = ([0, 3, 3, 5], [0, 2, 6, 7])  # members of 3, 0 and 2 queries, and of 2, 4 and 1 keys
LISTS = ("q", "kv", "both", "none")  # which of the starts are lists


def packed(normal, d=3, dv=2):
    return normal(5, 4, d), normal(7, 2, d, seed=1), normal(7, 2, dv, seed=2)


def make_starts(lists, dtype=np.int64):
    q_starts, kv_starts = (on_device(np.array(starts, dtype)) for starts in STARTS)
    return STARTS[0] if lists in ("q", "both") else q_starts, STARTS[1] if lists in ("kv", "both") else kv_starts


@pytest.mark.parametrize("lists", LISTS)
def test_starts_arrive_without_being_read(lists, recorder, normal):
    check_starts(lists, "int64", recorder, normal)


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_starts_are_converted_on_the_device(dtype, stand_in, normal):
    check_starts("none", dtype, stand_in, normal)


def check_starts(lists, dtype, recorder, normal):
    q, k, v = packed(normal)
    starts = make_starts(lists, dtype)
    out, lse = cuflash.attention_varlen(*map(on_device, (q, k, v)), *starts, causal=True, return_lse=True)
    (launch,) = recorder.launches
    problem = launch.params["problem"]
    for name, right, given in zip(("q_starts", "kv_starts"), STARTS, starts):
        assert look(problem[name], (4,), (1,), np.int64).tolist() == right
        if type(given) is not list and dtype == "int64":
            assert problem[name] == given.data.ptr
    for name, array in zip("qkv", (q, k, v)):
        heads_first = array.swapaxes(0, 1)
        found = launch.read(problem[name], problem[f"{name}_strides"], (1, 1, 1, 1, *heads_first.shape), "f4")
        np.testing.assert_array_equal(found[0, 0, 0, 0], heads_first)
    assert problem["batch"].tolist() == [1, 1, 1, 3]
    assert (problem["q_tiles"], launch.grid) == (3, 12)
    assert [problem[name]["value"] for name in ("q_offset", "kv_lengths")] == [UNSET, UNSET]
    assert not np.array(problem["q_strides"]["batch"]).any()
    found = launch.read(launch.params["out"], launch.params["out_strides"], (1, 1, 1, 1, 4, 5, 2), "f4")
    found[...] = np.arange(40).reshape(found.shape)
    np.testing.assert_array_equal(values_of(out).swapaxes(0, 1).ravel(), np.arange(40))
    found = launch.read(launch.params["lse"], launch.params["lse_strides"], (1, 1, 1, 1, 4, 5, 1), "f4")
    found[...] = np.arange(20).reshape(found.shape)
    np.testing.assert_array_equal(values_of(lse).ravel(), np.arange(20))


@pytest.mark.parametrize("lists", LISTS)
def test_masks_and_biases_of_packed_sequences(lists, recorder, normal):
    """Where lengths are known they must fit; where they are not, whatever size they have is taken."""
    arrays, starts = list(map(on_device, packed(normal))), make_starts(lists)
    mask, bias = np.ones((3, 1, 3, 4), bool), normal(4, 1, 4)
    mask[1:, :, 0] = False
    moved = {"mask": on_device(mask), "bias": on_device(bias)}
    cuflash.attention_varlen(*arrays, *starts, **moved)
    launch = recorder.launches[0]
    problem = launch.params["problem"]
    found = launch.read(problem["mask"], problem["mask_strides"], (1, 1, 1, 3, 4, 3, 4), bool)
    np.testing.assert_array_equal(found[0, 0, 0], np.broadcast_to(mask, (3, 4, 3, 4)))
    found = launch.read(problem["bias"]["data"], problem["bias"]["strides"], (1, 1, 1, 3, 4, 3, 4), "f4")
    np.testing.assert_array_equal(found[0, 0, 0], np.broadcast_to(bias, (3, 4, 3, 4)))
    wide = on_device(np.ones((1, 9, 9), bool))
    if lists == "both":
        with pytest.raises(ProblemError, match=r"`mask` has shape \(1, 9, 9\), which does not broadcast"):
            cuflash.attention_varlen(*arrays, *starts, mask=wide)
    else:
        cuflash.attention_varlen(*arrays, *starts, mask=wide)
        assert recorder.launches[1].params["problem"]["mask_strides"]["row"] == 9
    with pytest.raises(ProblemError, match=r"`mask` has shape \(2, 1, 1, 1\), which does not broadcast"):
        cuflash.attention_varlen(*arrays, *starts, mask=on_device(np.ones((2, 1, 1, 1), bool)))


def test_lengths_of_packed_sequences(recorder, normal):
    arrays = list(map(on_device, packed(normal)))
    lengths, offsets = on_device(np.array([9, 9, 9])), on_device(np.array([1, 2, 3]))
    for starts in (STARTS, make_starts("none")):
        cuflash.attention_varlen(*arrays, *starts, kv_lengths=[1, 4, 0], q_offset=5, mask=masks.Window(1, 1))
        cuflash.attention_varlen(*arrays, *starts, kv_lengths=lengths, q_offset=offsets)
        first, second = recorder.launches[-2:]
        assert integers_seen(first, "kv_lengths").tolist() == [1, 4, 0]
        assert integers_seen(first, "q_offset").tolist() == [5, 5, 5]
        assert integers_seen(second, "kv_lengths").tolist() == [9, 9, 9]
        assert integers_seen(second, "q_offset").tolist() == [1, 2, 3]
    with pytest.raises(ProblemError, match="`kv_lengths` is 5 for member 1, which has lk=4"):
        cuflash.attention_varlen(*arrays, *STARTS, kv_lengths=[1, 5, 0])
    cuflash.attention_varlen(*arrays, *make_starts("none"), kv_lengths=[1, 5, 0])


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (([0, 3, 5], [0, 7]), "`kv_starts` has 1 members, but `q_starts` has 2"),
        (([0, 4], [0, 7]), "`q_starts` ends with 4, but `q` has total_q=5"),
        (("one", [0]), "`q_starts` has no member, but `q` has total_q=5"),
    ],
)
def test_starts_that_cannot_be_right_are_said(starts, message, recorder, normal):
    starts = [on_device(np.zeros(1, int)) if each == "one" else each for each in starts]
    with pytest.raises(ProblemError, match=message):
        cuflash.attention_varlen(*map(on_device, packed(normal)), *starts)


def test_numpy_starts_beside_device_arrays_are_refused(recorder, normal):
    with pytest.raises(TypeError, match=f"`q` is a {recorder.home} array, but `q_starts` is a numpy array"):
        cuflash.attention_varlen(*map(on_device, packed(normal)), *map(np.array, STARTS))


def test_no_members_launch_nothing(recorder, normal):
    nothing = on_device(np.zeros(1, int))
    arrays = [on_device(x[:0]) for x in packed(normal)]
    out, lse = cuflash.attention_varlen(*arrays, nothing, nothing, return_lse=True)
    assert (out.shape, lse.shape, recorder.launches) == ((0, 4, 2), (4, 0), [])


@pytest.mark.parametrize("lists", ["both", "none"])
@pytest.mark.parametrize("shape", [(4, 3, 4), (3, 1, 1, 4), (1,)])
def test_the_passes_of_packed_gradients(lists, shape, recorder, normal):
    q, k, v = packed(normal)
    dout, lse = normal(5, 4, 2), normal(4, 5)
    options = {"bias": on_device(normal(*shape)), "sinks": on_device(normal(4))}
    arrays = map(on_device, (dout, q, k, v, dout, lse))
    grads = cuflash.attention_varlen_backward(*arrays, *make_starts(lists), **options)
    names = ["bwd_prepare", "bwd_q_simt", "bwd_kv_simt", "bwd_bias_simt", "bwd_sinks"]
    assert recorder.names()[:5] == names
    prepare, of_q, of_kv, of_bias, of_sinks = recorder.launches[:5]
    for launch in (prepare, of_sinks):
        assert [launch.params[name].tolist() for name in ("batch", "heads", "rows")] == [[1, 1, 1, 1], 4, 5]
    assert (of_q.params["given"]["problem"]["q_tiles"], of_q.grid) == (3, 12)
    assert (of_kv.params["kv_tiles"], of_kv.params["hk"], of_kv.grid) == (3, 2, 12)
    for launch, name, grad in ((of_q, "dq", grads.dq), (of_kv, "dk", grads.dk), (of_kv, "dv", grads.dv)):
        given = launch.params[name]
        heads_first = values_of(grad).swapaxes(0, 1)
        target = launch.read(given["data"], given["strides"], (1, 1, 1, 1, *heads_first.shape), "f4")
        target[...] = np.arange(target.size).reshape(target.shape)
        np.testing.assert_array_equal(heads_first.ravel(), np.arange(target.size))
    whole = (1,) * (4 - len(shape)) + shape
    params = of_bias.params
    assert (*params["batch"], params["heads"], params["rows"], params["cols"]) == (1, 1, 1, *whole)
    assert params["given"]["problem"]["q_starts"] == of_q.params["given"]["problem"]["q_starts"] != 0
    assert grads.dbias.shape == shape


# Calls that are no attention.


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("kind", ["sequence", "first axis", "last axis", "mixed"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (5, 4), (2, 1, 2, 2, 2, 3, 5, 4)])
def test_parts_to_be_merged_arrive(shape, kind, dtype, recorder, normal):
    check_parts(shape, kind, dtype, recorder, normal)


def test_parts_of_more_arrays_than_a_launch_takes_are_stacked(stand_in, normal):
    check_parts((2, 3, 5, 4), "many", "float16", stand_in, normal)


def check_parts(shape, kind, dtype, recorder, normal):
    parts = 18 if kind == "many" else 3
    outs = normal(parts, *shape, dtype=dtype)
    lses = normal(parts, *shape[:-1], dtype="float64" if dtype == "float64" else "float32")
    apart = [[on_device(np.repeat(x, 2, -1)[..., ::2]) for x in array] for array in (outs, lses)]
    if kind in ("sequence", "many"):
        out, lse = cuflash.merge(*apart)
    elif kind == "mixed":
        out, lse = cuflash.merge(on_device(outs), apart[1])
    else:
        axis = 0 if kind == "first axis" else lses.ndim - 1
        moved = [on_device(np.moveaxis(array, 0, axis).copy()) for array in (outs, lses)]
        out, lse = cuflash.merge(*moved, axis=axis)
    (launch,) = recorder.launches
    params = launch.params
    assert launch.config == {"dtype": f"Dtype::{dtype}", "parts": f"Dtype::{dtype}"}
    sizes = (*params["batch"], params["heads"], params["rows"])
    assert params["entries"] == np.prod(params["batch"])
    assert (params["parts"], params["arrays"]) == (parts, 3 if kind in ("sequence", "mixed") else 1)
    assert params["sums"] == 0
    for p in range(parts):
        given, step = params["given"][p % params["arrays"]], p // params["arrays"]
        address = given["out"] + step * params["out_step"] * outs.itemsize
        found = launch.read(address, given["out_strides"], (*sizes, shape[-1]), outs.dtype)
        np.testing.assert_array_equal(found.ravel(), outs[p].ravel())
        address = given["lse"] + step * params["lse_step"] * lses.itemsize
        found = launch.read(address, given["lse_strides"], (*sizes, 1), lses.dtype)
        np.testing.assert_array_equal(found.ravel(), lses[p].ravel())
    for name, array, width in (("out", out, shape[-1]), ("lse", lse, 1)):
        target = launch.read(params[name], params[f"{name}_strides"], (*sizes, width), array.dtype)
        target[...] = np.arange(target.size).reshape(target.shape)
        np.testing.assert_array_equal(values_of(array).ravel(), np.arange(target.size))
    assert (out.shape, lse.shape) == (shape, shape[:-1])
    assert launch.grid == -(-lse.size // 4)


def test_parts_that_cannot_be_addressed_together_are_unsupported(recorder, normal):
    turned = normal(*(2, 3) * 4, 4).transpose(7, 6, 5, 4, 3, 2, 1, 0, 8)
    with pytest.raises(UnsupportedError, match="merge: 8 axes cannot be told as one with another"):
        cuflash.merge([on_device(turned)] * 2, [on_device(turned[..., 0])] * 2)


@pytest.mark.parametrize("layout", ["bhld", "blhd"])
def test_rotations_of_strided_arrays_arrive(view, layout, recorder, normal):
    x = normal(2, 4, 5, 8)
    laid_out, look_at = VIEWS[view]
    given = look_at(laid_out(x))
    given = given.swapaxes(1, 2) if layout == "blhd" else given
    positions = on_device(np.arange(10).reshape(2, 5))
    out = cuflash.rotary(on_device(given), positions, layout=layout, dim=6, base=500.0, interleaved=True)
    (launch,) = recorder.launches
    params = launch.params
    sizes = (*params["batch"], params["heads"], params["rows"])
    assert sizes == (1, 1, 1, 2, 4, 5)
    assert [params[name] for name in ("entries", "d", "dim", "interleaved")] == [2, 8, 6, 1]
    found = launch.read(params["x"], params["x_strides"], (*sizes, 8), "f4")
    np.testing.assert_array_equal(found.ravel(), x.ravel())
    found = launch.read(params["positions"]["data"], params["positions"]["strides"], (1, 1, 1, 2, 1, 5, 1), np.int64)
    assert (found.ravel().tolist(), params["positions"]["kind"]) == (list(range(10)), 1)
    found = look(params["freqs"]["data"], (3,), [params["freqs"]["strides"]["col"]], np.float64)
    np.testing.assert_array_equal(found, 500.0 ** (-np.arange(0, 6, 2) / 6))
    assert params["freqs"]["kind"] == 3
    out = on_device(values_of(out).swapaxes(1, 2)) if layout == "blhd" else out
    fill_rotated(launch, out)


def fill_rotated(launch, out):
    """As `fill`, for a struct without a problem."""
    params = launch.params
    shape = (*params["batch"], params["heads"], params["rows"], params["d"])
    target = launch.read(params["out"], params["out_strides"], shape, out.dtype)
    target[...] = np.arange(target.size).reshape(target.shape)
    np.testing.assert_array_equal(values_of(out).ravel(), np.arange(target.size))


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_positions_and_frequencies_that_kernels_read_arrive_as_they_lie(dtype, recorder, normal):
    check_numbers(dtype, recorder, normal)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "uint64", "float16"])
def test_other_positions_and_frequencies_are_converted_on_the_device(dtype, stand_in, normal):
    check_numbers(dtype, stand_in, normal)


def check_numbers(dtype, recorder, normal):
    fraction = 0.5 if "float" in dtype else 0
    given = {"positions": np.arange(5) + fraction, "freqs": np.array([3, 1]) + fraction}
    given = {name: array.astype(dtype) for name, array in given.items()}
    moved = {name: on_device(array) for name, array in given.items()}
    cuflash.rotary(on_device(normal(4, 5, 8)), moved["positions"], dim=4, freqs=moved["freqs"])
    params = recorder.launches[0].params
    for name, axis in (("positions", "row"), ("freqs", "col")):
        kind = (np.int32, np.int64, np.float32, np.float64)[params[name]["kind"]]
        found = look(params[name]["data"], given[name].shape, [params[name]["strides"][axis]], kind)
        assert found.tolist() == given[name].tolist()
        assert (params[name]["data"] == moved[name].data.ptr) == (np.dtype(dtype) == kind)
    assert recorder.moved == []


def test_positions_and_frequencies_of_the_host_are_copied_once(recorder, normal):
    x = on_device(normal(4, 5, 8))
    for _ in range(3):
        cuflash.rotary(x, [3, 1, 4, 1, 5.25], freqs=[1.0, 2.0, 3.0, 4.125])
    assert [array.tolist() for array in recorder.moved] == [[[3, 1, 4, 1, 5.25]], [1, 2, 3, 4.125]]
    found = recorder.launches[-1].params["positions"]
    assert look(found["data"], (5,), [found["strides"]["row"]], np.float64).tolist() == [3, 1, 4, 1, 5.25]
    for name in ("positions", "freqs"):
        given = {"positions": 1, "freqs": [1.0] * 4} | {name: np.ones(4)}
        with pytest.raises(TypeError, match=f"`x` is a {recorder.home} array, but `{name}` is a numpy array"):
            cuflash.rotary(x, given["positions"], freqs=given["freqs"])


def test_long_lists_of_positions_are_not_kept(recorder, normal):
    x = on_device(normal(1, 9000, 2))
    for _ in range(2):
        cuflash.rotary(x, range(9000))
    assert [array.size for array in recorder.moved] == [9000, 1, 9000]


@pytest.mark.parametrize("shape", [(0, 4, 5, 8), (2, 0, 5, 8), (2, 4, 0, 8), (2, 4, 5, 0)])
def test_a_rotation_of_nothing_launches_nothing(shape, recorder, normal):
    out = cuflash.rotary(on_device(normal(*shape)), [0] * shape[2])
    assert (out.shape, recorder.launches) == (shape, [])


# What is said about a call.


def test_explain_says_what_would_be_launched(recorder, normal):
    q, k, v = (on_device(normal(2, heads, 300, 64)) for heads in (4, 2, 2))
    lse = on_device(normal(2, 4, 300))
    said = cuflash.explain(cuflash.attention, q, k, v, causal=True)
    assert said.splitlines()[2] == f"backend: {recorder.home}"
    assert "plan: fwd_simt: a block owns 64 queries" in said and "40 block(s) for 132 multiprocessors" in said
    assert "weights_simt" in cuflash.explain(cuflash.attention_weights, q, k)
    assert "bwd_kv_simt" in cuflash.explain(cuflash.attention_backward, q, q, k, v, q, lse)
    rows = [on_device(normal(5, 4, 64)), *(on_device(normal(7, 2, 64)) for _ in range(2))]
    starts = make_starts("none")
    said = cuflash.explain(cuflash.attention_varlen, *rows, *starts)
    assert "lq up to 5, lk up to 7" in said and "12 block(s)" in said
    dout, lse = rows[0], on_device(normal(4, 5))
    assert "bwd_q_simt" in cuflash.explain(cuflash.attention_varlen_backward, dout, *rows, dout, lse, *starts)
    assert (recorder.launches, recorder.made, recorder.moved) == ([], [], [])


def test_nothing_is_converted_while_a_graph_is_captured(stand_in, normal, monkeypatch):
    """The graph would read memory that was handed back."""

    def refuse(shape, dtype):
        raise ProblemError("a graph is being captured")

    members = list(map(on_device, packed(normal)))
    batch = [array[None].swapaxes(1, 2) for array in members]
    out, few, many = (on_device(np.zeros(*given)) for given in (((5, 4, 2), "f4"), (1, np.uint8), (5, np.uint8)))
    monkeypatch.setattr(stand_in, "empty", refuse)
    for call in (
        lambda: cuflash.attention(*batch, kv_lengths=few, out=out[None].swapaxes(1, 2)),
        lambda: cuflash.attention_varlen(*members, many, many, out=out),
        lambda: cuflash.rotary(batch[0][0, ..., :2], many, out=out.swapaxes(0, 1)),
    ):
        with pytest.raises(ProblemError, match="a graph is being captured"):
            call()
