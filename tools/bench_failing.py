"""What it costs that three tasks in ten fail at random, each again after a delay: ``python tools/bench_failing.py [--tasks 100000000]``.

Decided, sealed, opened and folded in one process, without broker and agent: what is measured is what failures cost the operator.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.progress import Progress

from merlin_agent.report import Pending
from merlin_operator.unroll import Candidate, Capacity, next_chunks
from merlin_study import wire
from merlin_study.ledger import Ledger
from merlin_study.outcome import Outcome
from merlin_study.seal import Keyring, Signer
from merlin_study.taskset import TaskSet
from tests.folding.studies import plan_of

SPEC: Final = """
description: {{name: failing, description: fails now and then}}
study:
- {{name: sim, description: d, run: {{cmd: "echo $(MERLIN_SAMPLE_ID)", max_retries: 9, retry_delay: 30}}}}
merlin: {{samples: {{count: {tasks}}}}}
"""
DIGITS: Final = (0, 0, 1, 1, 0, 0, 1, 0)
"""The share that fails in binary, the last digit first: 0.01001100, some 0.297."""
UID, AGENT, SUBJECT = "u", "agent", "reports"
TASK_SECONDS: Final = 1e-5
STEP_OF_CLOCK: Final = 1.0


def failing(width: int, chance: random.Random) -> int:
    """Return ``width`` bits of which three in ten are set."""
    bits = 0
    for digit in DIGITS:
        drawn = chance.getrandbits(width)
        bits = bits | drawn if digit else bits & drawn
    return bits


class Bench:
    """One study on its way, with an agent that fails it."""

    def __init__(self, tasks: int) -> None:
        self.plan = plan_of(SPEC.format(tasks=tasks))
        self.ledger = Ledger(self.plan)
        self.keys, self.chance = Keyring.generate(), random.Random(1)
        self.now = 0.0
        self.chunks = self.largest = self.size = 0

    def through(self, entry: wire.Entry) -> None:
        """Seal what an agent says, open it, and fold it."""
        sealed = self.keys.seal(entry.encode(), scope=UID, context=SUBJECT)
        self.largest, self.size = max(self.largest, len(sealed)), self.size + len(sealed)
        opened = self.keys.open(sealed, scope=UID, context=SUBJECT, signer=Signer.AGENT)
        self.ledger.apply(wire.decode_log(opened), at=self.now)

    def work(self, chunk: wire.Chunk) -> None:
        """Claim a chunk, and tell what came of it."""
        self.chunks += 1
        self.through(wire.Start(agent=AGENT, chunk=chunk))
        bits = chunk.tasks.bits
        failed = bits & failing(bits.bit_length(), self.chance)
        ends = ((Outcome.SUCCEEDED, 0, bits & ~failed), (Outcome.RETRY, 1, failed))
        pending = Pending()
        pending.adopt(
            wire.Result(outcome=outcome, code=code, tasks=tasks)
            for outcome, code, told in ends
            if (tasks := TaskSet.from_bits(chunk.tasks.first, told)) is not None
        )
        for report in pending.reports(agent=AGENT, chunk=chunk, serial=1, final=True):
            seconds = TASK_SECONDS * len(chunk.tasks)
            self.through(report.model_copy(update={"seconds": seconds}) if report.serial == 1 else report)

    def round(self) -> None:
        """Publish what there is room for, and have all of it run."""
        candidate = Candidate(UID, self.plan.hash, 1, self.ledger, "any")
        capacity = {("any", *want): Capacity(8, 1 / TASK_SECONDS) for want in self.plan.wants}
        for issue in list(next_chunks([candidate], capacity, window=60.0, now=self.now)):
            self.work(issue.chunk)
        self.now += STEP_OF_CLOCK


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000_000)
    tasks: int = parser.parse_args(arguments).tasks
    bench, began = Bench(tasks), time.process_time()
    with Progress() as progress:
        bar = progress.add_task(f"{tasks:,} tasks", total=tasks)
        while not bench.ledger.finished:
            bench.round()
            progress.update(bar, completed=len(bench.ledger.steps[-1].final))
    seconds, memory = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    succeeded = len(bench.ledger.steps[-1].succeeded)
    print(
        f"{tasks:,} tasks, {succeeded:,} of them succeeded: {seconds:.1f} s of processor, {memory:.0f} MiB at most, {bench.chunks:,} chunks, "
        f"{bench.size / 2**20:.0f} MiB of claims and reports, the largest of {bench.largest / 1024:.1f} KiB"
    )


if __name__ == "__main__":
    main()
