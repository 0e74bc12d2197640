"""Table and picture of a benchmark's run, for the documentation."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

OURS, LEAN, PACKED = "merlin", "merlin, outputs: lean", "merlin, outputs: packed"
QUIET = 0.5
COLOUR, OTHER = "#1f6fb4", "#9aa3ad"


@dataclass(slots=True)
class Cell:
    """One contender with one length of task; ``took`` are the seconds of each repetition."""

    name: str
    seconds: float
    tasks: int
    slots: int
    took: list[float] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Tasks a second of each repetition."""
        return [self.tasks / took for took in self.took]

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)

    @property
    def overhead(self) -> float:
        """What the median run took longer than its tasks waited, all slots busy, as a share."""
        return statistics.median(self.took) * self.slots / (self.tasks * self.seconds) - 1


@dataclass(frozen=True, slots=True)
class Resting:
    """Seconds that one task took on an idle agent, its share of a core, and its memory in MiB."""

    median: float
    longest: float
    share: float
    memory: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured; ``files`` are count and bytes a task, ``scaling`` cells of other numbers of slots."""

    cells: Sequence[Cell]
    scaling: Sequence[Cell]
    files: Mapping[str, tuple[float, float]]
    resting: Resting
    absent: Sequence[str]
    where: str
    begun: float
    load: float


def machine() -> str:
    """Return what the figures were taken on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    kernel = platform.release().partition("-")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {kernel}, Python {platform.python_version()}"


