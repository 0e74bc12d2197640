"""What came of a study, from its workspace alone: the agents' outcome logs, folded into counts per step.

The logs of several agents, and of several runs of a study (`merlin restart`), stand side by side without a common clock.
So they are folded by rules that need none: per task, a success absorbs everything, else the last final outcome of its
latest run counts, and a task that was started again after it failed is open again. A restart that names tasks which had
succeeded opens those, too (`merlin_study.generations`). What follows from that for tasks that
never ran, because something that they depend on failed, the ledger says, which is given the result.

Reports speak of ranges and masks, and so does the fold: its cost is that of the reports, not of the tasks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from merlin_cli.exits import CliError, Exit
from merlin_cli.progress import Failed, Progress, StepCount, StepFailure
from merlin_study import generations, outcomelog, wire, workspace
from merlin_study.bitmap import Bitmap
from merlin_study.geometry import Geometry
from merlin_study.ledger import Ledger
from merlin_study.outcome import FINAL, Outcome, after_budget
from merlin_study.plan import Plan
from merlin_study.taskset import TaskSet

KEPT_FAILURES: Final = 20
_SUCCESS: Final = (Outcome.SUCCEEDED, 0)


Ending = tuple[Outcome, int]
"""How a task ended: its outcome and its exit code (negative: that signal)."""


@dataclass
class StepTally:
    """A bit for each task and ending; a task has at most one.

    ``begun``: tasks of chunks that an agent claimed. ``agents``: by agent, the tasks that it told of.
    """

    over: dict[Ending, Bitmap] = field(default_factory=dict)
    begun: Bitmap = field(default_factory=Bitmap)
    agents: dict[str, Bitmap] = field(default_factory=dict)

    def open(self, tasks: TaskSet, *, anew: bool = False) -> None:
        """Note that tasks were started, so that only a success of them still stands; with ``anew`` not even that."""
        for (outcome, _), members in self.over.items():
            if len(members) and (anew or outcome is not Outcome.SUCCEEDED):
                members.remove(tasks)

    def close(self, tasks: TaskSet, ending: Ending) -> None:
        """Note a final outcome of tasks."""
        succeeded = self.over.setdefault(_SUCCESS, Bitmap())
        if ending[0] is Outcome.SUCCEEDED:
            self.open(tasks)
            succeeded.add(tasks)
            return
        fresh = TaskSet.from_bits(tasks.first, tasks.bits & ~succeeded.read(tasks.first, tasks.width))
        if fresh is not None:
            self.open(fresh)
            self.over.setdefault(ending, Bitmap()).add(fresh)

    def ended(self, task: int) -> Ending | None:
        """Return how a task ended; None where it has not."""
        return next((ending for ending, members in self.over.items() if task in members), None)


@dataclass
class Tally:
    """The fold; feed it every log, one after the other."""

    plan: Plan
    samples: wire.SampleFacts | None = None
    damaged: int = 0
    steps: list[StepTally] = field(default_factory=list)
    _failures: dict[tuple[int, int], wire.Failure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make room for each step."""
        self.steps = [StepTally() for _ in self.plan.steps]

    def fold(self, logs: Iterable[bytes]) -> None:
        """Fold the logs of all agents."""
        for entry in generations.told(map(self._entries, logs)):
            if isinstance(entry, generations.Anew):
                if entry.step < len(self.steps):
                    self.steps[entry.step].open(entry.tasks, anew=True)
            elif entry.start is not None:
                self._start(entry.start.chunk)
            elif entry.report is not None:
                self._report(entry.report)

    def _entries(self, log: bytes) -> tuple[outcomelog.Entry, ...]:
        decoded = outcomelog.decode_lines(log)
        self.damaged += decoded.damaged
        return decoded.entries

    def _start(self, chunk: wire.Chunk) -> None:
        if chunk.step < len(self.steps):
            self.steps[chunk.step].open(chunk.tasks)
            self.steps[chunk.step].begun.add(chunk.tasks)

    def _report(self, report: wire.Report) -> None:
        if report.step >= len(self.steps):
            self.damaged += 1
            return
        if report.step == self.plan.info_step:
            self.samples = self.samples or report.samples
        planned, step = self.plan.steps[report.step], self.steps[report.step]
        lanes = Geometry(self.plan, self.samples.count if self.samples is not None else 0)

        def stands(outcome: Outcome, task: int) -> Outcome:
            budget = lanes.lane(report.step, task).max_retries
            return after_budget(outcome, attempt=report.attempt, max_retries=budget, restarts=bool(planned.restart))

        ran = step.agents.setdefault(report.agent, Bitmap())
        for result in report.results:
            ran.add(result.tasks)
            outcome = stands(result.outcome, result.tasks.first)
            if outcome in FINAL:
                step.close(result.tasks, (outcome, result.code))
        for failure in report.failures:
            told = failure.model_copy(update={"outcome": stands(failure.outcome, failure.task)})
            self._failures[report.step, failure.task] = told

    def progress(self, directory: str) -> Progress:
        """Return what `merlin status` shows."""
        ledger = self.ledger()
        counts = tuple(
            _count(planned.name, total=step.total, outcomes=step.outcomes)
            for planned, step in zip(self.plan.steps, ledger.steps, strict=True)
        )
        return Progress(
            finished=ledger.finished,
            succeeded=all(count.succeeded == count.total for count in counts),
            steps=counts,
            workspace=directory,
            first_failures=tuple(self._standing_failures()),
        )

    def failed(self, step: int, task: int) -> bool:
        """Whether a task is over and has not succeeded."""
        return (ended := self.steps[step].ended(task)) is not None and ended != _SUCCESS

    def _standing_failures(self) -> Iterator[StepFailure]:
        """The failures told in full of tasks that have not succeeded since."""
        standing = (
            (step, failure)
            for (step, task), failure in self._failures.items()
            if (ended := self.steps[step].ended(task)) is not None and ended != _SUCCESS
        )
        for _, (step, failure) in zip(range(KEPT_FAILURES), standing, strict=False):
            yield StepFailure(step=self.plan.steps[step].name, failure=Failed.model_validate(failure.model_dump()))

    def ledger(self) -> Ledger:
        """Return what follows from it for tasks that never ran: tell a ledger all final outcomes, as if each were a chunk of its own."""
        ledger, samples = Ledger(self.plan), self.samples.count if self.samples is not None else 0
        for fence, (step, tasks, (outcome, code)) in enumerate(self._outcomes(), start=1):
            chunk = wire.Chunk(
                study="", plan="", epoch=0, fence=fence, step=step, tasks=tasks, attempt=1, samples=samples
            )
            report = wire.Report(
                agent="",
                fence=fence,
                serial=1,
                step=step,
                attempt=1,
                results=(wire.Result(outcome=outcome, code=code, tasks=tasks),),
                final=True,
            )
            ledger.apply(wire.Start(agent="", chunk=chunk), at=0.0)
            ledger.apply(report, at=0.0)
        return ledger

    def _outcomes(self) -> Iterator[tuple[int, TaskSet, Ending]]:
        """All final outcomes, in the order of the steps."""
        for index, step in enumerate(self.steps):
            for ending, tasks in step.over.items():
                yield from ((index, part, ending) for part in tasks.sets())


