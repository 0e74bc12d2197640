"""``merlin query-workers`` and ``merlin queue-info``: who works in a cluster's sites, and on what.

The Allocations tell which agents there are; the Studies, what waits. Filters mean what upstream's do: queues and workers that
are named, or those of a specification; more than one of them widens the choice.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from merlin_cli import source
from merlin_cli.exits import CliError, Exit
from merlin_cli.summary import say
from merlin_cli.target import Cluster, There, is_over
from merlin_study.errors import SpecError
from merlin_study.parse import parse_spec
from merlin_study.queues import of_steps
from merlin_study.spec import StudySpec
from merlin_study.variables import Variables


@dataclass(frozen=True)
class Filter:
    """What the command line names; nothing at all: everything."""

    spec: str | None = None
    queues: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    namespace: str | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is named."""
        return not (self.spec or self.queues or self.workers)

    def wanted_queues(self) -> frozenset[str]:
        """Return the queues that are named, with those of the specification's steps.

        Raises:
            CliError: the file can't be read.
            SpecError: the specification was refused.
        """
        if self.spec is None:
            return frozenset(self.queues)
        found = source.read(self.spec)
        spec = source.parse(found, source.variables(self.variables), quiet=True)
        steps = {step for step in self.steps if step != "all"}
        queues = queues_of(spec)
        mine = (names for step, names in queues.items() if not steps or step in steps)
        return frozenset(self.queues).union(*mine)

    def patterns(self) -> list[re.Pattern[str]]:
        """Return what agents' names have to match.

        Raises:
            CliError: one is no regular expression.
        """
        try:
            return [re.compile(pattern) for pattern in self.workers]
        except re.error as error:
            raise CliError(Exit.USAGE, f"--workers {error.pattern!r}: expected a regular expression: {error}") from None


@dataclass(frozen=True)
class Agent:
    """One agent, as its Allocation tells; ``queues`` empty: all."""

    name: str
    host: str
    site: str
    allocation: str
    scheduler: str
    job: str
    slots: int
    busy: int
    state: str
    heard: str
    queues: tuple[str, ...]

    def serves(self, queue: str) -> bool:
        """Whether it takes tasks of a queue."""
        return not self.queues or queue in self.queues


def agents_of(allocations: list[dict[str, Any]]) -> Iterator[Agent]:
    """Yield the agents of all allocations."""
    for each in allocations:
        spec, status = each["spec"], each.get("status") or {}
        for agent in status.get("agents") or ():
            yield Agent(
                name=agent["name"],
                host=agent.get("host", ""),
                site=spec["site"],
                allocation=each["metadata"]["name"],
                scheduler=spec["scheduler"],
                job=spec["jobId"],
                slots=int(agent.get("slots", 0)),
                busy=int(agent.get("busy", 0)),
                state=str(status.get("state", "")),
                heard=str(agent.get("lastHeartbeat", "")),
                queues=tuple(agent["queues"] if "queues" in agent else status.get("queues") or ()),
            )


def chosen(which: Filter, agents: list[Agent]) -> list[Agent]:
    """Return the agents that a filter names."""
    if which.empty:
        return agents
    queues, patterns = which.wanted_queues(), which.patterns()
    return [
        agent
        for agent in agents
        if any(agent.serves(queue) for queue in queues) or any(each.search(agent.name) for each in patterns)
    ]


def query(which: Filter, console: Console, cluster: Cluster | None = None) -> Exit:
    """Print the agents that are there.

    Raises:
        CliError: wrong usage, or the cluster can't be asked.
        SpecError: the specification was refused.
    """
    there = There.of(which.namespace, cluster)
    agents = chosen(which, list(agents_of(there.cluster.allocations(there.namespace))))
    if not agents:
        say(console, f"No agent that fits is known in namespace {there.namespace}.")
        return Exit.OK
    table = _table("agent", "host", "site", "job", "busy", "queues", "state")
    for agent in sorted(agents, key=lambda each: (each.site, each.job, each.name)):
        job = agent.job if agent.scheduler == "none" else f"{agent.scheduler} {agent.job}"
        queues = ", ".join(agent.queues) or "all"
        table.add_row(agent.name, agent.host, agent.site, job, f"{agent.busy}/{agent.slots}", queues, agent.state)
    console.print(table, highlight=False, soft_wrap=True)
    return Exit.OK


