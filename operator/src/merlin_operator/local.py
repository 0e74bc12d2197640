"""The engine without Kubernetes: one study from a plan file, shown as JSON lines on standard output.

``merlin run --local`` starts ``python -m merlin_operator.local`` beside a nats-server and an agent, and starts it again
where it dies: all that it knows is in the broker's log. With ``--resume`` it first tells that log what the outcome logs
of a workspace say. It ends when its standard input does (``--lifeline``), so nothing outlives the command line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from merlin_operator import localnursery
from merlin_operator.board import AgentView
from merlin_operator.config import broker_options
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_operator.localnursery import LocalNursery
from merlin_operator.stream import Outage
from merlin_operator.view import StudyRef, StudyView
from merlin_study import subjects, wire
from merlin_study.plan import Plan
from merlin_study.seal import Keyring

NAMESPACE: Final = "local"
TIMING: Final = wire.Timing(heartbeat=1.0, lost_after=5.0, presence=1.0, presence_stale=4.0)
"""Everything is on one machine, so silence says more, sooner."""


class Terminal:
    """A board that writes each changed view as one line of JSON."""

    def __init__(self) -> None:
        self._last = ""

    async def show(
        self, views: Sequence[StudyView], agents: Sequence[AgentView], news: Sequence[StudyView] | None = None
    ) -> None:
        """Print the views that are not as they were."""
        del agents
        for view in views if news is None else news:
            line = json.dumps(as_json(view))
            if line != self._last:
                self._last = line
                print(line, flush=True)  # noqa: T201 standard output is this process's protocol


def as_json(view: StudyView) -> dict[str, Any]:
    """Return a view as plain data, failures by their message's fields."""
    data = dataclasses.asdict(
        dataclasses.replace(view, first_failures=(), last_failures=()),
    )
    for name in ("first_failures", "last_failures"):
        data[name] = [
            {"step": each.step, "failure": each.failure.model_dump(mode="json")} for each in getattr(view, name)
        ]
    return {"type": "view", "succeeded": view.succeeded, **data}


async def run(arguments: argparse.Namespace) -> None:
    """Run the engine until it is told to end."""
    plan = Plan.from_json(arguments.plan.read_bytes())
    config = EngineConfig(
        namespace=NAMESPACE,
        server=arguments.server,
        options=broker_options(arguments.credentials),
        keyring=Keyring.load(arguments.keys),
        timing=arguments.timing,
        window_seconds=arguments.window,
        replicas=arguments.replicas,
        renew=functools.partial(broker_options, arguments.credentials),
        stop_after=0.0,  # nobody else takes the study, so nothing is gained by going on for a minute
    )
    nursery = LocalNursery()
    engine = nursery.engine = Engine(config, Terminal(), nursery)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if arguments.lifeline:
        loop.add_reader(sys.stdin.fileno(), stop.set)
    running = asyncio.create_task(engine.run())
    try:
        await _begin(engine, arguments, plan)
        ended = asyncio.create_task(stop.wait())
        await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _begin(engine: Engine, arguments: argparse.Namespace, plan: Plan) -> None:
    while arguments.resume is not None:
        try:
            await engine.broker.wait_connected()
            await engine.broker.ensure_streams()
            await localnursery.tell_past(engine, arguments.study, plan, arguments.resume)
            break
        except Outage as error:
            logging.getLogger(__name__).info("telling the past again error=%s", error)
            await asyncio.sleep(0.2)
    ref = StudyRef(subjects.escape(NAMESPACE), arguments.name, arguments.study)
    engine.add(ref, plan, created=arguments.created)
    if arguments.again is not None:
        engine.switch(arguments.study, {"restart": {k: v for k, v in arguments.again.items() if v is not None}})
    if arguments.rehearse is not None:
        engine.switch(arguments.study, {"rehearse": arguments.rehearse})


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="merlin_operator.local", description=__doc__)
    parser.add_argument("--server", required=True, help="the broker's address; several with commas")
    parser.add_argument("--credentials", required=True, type=Path, help="file with token, or user and password")
    parser.add_argument("--keys", required=True, type=Path, help="directory of seal.key and signing.key")
    parser.add_argument("--plan", required=True, type=Path, help="the study's plan")
    parser.add_argument("--study", required=True, help="the study's uid")
    parser.add_argument("--name", required=True, help="the study's name")
    parser.add_argument("--resume", type=Path, help="a merlin_info directory whose outcomes to go on from")
    parser.add_argument("--again", type=json.loads, help="a restart that is asked for, as JSON")
    parser.add_argument("--rehearse", type=float, help="report each task as done after so many seconds, run none")
    parser.add_argument("--created", type=float, help="when the study was made, in Unix seconds; without it: now")
    parser.add_argument("--timing", type=wire.Timing.model_validate_json, default=TIMING, help="the clocks, as JSON")
    parser.add_argument("--window", type=float, default=10.0, help="seconds of work that may wait in the broker")
    parser.add_argument("--replicas", type=int, default=1, help="servers of the broker's cluster that keep each stream")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input does")
    parser.add_argument("--log-level", default="WARNING")
    arguments = parser.parse_args()
    logging.basicConfig(level=arguments.log_level, stream=sys.stderr)
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