def _count(name: str, *, total: int | None, outcomes: dict[Outcome, int]) -> StepCount:
    return StepCount(
        name=name,
        total=total,
        succeeded=outcomes.get(Outcome.SUCCEEDED, 0),
        soft_failed=outcomes.get(Outcome.SOFT_FAILED, 0),
        failed=outcomes.get(Outcome.FAILED, 0),
        timed_out=outcomes.get(Outcome.TIMED_OUT, 0),
        cancelled=outcomes.get(Outcome.CANCELLED, 0),
    )


def logs(directory: Path) -> Iterable[Path]:
    """The outcome logs of a workspace, the oldest first, so that a later run's word is the last."""
    found = (directory / workspace.INFO / workspace.OUTCOMES).glob("*.jsonl")
    return sorted(found, key=lambda log: (log.stat().st_mtime_ns, log.name))


def read_plan(directory: Path) -> Plan:
    """Read the plan of a workspace.

    Raises:
        CliError: there is none, or none that this version reads.
    """
    file = directory / workspace.INFO / workspace.PLAN_FILE
    try:
        return Plan.from_json(file.read_bytes())
    except FileNotFoundError:
        raise CliError(
            Exit.USAGE,
            f"{directory} is no workspace of a study: there is no {workspace.INFO}/{workspace.PLAN_FILE} in it; "
            "give the directory that `merlin run` named as Outputs",
        ) from None
    except OSError as error:
        raise CliError(Exit.CANNOT_RUN, f"can't read {file}: {error.strerror}") from error
    except ValidationError as error:
        raise CliError(Exit.CANNOT_RUN, f"{file} is no plan that this version of merlin reads") from error


def of_workspace(plan: Plan, directory: Path) -> Tally:
    """Fold the logs of a workspace."""
    tally = Tally(plan)
    tally.fold(log.read_bytes() for log in logs(directory))
    return tally
