"""A long run in several processes, without pytest-xdist: whichever is free takes the next file of tests.

Each process collects all tests. A file's tests of one backend run one after another in the process that is first to
make a file of their number. Helpers write down their reports, which the first process tells as its own; when they have
ended it runs the tests marked `alone`.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from levels import values_of

from cuflash._device import available_cores

REPORTS = "CUFLASH_TEST_REPORTS"  # environment variable of a helper: the file that it writes
END = b"null"  # the last line of that file
LONG = 300  # tests that are worth a second process
PROCESSES = min(4, available_cores())


def wanted(session):
    """Whether to share the run: a long one, without debugger, and not tests of a GPU, which would be shared as well."""
    from backends import missing_gpu

    option = session.config.option
    single = option.collectonly or option.usepdb or session.config.pluginmanager.hasplugin("xdist")
    return PROCESSES > 1 and len(session.items) >= LONG and not single and missing_gpu() is not None


def run(session):
    """All tests of a session, some of them by helpers; True, as `pytest_runtestloop`."""
    with tempfile.TemporaryDirectory() as folder:
        helpers = [Helper(session, Path(folder, f"helper-{number}")) for number in range(1, PROCESSES)]
        try:
            for _ in protocols(session, taken(session.items, Path(folder))):
                for helper in helpers:
                    helper.tell()
            for helper in helpers:
                helper.finish()
            for _ in protocols(session, filter(alone, session.items)):
                pass
        finally:
            for helper in helpers:
                helper.process.kill()
                helper.process.wait()
    return True


def protocols(session, items):
    """Runs tests, and pauses after each."""
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        yield
        stop_if_told(session)
        item = following


def taken(items, folder):
    """The tests that this process is first to take, those of a file and a backend together; not those left alone."""
    together = itertools.filterfalse(alone, items)
    groups = itertools.groupby(together, lambda item: (item.path, values_of(item).get("backend")))
    for number, (_, group) in enumerate(groups):
        try:
            (folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield from group


def alone(item):
    return item.get_closest_marker("alone") is not None


def stop_if_told(session):
    """As pytest's own loop does."""
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


class Helper:
    """Another process, and how many bytes of its reports have been told."""

    def __init__(self, session, path):
        self.session, self.reports, self.told, self.ended = session, path, 0, False
        self.reports.touch()
        self.output = path.with_suffix(".log")
        started = session.config.invocation_params
        command = [sys.executable, "-m", "pytest", *started.args]
        environment = {**os.environ, REPORTS: str(path)}
        with self.output.open("w") as output:
            self.process = subprocess.Popen(command, cwd=started.dir, env=environment, stdout=output, stderr=output)

    def tell(self):
        """Tell what has been written down since."""
        config = self.session.config
        with self.reports.open("rb") as file:
            file.seek(self.told)
            *lines, _ = file.read().split(b"\n")  # the last one may still be being written
        for line in lines:
            self.told += len(line) + 1
            if line == END:
                self.ended = True
                return
            data = json.loads(line)
            if isinstance(data["longrepr"], list):  # of a skipped test: (file, line, reason)
                data["longrepr"] = tuple(data["longrepr"])
            report = config.hook.pytest_report_from_serializable(config=config, data=data)
            config.hook.pytest_runtest_logreport(report=report)
            stop_if_told(self.session)

    def finish(self):
        """Wait for the end of the process, which must be that of a run of tests."""
        code = self.process.wait()
        self.tell()
        if not self.ended or code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise self.session.Failed(f"a helper ended with {code}:\n{self.output.read_text()}")


class Helping:
    """The plugin of a helper."""

    def __init__(self, config):
        self.config, self.reports = config, Path(os.environ.pop(REPORTS))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        first = os.getppid()
        for _ in protocols(session, taken(session.items, self.reports.parent)):
            if os.getppid() != first:
                raise session.Interrupted("the first process is gone")
        return True

    def pytest_sessionfinish(self):
        self.write(END)

    def pytest_runtest_logreport(self, report):
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.write(json.dumps(data).encode())

    def write(self, line):
        with self.reports.open("ab") as file:
            file.write(line + b"\n")
