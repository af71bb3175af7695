"""What the GPU backend hands to the passes of a gradient: the same operands for each, a place for every result, and the
sums of what was broadcast.
"""

import numpy as np
import pytest
from recorder import DTYPES, KINDS, expect, install, look, on_device, operands, seen, values_of

import cuflash
from cuflash._device import Gpu


def test_the_passes_of_a_gradient_in_their_order(recorder, normal):
    q, k, v = operands(normal, [(2,)] * 3)
    dout, out, lse, dlse = (
        normal(2, 4, 9, 2, seed=5),
        normal(2, 4, 9, 2, seed=6),
        normal(2, 4, 9),
        normal(2, 4, 9, seed=7),
    )
    bias, sinks = normal(2, 1, 9, 7), normal(4, dtype="float32")
    options = {"bias": on_device(bias), "sinks": on_device(sinks), "causal": True}
    arrays = list(map(on_device, (dout, q, k, v, out, lse)))
    grads = cuflash.attention_backward(*arrays, dlse=on_device(dlse), **options)
    assert recorder.names() == ["bwd_prepare", "bwd_q_simt", "bwd_kv_simt", "bwd_bias_simt", "bwd_sinks", "sum_axes"]
    prepare, of_q, of_kv, of_bias, of_sinks, _ = recorder.launches
    for name, array, width in (("dout", dout, 2), ("out", out, 2), ("dlse", dlse[..., None], 1)):
        found = prepare.read(prepare.params[name], prepare.params[f"{name}_strides"], (1, 1, 1, 2, 4, 9, width), "f4")
        expect(found, array, (2,), (4, 9, width))
    assert [prepare.params[name].tolist() for name in ("batch", "heads", "rows", "dv")] == [[1, 1, 1, 2], 4, 9, 2]
    for launch in (of_q, of_kv, of_bias):
        given = launch.params["given"]
        for name, array in zip("qkv", (q, k, v)):
            expect(seen(launch, name, array.shape[1:], "f4", given["problem"]), array, (2,), array.shape[1:])
        found = launch.read(given["dout"], given["dout_strides"], (1, 1, 1, 2, 4, 9, 2), "f4")
        expect(found, dout, (2,), (4, 9, 2))
        assert given["delta"] == prepare.params["delta"] == of_sinks.params["delta"]
        expect(
            launch.read(given["lse"], given["lse_strides"], (1, 1, 1, 2, 4, 9, 1), "f4"),
            lse[..., None],
            (2,),
            (4, 9, 1),
        )
    for launch, name, grad in ((of_q, "dq", grads.dq), (of_kv, "dk", grads.dk), (of_kv, "dv", grads.dv)):
        assert written(launch, name, grad)
    assert [of_kv.params[name] for name in ("hk", "kv_tiles", "k_slices", "v_slices")] == [2, 1, 1, 1]
    assert of_sinks.params["dsinks"]["data"] == grads.dsinks.data.ptr
    assert of_sinks.params["sinks"]["data"] == options["sinks"].data.ptr


def written(launch, name, grad):
    """Whether a kernel writes a gradient where it is returned, element for element."""
    given = launch.params[name]
    batch = launch.params["given"]["problem"]["batch"]
    target = launch.read(given["data"], given["strides"], (*batch, *grad.shape[-3:]), grad.dtype)
    target[...] = np.arange(target.size).reshape(target.shape)
    return values_of(grad).ravel().tolist() == list(range(target.size))


