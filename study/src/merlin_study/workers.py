"""``merlin.resources.workers``: which agents a study wants, read as upstream reads it when it starts Celery workers.

A worker serves the queues of its steps. Steps that none serves get a ``default_worker``. Where ``overlap`` is false, a worker is not
started for a queue that another serves already, and with it none of its queues; that, too, is upstream's. Nothing here keeps
a study from running, since any agent that serves a queue does; so what looks wrong is a warning, never a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from merlin_study import celery, queues
from merlin_study.checks import holds_token
from merlin_study.errors import did_you_mean
from merlin_study.spec import Batch, StudySpec
from merlin_study.spec import Worker as Block
from merlin_study.variables import Variables

DEFAULT: Final = "default_worker"
ALL: Final = "all"
PATH: Final = "spec.merlin.resources.workers"


@dataclass(frozen=True, slots=True)
class Worker:
    """One kind of agent, all tokens expanded.

    Attributes:
        name: As the specification has it, or `DEFAULT`.
        steps: The steps that it serves, in their order in the study.
        queues: The queues of these steps, each once.
        slots: Tasks at a time on each host; None for as many as the host has CPUs, which is Celery's default.
        nodes: Hosts of the allocation that it spans; None where the batch block or the allocation decides.
        machines: Parts of host names; empty for any host.
        batch: Its own settings, or the study's.
        overlap: Whether it is started for queues that others serve.
    """

    name: str
    steps: tuple[str, ...]
    queues: tuple[str, ...]
    slots: int | None
    nodes: int | str | None
    machines: tuple[str, ...]
    batch: Batch
    overlap: bool

    def runs_on(self, host: str) -> bool:
        """Whether it is meant for a host: one of ``machines`` is part of its name, as upstream has it."""
        return not self.machines or any(machine in host for machine in self.machines)


@dataclass(frozen=True, slots=True)
class Workers:
    """All kinds of agents of a study, and what their author should know; each warning begins with its path."""

    workers: tuple[Worker, ...]
    warnings: tuple[str, ...]


def of_spec(spec: StudySpec) -> Workers:
    """Read the workers of a study whose tokens mean nothing yet that only a submission knows."""
    return plan_workers(spec, Variables(spec, stamp="", base="", spec_root=None).expand)


def plan_workers(spec: StudySpec, expand: Callable[[str], str]) -> Workers:
    """Return which agents a study wants; ``expand`` replaces variables."""
    reader = _Reader(spec, expand)
    return Workers(tuple(reader.read()), tuple(reader.warnings))


def started(workers: Iterable[Worker], host: str) -> Workers:
    """Return which of them are started on a host of that name, in their order.

    Without ``overlap``, one whose queues another of them serves is left out, with a warning that names the queues.
    """
    taken: dict[str, str] = {}
    chosen: list[Worker] = []
    warnings: list[str] = []
    for worker in workers:
        if not worker.runs_on(host):
            continue
        shared = [queue for queue in worker.queues if queue in taken]
        if shared and not worker.overlap:
            others = " and ".join(dict.fromkeys(f"'{taken[queue]}'" for queue in shared))
            warnings.append(
                f"{PATH}.{worker.name}: is not started, since {others} serves {_listed(shared)} already; set "
                "merlin.resources.overlap to true, or give its steps a task_queue of their own"
            )
            continue
        chosen.append(worker)
        for queue in worker.queues:
            taken.setdefault(queue, worker.name)
    return Workers(tuple(chosen), tuple(warnings))


class _Reader:
    def __init__(self, spec: StudySpec, expand: Callable[[str], str]) -> None:
        self.spec, self.expand = spec, expand
        self.warnings: list[str] = []
        self.queues = queues.of_steps(spec, expand)

    def read(self) -> list[Worker]:
        blocks = {self.expand(name): block for name, block in self.spec.merlin.resources.workers.items()}
        found = {name: self._worker(name, block) for name, block in blocks.items()}
        served = {step for worker in found.values() for step in worker.steps}
        rest = tuple(step for step in self.queues if step not in served)
        if not found:
            return [self._with_steps(self._worker(DEFAULT, Block()), rest)]
        served_queues = {queue for worker in found.values() for queue in worker.queues}
        alone = [step for step in rest if not served_queues.issuperset(self.queues[step])]
        if alone:
            self.warnings.append(f"{PATH}: no worker serves {_listed(alone)}; '{DEFAULT}' does where all are started")
        if not self.spec.merlin.resources.overlap:
            # Upstream makes it for steps, too, whose queue has a worker, and then does not start it.
            rest = tuple(alone)
        if rest:
            own = found.get(DEFAULT) or self._worker(DEFAULT, Block())
            found[DEFAULT] = self._with_steps(own, (*own.steps, *rest) if DEFAULT in found else rest)
        self._judge_overlap(found.values())
        return list(found.values())

    def _worker(self, name: str, block: Block) -> Worker:
        path = f"{PATH}.{name}"
        arguments = celery.read(self.expand(block.args or ""))
        self.warnings += [f"{path}.args: {warning}" for warning in arguments.warnings]
        worker = Worker(
            name=name,
            steps=(),
            queues=(),
            slots=arguments.slots,
            nodes=self._nodes(block.nodes, f"{path}.nodes"),
            machines=tuple(map(self.expand, block.machines)),
            batch=self._batch(block.batch or self.spec.batch),
            overlap=self.spec.merlin.resources.overlap,
        )
        return self._with_steps(worker, self._steps(block, path))

    def _steps(self, block: Block, path: str) -> tuple[str, ...]:
        named = tuple(map(self.expand, block.steps))
        if ALL in named:
            return tuple(self.queues)
        for at, step in enumerate(named):
            if step not in self.queues and not holds_token(step):
                self.warnings.append(f"{path}.steps[{at}]: no step named '{step}'{did_you_mean(step, self.queues)}")
        return tuple(step for step in self.queues if step in named)

    def _with_steps(self, worker: Worker, steps: Sequence[str]) -> Worker:
        mine = dict.fromkeys(queue for step in steps for queue in self.queues[step])
        for step in steps:
            if any(map(holds_token, self.queues[step])):
                self.warnings.append(
                    f"{PATH}.{worker.name}: the queues of step '{step}' differ by a parameter whose values are not in the file; "
                    "name them with merlin-agent --queues"
                )
        return replace(worker, steps=tuple(steps), queues=tuple(mine))

    def _nodes(self, nodes: int | str | None, path: str) -> int | str | None:
        if not isinstance(nodes, str):
            return nodes
        text = self.expand(nodes)
        if text == ALL or (text.isdecimal() and int(text) > 0):
            return text if text == ALL else int(text)
        self.warnings.append(
            f"{path}: expected a whole number or 'all', found '{text}'; the allocation's own number counts"
        )
        return None

    def _batch(self, batch: Batch) -> Batch:
        texts: dict[str, Any] = batch.model_dump(exclude_unset=True)
        return Batch(**{key: self.expand(value) if isinstance(value, str) else value for key, value in texts.items()})

    def _judge_overlap(self, workers: Iterable[Worker]) -> None:
        """Say what would not be started where all of them meet on one host, and what nothing would serve then."""
        anywhere = [replace(worker, machines=()) for worker in workers if not worker.machines]
        chosen = started(anywhere, "")
        self.warnings += chosen.warnings
        served = {
            queue
            for worker in (*chosen.workers, *(each for each in workers if each.machines))
            for queue in worker.queues
        }
        alone = [step for step, names in self.queues.items() if not served.issuperset(names)]
        if alone and chosen.warnings:
            self.warnings.append(f"{PATH}: so nothing that is started serves {_listed(alone)}")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
