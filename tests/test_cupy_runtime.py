"""The runtime over CuPy, driven with a stand-in that writes down what is called in which order.

It shows what the runtime asks of CuPy, not that CuPy and a GPU do it.
"""

import sys
import threading
import types

import numpy as np
import pytest
from kernels import VARIANT

from cuflash import _kernels
from cuflash._device import Gpu
from cuflash._runtime import cupy_runtime, images
from cuflash._runtime.nvrtc import Compiled
from cuflash.errors import ProblemError

PARAMS = np.zeros((), "V16")


class FakeCupy(types.ModuleType):
    """CuPy with two devices, as far as the runtime uses it; `calls` is all that reached it."""

    def __init__(self):
        super().__init__("cupy")
        self.calls, self.device, self.capturing, self.devices, self.stream = [], 0, False, 2, 5
        runtime = types.SimpleNamespace(
            getDevice=lambda: self.device,
            getDeviceCount=self.count_devices,
            deviceGetAttribute=lambda name, device: {"sms": 132, "smem": 232448}[name] + device,
            cudaDevAttrMultiProcessorCount="sms",
            cudaDevAttrMaxSharedMemoryPerBlockOptin="smem",
        )
        driver = types.SimpleNamespace(
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic smem",
            funcSetAttribute=lambda *arguments: self.calls.append(("set", *arguments)),
        )
        self.cuda = types.SimpleNamespace(
            runtime=runtime,
            driver=driver,
            function=types.SimpleNamespace(Module=lambda: FakeModule(self)),
            Device=lambda device: types.SimpleNamespace(compute_capability=("90", "120")[device]),
            get_current_stream=lambda: types.SimpleNamespace(is_capturing=lambda: self.capturing, ptr=self.stream),
        )
        for name in ("empty", "zeros", "array", "asnumpy"):
            setattr(self, name, lambda *arguments, name=name: self.calls.append((name, *arguments)) or name)

    def count_devices(self):
        if self.devices is None:
            raise RuntimeError("cudaErrorInsufficientDriver")
        return self.devices


class FakeModule:
    def __init__(self, cupy):
        self.cupy = cupy

    def load(self, image):
        self.cupy.calls.append(("load", self.cupy.device, image))

    def get_function(self, name):
        return FakeFunction(self.cupy, name)


class FakeFunction:
    def __init__(self, cupy, name):
        self.cupy, self.name, self.ptr = cupy, name, f"ptr of {name}"

    def __call__(self, grid, block, arguments, shared_mem):
        self.cupy.calls.append(("launch", self.name, grid, block, arguments, shared_mem))


@pytest.fixture
def cupy(monkeypatch):
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(images, "obtain", lambda variant, arch: Compiled(f"{variant.config} {arch}".encode(), ""))
    return fake


@pytest.fixture
def runtime(cupy):
    return cupy_runtime.CupyRuntime()


def array_on(device, address=4096):
    return types.SimpleNamespace(data=types.SimpleNamespace(device_id=device, ptr=address))


def image(arch):
    return f"{VARIANT.config} {arch}".encode()


def test_the_current_device_is_described(runtime, cupy):
    assert runtime.gpu() == Gpu("sm_90a", 132, 232448)
    cupy.device = 1
    assert runtime.gpu() == Gpu("sm_120", 133, 232449)
    assert cupy.calls == []


def test_a_variant_is_loaded_before_its_first_launch_and_never_again(runtime, cupy):
    runtime.launch(VARIANT, 7, 128, 0, PARAMS)
    runtime.launch(VARIANT, (7, 2), 128, 0, PARAMS)
    first = ("launch", "cuflash_tiny", (7,), (128,), (PARAMS,), 0)
    assert cupy.calls == [("load", 0, image("sm_90a")), first, (*first[:2], (7, 2), *first[3:])]
    assert cupy.calls[1][4][0] is PARAMS


def test_each_device_has_its_own(runtime, cupy):
    runtime.launch(VARIANT, 1, 32, 0, PARAMS)
    cupy.device = 1
    runtime.launch(VARIANT, 1, 32, 0, PARAMS)
    cupy.device = 0
    runtime.launch(VARIANT, 1, 32, 0, PARAMS)
    loads = [call for call in cupy.calls if call[0] == "load"]
    assert loads == [("load", 0, image("sm_90a")), ("load", 1, image("sm_120"))]


@pytest.mark.parametrize(("smem_bytes", "asked"), [(0, 0), (49152, 0), (49153, 1), (232448, 1)])
def test_much_shared_memory_is_asked_for_before_the_launch(smem_bytes, asked, runtime, cupy):
    for _ in range(2):
        runtime.launch(VARIANT, 1, 32, smem_bytes, PARAMS)
    assert [call[0] for call in cupy.calls] == ["load", *["set"] * asked, "launch", "launch"]
    assert cupy.calls[-1][-1] == smem_bytes
    if asked:
        assert cupy.calls[1] == ("set", "ptr of cuflash_tiny", "dynamic smem", smem_bytes)


@pytest.mark.parametrize("grid", [0, (0,), (5, 0), (0, 5, 1)])
def test_a_grid_without_blocks_launches_nothing(grid, runtime, cupy):
    runtime.launch(VARIANT, grid, 32, 0, PARAMS)
    assert cupy.calls == []


