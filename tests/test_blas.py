"""What show_config says, above all of BLAS below the CPU's width: what is to be tried, and which commands start again
with it.
"""

import os
import sys
from importlib import metadata

import pytest

import cuflash
from cuflash import __main__ as command_line
from cuflash import _blas
from cuflash._runtime import cupy_runtime

AVX512, AVX2, ARM = {"X86_V2", "X86_V3", "X86_V4"}, {"SSE42", "AVX2", "FMA3"}, {"NEON", "ASIMD"}


def openblas(kernels):
    return {"user_api": "blas", "internal_api": "openblas", "version": "0.3", "architecture": kernels, "num_threads": 2}


@pytest.mark.parametrize(
    ("kernels", "features", "to_set"),
    [
        ("Haswell", AVX512, "SkylakeX"),
        ("Zen", AVX512, "SkylakeX"),
        ("Nehalem", AVX512, "SkylakeX"),
        ("SkylakeX", AVX512, None),
        ("SapphireRapids", AVX512, None),
        ("Cooperlake", {"AVX512_SKX"}, None),
        ("Zen", {"AVX512_SKX"}, "SkylakeX"),
        ("Prescott", AVX2, "Haswell"),
        ("Haswell", AVX2, None),
        ("a name yet to come", AVX512, None),
        ("neoversen1", ARM, None),
        ("Prescott", {"SSE42"}, None),
    ],
)
def test_wider_kernels(kernels, features, to_set):
    width = _blas.wider([openblas("unknown"), openblas(kernels)], features)
    assert (width and width.kernels[0]) == to_set


def test_only_openblas_takes_the_variable():
    assert _blas.wider([{**openblas("Haswell"), "internal_api": "blis"}], AVX512) is None


def test_numpy_has_its_own(monkeypatch):
    build = {"Build Dependencies": {"blas": {"name": "openblas", "version": "0.3.31"}}}
    monkeypatch.setattr(_blas.np, "show_config", lambda mode: build)
    of_scipy, of_numpy = ({**openblas("Zen"), "version": version} for version in ("0.3.30", "0.3.31"))
    assert _blas.of_numpy([of_scipy, of_numpy]) is of_numpy
    assert _blas.of_numpy([of_scipy]) is of_scipy
    assert _blas.of_numpy([]) == {}


def test_features_of_this_cpu():
    assert _blas.cpu_features()
    assert all(isinstance(name, str) for name in _blas.cpu_features())


@pytest.fixture
def narrow_blas(monkeypatch):
    monkeypatch.setattr(_blas, "libraries", lambda: [openblas("Haswell")])
    monkeypatch.setattr(_blas, "cpu_features", lambda: AVX512)


def test_show_config_says_what_to_set(narrow_blas, monkeypatch, capsys):
    cuflash.show_config()
    printed = capsys.readouterr().out
    assert "BLAS: openblas 0.3, Haswell kernels, 2 threads" in printed
    assert "OPENBLAS_CORETYPE=SkylakeX" in printed and "AVX-512" in printed
    monkeypatch.setattr(_blas, "libraries", lambda: [openblas("SkylakeX")])
    cuflash.show_config()
    assert "OPENBLAS_CORETYPE" not in capsys.readouterr().out


def test_show_config_names_versions_and_the_lack_of_a_gpu(monkeypatch, capsys):
    """CuPy's under whatever name it was installed."""
    monkeypatch.setattr(cupy_runtime, "absence", lambda: "finds no GPU")
    monkeypatch.setattr(metadata, "version", versions({"numpy": "2.9", "cupy-cuda99x": "99.1"}))
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"cupy": ["cupy-cuda99x"]})
    cuflash.show_config()
    printed = capsys.readouterr().out
    assert "numpy 2.9, scipy not installed," in printed and "cupy 99.1\n" in printed
    assert "backends: numpy, not cupy, which finds no GPU\n" in printed


def versions(known):
    """In place of `metadata.version`."""

    def version(name):
        if name not in known:
            raise metadata.PackageNotFoundError(name)
        return known[name]

    return version


class Started(Exception):
    """In place of becoming another program."""


@pytest.fixture
def command(monkeypatch):
    """Run a command as ``python -W error -m cuflash ...`` up to the point where it would start again or begin."""
    monkeypatch.delenv(_blas.VARIABLE, raising=False)

    def execve(path, arguments, environment):
        raise Started(path, arguments, environment[_blas.VARIABLE])

    def begin(*arguments):
        raise Started("begun")

    monkeypatch.setattr(os, "execve", execve)
    for name in ("_bench", "_demo"):
        monkeypatch.setattr(command_line, name, begin)

    def run(*arguments, before=("-W", "error", "-m", "cuflash")):
        monkeypatch.setattr(sys, "argv", ["/somewhere/cuflash/__main__.py", *arguments])
        monkeypatch.setattr(sys, "orig_argv", ["python3", *before, *arguments])
        with pytest.raises(Started) as started:
            command_line.main()
        return started.value.args

    return run


@pytest.mark.skipif(os.name != "posix", reason="a process becomes another on POSIX systems only")
@pytest.mark.parametrize("arguments", [("bench", "--rounds", "2", "--wide-blas"), ("demo", "--wide-blas")])
def test_commands_start_again_with_wider_blas(arguments, narrow_blas, command, capsys):
    expected = [sys.executable, "-W", "error", "-m", "cuflash", *arguments]
    assert command(*arguments) == (sys.executable, expected, "SkylakeX")
    assert "OPENBLAS_CORETYPE=SkylakeX" in capsys.readouterr().err


def test_commands_stay_where_they_should(narrow_blas, command, monkeypatch):
    assert command("bench") == ("begun",), "nobody asked"
    assert command("bench", "--wide-blas", before=("program.py",)) == ("begun",), "not ours to start twice"
    monkeypatch.setenv(_blas.VARIABLE, "Haswell")
    assert command("bench", "--wide-blas") == ("begun",), "what is set is meant"


def test_commands_stay_where_blas_is_as_wide_as_the_cpu(narrow_blas, command, monkeypatch):
    monkeypatch.setattr(_blas, "libraries", lambda: [openblas("SkylakeX")])
    assert command("bench", "--wide-blas") == ("begun",)
