"""One study on real processes that tests kill: nats-server, the engine, agents, bash tasks; and the history they leave."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from merlin_study import wire
from merlin_study.plan import Plan
from merlin_study.seal import Keyring
from tests.faults.checker import Finding, check, read
from tests.folding.studies import plan_of
from tests.ground import Process, eventually
from tests.ground.broker import Credentials
from tests.ground.waiting import GENEROUS

TIMING = wire.Timing(heartbeat=0.25, lost_after=2.0, presence=0.25, presence_stale=1.5)
"""So short that a verdict of loss takes seconds; on a busy machine one may be called lost that is alive."""
PATIENT = TIMING.model_copy(update={"lost_after": 120.0})
"""For runs in which nobody counts as lost, however busy the machine is."""


class Reachable(Protocol):
    """A server, or a cluster of them."""

    @property
    def url(self) -> str:
        """The address, without credentials."""

    @property
    def credentials(self) -> Credentials:
        """What `nats.connect` takes beside it."""


class Rig:
    """A site of one study, ``sim`` with a task for each sample; what is started here ends with it."""

    def __init__(
        self,
        broker: Reachable,
        directory: Path,
        *,
        tasks: int,
        cmd: str = ":",
        generate: str = "",
        plan: Plan | None = None,
        timing: wire.Timing = TIMING,
        window: float = 10.0,
        server: str = "",
        log_stands: bool = False,
    ) -> None:
        """Write plan, keys and credentials.

        Args:
            broker: the server or cluster, started.
            directory: where all of it lies.
            tasks: how many samples.
            cmd: what each task runs, in its own directory.
            generate: what runs before the table of samples is made.
            plan: another plan than that, if any.
            timing: the clocks of operator and agents.
            window: seconds of work that the operator publishes ahead.
            server: where agents connect, if not to the broker itself.
            log_stands: nothing of the broker's log is lost in this run; see `checker.check`.
        """
        self.log_stands = log_stands
        self.broker, self.directory, self.tasks, self.timing, self.window = broker, directory, tasks, timing, window
        self.plan = plan or plan_of(_spec(tasks, cmd, generate))
        self.study, self.created = str(uuid.uuid4()), time.time()
        self.history, self.workspace = directory / "history", directory / "ws"
        self.workspace.mkdir(exist_ok=True)
        self.server = server or broker.url
        Keyring.generate().save(directory / "keys")
        (directory / "plan.json").write_bytes(self.plan.to_json())
        credentials = directory / "credentials.json"
        credentials.touch(0o600)
        credentials.write_text(json.dumps(dict(broker.credentials)))
        self.processes: list[Process] = []
        self.operators: list[Process] = []

    @property
    def root(self) -> Path:
        """The study's directory."""
        return self.workspace / self.plan.workspace

    def operator(
        self, *, failpoints: str = "", server: str = "", environ: Mapping[str, str] | None = None, flags: str = ""
    ) -> Process:
        """Start an engine for the study."""
        made = self._start(
            f"operator-{len(self.processes)}",
            ["merlin_operator.local", "--plan", self.directory / "plan.json", "--study", self.study, "--name", "study",
             "--timing", self.timing.model_dump_json(), "--window", self.window, "--created", self.created,
             "--log-level", "INFO", "--server", server or self.broker.url, *flags.split()],
            failpoints, environ or {},
        )  # fmt: skip
        self.operators.append(made)
        return made

    def agent(
        self,
        *,
        failpoints: str = "",
        slots: int = 2,
        server: str = "",
        site: str = "local",
        environ: Mapping[str, str] | None = None,
        flags: str = "",
    ) -> Process:
        """Start an agent."""
        return self._start(
            f"agent-{len(self.processes)}",
            ["merlin_agent", "--namespace", "local", "--site", site, "--slots", slots, "--workspace", self.workspace,
             "--server", server or self.server, *flags.split()],
            failpoints, environ or {},
        )  # fmt: skip

    def _start(self, name: str, words: list[object], failpoints: str, extra: Mapping[str, str]) -> Process:
        common = ["--credentials", self.directory / "credentials.json", "--keys", self.directory / "keys"]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("MERLIN_")}
        environ |= {"HOME": str(self.directory), "MERLIN_HISTORY": str(self.history), "MERLIN_FAILPOINTS": failpoints}
        environ |= extra
        argv = [sys.executable, "-m", *map(str, [*words, *common])]
        made = Process(argv, log=self.directory / f"{name}.log", env=environ)
        made.start()
        self.processes.append(made)
        return made

    def view(self) -> dict[str, Any]:
        """What the engine that was started last shows; nothing before it has shown anything."""
        with self.operators[-1].log.open("rb") as log:
            lines = [line for line in log if line.startswith(b'{"type": "view"') and line.endswith(b"\n")]
        return json.loads(lines[-1]) if lines else {}

    def done(self) -> int:
        """How many tasks are over, as that engine says."""
        return sum(step["done"] if "done" in step else _done(step) for step in self.view().get("steps", ()))

    def losses(self) -> int:
        """How many fences that engine has seen called lost."""
        return sum(step["lost"] for step in self.view().get("steps", ()))

    def until_done(self, least: int, *, seconds: float = GENEROUS) -> None:
        """Wait until more than so many tasks are over."""
        eventually(lambda: self.done() > least, timeout=seconds, interval=0.05, message=f"more than {least} tasks done")

    def finish(self, *, seconds: float = GENEROUS) -> Finding:
        """Wait for the study's end, and check its history: nothing lost, nothing doubled, every success accepted once."""
        eventually(lambda: self.view().get("finished"), timeout=seconds, interval=0.05, message="the study ends")
        view = self.view()
        counts = {step["name"]: _done(step) for step in view["steps"]}
        assert counts == {step["name"]: step["total"] for step in view["steps"]}, view
        assert counts["sim"] == self.tasks
        assert view["doubled"] == 0, view
        finding = check(read(self.history), {1: self.tasks}, log_stands=self.log_stands)
        assert finding.faults == [], "\n".join(finding.faults[:10])
        return finding

    def succeeded(self) -> bool:
        """Whether every task succeeded."""
        return all(step["succeeded"] == step["total"] for step in self.view()["steps"])

    def runs(self) -> dict[str, int]:
        """How often each task's script has begun, from the files that they left."""
        return {
            str(path.parent.relative_to(self.root / "sim")): len(path.read_text().splitlines())
            for path in self.root.glob("sim/**/runs")
        }

    @property
    def hurry(self) -> Path:
        """The file for which tasks look that `linger`."""
        return self.directory / "hurry"

    @property
    def hold(self) -> Path:
        """The file for as long as which tasks stand still that `hold`."""
        return self.directory / "hold"

    def describe(self) -> str:
        """What every process last said."""
        said = "\n".join(process.describe() for process in self.processes)
        return "\n".join(line for line in said.splitlines() if not line.startswith('{"type": "view"'))

    def close(self) -> None:
        """Kill what runs."""
        for process in self.processes:
            if process.alive:
                process.kill()


