"""The primitives of rawkernels/core, one by one, on the emulator: beside NumPy, and beside what a GPU gave."""

import importlib
import re
from pathlib import Path

import backends
import golden_probes
import numpy as np
import probes
import pytest
from probe_numbers import fused

from cuflash import _kernels, _sources

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture(scope="module")
def runtime(request):
    """The emulator's."""
    return backends.make("emulator", str(request.config.cache.mkdir("emulator"))).runtime


@pytest.fixture(scope="module")
def golden():
    return golden_probes.read_golden()[0]


def run(runtime, probe):
    """On the emulator, whose checker watches what several blocks write and read."""
    from emulator import memory

    def describe(name, array):
        flags = memory.BETWEEN_BLOCKS if name in probe.between_blocks else 0
        memory.allocation_of(array._values).describe(name, flags)

    return probes.run(runtime, probe, describe)


@pytest.mark.parametrize("name", probes.MAKERS)
def test_probe(name, runtime, golden):
    probe = probes.make(name)
    found = run(runtime, probe)
    assert found.keys() == probe.expected.keys()
    assert probes.differences(found, probe.expected, probe.ulps) == []
    known = golden.get(probe.key)
    if known is not None:  # both are so far from the exact number at most
        assert probes.differences(found, known, 2 * probe.ulps) == []


def test_every_instruction_is_probed():
    """Whatever ptx.cuh has, some probe uses; so does every file of core/ that has functions."""
    root, closures, texts = _sources.folder(), set(), []
    for name in probes.MAKERS:
        files = _sources.read_closure(probes.make(name).line.file, root).files
        closures |= set(files)
        texts += [(root / file).read_text() for file in files if file != "core/ptx.cuh"]
    assert closures >= {f"core/{path.name}" for path in (root / "core").glob("*.cuh")}
    declared = re.findall(r"^__device__ __forceinline__ \w+ (\w+)\(", (root / "core" / "ptx.cuh").read_text(), re.M)
    assert len(declared) > 2
    assert [name for name in declared if f"ptx::{name}(" not in "".join(texts)] == []
    files = {path.stem for path in (root / "probes").glob("*.cu")}
    assert files == {probes.make(name).kernel for name in probes.MAKERS}


def test_probes_are_no_kernels_of_the_register(runtime):
    probe = probes.make("shuffle-float32")
    run(runtime, probe)
    assert not any(name.startswith("probe_") for name in _kernels.KERNELS)


def test_a_key_is_of_all_that_is_given():
    probe = probes.make("simt_mma_abt-float32")
    assert probe.key == probes.make("simt_mma_abt-float32").key
    keys = {probes.make(name).key for name in probes.MAKERS}
    assert len(keys) == len(probes.MAKERS)
    a = probe.fields["a"].copy()
    a[0, 0] += 1
    changed = [probe._replace(fields=probe.fields | {"a": a}), probe._replace(blocks=2), probe._replace(launches=2)]
    changed.append(probe._replace(fields=probe.fields | {"depth": 20}))
    assert len({probe.key, *(one.key for one in changed)}) == 5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_differences_are_of_bits_or_ulps(dtype):
    right = np.array([1.0, -0.0, np.nan, np.inf, 1e-310 if dtype == "float64" else 1e-40, 3.0], dtype)
    assert probes.differences({"x": right.copy()}, {"x": right}) == []
    up = np.nextafter(right, np.array(np.inf, dtype))
    assert probes.differences({"x": up}, {"x": right}, 1) == []
    for i, value in ((0, up[0]), (1, 0.0), (2, 1.0), (3, np.nan), (3, np.finfo(dtype).max), (4, up[4])):
        wrong = right.copy()
        wrong[i] = value
        (text,) = probes.differences({"x": wrong}, {"x": right})
        assert text.startswith(f"x: 1 of 6 differ, first ({i},): ")
        assert bool(probes.differences({"x": wrong}, {"x": right}, 1)) == (i in (2, 3))
    assert probes.differences({"x": np.array([1, 2])}, {"x": np.array([1, 3])}) == [
        "x: 1 of 2 differ, first (1,): 2, expected 3"
    ]


