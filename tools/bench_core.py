"""How many steps a second the pure core makes in its random histories: ``python -m tools.bench_core``.

A step is what the state machine of `tests/folding/test_machine.py` does at once: the operator decides what may go out, and one
claim, report, loss or late word is folded, each held against a naive expansion of the study.
"""

from __future__ import annotations

import time

from tests.folding.studies import Shape
from tests.folding.test_unrolling import World

HISTORIES = 60
LONGEST = 5000
SHAPE = Shape(((True, (), ()), (True, (), ((0, False),)), (False, (), ((1, True),))), {}, 40)


def main() -> None:
    """Measure and print."""
    steps, began = 0, time.process_time()
    for seed in range(HISTORIES):
        world, made = World(SHAPE, seed), 0
        while not world.ledger.finished and made < LONGEST:
            world.issue()
            world.act()
            made += 1
        steps += made
    seconds = time.process_time() - began
    print(f"{steps} steps of {HISTORIES} histories in {seconds:.2f} s of one core: {steps / seconds:,.0f} a second")


if __name__ == "__main__":
    main()
