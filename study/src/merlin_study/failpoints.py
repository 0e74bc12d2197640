"""Named points at which a process can be made to die, fail or stand still; tests and drills arm them, nothing else does.

``MERLIN_FAILPOINTS`` holds what is armed, as ``name=action`` with commas between: ``kill`` (SIGKILL to itself), ``raise``
(`FailpointError`), ``pause:PATH`` (the thread stands still until PATH exists). ``name=action@3`` acts at the third passing
only. The variable is read once, when the process starts; a process without it pays one comparison a point.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass, field
from typing import Final

from merlin_study import history

VARIABLE: Final = "MERLIN_FAILPOINTS"
_LOOK_EVERY: Final = 0.01


class FailpointError(RuntimeError):
    """Raised at a point that was armed with ``raise``."""


@dataclass(slots=True)
class _Armed:
    action: str
    at: int
    passed: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def passes(self) -> bool:
        with self.guard:
            self.passed += 1
            return self.passed == self.at if self.at else True


def parse(text: str) -> dict[str, _Armed]:
    """Return what a value of the variable arms.

    Raises:
        ValueError: it names no action that there is.
    """
    armed = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = item.partition("=")
        action, _, at = rest.partition("@")
        if action not in ("kill", "raise") and not action.startswith("pause:"):
            raise ValueError(f"{VARIABLE}: {item}: expected NAME=kill, NAME=raise or NAME=pause:PATH")
        armed[name] = _Armed(action, int(at) if at else 0)
    return armed


_armed: Final = parse(os.environ.get(VARIABLE, ""))
ARMED: Final = bool(_armed)
"""Whether anything is armed."""


def reach(name: str) -> None:
    """Do what is armed at a point; nothing where nothing is.

    Raises:
        FailpointError: where that is what is armed.
    """
    if _armed:
        _act(name)


def _act(name: str) -> None:
    point = _armed.get(name)
    if point is None or not point.passes():
        return
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "raise":
        raise FailpointError(name)
    else:
        history.note("paused", point=name)
        gate, waiting = point.action.removeprefix("pause:"), threading.Event()
        while not os.path.exists(gate):  # noqa: PTH110 - the agent imports this, and pathlib costs at its start
            waiting.wait(_LOOK_EVERY)
