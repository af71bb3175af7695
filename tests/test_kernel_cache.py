"""Compiled kernels on disk: found again, never wrong, and never in the way, whatever happens to the folder."""

import os
import sys
import time
from pathlib import Path

import pytest
from kernels import ARCH, SPECIAL, VARIANT, use_tiny, write_tiny

from cuflash import _kernels
from cuflash._runtime import cache, images, nvrtc
from cuflash._runtime.nvrtc import Compiled
from cuflash.errors import CompileError, PerformanceWarning


class Bench:
    """A cache in a folder of the test, where what is compiled is counted and need not be real."""

    def __init__(self, tmp_path, patch):
        self.root, self.folder, self.compiled = write_tiny(tmp_path / "sources"), tmp_path / "cache", 0
        use_tiny(self.root, patch)
        patch.setenv("CUFLASH_CACHE_DIR", str(self.folder))
        patch.delenv("CUFLASH_CUBIN_DIR", raising=False)
        patch.setattr(nvrtc, "version", lambda: "13.4")
        patch.setattr(nvrtc, "compile_source", self.compile_source)
        patch.setattr(cache, "_warned", set())
        patch.setattr(images, "_unsaved", {})

    def compile_source(self, source):
        self.compiled += 1
        return Compiled(f"{self.compiled} of {source.identity}".encode(), "log")

    def count(self, variant=VARIANT, arch=ARCH, extra=()):
        """How many compilations asking for a kernel takes."""
        before = self.compiled
        assert images.obtain(variant, arch, extra).log == "log"
        return self.compiled - before

    def files(self):
        return sorted(self.folder.iterdir())


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


# What is found again, and what is not


def test_a_kernel_is_compiled_once(bench):
    assert [bench.count() for _ in range(3)] == [1, 0, 0]
    (file,) = bench.files()
    assert file.name.startswith("tiny-1-13.4-") and file.suffix == ".cubin"
    assert bench.count(arch="compute_80") == 1
    assert sorted(path.suffix for path in bench.files()) == [".cubin", ".ptx"]


@pytest.mark.parametrize("header", ["tiny.cu", "core/twice.cuh", "core/platform.cuh"])
def test_an_edited_file_is_another_kernel(header, bench):
    assert bench.count() == 1
    text = (bench.root / header).read_text(encoding="utf-8")
    (bench.root / header).write_text(text + "\n", encoding="utf-8")
    assert [bench.count(), bench.count()] == [1, 0]
    (bench.root / header).write_text(text, encoding="utf-8")
    assert bench.count() == 0


def test_everything_else_in_the_key(bench, monkeypatch):
    assert bench.count() == 1
    assert bench.count(arch="sm_90a") == 1
    assert bench.count(extra=("-lineinfo",)) == 1
    assert bench.count(_kernels.spec("tiny", threads=64)) == 1
    monkeypatch.setattr(nvrtc, "version", lambda: "13.5")
    assert bench.count() == 1
    monkeypatch.setattr(images, "SCHEMA", "2")
    assert bench.count() == 1
    assert bench.count() == 0
    monkeypatch.undo()


def test_the_folder_of_the_sources_is_not_in_the_key(bench, tmp_path, monkeypatch):
    assert bench.count() == 1
    use_tiny(write_tiny(tmp_path / "elsewhere"), monkeypatch)
    assert bench.count() == 0


def test_a_file_that_changes_under_the_compiler_is_not_kept(bench, monkeypatch):
    def edit_meanwhile(source):
        with open(bench.root / "core" / "twice.cuh", "a", encoding="utf-8") as file:
            file.write("\n")
        return bench.compile_source(source)

    monkeypatch.setattr(nvrtc, "compile_source", edit_meanwhile)
    assert bench.count() == 1
    assert not bench.folder.exists()


# Damage


def damage(data):
    """What may have become of a file, by name."""
    middle = len(data) // 2
    flipped = {f"byte {i}": data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in (0, middle, -60, -50, -20, -1)}
    flipped = {name: text[: len(data)] for name, text in flipped.items()}
    cut = {f"cut to {n}": data[:n] for n in (0, 1, 40, middle, len(data) - 1)}
    return flipped | cut | {"longer": data + b"\0", "zeros": bytes(len(data)), "text": b"no kernel" * 99}


def test_a_damaged_file_is_compiled_again_and_replaced(bench):
    assert bench.count() == 1
    (file,) = bench.files()
    whole = file.read_bytes()
    for name, data in damage(whole).items():
        file.write_bytes(data)
        assert cache.read_file(file) is None, name
        assert [bench.count(), bench.count()] == [1, 0], name
        assert bench.files() == [file], name


def test_a_file_under_anothers_name_is_not_taken_for_it(bench):
    assert bench.count() == 1
    (file,) = bench.files()
    other = file.read_bytes()
    assert bench.count(arch="sm_90a") == 1
    for path in bench.files():
        path.write_bytes(other)
    assert bench.count(arch="sm_90a") == 1


def test_a_file_is_the_image_with_notes_behind_it(tmp_path):
    cache.write_file(tmp_path / "k.cubin", SPECIAL, "key")
    assert cache.read_file(tmp_path / "k.cubin") == (SPECIAL, "key")
    assert (tmp_path / "k.cubin").read_bytes().startswith(SPECIAL.image)


