"""How long the executions of each step took."""

from __future__ import annotations


class Runtimes:
    """Executions so far and the seconds that they took, per step."""

    def __init__(self, steps: int) -> None:
        self.seconds: list[float] = [0.0] * steps
        self.tried: list[int] = [0] * steps

    def take_off(self, step: int, *, tried: int, seconds: float) -> None:
        """Leave out executions that took no time worth the name, and would have the next chunks hold far too many."""
        self.tried[step] = max(0, self.tried[step] - tried)
        self.seconds[step] = max(0.0, self.seconds[step] - seconds) if self.tried[step] else 0.0

    def mean(self, step: int) -> float | None:
        """Return the mean run time of a step's executions so far, in seconds; None before there is one."""
        return self.seconds[step] / self.tried[step] if self.tried[step] else None
