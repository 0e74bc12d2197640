"""A study on this machine: broker, engine and agent as children of the command, until every task has its outcome.

From the command (`run`, `restart`) to the children and back: the engine's views drive the display, the last one decides
the exit code. The command decides nothing about tasks; it keeps the three alive and ends them in good order:

1. the agent first, which hands back what it has not started and gives what runs a few seconds;
2. then the engine, which has heard of it by then;
3. the broker last, since both speak through it.

All state of a run lies in the workspace (and, while it goes on, in the broker's store in a private temporary directory), so
`merlin restart` needs nothing but the workspace.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from rich.console import Console

from merlin_cli import family, finale, lock, summary, tally
from merlin_cli.bars import Display, display
from merlin_cli.broker import Broker
from merlin_cli.children import Child, GaveUpError
from merlin_cli.exits import CliError, Exit
from merlin_cli.progress import Progress
from merlin_study import footprint, nested, workspace
from merlin_study.plan import Plan
from merlin_study.seal import Keyring

NAMESPACE: Final = "local"
SITE: Final = "local"
DRAIN_GRACE: Final = 5
"""Seconds that running tasks get after Ctrl-C: short enough to wait for."""
AGENT_GRACE: Final = DRAIN_GRACE + 25.0
"""Seconds for the agent to end, with its tasks; this only catches one that hangs."""
IDLE_GRACE: Final = 5.0
"""Seconds for the agent to end when there is nothing left to drain."""
PATIENCE: Final = 10.0
"""Seconds that a study may wait for an agent before its user is told so: agents start within two."""
GIVE_UP: Final = 60.0
"""Seconds of the same reason after which the run ends: its one agent is all there is, and what it can't take now it never will."""
STARTED: Final = 300.0
"""Seconds after which it ends where that agent was never heard of: a cold file system may take minutes to load it."""
ENGINE_GRACE: Final = 5.0
BROKER_GRACE: Final = 5.0
AGENT_GIVES_UP: Final = frozenset({2, 3, 4})
"""The agent's exit codes for flags, keys and a workspace that it can't use: no restart changes them."""
_SIGNALS: Final = {
    signal.SIGINT: Exit.INTERRUPTED,
    signal.SIGTERM: Exit.TERMINATED,
    signal.SIGHUP: Exit.HANGUP,
}


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        plan: The compiled study.
        study: Its uid: new for a run, the old one for a restart.
        root: The workspace root, absolute; `directory` follows from it and from the plan.
        slots: How many tasks may run at a time.
        resume: Whether the workspace holds earlier outcomes that stand.
        again: With ``resume``, a restart (``spec.restart`` as JSON) to be asked for beside; empty: none.
        rehearse: Seconds after which each task counts as done instead of being run; None runs it.
        furnish: Puts into ``merlin_info`` what it has to hold before anything runs; given that directory.
    """

    plan: Plan
    study: str
    root: Path
    slots: int
    resume: bool = False
    again: str = ""
    rehearse: float | None = None
    furnish: Callable[[Path], None] | None = None

    @property
    def directory(self) -> Path:
        """The study's directory."""
        return Path(workspace.study_root(self.plan, str(self.root)))


def check_installed() -> None:
    """Refuse to start without the parts that only the extra brings.

    Raises:
        CliError: one is missing.
    """
    missing = [name for name in ("merlin_operator", "merlin_agent") if importlib.util.find_spec(name) is None]
    if missing:
        raise CliError(
            Exit.CANNOT_RUN,
            f"--local needs the engine and the agent, and {' and '.join(missing)} can't be imported; "
            "install them with: pip install 'merlin-cli[local]'",
        )


def check_writable(directory: Path) -> None:
    """Refuse to start where the study's directory cannot be made.

    Raises:
        CliError: with the directory that stands in the way.
    """
    there = next(parent for parent in (directory, *directory.parents) if parent.exists())
    if not there.is_dir():
        raise CliError(Exit.CANNOT_RUN, f"the outputs should go to {directory}, but {there} is no directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CliError(
            Exit.CANNOT_RUN,
            f"the outputs should go to {directory}, but you may not write into {there}; choose another place with -o",
        )


def run(job: Job, console: Console) -> Exit:
    """Run the study to its end, or until a signal; return how the command ends.

    Raises:
        CliError: it could not run, or another command or an agent works in the study's directory.
    """
    check_installed()
    check_writable(job.directory)
    with (
        lock.held(job.directory, resume=job.resume),
        tempfile.TemporaryDirectory(prefix="merlin-", ignore_cleanup_errors=True) as private,
    ):
        if job.furnish is not None:
            job.furnish(job.directory / workspace.INFO)
        return asyncio.run(_Session(job, console, Path(private)).run())


