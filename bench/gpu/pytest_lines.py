"""A pytest plugin that writes down each test as it ends, so that nothing is lost when a run is stopped."""

from __future__ import annotations

import json
import os

PATH = "CUFLASH_TEST_LINES"  # environment variable: the file
LENGTH = 400  # characters kept of a failure


def pytest_runtest_logreport(report):
    """Called for each phase of a test; with pytest-xdist by the process that collects them."""
    if report.when != "call" and report.passed:
        return
    line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        line["message"] = (crash.message if crash else str(report.longrepr))[:LENGTH]
    with open(os.environ[PATH], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
