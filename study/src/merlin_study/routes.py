"""What each combination of a step asks for: its queue, the room that it takes, how often it is tried.

Any of these may hold parameters (``task_queue: $(QUEUE)``, ``nodes: $(N)``, ``max_retries: $(TRIES)``). Combinations that ask for the
same share a lane, and chunks are routed by the lane of their tasks, so that a small task neither waits for a large
allocation nor takes the room of a large task. Every lane costs the broker consumers of its own, so there are few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from merlin_study import template
from merlin_study.basis import Basis
from merlin_study.drafts import Draft
from merlin_study.errors import DIFFERS_BY_SAMPLE
from merlin_study.geometry import distinct_rows
from merlin_study.plan import Lane
from merlin_study.queues import queue_name
from merlin_study.template import Template, tokens

MAX_LANES: Final = 32
"""Lanes of one step: each shape and queue is a pair of consumers for every site."""
_MOST: Final = {"max_retries": 1_000_000, "retry_delay": 31_536_000}
"""The bounds of numbers that stand in the specification hold for those that tokens become, too."""

Lanes = tuple[tuple[Lane, ...], tuple[int, ...]]
"""A step's lanes, and which of them each combination has (empty: all have the first)."""


def plan_lanes(draft: Draft, basis: Basis) -> Lanes:
    """Return a step's lanes.

    A step whose combinations take more than `MAX_LANES` different sizes is routed by the largest of each.
    """
    reader = _Reader(draft, basis)
    lanes = reader.lanes(whole=False)
    longest = _longest(lanes)
    if len(longest) > MAX_LANES:
        lanes = reader.lanes(whole=True)
        longest = _longest(lanes)
    if len(longest) > MAX_LANES:
        queues = len({lane.queue for lane in longest.values()})
        basis.fault(
            f"{draft.path}.run.{'task_queue' if queues > MAX_LANES else 'max_retries'}",
            f"expected at most {MAX_LANES} different combinations of queue and retries in one step, found {len(longest)}; make several "
            "steps of it, or give some of them the same",
        )
        return tuple(longest.values())[:1], ()
    numbers = {key: at for at, key in enumerate(longest)}
    return tuple(longest.values()), tuple(numbers[_key(lane)] for lane in lanes) if len(longest) > 1 else ()


def _key(lane: Lane) -> tuple[object, ...]:
    """What is the same in one lane; walltimes of one class may differ."""
    return lane.queue, lane.shape, lane.max_retries, lane.retry_delay


def _longest(lanes: Sequence[Lane]) -> dict[tuple[object, ...], Lane]:
    """Return each lane once, with the longest of its walltimes."""
    found: dict[tuple[object, ...], Lane] = {}
    for lane in lanes:
        known = found.get(_key(lane))
        if known is None or (lane.walltime or 0) > (known.walltime or 0):
            found[_key(lane)] = lane
    return found


class _Reader:
    """Reads the texts of a step once for each distinct row of the tokens that they hold."""

    def __init__(self, draft: Draft, basis: Basis) -> None:
        self._draft, self._basis = draft, basis
        run, expand = draft.step.run, basis.variables.expand
        given = {"task_queue": run.task_queue, "max_retries": run.max_retries, "retry_delay": run.retry_delay}
        self._texts = {key: expand(str(value)) for key, value in given.items()}
        self._columns = basis.token_columns
        held = {token for text in self._texts.values() for token in tokens(text)} & self._columns.keys()
        self._keys = tuple(sorted(held | set(draft.sized.keys)))

    def lanes(self, *, whole: bool) -> list[Lane]:
        """Return the lane of each combination; ``whole`` takes the largest size for all."""
        if not self._keys:
            return [self._lane({}, whole=whole)]
        labels = [self._columns[f"{key}.label"] for key in sorted(self._draft.uses)]
        known: dict[tuple[str, ...], Lane] = {}
        found = []
        for row in distinct_rows(labels):
            values = tuple(self._columns[key][row] for key in self._keys)
            if values not in known:
                before = len(self._basis.faults)
                known[values] = self._lane(dict(zip(self._keys, values, strict=True)), whole=whole)
                if len(self._basis.faults) > before:
                    return [known[values]]
            found.append(known[values])
        return found

    def _lane(self, values: Mapping[str, str], *, whole: bool) -> Lane:
        shape, walltime = self._draft.sized.of({} if whole else values)
        return Lane(
            queue=queue_name(self._queue(values)),
            shape=shape.token,
            max_retries=self._number("max_retries", values),
            retry_delay=float(self._number("retry_delay", values)),
            walltime=walltime,
        )

    def _queue(self, values: Mapping[str, str]) -> str:
        queue = Template.parse(self._texts["task_queue"]).render(values.get)
        path = f"{self._draft.path}.run.task_queue"
        self._basis.known_here(queue, path)
        if left := tokens(queue):
            why = DIFFERS_BY_SAMPLE if any(map(self._basis.is_of_samples, left)) else "which nothing defines"
            self._basis.fault(path, f"expected a queue's name, found {queue!r}, {why}")
        return queue

    def _number(self, key: str, values: Mapping[str, str]) -> int:
        filled = Template.parse(self._texts[key]).render(values.get).strip()
        if template.is_number(filled) and int(filled) <= _MOST[key]:
            return int(filled)
        origin = "" if filled == self._texts[key] else f" of {self._texts[key]}"
        why = f", {DIFFERS_BY_SAMPLE}" if any(map(self._basis.is_of_samples, tokens(filled))) else ""
        self._basis.fault(
            f"{self._draft.path}.run.{key}",
            f"expected a whole number from 0 to {_MOST[key]}, found {template.shown(filled)}{origin}{why}",
        )
        return 0