@dataclass
class Load:
    """What a queue holds of the studies that are not over, in tasks."""

    studies: int = 0
    waiting: int = 0
    running: int = 0
    retrying: int = 0


def queues_of(spec: StudySpec) -> dict[str, tuple[str, ...]]:
    """Return the queues of each step of a specification."""
    return of_steps(spec, Variables(spec, stamp="", base="", spec_root=None).expand)


def queue_info(which: Filter, console: Console, *, dump: str | None = None, cluster: Cluster | None = None) -> Exit:
    """Print what waits and runs on each queue, and who serves it; steps that use several queues have rows of their own.

    Raises:
        CliError: wrong usage, the cluster can't be asked, or the file can't be written.
        SpecError: the specification was refused.
    """
    there = There.of(which.namespace, cluster)
    wanted = which.wanted_queues()
    agents = list(agents_of(there.cluster.allocations(there.namespace)))
    loads: dict[tuple[str, ...], Load] = {(queue,): Load() for queue in wanted}
    for agent in agents:
        for queue in agent.queues if not wanted else ():
            loads.setdefault((queue,), Load())
    for study in there.cluster.studies(there.namespace):
        _count(study, loads, wanted)
    rows = [
        {
            "queue": ", ".join(names),
            "studies": load.studies,
            "waiting": load.waiting,
            "running": load.running,
            "retrying": load.retrying,
            "agents": sum(any(map(agent.serves, names)) for agent in agents),
            "slots": sum(agent.slots for agent in agents if any(map(agent.serves, names))),
        }
        for names, load in sorted(loads.items())
    ]
    if dump is not None:
        write_rows(rows, dump)
        say(console, f"wrote {dump}")
        return Exit.OK
    if not rows:
        say(console, f"No study is under way in namespace {there.namespace}, and no agent names a queue.")
        return Exit.OK
    table = _table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    console.print(table, highlight=False)
    return Exit.OK


def _count(study: Mapping[str, Any], loads: dict[tuple[str, ...], Load], wanted: frozenset[str]) -> None:
    if is_over(study):
        return
    try:
        queues = queues_of(parse_spec(study["spec"], unknown="warn")[0])
    except SpecError:
        return  # a study that can't be read is refused, and holds nothing
    seen = set()
    for step in (study.get("status") or {}).get("steps") or ():
        names = queues.get(step["name"])
        if names is None or (wanted and wanted.isdisjoint(names)):
            continue
        load = loads.setdefault(names, Load())
        running, retrying = int(step.get("running", 0)), int(step.get("retrying", 0))
        left = int(step.get("total", 0)) - int(step.get("done", 0)) - running - retrying
        load.waiting, load.running = load.waiting + max(0, left), load.running + running
        load.retrying += retrying
        if names not in seen:
            seen.add(names)
            load.studies += 1


def write_rows(rows: list[dict[str, Any]], file: str) -> None:
    """Write a table as CSV or JSON, by the ending of the file's name; CSV goes to the end of a file that is there.

    Raises:
        CliError: another ending, or the file can't be written.
    """
    path = Path(file)
    if path.suffix not in (".csv", ".json"):
        raise CliError(Exit.USAGE, f"--dump {file}: expected a file that ends in .csv or .json")
    try:
        if path.suffix == ".json":
            path.write_text(json.dumps(rows, indent=1) + "\n")
            return
        begins = not path.exists() or not path.stat().st_size
        with path.open("a", newline="") as out:
            writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [])
            if begins:
                writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise CliError(Exit.CANNOT_RUN, f"--dump {file}: can't be written: {error.strerror}") from error


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="", padding=(0, 1), pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table
