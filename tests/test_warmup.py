"""Compiling before kernels are needed: which variants, for what, into where, and what is shown meanwhile."""

import io
import re
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from kernels import LINE, need_nvrtc, use_tiny, write_tiny

import cuflash
from cuflash import _kernels, _params
from cuflash.__main__ import main
from cuflash._device import Gpu
from cuflash._runtime import cache, cupy_runtime, images, nvrtc
from cuflash._runtime.nvrtc import Compiled
from cuflash.errors import CompileError, ProblemError


def members(variants):
    return [dict(variant.config) for variant in variants]


# The register


def test_variants_are_chosen_by_dtype_and_dim():
    everything = _kernels.variants()
    assert len(set(everything)) == len(everything)
    assert {variant.kernel for variant in everything} == set(_kernels.KERNELS)
    some = _kernels.variants(["float16"], [64, 33, 65])
    assert set(some) < set(everything)
    dtypes = {member.get("dtype") for member in members(some)}
    assert dtypes <= {"Dtype::float16", "Dtype::float32", None}  # sums are float32, and pages bytes
    forward = [dict(variant.config)["value_dim"] for variant in some if variant.kernel == "fwd_simt"]
    assert forward == [64, 128]


@pytest.mark.parametrize("dtype", _params.DTYPES)
def test_every_dim_has_a_variant(dtype):
    variants = _kernels.variants([dtype])
    for dim in (1, 31, 64, 129, 512):
        found = _kernels.variants([dtype], [dim])
        assert "fwd_simt" in {variant.kernel for variant in found}
        assert set(found) <= set(variants)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtypes": ["int8"]}, "`dtypes` has 'int8', but must be among float16, bfloat16, float32, float64"),
        ({"head_dims": [0]}, "`head_dims` has 0, but must be among 1 to 512"),
        ({"head_dims": [64, 513]}, "`head_dims` has 513"),
    ],
)
def test_what_no_kernel_has_is_told(arguments, message):
    with pytest.raises(ProblemError, match=message):
        cuflash.warmup(**arguments)


# The function, with a compiler that is none


class Bench:
    """The tiny kernel's two variants, and a list of what was compiled."""

    def __init__(self, tmp_path, patch):
        use_tiny(write_tiny(tmp_path / "sources"), patch)
        self.cache, self.compiled, self.patch = tmp_path / "cache", [], patch
        patch.setenv("CUFLASH_CACHE_DIR", str(self.cache))
        patch.delenv("CUFLASH_CUBIN_DIR", raising=False)
        patch.setattr(nvrtc, "version", lambda: "13.4")
        patch.setattr(nvrtc, "supported_archs", lambda: (75, 80, 90, 120))
        patch.setattr(nvrtc, "compile_source", self.compile_source)
        patch.setattr(cupy_runtime, "absence", lambda: "finds no GPU")

    def compile_source(self, source):
        self.compiled.append((dict(source.variant.config)["threads"], source.options[1].partition("=")[2]))
        return Compiled(b"image", "log")

    def put_gpu(self):
        gpu = Gpu("sm_90a", 132, 232448)
        self.patch.setattr(cupy_runtime, "absence", lambda: None)
        self.patch.setattr(cupy_runtime, "runtime", lambda: types.SimpleNamespace(gpu=lambda: gpu))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_without_a_gpu_nothing_is_compiled(bench, capsys):
    assert cuflash.warmup() is None
    printed = capsys.readouterr()
    assert printed.out.startswith("numpy: nothing to prepare\ncupy: finds no GPU; compiling needs CuPy, and a GPU only")
    assert (printed.err, bench.compiled) == ("", [])


def test_the_gpus_kernels_are_put_into_the_cache(bench, capsys):
    bench.put_gpu()
    cuflash.warmup()
    assert sorted(bench.compiled) == [(32, "sm_90a"), (64, "sm_90a")]
    assert re.search(r"cupy: 2 kernels for sm_90a in the cache, \d+\.\d s\n$", capsys.readouterr().out)
    assert len(list(bench.cache.iterdir())) == 2
    cuflash.warmup()
    assert len(bench.compiled) == 2
    for threads in (32, 64):
        images.obtain(_kernels.spec("tiny", threads=threads), "sm_90a")
    assert len(bench.compiled) == 2


def test_other_architectures_need_no_gpu(bench):
    cuflash.warmup(arch=["sm_80", "sm_90"])
    assert sorted(bench.compiled) == [(32, "sm_80"), (32, "sm_90a"), (64, "sm_80"), (64, "sm_90a")]
    assert len(list(bench.cache.iterdir())) == 4


@pytest.mark.parametrize(
    ("arch", "exact"), [("sm_90", "sm_90a"), ("sm_90a", "sm_90a"), ("sm_120", "sm_120"), ("sm_75", "sm_75")]
)
def test_architectures_are_named_as_gpus_ask_for_them(arch, exact, bench):
    cuflash.warmup(arch=arch)
    assert {one for _, one in bench.compiled} == {exact}


@pytest.mark.parametrize("arch", ["sm_70", "sm_80a", "sm_120a", "90", "compute_90", "sm_90x", "sm_", ""])
def test_an_architecture_that_cannot_be_is_told(arch, bench):
    with pytest.raises(ProblemError, match=rf"`arch` has '{arch}', but NVRTC 13.4 .* for sm_75, sm_80, sm_90a, sm_120"):
        cuflash.warmup(arch=arch)
    assert bench.compiled == []


