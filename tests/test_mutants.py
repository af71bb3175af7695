"""Bugs planted into the kernels, one at a time: each must be caught, by what tests/mutants.py says.

This is the test of the tests: a machine that misses races, or a problem too small to reach a tile's edge, fails here.
"""

import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import mutant_probes
import pytest
from backends import missing_emulator
from emulator import build
from mutants import MUTANTS

from cuflash import _sources

PROBES = sorted({mutant.probe for mutant in MUTANTS})


def test_every_patch_applies():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        path = mutant_probes.place(mutant, _sources.folder())
        found = path.read_text(encoding="utf-8").count(mutant.old)
        assert found == 1, f"{mutant.name}: the patch no longer applies: {mutant.file} has {found} of {mutant.old!r}"
        assert "\n" not in mutant.old + mutant.new and mutant.old != mutant.new


@pytest.fixture(scope="module")
def outcomes(request):
    """What becomes of each mutant and probe that this run asks for, from two processes."""
    reason = missing_emulator()
    if reason and "emulator" in os.environ.get("CUFLASH_REQUIRE", "").split(","):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    folder = str(request.config.cache.mkdir("emulator"))
    build.machine(folder)
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    asked = [item.callspec.params for item in items]
    names = [one.get("probe") or one["mutant"].name for one in asked]
    pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
    yield {name: pool.submit(mutant_probes.outcome, name, folder) for name in names}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("probe", PROBES)
def test_the_sources_as_they_are_are_clean(probe, outcomes):
    kinds, text = outcomes[probe].result(300)
    assert not kinds, text


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant, outcomes):
    kinds, text = outcomes[mutant.name].result(300)
    assert kinds, f"{mutant.file}: {mutant.new!r} in place of {mutant.old!r} is missed"
    assert mutant.caught in kinds, text


def test_mutants_of_all_sorts():
    """For each sort of failure that the machine or the reference can find."""
    sorts = Counter(mutant.caught for mutant in MUTANTS)
    assert sorts["wrong"] >= 90 and sorts["race"] >= 44 and sorts["out-of-bounds"] >= 19 and sorts["write-once"] >= 5
    assert all(sorts[sort] >= 3 for sort in ("in-flight", "misaligned", "uninitialised")) and sorts["stale"] >= 1
