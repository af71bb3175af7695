"""Compiling through NVRTC: what comes out, what is said of failures, and how long a first call takes."""

import re
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from kernels import ARCH, ROOT, VARIANT, finish, need_nvrtc, start_python, use_tiny, write_tiny

from cuflash._device import exact_arch
from cuflash._runtime import nvrtc
from cuflash.errors import CompileError


@pytest.fixture
def other_binding():
    """For a test that puts something else in CuPy's place."""
    nvrtc._binding.cache_clear()
    yield
    nvrtc._binding.cache_clear()


@pytest.fixture
def root(tmp_path, monkeypatch):
    use_tiny(write_tiny(tmp_path), monkeypatch)
    return tmp_path


def compile_tiny(arch=ARCH, extra=()):
    need_nvrtc()
    return nvrtc.compile_source(nvrtc.read_source(VARIANT, arch, extra))


def segments_end(cubin):
    """Where the ELF's last table ends."""
    sections, segments = struct.unpack_from("<Q", cubin, 40)[0], struct.unpack_from("<Q", cubin, 32)[0]
    segment_size, segment_count, section_size, section_count = struct.unpack_from("<HHHH", cubin, 54)
    return max(sections + section_size * section_count, segments + segment_size * segment_count)


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120"])
def test_a_cubin_for_each_architecture_is_whole(arch, root):
    compiled = compile_tiny(arch)
    assert compiled.image[:4] == b"\x7fELF"
    assert len(compiled.image) == segments_end(compiled.image)
    assert b"cuflash_tiny" in compiled.image
    assert f"'{arch}'" in compiled.log


def test_a_byte_is_added_only_where_one_is_missing(root):
    cubin = compile_tiny().image
    assert nvrtc._whole(cubin) == cubin
    assert nvrtc._whole(cubin[:-1]) == cubin


def test_ptx_for_a_virtual_architecture(root):
    compiled = compile_tiny("compute_80", ("-lineinfo",))
    assert b".entry cuflash_tiny" in compiled.image
    assert str(root / "core" / "twice.cuh").encode() in compiled.image
    assert (compiled.registers, compiled.spill_bytes) == (None, None)


# 48 numbers that all depend on each other, and 32 registers.
CROWDED = """
#include "core/platform.cuh"
namespace cf {
template <TinyConfig CONFIG> struct Tiny {
    struct Params { const float* x; float* y; };
    static constexpr int THREADS = 1024, BLOCKS_PER_SM = 2, SMEM_BYTES = 0;
    static __device__ void run(const Params& params) {
        float a[48];
#pragma unroll
        for (int i = 0; i < 48; ++i) a[i] = params.x[i * THREADS + threadIdx.x];
#pragma unroll
        for (int i = 0; i < 96; ++i) a[i % 48] += a[(i * 7 + 1) % 48] * a[(i * 11 + 5) % 48];
#pragma unroll
        for (int i = 0; i < 48; ++i) params.y[i * THREADS + threadIdx.x] = a[i];
    }
};
}
"""


def test_registers_and_spills_are_read_from_the_log(root):
    plain = compile_tiny()
    assert 4 <= plain.registers <= 32
    assert plain.spill_bytes == 0
    (root / "tiny.cu").write_text(CROWDED, encoding="utf-8")
    crowded = compile_tiny()
    assert crowded.registers == 32
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", crowded.log).groups()
    assert int(stores) > 0 < int(loads)
    assert crowded.spill_bytes == int(stores) + int(loads)


def test_denormals_are_kept_and_divisions_are_rounded(root):
    twice = root / "core" / "twice.cuh"
    twice.write_text(twice.read_text(encoding="utf-8").replace("FACTOR * x", "FACTOR / x"), encoding="utf-8")
    ptx = compile_tiny("compute_80").image.decode()
    assert "div.rn.f32" in ptx
    assert ".ftz" not in ptx and ".approx" not in ptx