def test_a_folder_gets_one_file_per_kernel(bench, tmp_path, monkeypatch, capsys):
    cuflash.warmup(arch="sm_80", out=tmp_path / "out" / "cubins", progress=False)
    names = ["tiny-threads32-sm_80.cubin", "tiny-threads64-sm_80.cubin"]
    assert sorted(path.name for path in (tmp_path / "out" / "cubins").iterdir()) == names
    assert not bench.cache.exists()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("CUFLASH_CUBIN_DIR", str(tmp_path / "out" / "cubins"))
    before = len(bench.compiled)
    images.obtain(_kernels.spec("tiny", threads=64), "sm_80")
    assert len(bench.compiled) == before


def test_a_folder_needs_something_to_compile_for(bench, tmp_path):
    with pytest.raises(ProblemError, match="`out` is given, but there is no GPU to compile for; `arch` says for which"):
        cuflash.warmup(out=tmp_path)


@pytest.mark.parametrize(
    "dtypes",
    [np.float32, "float32", np.dtype("float32"), ["float32", ml_dtypes.bfloat16], (np.dtype(ml_dtypes.bfloat16),)],
)
def test_dtypes_come_in_every_spelling(dtypes, bench, monkeypatch):
    asked = []
    line = LINE._replace(configs=lambda wanted: asked.append(wanted) or [])
    monkeypatch.setattr(_kernels, "KERNELS", {"tiny": line})
    cuflash.warmup(dtypes, 64)
    assert set(asked[0].dtypes) <= {"float32", "bfloat16"}
    assert set(asked[0].dims) == {(64, 32), (32, 64), (64, 64)}  # the larger is 64


def test_a_kernel_that_does_not_compile_ends_it(bench, monkeypatch):
    def refuse(source):
        bench.compiled.append(source)
        raise CompileError("refused")

    many = LINE._replace(configs=lambda wanted: [(("threads", 32 * n),) for n in range(1, 50)])
    monkeypatch.setattr(_kernels, "KERNELS", {"tiny": many})
    monkeypatch.setattr(nvrtc, "compile_source", refuse)
    with pytest.raises(CompileError, match="refused"):
        cuflash.warmup(arch="sm_80")
    assert len(bench.compiled) < 40


def test_progress_is_a_line_per_kernel(bench, capsys):
    cuflash.warmup(arch="sm_80")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["1/2", "2/2"]
    assert {line.split()[1] for line in lines} == {"tiny-threads32-sm_80.cubin", "tiny-threads64-sm_80.cubin"}


def test_progress_on_a_terminal_is_one_bar(bench, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    cuflash.warmup(arch="sm_80")
    drawn = sys.stderr.getvalue()
    assert drawn.endswith("\n") and drawn.count("\n") == 1
    first, second = drawn.strip().split("\r")
    assert first.startswith("[##########----------] 1/2 tiny-threads")
    assert second.startswith("[####################] 2/2 tiny-threads")


# The command


def test_the_command_compiles_ahead_of_time(bench, tmp_path, capsys):
    out = tmp_path / "cubins"
    options = ["--dtypes", "float32", "--head-dims", "64"]
    assert main(["warmup", "--arch", "sm_80", "sm_90", "--out", str(out), *options]) == 0
    assert len(list(out.iterdir())) == 4
    assert "4 kernels for sm_80, sm_90a in " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["--arch", "sm_1"], "`arch` has 'sm_1'"),
        (["--dtypes", "int8"], "`dtypes` has 'int8'"),
        (["--head-dims", "0"], "expected a whole number from 1 on"),
        (["--out", "folder"], "`out` is given"),
    ],
)
def test_the_command_refuses_what_cannot_be(line, told, bench, capsys):
    with pytest.raises(SystemExit) as error:
        main(["warmup", *line])
    assert error.value.code == 2
    assert told in capsys.readouterr().err


def test_the_command_says_what_went_wrong(bench, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["warmup", "--arch", "sm_80", "--out", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err

    def missing():
        raise CompileError("needs CuPy: pip install")

    monkeypatch.setattr(nvrtc, "supported_archs", missing)
    assert main(["warmup", "--arch", "sm_80"]) == 1
    assert "pip install" in capsys.readouterr().err


def test_real_kernels_ahead_of_time(tmp_path, monkeypatch):
    """Some of the register, through NVRTC and back out of the folder without it."""
    need_nvrtc()
    some = {name: _kernels.KERNELS[name] for name in ("fwd_simt", "merge", "copy_pages")}
    monkeypatch.setattr(_kernels, "KERNELS", some)
    monkeypatch.setenv("CUFLASH_CACHE_DIR", str(tmp_path / "cache"))
    cuflash.warmup("float32", 64, arch="sm_90a", out=tmp_path / "cubins", progress=False)
    monkeypatch.setenv("CUFLASH_CUBIN_DIR", str(tmp_path / "cubins"))
    monkeypatch.setattr(nvrtc, "compile_source", None)
    variants = _kernels.variants(["float32"], [64])
    assert len(list((tmp_path / "cubins").iterdir())) == len(variants) == 3
    for variant in variants:
        compiled = images.obtain(variant, "sm_90a")
        assert compiled.image.startswith(b"\x7fELF") and "sm_90a" in compiled.log
        assert cache.read_file(tmp_path / "cubins" / _kernels.file_name(variant, "sm_90a"))[0] == compiled
