"""As many tests as fit into some minutes: `pytest -m slow -p tests.time_box --minutes 10`.

One case of each test comes first, then a second one of each, and so on. Which test begins, and
which of its cases, changes from day to day, so that each has its turn however few fit. When the
time is up, those that are left are skipped and named; what has begun is finished.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Sequence

import pytest

_REASON = "no time left"


def in_turns(names: Sequence[str], day: int) -> list[str]:
    """The ids of tests, `file::test[case]`, in the order of that day."""
    tests: dict[str, list[str]] = {}
    for name in names:
        tests.setdefault(name.partition("[")[0], []).append(name)
    turn_of_all = day // max(len(tests), 1)
    rows = [_rotated(cases, turn_of_all) for cases in _rotated(list(tests.values()), day)]
    longest = max(map(len, rows), default=0)
    return [row[turn] for turn in range(longest) for row in rows if turn < len(row)]


def _rotated(values: list, count: int) -> list:
    first = count % len(values) if values else 0
    return values[first:] + values[:first]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=math.inf, help="begin no test after these")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_DEADLINE] = time.monotonic() + 60 * config.getoption("minutes")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = in_turns([item.nodeid for item in items], datetime.date.today().toordinal())
    place = {name: number for number, name in enumerate(order)}
    items.sort(key=lambda item: place[item.nodeid])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() >= item.config.stash[_DEADLINE]:
        pytest.skip(_REASON)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    left = [report.nodeid for report in skipped if _REASON in str(report.longrepr)]
    if left:
        terminalreporter.section(f"{len(left)} left out: {_REASON}")
        for name in left:
            terminalreporter.write_line(name)


_DEADLINE = pytest.StashKey[float]()
