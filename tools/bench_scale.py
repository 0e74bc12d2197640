"""Measure what the number of tasks costs: null tasks down the whole path, with agents that only report (a rehearsal).

Each size gets a namespace, a broker, an operator and an agent of its own, on a real API server; the Study is created through
the API, as ``kubectl apply`` does. What is measured:

- seconds from the creation to the first report of a task in the broker's log, and to ``Finished`` in the Study's status;
- writes that the API server counted, and the largest Study object that a watch showed;
- peak memory and processor seconds of operator, nats-server and agent, as the kernel tells them;
- messages and bytes that the broker's streams hold at the end.

    python tools/bench_scale.py [--samples 10000 1000000 100000000] [--slots 2] [--write docs/benchmarks]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
from kubernetes import watch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.ground import Broker, ControlPlane
from tools.bench_report import machine, publish
from tools.bench_site import GROUP, peak_mib, processor_seconds, site, writes

PATIENCE = 900.0
TOLD = "## Where it goes"
"""The page from here on is written by hand, and stays."""


@dataclass(frozen=True)
class Figures:
    """One size: seconds, counts, bytes; memory and processor seconds by process."""

    samples: int
    first: float
    total: float
    writes: int
    object_bytes: int
    streams: dict[str, tuple[int, int]]
    memory: dict[str, float]
    processor: dict[str, float]


@dataclass
class Seen:
    """What a watch of the Study and a subscription to the log see; times by the monotonic clock."""

    first: float = 0.0
    finished: float = 0.0
    largest: int = 0


def study(samples: int) -> dict[str, Any]:
    """Return a Study of so many null tasks."""
    return {
        "apiVersion": "/".join(GROUP),
        "kind": "Study",
        "metadata": {"name": "null-tasks"},
        "spec": {
            "description": {"name": "null_tasks", "description": "tasks that are only reported"},
            "study": [{"name": "null", "description": "d", "run": {"cmd": "echo $(MERLIN_SAMPLE_ID)"}}],
            "merlin": {"samples": {"count": samples}},
            "rehearse": 0,
        },
    }


def follow(custom: Any, namespace: str, seen: Seen) -> None:
    """Watch the Study until it is finished."""
    untyped: Any = watch
    events = untyped.Watch().stream(custom.list_namespaced_custom_object, *GROUP, namespace, "studies")
    for event in events:
        found = event["object"]
        seen.largest = max(seen.largest, len(json.dumps(found, separators=(",", ":"))))
        conditions = found.get("status", {}).get("conditions", ())
        if any(each["type"] == "Finished" and each["status"] == "True" for each in conditions):
            seen.finished = time.monotonic()
            return


async def listen(broker: Broker, namespace: str, seen: Seen, finished: threading.Event) -> dict[str, tuple[int, int]]:
    """Note the first report of a task; at the end return messages and bytes of each stream."""
    connection = await nats.connect(broker.url, **broker.credentials)

    async def take(message: Any) -> None:
        fence = message.subject.rpartition(".")[2]
        if fence.isdecimal() and not seen.first:
            said[fence] += 1
            if said[fence] == 2:  # the first message of a fence is its claim, the second its report
                seen.first = time.monotonic()

    said = Counter[str]()
    await connection.subscribe(f"merlin.v1.{namespace}.report.*.*", cb=take)
    ready.set()
    await asyncio.to_thread(finished.wait)
    streams = {
        str(info.config.name).split("_")[1].lower(): (info.state.messages, info.state.bytes)
        for info in await connection.jetstream().streams_info()
    }
    await connection.close()
    return streams


ready = threading.Event()


def measure(plane: ControlPlane, root: Path, *, samples: int, slots: int) -> Figures:
    """Run one study from its creation to its end."""
    seen, over = Seen(), threading.Event()
    with site(plane, root, slots=slots) as running:
        parts = running.parts
        ready.clear()
        streams: list[dict[str, tuple[int, int]]] = []
        listening = threading.Thread(
            target=lambda: streams.append(asyncio.run(listen(running.broker, running.namespace, seen, over)))
        )
        listening.start()
        assert ready.wait(30)
        watching = threading.Thread(target=follow, args=(running.custom, running.namespace, seen), daemon=True)
        watching.start()
        before = {name: processor_seconds(part.pid) for name, part in parts.items()}
        written, began = writes(plane), time.monotonic()
        running.create(study(samples))
        watching.join(PATIENCE)
        if not seen.finished:
            sys.exit(f"bench: {samples} samples did not finish within {PATIENCE:g} s")
        figures = Figures(
            samples,
            seen.first - began,
            seen.finished - began,
            writes(plane) - written - 1,
            seen.largest,
            {},
            {name: peak_mib(part.pid) for name, part in parts.items()},
            {name: processor_seconds(part.pid) - before[name] for name, part in parts.items()},
        )
        over.set()
        listening.join()
    figures.streams.update(streams[0])
    return figures


def page(all_figures: Sequence[Figures], *, slots: int, load: float) -> str:
    """Return the page of figures in Markdown."""
    lines = [
        "# What the number of tasks costs",
        "",
        (
            "`make bench-scale` writes this page. A Study with `rehearse: 0` and `merlin.samples.count` goes down the whole path: created "
            "through a real API server, unrolled by the operator, claimed and reported by an agent that runs nothing, folded, shown in the "
            "status. Each size has its own broker (which syncs each write), operator and agent."
        ),
        "",
        f"{datetime.now(UTC).date()}, {machine()}; one agent of {slots} slots. Load of the machine before: {load:.1f}.",
        "",
        "| | " + " | ".join(f"{each.samples:,} samples" for each in all_figures) + " | goal |",
        "|---|" + "---|" * (len(all_figures) + 1),
    ]

    def row(name: str, goal: str, tell: Any) -> None:
        lines.append(f"| {name} | " + " | ".join(tell(each) for each in all_figures) + f" | {goal} |")

    row("created → first task reported", "< 2 s, flat", lambda each: f"{each.first:.2f} s")
    row("created → `Finished`", "10⁸ < 60 s", lambda each: f"{each.total:.1f} s")
    row("tasks a second", "", lambda each: f"{each.samples / each.total:,.0f}")
    row("writes to the API server", "≤ 1 a second", lambda each: str(each.writes))
    row("largest Study object", "< 32 KiB", lambda each: f"{each.object_bytes / 1024:.1f} KiB")
    for name in ("operator", "nats-server", "agent"):
        goal = "< 300 MiB" if name == "operator" else ""
        row(f"{name}: peak memory", goal, lambda each, name=name: f"{each.memory[name]:.0f} MiB")
        row(f"{name}: processor", "", lambda each, name=name: f"{each.processor[name]:.1f} s")
    for name in ("reports", "control", "tasks"):
        row(
            f"stream of {name} at the end",
            "",
            lambda each, name=name: f"{each.streams[name][0]:,} messages, {each.streams[name][1] / 1024:,.0f} KiB",
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all sizes and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 1_000_000, 100_000_000])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="DIR", help="write scale.md there")
    arguments = parser.parse_args()
    load, found = os.getloadavg()[0], []
    with ControlPlane() as plane:
        plane.install_crds()
        for samples in arguments.samples:
            with tempfile.TemporaryDirectory(prefix="merlin-bench-") as root:
                found.append(measure(plane, Path(root), samples=samples, slots=arguments.slots))
            print(f"  {samples:,}: first {found[-1].first:.2f} s, finished {found[-1].total:.1f} s", flush=True)
    publish(page(found, slots=arguments.slots, load=load), arguments.write, "scale.md", told=TOLD)


if __name__ == "__main__":
    main()