# Folders that cannot be used


def test_a_folder_that_cannot_be_made(bench, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("CUFLASH_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(PerformanceWarning, match="cannot be kept on disk"):
        assert bench.count() == 1
    assert bench.count() == 0
    assert bench.count(arch="sm_90a") == 1  # and no second warning, which would be an error here


def test_a_file_that_another_process_stored_meanwhile_will_do(bench, monkeypatch):
    """On Windows a file that someone reads cannot be replaced."""

    def refuse(*paths):
        raise PermissionError("in use")

    assert cache.store("k.cubin", "key", SPECIAL)
    monkeypatch.setattr(os, "replace", refuse)
    assert cache.store("k.cubin", "key", SPECIAL)
    assert [path.name for path in bench.files()] == ["k.cubin"]
    with pytest.warns(PerformanceWarning, match="in use"):
        assert not cache.store("k.cubin", "other key", SPECIAL)


def test_a_folder_that_is_emptied_meanwhile(bench, monkeypatch):
    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "iterdir", gone)
    assert bench.count() == 1


def test_a_user_without_a_home(bench, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CUFLASH_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.warns(PerformanceWarning, match="Could not determine home"):
        assert bench.count() == 1
    assert bench.count() == 0


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {"CUFLASH_CACHE_DIR": "given", "XDG_CACHE_HOME": "/caches"}, Path("given")),
        ("linux", {"CUFLASH_CACHE_DIR": "", "XDG_CACHE_HOME": "/caches"}, Path("/caches/cuflash")),
        ("linux", {"XDG_CACHE_HOME": "relative"}, Path("/home/u/.cache/cuflash")),
        ("linux", {}, Path("/home/u/.cache/cuflash")),
        ("win32", {"LOCALAPPDATA": "/Local", "XDG_CACHE_HOME": "/caches"}, Path("/Local/cuflash/Cache")),
        ("win32", {}, Path("/home/u/AppData/Local/cuflash/Cache")),
    ],
)
def test_the_folder_by_platform(system, variables, expected, monkeypatch):
    for name in ("CUFLASH_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/u"))
    assert cache.folder() == expected


def test_the_folder_is_bounded_by_use(tmp_path, monkeypatch):
    monkeypatch.setenv("CUFLASH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "LIMIT_BYTES", 4 * 10500)
    (tmp_path / "notes.txt").write_bytes(bytes(99999))
    now = time.time()
    for i in range(4):
        assert cache.store(f"{i}.cubin", "key", SPECIAL)
        os.utime(tmp_path / f"{i}.cubin", (now - 1000 + i,) * 2)
    assert cache.load("0.cubin", "key") == SPECIAL  # used just now
    assert cache.store("4.ptx", "key", SPECIAL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.cubin", "2.cubin", "3.cubin", "4.ptx", "notes.txt"]


# CUFLASH_CUBIN_DIR


@pytest.fixture
def cubins(bench, tmp_path, monkeypatch):
    """A folder with the kernel compiled ahead of time, on a machine that has no NVRTC."""
    folder = tmp_path / "cubins"
    path = images.precompile(VARIANT, ARCH, folder)
    assert path == folder / "tiny-threads32-sm_80.cubin"
    monkeypatch.setenv("CUFLASH_CUBIN_DIR", str(folder))
    return path


def test_a_file_compiled_ahead_of_time_needs_no_nvrtc(bench, cubins, monkeypatch):
    def missing():
        raise CompileError("no NVRTC")

    monkeypatch.setattr(nvrtc, "version", missing)
    assert bench.count() == 0
    assert not bench.folder.exists()
    with pytest.raises(CompileError, match="no NVRTC"):
        bench.count(arch="sm_90a")


def test_a_stale_file_is_not_used_and_told_once(bench, cubins):
    images.precompile(_kernels.spec("tiny", threads=64), ARCH, cubins.parent)
    with open(bench.root / "core" / "twice.cuh", "a", encoding="utf-8") as file:
        file.write("// edited\n")
    with pytest.warns(PerformanceWarning, match="tiny-threads32-sm_80.cubin of CUFLASH_CUBIN_DIR.*other sources"):
        assert bench.count() == 1
    assert bench.count() == 0  # from the cache
    assert bench.count(_kernels.spec("tiny", threads=64)) == 1


def test_a_damaged_file_of_the_folder_is_not_used(bench, cubins):
    cubins.write_bytes(cubins.read_bytes()[:-1])
    with pytest.warns(PerformanceWarning, match="is damaged"):
        assert bench.count() == 1


def test_other_options_are_another_file(bench, cubins):
    with pytest.warns(PerformanceWarning, match="other sources"):
        assert bench.count(extra=("-lineinfo",)) == 1


def test_a_folder_that_is_none_is_told(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("CUFLASH_CUBIN_DIR", str(tmp_path / "nowhere"))
    with pytest.warns(PerformanceWarning, match="nowhere is not a folder"):
        assert bench.count() == 1
    assert bench.count(arch="sm_90a") == 1