class _Session:
    """One run, from the first child's start to the last one's end."""

    def __init__(self, job: Job, console: Console, private: Path) -> None:
        self._job, self._console, self._private = job, console, private
        self._progress: Progress | None = None
        self._family = family.Family(job.study)
        self._said: set[str] = set()
        self._over = asyncio.Event()
        self._signal: signal.Signals | None = None
        self._display: Display = display(console)
        self._began = time.monotonic()
        self._waiting: tuple[str, float] | None = None
        self._agent_heard = False
        self._hopeless = ""
        self._looking: asyncio.Task[None] | None = None
        note = self._display.note
        self._broker = Broker(private, note)
        # The command lines follow once the broker has its port.
        self._engine = Child("engine", [], log=private / "engine.log", note=note, on_line=self._heard)
        self._agent = Child(
            "agent",
            [],
            log=private / "agent.log",
            note=note,
            hopeless=AGENT_GIVES_UP,
            environ=_without_agent_settings(),
        )

    async def run(self) -> Exit:
        """See `run`."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's choice stands
                loop.add_signal_handler(number, self._signalled, number)
        try:
            self._prepare()
            await self._broker.start()
            self._engine.argv, self._agent.argv = self._engine_command(), self._agent_command()
            await self._until_over()
        except GaveUpError as error:
            message = f"{error}, so the run was given up; {self._how_to_go_on()}"
            said = f" The end of what it said:\n{error.tail}" if error.tail else ""
            raise CliError(Exit.CANNOT_RUN, f"{message}.{said}") from error
        finally:
            self._display.close()
        return self._conclude()

    def _prepare(self) -> None:
        """Write what the children read: keys and plan."""
        Keyring.generate().save(self._private / "keys")
        (self._private / "plan.json").write_bytes(self._job.plan.to_json())
        # What the user set up for agents of a site (queues, idle exit) is not meant for the agent of this run.
        (self._private / "agent.json").write_text("{}")

    async def _until_over(self) -> None:
        """Keep the children alive until the study is finished, a signal comes, or one of them is given up."""
        keepers = [
            asyncio.create_task(self._broker.child.keep(self._broker.ready)),
            asyncio.create_task(self._engine.keep()),
            asyncio.create_task(self._agent.keep()),
        ]
        over = asyncio.create_task(self._over.wait())
        try:
            await asyncio.wait([over, *keepers], return_when=asyncio.FIRST_COMPLETED)
            for keeper in keepers:
                if keeper.done() and (error := keeper.exception()) is not None:
                    raise error
        finally:
            await self._stop()
            for task in (over, *keepers):
                task.cancel()
            await asyncio.gather(over, *keepers, return_exceptions=True)

    async def _stop(self) -> None:
        """End the children in their order, whatever happened to them."""
        finished = self._progress is not None and self._progress.finished
        await self._agent.stop(IDLE_GRACE if finished else AGENT_GRACE)
        await self._engine.stop(ENGINE_GRACE)
        await self._broker.child.stop(BROKER_GRACE)

    def _signalled(self, number: signal.Signals) -> None:
        """The first signal ends the run in good order, the second at once."""
        if self._signal is not None:
            self._display.note("Killing everything at once.")
            for child in (self._agent, self._engine, self._broker.child):
                child.kill()
            return
        self._signal = number
        self._display.note("Stopping: running tasks get a few seconds. Press Ctrl-C again to kill them at once.")
        self._over.set()

    def _heard(self, line: bytes) -> None:
        """Take a line of the engine's; what is no view is not for us."""
        try:
            if json.loads(line).get("type") != "view":
                return
            view = Progress.model_validate_json(line)
        except (ValueError, AttributeError, ValidationError):
            return
        self._say_refusals(view)
        self._family.take(view)
        progress = self._family.progress()
        if progress is None:
            return
        if self._looking is None and view.ref.uid in ("", self._job.study) and view.steps and view.complete:
            self._looking = asyncio.create_task(self._look_for_room(view))
        self._progress = self._patient(progress)
        self._display.update(self._progress)
        if self._progress.finished:
            self._engine.let_go()
            self._over.set()
        elif self._progress.stopped and not any(step.running for step in self._progress.steps):
            self._over.set()  # a task asked to stop the agents; a restart goes on

    async def _look_for_room(self, view: Progress) -> None:
        """Warn where the workspace has no room for all that the layout will make; what an earlier run made counts as made."""
        from merlin_agent import quota

        job = self._job
        if job.resume or job.rehearse is not None:
            return
        totals = {step.name: step.total or 0 for step in view.steps}
        rooms = await asyncio.to_thread(lambda: list(quota.rooms(str(job.directory), os.environ)))
        if said := footprint.warning(job.plan, totals, str(job.directory), rooms):
            self._display.note(f"warning: {said}")

    def _say_refusals(self, view: Progress) -> None:
        """Say why a study that a step started was refused, once."""
        for fault in (*view.faults, *view.warnings):
            if (said := f"{view.ref.name}: {fault.path}: {fault.message}") not in self._said:
                self._said.add(said)
                self._display.note(said)

    def _patient(self, progress: Progress) -> Progress:
        """Leave out why nothing moves until it has not moved for a while: at first the agent is only starting."""
        now, reason = time.monotonic(), progress.waiting_for
        self._agent_heard = self._agent_heard or progress.agents > 0
        if not reason or any(step.running for step in progress.steps):
            self._waiting = None
            return progress
        if self._waiting is None or self._waiting[0] != reason:
            self._waiting = reason, now
        waited = now - self._waiting[1]
        if waited > (GIVE_UP if self._agent_heard else STARTED):
            self._hopeless = reason
            self._over.set()
        return progress if waited > PATIENCE else progress.model_copy(update={"waiting_for": ""})

    def _conclude(self) -> Exit:
        """Say how it went and where the outputs are."""
        progress, elapsed = self._progress, time.monotonic() - self._began
        if progress is not None and progress.finished:
            finale.write(self._job.directory, self._job.plan, self._job.study, progress)
            summary.show(self._console, progress, elapsed=elapsed, directory=self._job.directory)
            return Exit.OK if progress.succeeded else Exit.FAILURES
        if self._hopeless:
            message = f"nothing of the study runs: {self._hopeless}; then {self._how_to_go_on()}"
            raise CliError(Exit.CANNOT_RUN, message)
        # The workspace has heard of what ended while the parts were stopping; the engine's last view may not have.
        done = tally.of_workspace(self._job.plan, self._job.directory).progress("").done
        summary.show_stopped(self._console, done=done, then=self._how_to_go_on(), directory=self._job.directory)
        if self._signal is None and progress is not None and progress.stopped:
            return Exit.FAILURES
        assert self._signal is not None, "stopped without a reason: this is a bug, please report it"
        return _SIGNALS[self._signal]

    def _how_to_go_on(self) -> str:
        if (self._job.directory / workspace.INFO / workspace.PLAN_FILE).exists():
            return f"go on with: merlin restart {summary.quoted(self._job.directory)} --local"
        return "nothing has run yet, so give the same command again"

    def _engine_command(self) -> list[str]:
        job = self._job
        arguments = [*self._common(), "--plan", str(self._private / "plan.json"), "--study", job.study]
        arguments += ["--name", job.plan.workspace]
        if job.rehearse is not None:
            arguments += ["--rehearse", str(job.rehearse)]
        if job.resume:
            arguments += ["--resume", str(job.directory / workspace.INFO)]
        if job.again:
            arguments += ["--again", job.again]
        return [*_python("merlin_operator.local"), *arguments]

    def _agent_command(self) -> list[str]:
        arguments = [*self._common(), "--config", str(self._private / "agent.json")]
        arguments += ["--namespace", NAMESPACE, "--site", SITE, "--slots", str(self._job.slots)]
        arguments += ["--workspace", str(self._job.root), "--drain-grace", str(DRAIN_GRACE)]
        return [*_python("merlin_agent"), *arguments]

    def _common(self) -> list[str]:
        credentials, keys = str(self._broker.credentials), str(self._private / "keys")
        return ["--server", self._broker.url, "--credentials", credentials, "--keys", keys, "--lifeline"]


def _without_agent_settings() -> dict[str, str]:
    """The environment, less what the user set up for agents of a site."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MERLIN_AGENT_")}


def _python(module: str) -> list[str]:
    # -P: the current directory is the user's, and a yaml.py of theirs must not be taken for ours
    return [sys.executable, "-P", "-m", module]


def default_slots() -> int:
    """How many CPUs this process may use; in a step of another study, how many cores that step has."""
    if (cores := os.environ.get(nested.CORES, "")).isdecimal():
        return max(1, int(cores))
    with contextlib.suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