def test_files_of_the_working_directory_are_not_included(root, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "tiny.cu").write_text("#error taken from the working directory\n", encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    assert compile_tiny().image


def test_an_error_carries_log_options_and_source(root):
    (root / "core" / "twice.cuh").write_text('#include "platform.cuh"\nint twice = "2";\n', encoding="utf-8")
    with pytest.raises(CompileError) as error:
        compile_tiny()
    told = error.value
    place = f"{root / 'core' / 'twice.cuh'}(2): error"
    assert place in told.log and place in str(told)
    assert "--std=c++20" in told.options and "--gpu-architecture=sm_80" in str(told)
    assert Path(told.source).read_text(encoding="utf-8") == nvrtc.read_source(VARIANT, ARCH).text
    assert told.source in str(told)
    assert "threads" in str(told)  # which variant
    with pytest.raises(CompileError) as again:
        compile_tiny()
    assert again.value.source == told.source
    Path(told.source).unlink()


def test_an_error_without_a_place_for_the_source(root, tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc.tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(CompileError) as error:
        compile_tiny(extra=("--no-such-option",))
    assert error.value.source is None
    assert "no-such-option" in error.value.log


def test_an_unknown_architecture_is_told_with_the_known_ones(root):
    with pytest.raises(CompileError, match=r"(?s)capabilities 75, .*sm_70") as error:
        compile_tiny("sm_70")
    Path(error.value.source).unlink()


def test_a_missing_cupy_names_the_pip_line(root, other_binding, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(CompileError, match=r'needs CuPy .*pip install "cuflash\[cuda13\]"'):
        nvrtc.compile_source(nvrtc.read_source(VARIANT, ARCH))


def test_a_missing_nvrtc_names_the_pip_line(root, other_binding, monkeypatch):
    def get_version():
        raise RuntimeError('Failure finding "libnvrtc.so"')

    cuda = types.ModuleType("cupy.cuda")
    cuda.nvrtc = types.SimpleNamespace(getVersion=get_version)
    monkeypatch.setitem(sys.modules, "cupy", types.ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    with pytest.raises(CompileError, match=r"not find NVRTC .*libnvrtc.*pip install cupy-cuda13x nvidia-cuda-nvrtc"):
        nvrtc.compile_source(nvrtc.read_source(VARIANT, ARCH))


def test_the_pip_lines_name_what_the_project_offers():
    config = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    for name in re.findall(r"cuflash\[(\w+)\]", nvrtc.INSTALL):
        assert f"\n{name} =\n" in config
    assert "cupy-cuda13x" in config and "nvidia-cuda-nvrtc" in config


@pytest.mark.parametrize("arch", ["sm_75", "sm_89", "sm_90a", "sm_100a", "sm_110a", "sm_120", "sm_121"])
def test_the_exact_architecture_of_a_device(arch):
    assert exact_arch(*divmod(int(arch[3:].rstrip("a")), 10)) == arch


def test_every_exact_architecture_is_one(root):
    need_nvrtc()
    for number in nvrtc.supported_archs():
        assert compile_tiny(exact_arch(*divmod(number, 10))).image


TIMED = """
import time
import cupy
from cuflash import _configs
from cuflash._runtime import images, nvrtc

def timed(work, *given):
    start = time.process_time()
    work(*given)
    return time.process_time() - start

variant = _configs.fwd_simt("float32", 64, 64).spec
source = nvrtc.read_source(variant, "sm_90a")
fixed = source._replace(text=r'''extern "C" __global__ void fixed(float* x) {
#pragma unroll
    for (int i = 0; i < 100; ++i) x[i] = __cosf(x[i + 1]) / x[i];
}''')
print(timed(images.obtain, variant, "sm_90a"), timed(nvrtc.compile_source, fixed))
"""


@pytest.mark.alone
def test_a_first_call_is_quick(tmp_path):
    """At most 8 times the processor time of a program that does not change to compile, and a quarter of it from disk,
    CuPy's own import apart: 3 s and 0.1 s where the program takes 0.4.
    """
    need_nvrtc()
    runs = [finish(start_python(TIMED, CUFLASH_CACHE_DIR=str(tmp_path))).split() for _ in range(4)]
    (compiled, *loaded), programs = np.array(runs, float).T
    assert compiled < 8 * programs[0]
    assert min(loaded) < programs.min() / 4
