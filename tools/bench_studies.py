"""Measure what the number of studies costs: thousands of Studies in one namespace, half of them over, half waiting for agents.

One namespace with a broker, an operator and an agent on a real API server. Studies of ten rehearsed tasks are created until each of the given
numbers stands; every second one names a queue that no agent serves, so it stays. At each number:

- how many studies a second were accepted (and half of them run to their end), and what one took of the operator's processor;
- what the operator and nats-server take at rest;
- how long one more study takes to its end, among all others;
- writes to the API server for each study; memory; consumers.

At the end the operator is killed, and it is measured how long the next one takes until one more study is over.

    python tools/bench_studies.py [--studies 100 1000 10000] [--rest 20] [--write docs/benchmarks]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import nats
from kubernetes import watch
from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.ground import Broker, ControlPlane
from tools.bench_report import machine, publish
from tools.bench_site import GROUP, Site, peak_mib, processor_seconds, site, writes

SENDERS: Final = 4
"""Threads that create Studies."""
PATIENCE: Final = 1800.0
TOLD: Final = "## Where it goes"
"""The page from here on is written by hand, and stays."""


@dataclass(frozen=True)
class Figures:
    """One number of studies: seconds, counts, shares of a core, MiB."""

    studies: int
    seconds: float
    writes: float
    operator_each: float
    rest: dict[str, float]
    one_more: float
    memory: dict[str, float]
    consumers: int


def study(name: str, *, waits: bool) -> dict[str, Any]:
    """Return a Study of ten tasks that are only reported; ``waits``: on a queue that nobody serves."""
    run = {"cmd": "echo $(MERLIN_SAMPLE_ID)"} | ({"task_queue": "nobody"} if waits else {})
    return {
        "apiVersion": "/".join(GROUP),
        "kind": "Study",
        "metadata": {"name": name},
        "spec": {
            "description": {"name": "many", "description": "tasks that are only reported"},
            "study": [{"name": "null", "description": "d", "run": run}],
            "merlin": {"samples": {"count": 10}},
            "rehearse": 0,
        },
    }


class Seen:
    """Which Studies are settled: over, or accepted and waiting."""

    def __init__(self, running: Site) -> None:
        self._running = running
        self._settled: set[str] = set()

    def until(self, names: set[str], advance: Callable[[], None] = lambda: None) -> None:
        """Wait until all of these are settled, by a watch of them all; ``advance`` is called for each."""
        untyped: Any = watch
        listed = self._running.custom.list_namespaced_custom_object
        left, given_up = names - self._settled, time.monotonic() + PATIENCE
        # Else what is measured of one study is mostly how long this process takes to read all others.
        only = {"field_selector": f"metadata.name={next(iter(left))}"} if len(left) == 1 else {}
        while left and time.monotonic() < given_up:  # the server ends a watch when it likes to
            watched = untyped.Watch().stream(
                listed, *GROUP, self._running.namespace, "studies", timeout_seconds=60, **only
            )
            for event in watched:
                found = event["object"]
                name, held = found["metadata"]["name"], found.get("status", {}).get("conditions", ())
                is_true = {each["type"] for each in held if each["status"] == "True"}
                if "Finished" in is_true or (name.startswith("waits") and "Accepted" in is_true):
                    self._settled.add(name)
                    if name in left:
                        left.discard(name)
                        advance()
                if not left:
                    return
        if left:
            sys.exit(f"bench: {len(left)} studies are not settled after {PATIENCE:g} s")


@contextmanager
def spent(running: Site) -> Iterator[dict[str, float]]:
    """Fill in the processor seconds of each process when what is measured is over."""
    before = {name: processor_seconds(part.pid) for name, part in running.parts.items()}
    found: dict[str, float] = {}
    yield found
    found.update({name: processor_seconds(part.pid) - before[name] for name, part in running.parts.items()})


def grow(plane: ControlPlane, running: Site, seen: Seen, *, old: int, new: int, rest: float) -> Figures:
    """Create Studies until there are ``new``, and measure."""
    kinds = [(f"waits-{each}" if each % 2 else f"runs-{each}", each % 2 == 1) for each in range(old, new)]
    written, began = writes(plane), time.monotonic()
    with (
        spent(running) as took,
        ThreadPoolExecutor(SENDERS) as senders,
        Progress() as progress,
    ):
        bar = progress.add_task(f"{new:,} studies", total=len(kinds))
        sent = senders.map(lambda kind: running.create(study(kind[0], waits=kind[1])), kinds)
        seen.until({name for name, _ in kinds}, lambda: progress.advance(bar))
        list(sent)
    seconds = time.monotonic() - began
    time.sleep(5)  # what is still on its way is told
    told = writes(plane) - written - len(kinds)
    with spent(running) as rests:
        time.sleep(rest)
    return Figures(
        new,
        seconds,
        told / len(kinds),
        took["operator"] / len(kinds),
        {name: value / rest for name, value in rests.items()},
        one_more(running, seen, f"more-{new}"),
        {name: peak_mib(part.pid) for name, part in running.parts.items()},
        asyncio.run(consumers(running.broker)),
    )


def one_more(running: Site, seen: Seen, name: str) -> float:
    """Return how many seconds a study takes from its creation to its end."""
    began = time.monotonic()
    running.create(study(name, waits=False))
    seen.until({name})
    return time.monotonic() - began


async def consumers(broker: Broker) -> int:
    """Return how many consumers the streams have."""
    connection = await nats.connect(broker.url, **broker.credentials)
    found = sum(info.state.consumer_count for info in await connection.jetstream().streams_info())
    await connection.close()
    return found


def page(all_figures: Sequence[Figures], *, again: float, load: float, rest: float) -> str:
    """Return the page of figures in Markdown."""
    lines = [
        "# What the number of studies costs",
        "",
        (
            "`make bench-studies` writes this page. Studies of ten rehearsed tasks stand in one namespace, on a real API server: half of them are over, "
            "half wait for a queue that no agent serves. Broker (which syncs each write), operator and agent are one each."
        ),
        "",
        f"{datetime.now(UTC).date()}, {machine()}. Load of the machine before: {load:.1f}.",
        "",
        "| | " + " | ".join(f"{each.studies:,} studies" for each in all_figures) + " |",
        "|---|" + "---|" * len(all_figures),
    ]
    added = [
        now.studies - before
        for now, before in zip(all_figures, [0, *(each.studies for each in all_figures)], strict=False)
    ]

    def row(name: str, values: Sequence[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(values) + " |")

    row(
        "settled a second, creation included",
        [f"{n / each.seconds:.0f}" for n, each in zip(added, all_figures, strict=True)],
    )
    row("operator's processor for each", [f"{each.operator_each * 1000:.0f} ms" for each in all_figures])
    row("writes to the API server for each", [f"{each.writes:.1f}" for each in all_figures])
    row("one more study, created → `Finished`", [f"{each.one_more:.1f} s" for each in all_figures])
    for name in ("operator", "nats-server", "agent"):
        row(f"{name}: at rest, of a core (over {rest:g} s)", [f"{each.rest[name]:.1%}" for each in all_figures])
        row(f"{name}: peak memory", [f"{each.memory[name]:.0f} MiB" for each in all_figures])
    row("consumers", [str(each.consumers) for each in all_figures])
    lines += [
        "",
        f"After a kill of the operator with {all_figures[-1].studies:,} studies, the next one's first new study was over {again:.1f} s after its start.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all numbers and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--rest", type=float, default=20.0, help="seconds at rest (20)")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write studies.md there")
    wish = parser.parse_args()
    load, found = os.getloadavg()[0], []
    with ControlPlane() as plane, tempfile.TemporaryDirectory(prefix="merlin-bench-") as root:
        plane.install_crds()
        with site(plane, Path(root), slots=2) as running:
            seen, old = Seen(running), 0
            for new in wish.studies:
                found.append(grow(plane, running, seen, old=old, new=new, rest=wish.rest))
                print(found[-1], flush=True)
                old = new
            running.operator.kill()
            began = time.monotonic()
            running.operator.start()
            one_more(running, seen, "again")
            again = time.monotonic() - began
    publish(page(found, again=again, load=load, rest=wish.rest), wish.write, "studies.md", told=TOLD)


if __name__ == "__main__":
    main()