def test_fused_rounds_once():
    """Against integers: each product has more digits than float32, and what is added takes the leading ones away."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(2**23, 2**24, (2, 1000)).astype(np.float32)
    c = -(a * b)
    exact = [int(x) * int(y) + int(z) for x, y, z in zip(a, b, c)]
    assert any(exact)
    np.testing.assert_array_equal(fused(a, b, c), np.array(exact, np.float32))
    twice = a * b + c
    assert (twice != fused(a, b, c)).mean() > 0.5
    tie = np.float32([1 + 2.0**-12]), np.float32([1 + 2.0**-12]), np.float32([2.0**-60])  # just above a tie
    assert fused(*tie)[0] == np.float32(1 + 2.0**-11 + 2.0**-23)
    np.testing.assert_array_equal(fused(*(x.astype(float) for x in (a, b, c))), exact)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Where golden data is kept during the test; there is none."""
    monkeypatch.setattr(golden_probes, "GOLDEN", tmp_path / "golden" / "probes.npz")
    return golden_probes.GOLDEN


def test_golden_data_comes_back(recorded):
    assert golden_probes.read_golden() == ({}, {})
    results = {"one-1": {"x": np.arange(3), "y": np.float32([np.nan, 1])}, "two-2": {"x": np.zeros((2, 2))}}
    golden_probes.write_golden(results, {"one-1": {"gpu": "a"}})
    found, about = golden_probes.read_golden()
    assert about == {"one-1": {"gpu": "a"}}
    assert found.keys() == results.keys()
    for key, fields in results.items():
        for field, array in fields.items():
            np.testing.assert_array_equal(found[key][field], array, strict=True)
    assert [file.name for file in recorded.parent.iterdir()] == ["probes.npz"]


def test_a_gpu_records_what_is_right_and_is_held_to_it(runtime, recorded, tmp_path, monkeypatch):
    """What bench/validate_gpu.py does, with the emulator for a GPU."""
    from cuflash._runtime import cupy_runtime

    monkeypatch.syspath_prepend(str(BENCH))
    checks, child, machine = (importlib.import_module(f"gpu.{name}") for name in ("checks", "child", "machine"))
    monkeypatch.setattr(cupy_runtime, "runtime", lambda: runtime)
    monkeypatch.setattr(machine, "name", lambda: "A GPU")
    settings = child.Settings(str(tmp_path), 0.0)
    names = ("functions-float32", "shuffle-float64")
    assert [checks.run_probe(settings, name) for name in names] == [{"NumPy": [], "golden": "recorded"}] * 2
    assert (tmp_path / "golden-probes.npz").read_bytes() == recorded.read_bytes()
    results, about = golden_probes.read_golden()
    keys = {name: probes.make(name).key for name in names}
    assert {key: entry["probe"] for key, entry in about.items()} == {key: name for name, key in keys.items()}
    assert [checks.run_probe(settings, name) for name in names] == [{"NumPy": [], "golden": []}] * 2

    results[keys["shuffle-float64"]]["named"][5] += 1
    golden_probes.write_golden(results, about)
    assert checks.run_probe(settings, names[1])["golden"][0].startswith("named: 1 of 128 differ, first (5,)")

    before, right = recorded.read_bytes(), probes.make("shared_map")
    mirrored = right.expected["mirrored"].copy()
    mirrored[0, 0] ^= 1
    monkeypatch.setattr(probes, "make", lambda name: right._replace(expected={"mirrored": mirrored}))
    found = checks.run_probe(settings, "shared_map")
    assert found["golden"] == "not recorded" and found["NumPy"][0].startswith("mirrored: 1 of 14336 differ")
    assert recorded.read_bytes() == before
