"""The arguments of a Celery worker, as far as they mean something for an agent.

``merlin.resources.workers.<name>.args`` holds them. The number of slots counts; what tunes Celery's way to fetch, log and keep in
touch is taken silently, because agents do it by themselves; what a user may rely on and does not get is named, with the cure.
Options and their numbers of values are those of ``celery worker`` 5.5.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from merlin_study.errors import did_you_mean

MAX_SLOTS: Final = 4096
"""What one agent takes."""
_SHORT: Final = {
    "-c": "--concurrency",
    "-n": "--hostname",
    "-l": "--loglevel",
    "-O": "--optimization",
    "-P": "--pool",
    "-E": "--task-events",
    "-Q": "--queues",
    "-X": "--exclude-queues",
    "-I": "--include",
    "-f": "--logfile",
    "-D": "--detach",
    "-S": "--statedb",
    "-B": "--beat",
    "-s": "--schedule-filename",
    "-q": "--quiet",
}
_SILENT: Final = frozenset(
    {
        *(
            "--hostname",
            "--loglevel",
            "--optimization",
            "--prefetch-multiplier",
            "--task-events",
            "--events",
            "--logfile",
        ),
        *("--pidfile", "--statedb", "--detach", "--without-gossip", "--without-mingle", "--without-heartbeat"),
        *("--heartbeat-interval", "--quiet", "--no-color", "--include", "--executable"),
    }
)
_TOLD: Final = {
    "--queues": "the queues are those of its steps; name the steps",
    "--exclude-queues": "the queues are those of its steps; name the steps",
    "--time-limit": "set walltime in the step",
    "--soft-time-limit": "set walltime in the step",
    "--max-tasks-per-child": "each task has a process of its own already",
    "--max-memory-per-child": "limit memory in the allocation, or with ulimit in the step",
    "--pool": "each task is a process",
    "--autoscale": "agents use all their slots; use --concurrency",
    "--scheduler": "there is no such scheduler; add a step that waits",
    "--beat": "there is no such scheduler; add a step that waits",
    "--schedule-filename": "there is no such scheduler; add a step that waits",
    "--uid": "agents run as the user who starts them",
    "--gid": "agents run as the user who starts them",
    "--umask": "agents keep the umask of the shell that starts them",
}
_FLAGS: Final = frozenset(
    {
        *("--task-events", "--events", "--detach", "--without-gossip", "--without-mingle", "--without-heartbeat"),
        *("--quiet", "--no-color", "--beat"),
    }
)
_KNOWN: Final = frozenset({"--concurrency", *_SILENT, *_TOLD})


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a line of arguments says: the number of slots (None: one for each CPU), and what has no effect and why."""

    slots: int | None = None
    warnings: tuple[str, ...] = ()


def read(line: str) -> Arguments:
    """Read the arguments of one worker."""
    try:
        words = shlex.split(line)
    except ValueError:
        return Arguments(None, (f"expected arguments, found a quote that is not closed in {line!r}",))
    slots: int | None = None
    warnings: list[str] = []
    for option, value in _options(words):
        shown = f"{option} {value}".rstrip()
        if option == "--concurrency":
            if value.isdecimal() and 1 <= int(value) <= MAX_SLOTS:
                slots = int(value)
            else:
                warnings.append(
                    f"expected a number of slots from 1 to {MAX_SLOTS}, found {shown!r}; each CPU of a host is a slot then"
                )
        elif option == "--pool" and value == "prefork":
            continue
        elif option in _TOLD:
            warnings.append(f"{shown!r} has no effect: {_TOLD[option]}")
        elif option not in _SILENT:
            warnings.append(f"{shown!r} is no argument of a Celery worker{did_you_mean(option, sorted(_KNOWN))}")
    return Arguments(slots, tuple(warnings))


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (option in its long form, value): ``-c4``, ``-c 4``, ``--concurrency=4`` and ``--concurrency 4`` are one."""
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
        else:
            option, equals, value = _SHORT.get(word[:2], word), word[2:], word[2:].removeprefix("=")
        if not word.startswith("-") or (option not in _KNOWN and option == word):
            yield word, ""
        elif option in _FLAGS or equals:
            yield option, value
        else:
            yield option, next(rest, "")