def linger(directory: Path) -> str:
    """Return a command that takes a second until there is a `Rig.hurry`, and no time from then on.

    A study of such tasks has work left when something is done to it, however late a busy machine shows how far it is.
    """
    return f"for turn in 1 2 3 4 5 6 7 8 9 10; do [ -e {directory / 'hurry'} ] || sleep 0.1; done"


def hold(directory: Path) -> str:
    """Return a command that ends once there is no `Rig.hold`."""
    return f"while [ -e {directory / 'hold'} ]; do sleep 0.1; done"


def _spec(tasks: int, cmd: str, generate: str) -> str:
    lines = "".join(f"\n      {line}" for line in ("echo run >> runs", *cmd.split("\n")))
    return f"""
description: {{name: study, description: d}}
study:
- name: sim
  description: d
  run:
    retry_delay: 0
    cmd: |{lines}
      : $(S)
merlin:
  samples:
    generate: {{cmd: "{generate}seq {tasks} > $(MERLIN_INFO)/s.csv"}}
    file: $(MERLIN_INFO)/s.csv
    column_labels: [S]
"""


def _done(step: dict[str, Any]) -> int:
    return sum(step[name] for name in ("succeeded", "soft_failed", "failed", "timed_out", "cancelled"))


@contextmanager
def a_rig(broker: Reachable, directory: Path, **says: Any) -> Iterator[Rig]:
    """Make a rig, and show what its processes said where a test fails."""
    made = Rig(broker, directory, **says)
    try:
        yield made
    except BaseException:
        print(made.describe())
        raise
    finally:
        made.close()