def run_sum(launch):
    """What sum_axes.cu does, in NumPy."""
    params = launch.params
    wide = np.dtype(launch.config["dtype"].removeprefix("Dtype::"))
    shape = (*params["sizes"], *params["summed_sizes"])
    source = look(params["in"], shape, (*params["in_strides"], *params["summed_strides"]), wide)
    target = look(params["out"], params["sizes"], params["out_strides"], DTYPES[params["dtype"]])
    assert target.size == params["elements"]
    target[...] = source.sum(axis=tuple(range(-len(params["summed_sizes"]), 0)))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "batches",
    [
        [(2,), (1,), ()],
        [(2, 3), (3,), (2, 1)],
        [(1, 1), (3, 2), (3, 1)],
        [(2, 1, 3, 2, 2, 2), (2, 1, 1, 1, 2, 2), (1, 1, 3, 2, 2, 2)],
    ],
)
def test_gradients_of_what_was_broadcast_are_summed_from_all_entries(batches, dtype, recorder, normal):
    q, k, v = operands(normal, batches, dtype=dtype)
    batch = np.broadcast_shapes(*batches)
    wide = np.float64 if dtype == "float64" else np.float32
    dout, lse = normal(*batch, 4, 9, 2, dtype=dtype), normal(*batch, 4, 9, dtype=wide)
    grads = cuflash.attention_backward(*map(on_device, (dout, q, k, v, dout, lse)))
    _, of_q, of_kv, *sums = recorder.launches
    expected = []
    for launch, name, operand in ((of_q, "dq", q), (of_kv, "dk", k), (of_kv, "dv", v)):
        whole = operand.shape[:-3] == batch
        given, sizes = launch.params[name], launch.params["given"]["problem"]["batch"]
        assert given["dtype"] == [x == (operand.dtype if whole else wide) for x in DTYPES].index(True)
        shape = (*sizes, *operand.shape[-3:])
        target = launch.read(given["data"], given["strides"], shape, operand.dtype if whole else wide)
        target[...] = np.arange(target.size).reshape(shape) % 23
        full = np.array(target).reshape(*batch, *operand.shape[-3:])
        axes = tuple(range(len(batch) - operand.ndim + 3))
        own = (1,) * len(axes) + operand.shape
        axes = tuple(i for i, (size, other) in enumerate(zip(own, full.shape)) if size != other)
        expected.append(full.sum(axis=axes, keepdims=True).reshape(operand.shape))
    assert len(sums) == sum(x.shape[:-3] != batch for x in (q, k, v))
    for launch in sums:
        run_sum(launch)
    for grad, right, operand in zip(grads, expected, (q, k, v)):
        assert (grad.shape, grad.dtype) == (operand.shape, operand.dtype)
        np.testing.assert_array_equal(values_of(grad), right.astype(dtype))


@pytest.mark.parametrize("shape", [(), (7,), (9, 1), (4, 9, 7), (2, 1, 9, 7), (3, 1, 1, 1, 1), (3, 2, 4, 9, 7)])
@pytest.mark.parametrize("sms", [1, 132])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_bias_gradient_is_written_in_the_shape_of_the_bias(shape, sms, kind, monkeypatch, normal):
    """By one launch where blocks are many, else in parts, that are then summed."""
    recorder = install(monkeypatch, Gpu("sm_90a", sms, 227 << 10), kind)
    q, k, v = operands(normal, [(3, 2)] * 3)
    dout, lse, bias = normal(3, 2, 4, 9, 2), normal(3, 2, 4, 9), np.asarray(normal(*shape), np.float32)
    grads = cuflash.attention_backward(*map(on_device, (dout, q, k, v, dout, lse)), bias=on_device(bias))
    launch = next(launch for launch in recorder.launches if launch.kernel == "bwd_bias_simt")
    params, whole = launch.params, (1,) * (5 - len(shape)) + shape
    assert (*params["batch"], params["heads"], params["rows"], params["cols"]) == (1, 1, *whole)
    sharing = 3 * 2 * 4 // int(np.prod(whole[:3]))
    parts = int(params["parts"])
    assert parts == max(1, min(sharing, sms * 4 // int(np.prod(whole[:3]))))
    given = params["dbias"]
    steps = [params["part_stride"], *given["strides"]["batch"], *(given["strides"][x] for x in ("head", "row", "col"))]
    target = look(given["data"], (parts, 1, 1, *whole), steps, np.float32)
    target[...] = np.arange(target.size).reshape(target.shape)
    assert recorder.names().count("sum_axes") == (parts > 1)
    for each in recorder.launches[-1:] * (parts > 1):
        run_sum(each)
    right = np.arange(target.size, dtype=np.float32).reshape(parts, *shape).sum(axis=0)
    assert grads.dbias.shape == shape
    np.testing.assert_array_equal(values_of(grads.dbias), right)


def test_a_vjp_keeps_copies_of_results(stand_in, normal):
    arrays = list(map(on_device, operands(normal, [()] * 3)))
    out, vjp = cuflash.attention_vjp(*arrays)
    grads = vjp(out)
    assert stand_in.names() == ["fwd_simt", "bwd_prepare", "bwd_q_simt", "bwd_kv_simt"]
    assert stand_in.launches[1].params["out"] != stand_in.launches[0].params["out"]
    assert grads.dq.shape == arrays[0].shape
