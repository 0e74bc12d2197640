"""What a process did, one JSON line an event, for whoever checks afterwards that the promise was kept.

``MERLIN_HISTORY`` names a directory; each process appends to a file of its own there. A line is handed to the kernel when
it is written, so it survives the death of the process. Without the variable nothing is written, at the price of one comparison.

    operator   issued (a chunk, before it is published), folded (an entry of the log), synced
    agent      claimed, began and ended (one execution of one task), reported (a report that the broker has stored)
    both       paused (at a named point, see `merlin_study.failpoints`)
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Final

VARIABLE: Final = "MERLIN_HISTORY"
_directory: Final = os.environ.get(VARIABLE, "")
ON: Final = bool(_directory)
"""Whether anybody wants to know: ask before an event costs anything to describe."""
_file: int | None = None


def note(event: str, **says: Any) -> None:
    """Append an event, with the host's monotonic time in nanoseconds; nothing where no history is wanted.

    Raises:
        OSError: it can't be written.
    """
    if not ON:
        return
    line = json.dumps({"event": event, "at": time.monotonic_ns(), "pid": os.getpid(), **says})
    os.write(_opened(), line.encode() + b"\n")


def _opened() -> int:
    global _file  # noqa: PLW0603 - one a process, like the variable
    if _file is None:
        os.makedirs(_directory, exist_ok=True)  # noqa: PTH103 - the agent imports this
        path = f"{_directory}/{time.time_ns()}-{os.getpid()}.jsonl"
        _file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    return _file