def table(report: Report) -> str:
    """Return a page in Markdown: ratios first."""
    null = [cell for cell in report.cells if not cell.seconds]
    base = next((cell for cell in null if cell.name == OURS), None)
    when = time.strftime("%Y-%m-%d", time.gmtime(report.begun))
    slots = report.cells[0].slots
    parts = [
        "# What a task costs\n",
        (
            "`make bench-tasks` writes this page. Every contender runs the same bash scripts with the same number of slots, "
            "interleaved in one run, each in processes and a directory of its own. Ours is a whole `merlin run --local`, broker "
            "and outcome log included, with Merlin's files; peers find directories and scripts already made.\n"
        ),
        (
            f"{when}, {machine()}; {slots} slots, files in {report.where}. "
            f"Not on that machine, or failing there: {', '.join(report.absent) or 'none'}.{_busy(report.load)}\n"
        ),
        "![Tasks a second](tasks.svg)\n",
        "## Tasks that do nothing\n",
        (
            "| contender | ours is faster by | `outputs: lean` by | `packed` by | tasks a second: least | median "
            "| files a task | bytes a task |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    lean, packed = (next((cell for cell in null if cell.name == name), None) for name in (LEAN, PACKED))
    for cell in null:
        count, size = report.files.get(cell.name, (0.0, 0.0))
        ratios = " | ".join(
            f"{_ratio(ours, cell):.2f}" if ours not in (None, cell) else "–" for ours in (base, lean, packed)
        )
        parts.append(
            f"| {cell.name} | {ratios} | {min(cell.rates):,.0f} | {cell.rate:,.0f} | {count:.2g} | {size:.0f} |"
        )
    parts += _by_slots(
        [*(cell for cell in null if any(cell.name == other.name for other in report.scaling)), *report.scaling]
    )
    lengths = sorted({cell.seconds for cell in report.cells if cell.seconds})
    if lengths:
        names = list(dict.fromkeys(cell.name for cell in report.cells if cell.seconds))
        found = {(cell.name, cell.seconds): cell for cell in report.cells}
        parts += [
            "\n## Overhead with all slots busy\n",
            "How much longer the run took than its tasks waited: median, and least in brackets.\n",
            "| contender | " + " | ".join(f"{seconds:g} s" for seconds in lengths) + " |",
            "|---|" + "---|" * len(lengths),
        ]
        for name in names:
            shares = [_share(found[name, seconds]) if (name, seconds) in found else "–" for seconds in lengths]
            parts.append(f"| {name} | " + " | ".join(shares) + " |")
    rest = report.resting
    parts += [
        "\n## An agent at rest\n",
        (
            f"One task, from its chunk's publication to its report in the log: median {rest.median * 1e3:.0f} ms, longest "
            f"{rest.longest * 1e3:.0f} ms. At rest the agent, its reaper and two warm shells take {rest.share:.2%} of a core "
            f"and {rest.memory:.0f} MiB (shared pages counted once)."
        ),
    ]
    return "\n".join(parts) + "\n"


def publish(page: str, directory: Path | None, name: str, *, told: str = "") -> None:
    """Print a page, and write it where that is asked for.

    Args:
        page: The page in Markdown.
        directory: Where it is written; None: only printed.
        name: The file's name there.
        told: A heading. What stands in the file from it on is written by hand, and stays.
    """
    print(page, flush=True)
    if directory is None:
        return
    directory.mkdir(parents=True, exist_ok=True)
    path, kept = directory / name, ""
    if told and path.exists():
        _, heading, rest = path.read_text(encoding="utf-8").partition(told)
        kept = f"\n{heading}{rest}" if heading else ""
    path.write_text(page + kept, encoding="utf-8")


def _ratio(ours: Cell, other: Cell) -> float:
    """The median over the turns: what ran in the same turn met the same neighbours."""
    return statistics.median(mine / its for mine, its in zip(ours.rates, other.rates, strict=False))


def _by_slots(cells: Sequence[Cell]) -> list[str]:
    slots = sorted({cell.slots for cell in cells})
    if len(slots) < 2:
        return []
    found = {(cell.name, cell.slots): cell for cell in cells}
    return [
        "\n## By number of slots\n",
        "Tasks a second that do nothing; the machine's cores bound what more slots can bring.\n",
        "| contender | " + " | ".join(f"{each} slots" for each in slots) + " |",
        "|---|" + "---|" * len(slots),
        *(
            f"| {name} | "
            + " | ".join(f"{found[name, each].rate:,.0f}" if (name, each) in found else "–" for each in slots)
            + " |"
            for name in dict.fromkeys(cell.name for cell in cells)
        ),
    ]


def _busy(load: float) -> str:
    """What a reader must know where the machine was not quiet."""
    if load < QUIET:
        return ""
    return (
        f" **The machine was busy with other work (load {load:.1f} before)**: only the ratios tell something, "
        "and rates and overheads are worse than on a quiet one."
    )


def _share(cell: Cell) -> str:
    least = min(cell.took) * cell.slots / (cell.tasks * cell.seconds) - 1
    return f"{cell.overhead:.1%} ({least:.1%})"


def picture(report: Report) -> str:
    """Return bars of tasks a second, as SVG."""
    null = sorted((cell for cell in report.cells if not cell.seconds), key=lambda cell: -cell.rate)
    high, left, width = 30, 190, 760
    top = max(cell.rate for cell in null)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {len(null) * high + 44}" '
            'font-family="sans-serif" font-size="13">'
        ),
        "<title>Bash tasks a second that do nothing</title>",
        f'<rect width="{width}" height="{len(null) * high + 44}" fill="#fff"/>',
        (
            '<text x="8" y="22" font-size="15" font-weight="bold">Bash tasks a second that do nothing: median, least to most'
            "</text>"
        ),
    ]
    scale = (width - left - 80) / top
    for at, cell in enumerate(null):
        y = 36 + at * high
        low, most = min(cell.rates) * scale, max(cell.rates) * scale
        parts += [
            f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(cell.name)}</text>',
            (
                f'<rect x="{left}" y="{y}" width="{cell.rate * scale:.0f}" height="{high - 8}" '
                f'fill="{COLOUR if cell.name.startswith(OURS) and "1.13" not in cell.name else OTHER}"/>'
            ),
            f'<path d="M{left + low:.0f} {y + 11}H{left + most:.0f}" stroke="#333" stroke-width="2"/>',
            f'<text x="{left + max(most, cell.rate * scale) + 6:.0f}" y="{y + 16}">{cell.rate:,.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