def test_what_is_not_loaded_cannot_be_captured(runtime, cupy):
    assert not runtime.capturing()
    cupy.capturing = True
    assert runtime.capturing()
    with pytest.raises(ProblemError, match=r"tiny is not on the device yet.*once before the capture"):
        runtime.launch(VARIANT, 1, 32, 0, PARAMS)
    assert cupy.calls == []
    cupy.capturing = False
    runtime.launch(VARIANT, 1, 32, 0, PARAMS)
    cupy.capturing = True
    runtime.launch(VARIANT, 1, 32, 0, PARAMS)
    assert [call[0] for call in cupy.calls] == ["load", "launch", "launch"]


def test_arrays_are_made_on_the_stream(runtime, cupy):
    host = np.arange(3)
    assert runtime.empty((2, 3), np.float32) == "empty"
    assert runtime.zeros((4,), np.int32) == "zeros"
    assert runtime.asarray(host) == "array"
    assert runtime.to_host("device array") == "asnumpy"
    assert cupy.calls == [
        ("empty", (2, 3), np.float32), ("zeros", (4,), np.int32), ("array", host), ("asnumpy", "device array")
    ]  # fmt: skip
    assert runtime.pointer(array_on(0, 4096 + 8)) == 4104


@pytest.mark.parametrize("make", ["empty", "zeros", "asarray"])
def test_nothing_is_allocated_while_a_graph_is_captured(make, runtime, cupy):
    cupy.capturing = True
    arguments = (np.arange(3),) if make == "asarray" else ((3,), np.float32)
    with pytest.raises(ProblemError, match=r"captured.*`out`, `lse_out`.*`workspace`"):
        getattr(runtime, make)(*arguments)
    assert cupy.calls == []


def test_an_array_of_another_device_is_named(runtime, cupy):
    runtime.check_current("attention", q=array_on(0), k=array_on(0))
    with pytest.raises(ProblemError, match=r"attention: `v` is on device 1, but the current device is 0.*Device\(1\)"):
        runtime.check_current("attention", q=array_on(0), v=array_on(1))
    cupy.device = 1
    runtime.check_current("attention", v=array_on(1))


def test_many_threads_load_a_variant_once(runtime, cupy, monkeypatch):
    ready = threading.Barrier(6)

    def slow(variant, arch):
        ready_for_more.wait(0.2)
        return Compiled(b"", "")

    ready_for_more = threading.Event()
    monkeypatch.setattr(images, "obtain", slow)

    def work():
        ready.wait()
        runtime.launch(VARIANT, 1, 32, 0, PARAMS)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(call[0] for call in cupy.calls) == ["launch"] * 6 + ["load"]


def test_other_variants_are_loaded_meanwhile(runtime, cupy, monkeypatch):
    other = _kernels.spec("tiny", threads=64)
    loading = threading.Event()

    def obtain(variant, arch):
        if variant == VARIANT:
            assert loading.wait(5)  # until the other one is there
        return Compiled(b"", "")

    monkeypatch.setattr(images, "obtain", obtain)
    thread = threading.Thread(target=runtime.launch, args=(VARIANT, 1, 32, 0, PARAMS))
    thread.start()
    runtime.launch(other, 1, 64, 0, PARAMS)
    loading.set()
    thread.join()
    assert [call[0] for call in cupy.calls] == ["load", "launch"] * 2


def test_why_there_is_no_runtime(cupy, monkeypatch):
    assert cupy_runtime.absence() is None
    cupy.devices = 0
    assert cupy_runtime.absence() == "finds no GPU"
    cupy.devices = None
    assert cupy_runtime.absence() == "finds no GPU (cudaErrorInsufficientDriver)"
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert cupy_runtime.absence().startswith("cannot be imported")


def test_a_place_is_a_device_and_a_stream_of_a_thread(cupy):
    runtime = cupy_runtime.CupyRuntime()
    places = [runtime.place()]
    cupy.device = 1
    places.append(runtime.place())
    cupy.stream = 6
    places.append(runtime.place())
    thread = threading.Thread(target=lambda: places.append(runtime.place()))
    thread.start()
    thread.join()
    assert places[2] == runtime.place()
    assert len(set(places)) == 4


def test_the_stand_in_has_what_cupy_has():
    """Every name that the runtime uses exists in the CuPy that is installed."""
    real = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    fake = FakeCupy()
    for owner, names in (
        ("cuda.runtime", vars(fake.cuda.runtime)),
        ("cuda.driver", vars(fake.cuda.driver)),
        ("cuda.function", ["Module"]),
        ("cuda.function.Module", ["load", "get_function"]),
        ("cuda", ["Device", "get_current_stream"]),
        ("cuda.Device", ["compute_capability"]),
        ("cuda.Stream", ["is_capturing"]),
        ("cuda.MemoryPointer", ["device_id", "ptr"]),
        ("", ["empty", "zeros", "array", "asnumpy"]),
    ):
        thing = real
        for name in filter(None, owner.split(".")):
            thing = getattr(thing, name)
        assert [name for name in names if not hasattr(thing, name)] == [], owner


def test_an_array_by_its_address(monkeypatch):
    """The real CuPy: neither it nor its views look at what lies there."""
    real = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    monkeypatch.setattr(real.cuda.runtime, "getDevice", lambda: 1)
    array = cupy_runtime.CupyRuntime().array_at(1 << 62, (4, 3, 5), np.float16, (6, 2, 24))
    assert (array.shape, array.strides, array.dtype, array.data.device_id) == ((4, 3, 5), (6, 2, 24), np.float16, 1)
    assert array[1, 2].swapaxes(0, -1).data.ptr == (1 << 62) + 10
    assert np.broadcast_to(array[::-1], (2, 4, 3, 5)).data.ptr == (1 << 62) + 18


def test_assigning_converts(runtime):
    target = np.zeros(3)
    runtime.assign(target, np.arange(3))
    assert target.tolist() == [0, 1, 2]
