"""For every test run: Hypothesis does not judge time, and figures that passing tests print (stalls, durations) are
repeated at the end, for whoever reads the log of CI."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no mistake of the code: nothing here judges time.
settings.register_profile("curve", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("curve")

_FIGURE = re.compile(r"longest|ready after|bound after|seconds? after|\d s after|csi-sanity \w+:")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        f"  {report.nodeid.rpartition('/')[2]}: {line}"
        for report in terminalreporter.getreports("passed")
        for line in report.capstdout.splitlines()
        if _FIGURE.search(line) and not line.startswith("{") and len(line) < 200
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)
