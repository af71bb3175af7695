"""One folder of compiled kernels and many processes: in a crowd, killed while they write, without room or a right."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from kernels import SPECIAL, finish, need_nvrtc, start_python, write_tiny

from cuflash._runtime import cache

# Many processes

CROWD = """
import sys, time
from cuflash._runtime import cache
from cuflash._runtime.nvrtc import Compiled
whole, writes = Compiled(bytes(range(256)) * 1000, "log"), {writes!r}
print("ready", flush=True)
sys.stdin.readline()
seen, turns, end = False, 0, time.monotonic() + 60
while turns < 40 and time.monotonic() < end:
    if writes:
        assert cache.store("k.cubin", "key", whole)
    found = cache.load("k.cubin", "key")
    assert found == whole if seen else found in (None, whole)
    seen = found is not None
    turns += seen
assert turns == 40
"""


def test_a_crowd_writes_and_reads_one_file(tmp_path):
    """Three processes store the same kernel over and over while three read it: absent at first, then always whole."""
    crowd = [start_python(CROWD.format(writes=i % 2 == 0), CUFLASH_CACHE_DIR=str(tmp_path)) for i in range(6)]
    for process in crowd:
        assert process.stdout.readline() == "ready\n"
    for process in crowd:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in crowd:
        finish(process)
    assert [path.name for path in tmp_path.iterdir()] == ["k.cubin"]


COMPILE = """
import pytest
from kernels import ARCH, VARIANT, Path, use_tiny
from cuflash._runtime import images
with pytest.MonkeyPatch.context() as patch:
    use_tiny(Path({root!r}), patch)
    print(images.obtain(VARIANT, ARCH).image.hex())
"""


def test_a_crowd_compiles_one_kernel(tmp_path):
    need_nvrtc()
    code = COMPILE.format(root=str(write_tiny(tmp_path / "sources")))
    crowd = [start_python(code, CUFLASH_CACHE_DIR=str(tmp_path / "cache")) for _ in range(4)]
    images_found = {finish(process) for process in crowd}
    assert len(images_found) == 1
    (file,) = (tmp_path / "cache").iterdir()
    assert cache.read_file(file)[0].image.hex() + "\n" in images_found


KILLED = """
import time
from cuflash._runtime import cache
from cuflash._runtime.nvrtc import Compiled

class Half:
    def __init__(self, *arguments):
        self.file = open(*arguments)
    def __enter__(self):
        return self
    def __exit__(self, *exception):
        self.file.close()
    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        print("half", flush=True)
        time.sleep(60)

cache.open = Half
cache.store("k.cubin", "key", Compiled(bytes(100000), "log"))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals as on POSIX")
def test_a_process_killed_while_it_writes_leaves_nothing_that_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("CUFLASH_CACHE_DIR", str(tmp_path))
    process = start_python(KILLED)
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp" and left.stat().st_size > 10000
    assert cache.load("k.cubin", "key") is None
    assert cache.store("k.cubin", "key", SPECIAL)
    assert cache.load("k.cubin", "key") == SPECIAL
    assert left.exists()  # it may belong to one that still writes
    os.utime(left, (time.time() - cache.DAY - 60,) * 2)
    assert cache.store("k.cubin", "key", SPECIAL)
    assert [path.name for path in tmp_path.iterdir()] == ["k.cubin"]


# Folders that take nothing

GUARDED = """
import os, resource, signal, warnings
from kernels import ARCH, VARIANT, Path, pytest, use_tiny
from cuflash._runtime import images, nvrtc
from cuflash.errors import PerformanceWarning

patch = pytest.MonkeyPatch()
use_tiny(Path({root!r}), patch)
compiled = []
patch.setattr(nvrtc, "version", lambda: "13.4")
patch.setattr(nvrtc, "compile_source", lambda source: compiled.append(1) or nvrtc.Compiled(bytes(100000), "log"))
if {guard!r} == "mode" and os.getuid() == 0:
    os.setuid(65534)  # root writes where it likes
if {guard!r} == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for threads in (32, 32, 64):
        variant = VARIANT._replace(config=(("threads", threads),))
        assert len(images.obtain(variant, ARCH).image) == 100000
assert all(warning.category is PerformanceWarning for warning in caught)
print(len(compiled), len(caught), *caught[:1])
"""


@pytest.fixture
def open_folder():
    """A folder that every user may enter, unlike those of pytest."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    (path / "cache").chmod(0o755)
    shutil.rmtree(path)


@pytest.mark.skipif(os.name == "nt", reason="modes and limits as on POSIX")
@pytest.mark.parametrize(("guard", "reason"), [("mode", "Permission denied"), ("full", "File too large")])
def test_a_folder_that_takes_nothing(guard, reason, open_folder):
    """Each kernel is compiled once and kept in memory; one warning tells what to do; no file is left."""
    folder = open_folder / "cache"
    folder.mkdir()
    cache.write_file(folder / "k.cubin", SPECIAL, "key")
    folder.chmod(0o555 if guard == "mode" else 0o755)
    code = GUARDED.format(root=str(write_tiny(open_folder / "sources")), guard=guard)
    printed = finish(start_python(code, CUFLASH_CACHE_DIR=str(folder)))
    assert printed.startswith("2 1 ")
    assert reason in printed
    assert "CUFLASH_CACHE_DIR" in printed
    assert [path.name for path in folder.iterdir()] == ["k.cubin"]
    assert cache.read_file(folder / "k.cubin") == (SPECIAL, "key")


@pytest.mark.skipif(os.name == "nt", reason="modes as on POSIX")
def test_a_read_only_folder_is_read(open_folder):
    root = str(write_tiny(open_folder / "sources"))
    folder = open_folder / "cache"
    open_code = GUARDED.format(root=root, guard="")
    assert finish(start_python(open_code, CUFLASH_CACHE_DIR=str(folder))).split() == ["2", "0"]
    folder.chmod(0o555)
    guarded = GUARDED.format(root=root, guard="mode")
    assert finish(start_python(guarded, CUFLASH_CACHE_DIR=str(folder))).split() == ["0", "0"]
