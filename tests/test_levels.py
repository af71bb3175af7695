"""What a TEST_LEVEL leaves out, and runs of several processes."""

import os
import subprocess
import sys
from pathlib import Path

import levels
import pytest
from conftest import left_out
from mutants import MUTANTS

HERE = Path(__file__).parent


def test_some_planted_bugs_of_each_file_and_sort_are_always_tried():
    few = levels.few_bugs()
    assert {one.file for one in few} == {one.file for one in MUTANTS}
    assert {one.caught for one in few} == {one.caught for one in MUTANTS}
    assert few < set(MUTANTS)


def test_a_level_runs_what_lower_ones_run(request, monkeypatch):
    items = [*request.session.items, *left_out]
    one, two, three = (set(levels.chosen(items, level)) for level in (1, 2, 3))
    assert one <= two <= three == set(items)
    monkeypatch.setattr(levels, "TEST_LEVEL", 2)
    beyond = set(levels.beyond(items, 1))
    assert two - one <= beyond <= two
    assert all(levels.grows(item) for item in beyond & one)


def test_what_a_level_shows_on_the_emulator(request):
    """Level 2 each value of each parameter; level 1 one case of each test that is not long."""
    items = [item for item in (*request.session.items, *left_out) if levels.on_emulator(item)]
    one, two = (levels.chosen(items, level) for level in (1, 2))
    assert {value for item in two for value in levels.shown(item)} == {
        value for item in items for value in levels.shown(item)
    }
    quick = {levels.test_of(item) for item in items if not item.get_closest_marker("long")}
    assert sorted(map(str, map(levels.test_of, one))) == sorted(map(str, quick))


CONFTEST = """
import os, sys
import pytest
sys.path.insert(0, {here!r})
import sharing
sharing.PROCESSES = 2

def pytest_configure(config):
    config.addinivalue_line("markers", "alone:")
    if sharing.REPORTS in os.environ:
        config.pluginmanager.register(sharing.Helping(config))
        os.environ["HELPS"] = "1"

@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    return sharing.run(session)
"""
FIRST = """
import os, pathlib, time
def test_waits_for_the_other_file():
    while not pathlib.Path("done").exists():
        time.sleep(0.01)
def test_is_known_to_come_next():
    pass
"""
OTHERS = """
import os, pathlib, pytest
def test_the_other_process():
    pathlib.Path("done").touch()
    {body}
def test_skipped():
    pytest.skip("for a reason")
@pytest.mark.alone
def test_alone():
    assert "HELPS" not in os.environ
"""


def shared_run(folder, body):
    """What a run of two files, each in a process of its own, prints and ends with."""
    (folder / "conftest.py").write_text(CONFTEST.format(here=str(HERE)))
    (folder / "test_a.py").write_text(FIRST)
    (folder / "test_b.py").write_text(OTHERS.format(body=body))
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_all_that_helpers_found_is_told(tmp_path):
    run = shared_run(tmp_path, "assert 1 == 2")
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert "assert 1 == 2" in run.stdout
    assert "1 failed, 3 passed, 1 skipped" in run.stdout
    assert "for a reason" in run.stdout


@pytest.mark.parametrize("body", ["os._exit(0)", 'pytest.exit("enough")', "raise KeyboardInterrupt"])
def test_a_helper_that_ends_early_fails_the_run(body, tmp_path):
    run = shared_run(tmp_path, body)
    assert run.returncode != 0, run.stdout
