"""Small studies for the tests of planning and folding, and a naive expansion to hold ours against."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

from merlin_study.compiler import compile_study
from merlin_study.loader import load_yaml
from merlin_study.parse import parse_spec
from merlin_study.plan import INFO_STEP, Plan

STAMP = "20260102-030405"


def plan_of(text: str) -> Plan:
    """Return the plan of a specification given as YAML."""
    spec, _ = parse_spec(load_yaml(text, source="test.yaml"))
    return compile_study(spec, stamp=STAMP)


@dataclass(frozen=True)
class Shape:
    """A random study.

    For each step whether it is sampled, which parameters it names, and on which earlier steps it depends (index,
    funnel). ``labels`` gives each parameter's column of values; equal values collapse. ``queues`` maps a step to the parameter that
    names its queue.
    """

    steps: tuple[tuple[bool, tuple[str, ...], tuple[tuple[int, bool], ...]], ...]
    labels: dict[str, tuple[int, ...]]
    samples: int
    queues: dict[int, str] = field(default_factory=dict)

    def yaml(self) -> str:
        """Return the study's specification."""
        lines = ["description: {name: random, description: d}"]
        if self.labels:
            lines.append("global.parameters:")
            lines += [f"  {key}: {{values: {list(values)}, label: {key}.%%}}" for key, values in self.labels.items()]
        lines.append("study:")
        for at, (sampled, keys, depends) in enumerate(self.steps):
            words = [f"$({key})" for key in keys] + (["$(SAMPLE)"] if sampled else [])
            parents = [f"s{parent}_*" if funnel else f"s{parent}" for parent, funnel in depends]
            queue = f", task_queue: q$({self.queues[at]})" if at in self.queues else ""
            lines.append(
                f"- name: s{at}\n  description: d\n  run: {{cmd: 'echo {' '.join(words)}', depends: {parents}{queue}}}"
            )
        lines.append("merlin: {samples: {file: s.csv, column_labels: [SAMPLE]}}")
        return "\n".join(lines)


Task = tuple[int, tuple[int, ...], int]
"""A task spelled out: step, the values of its parameters, its sample (-1: none)."""


class Expansion:
    """Every task of a `Shape` and what it depends on, listed one by one: slow, and plainly right."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.keys: list[tuple[str, ...]] = []
        for at, (_, keys, depends) in enumerate(shape.steps):
            used = {*keys, *([shape.queues[at]] if at in shape.queues else [])}
            for parent, funnel in depends:
                used |= set() if funnel else set(self.keys[parent])
            self.keys.append(tuple(sorted(used)))
        self.tasks: list[list[Task]] = []
        for at, (sampled, _, _) in enumerate(shape.steps):
            combinations: list[tuple[int, ...]] = []
            for row in range(len(next(iter(shape.labels.values()), (0,)))):
                values = tuple(shape.labels[key][row] for key in self.keys[at])
                if values not in combinations:
                    combinations.append(values)
            samples = range(shape.samples) if sampled else (-1,)
            self.tasks.append([(at, values, sample) for values, sample in product(combinations, samples)])

    def queue(self, task: Task) -> str:
        """Return the queue of a task."""
        at, values, _ = task
        key = self.shape.queues.get(at)
        return "merlin" if key is None else f"q{values[self.keys[at].index(key)]}"

    def parents(self, task: Task) -> set[Task]:
        """Return the tasks that must be over before ``task`` runs."""
        at, values, sample = task
        mine = dict(zip(self.keys[at], values, strict=True))
        found: set[Task] = set()
        for parent, funnel in self.shape.steps[at][2]:
            for other in self.tasks[parent]:
                theirs = dict(zip(self.keys[parent], other[1], strict=True))
                agrees = all(mine[key] == value for key, value in theirs.items()) if not funnel else True
                same_sample = funnel or sample < 0 or other[2] < 0 or sample == other[2]
                if agrees and same_sample:
                    found.add(other)
        return found


def offset(plan: Plan) -> int:
    """Return how many implicit steps stand before the user's first one."""
    return 1 if plan.steps[0].name == INFO_STEP else 0
