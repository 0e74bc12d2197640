"""Numbers and outcomes as people read them."""

from merlin_cli.progress import Failed, Progress, StepCount

OUTCOMES = (
    ("succeeded", "succeeded"),
    ("soft_failed", "soft-failed"),
    ("failed", "failed"),
    ("timed_out", "timed out"),
    ("cancelled", "cancelled"),
)
"""Final outcomes: the attribute of `StepCount`, and its words."""


def count(number: int, noun: str = "") -> str:
    """``1,024 tasks``: thousands set apart, the noun in its number."""
    if not noun:
        return f"{number:,}"
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def seconds(value: float) -> str:
    """A length of time: ``0.4 s``, ``12.3 s``, ``4 min 05 s``, ``3 h 12 min``."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def rate(value: float) -> str:
    """Tasks a second, or a minute where they are slow: ``410/s``, ``3.2/min``."""
    if value >= 100:
        return f"{value:,.0f}/s"
    return f"{value:.1f}/s" if value >= 1 else f"{value * 60:.1f}/min"


def unsuccessful(step: StepCount) -> str:
    """What went wrong in a step: ``3 soft-failed, 1 timed out``; empty where nothing did."""
    return ", ".join(f"{count(number)} {words}" for name, words in OUTCOMES[1:] if (number := getattr(step, name)) > 0)


def line(progress: Progress) -> str:
    """A study on one line, for an output that is no terminal."""
    known = count(progress.total) if progress.complete else f"{count(progress.total)} or more"
    parts = [f"{count(progress.done)} of {known} tasks done"]
    if progress.complete and progress.total:
        parts[0] += f" ({progress.done * 100 // progress.total} %)"
    if progress.unsuccessful:
        parts.append(f"{count(progress.unsuccessful)} did not succeed")
    if progress.rate:
        parts.append(rate(progress.rate))
    if progress.remaining_seconds is not None and not progress.finished:
        parts.append(f"about {seconds(progress.remaining_seconds)} left")
    running = [f"{step.name} {count(step.done)}/{total(step)}" for step in progress.steps if active(step)]
    if running:
        parts.append("in " + ", ".join(running[:3]) + (f" and {len(running) - 3} more" if len(running) > 3 else ""))
    elif progress.waiting_for:
        parts.append(progress.waiting_for)
    return "; ".join(parts)


def active(step: StepCount) -> bool:
    """Whether tasks of a step run or are about to."""
    return bool(step.running or step.queued or step.retrying)


def total(step: StepCount) -> str:
    """A step's number of tasks; ``?`` until it is known."""
    return "?" if step.total is None else count(step.total)


def how(failed: Failed) -> str:
    """How a task ended: ``soft-failed, exit code 3``."""
    ending = f"exit code {failed.code}" if failed.code >= 0 else f"signal {-failed.code}"
    return f"{failed.outcome}, {ending}"
