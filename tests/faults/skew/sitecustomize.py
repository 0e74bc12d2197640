"""A clock that was set wrong, for processes whose ``MERLIN_TEST_SKEW`` names a file with the seconds; it may change at any time."""

import os
import time

_path = os.environ.get("MERLIN_TEST_SKEW", "")
_time, _time_ns = time.time, time.time_ns


def _offset() -> float:
    with open(_path, encoding="ascii") as file:  # noqa: PTH123 - before any import that is not needed
        return float(file.read() or 0)


if _path:
    time.time = lambda: _time() + _offset()
    time.time_ns = lambda: _time_ns() + int(_offset() * 1e9)
