"""A study of many serial tasks and some that run over two hosts, and what occupied the cores while it ran.

Occupancy is sampled from the kernel: every `EVERY` seconds each process `sleep` of a task is found in ``/proc``, with the virtual node that it runs
on in its environment and, for a serial task, the processor that it may use. What a task does besides (its shell, its files) counts as
idle, and so does a launcher that starts.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Self

EVERY: Final = 0.1
NODES: Final = 2
CORES: Final = 2
"""Of each node."""
_STUDY = """
apiVersion: merlin.dev/v1alpha1
kind: Study
metadata: {{name: {name}}}
spec:
  description: {{name: {name}, description: many serial tasks beside some that run over two hosts}}
  batch: {{type: slurm}}
  global.parameters:
    TURN: {{values: [{turns}], label: "TURN.%%"}}
  study:
  - name: serial
    description: notes where and when it ran
    run:
      cmd: |
        began=$EPOCHREALTIME
        mapfile -t status < /proc/$BASHPID/status  # whole: read seeks back for each line, in a file that changes
        for line in "${{status[@]}}"; do [[ $line == Cpus_allowed_list:* ]] && value=${{line//[!0-9,-]/}}; done
        {nap}
        echo "$SLURMD_NODENAME $value $began $EPOCHREALTIME" >> $(MERLIN_WORKSPACE)/spans-$SLURMD_NODENAME
  - name: wide
    description: a process on each core of two hosts
    run:
      cmd: $(LAUNCHER) {note} $(MERLIN_WORKSPACE)/spans-wide $(TURN) {wide_seconds}
      nodes: {nodes}
      procs: {procs}
  merlin:
    samples:
      generate: {{cmd: "seq {serial} > $(MERLIN_INFO)/numbers.csv"}}
      file: $(MERLIN_INFO)/numbers.csv
      column_labels: [NUMBER]
"""
_NOTE = """\
#!/bin/bash
began=$EPOCHREALTIME
mapfile -t status < /proc/$BASHPID/status
for line in "${status[@]}"; do [[ $line == Cpus_allowed_list:* ]] && value=${line//[!0-9,-]/}; done
sleep $3
ended=$EPOCHREALTIME
echo "$SLURMD_NODENAME $2 $began $ended" >> $1
echo "$SLURMD_NODENAME $value $began $ended" >> $1-cores
"""


def manifest(
    name: str,
    *,
    serial: int,
    nap: float,
    wide: int,
    wide_seconds: float,
    note: Path,
    size: tuple[int, int] = (2, 4),
) -> str:
    """Return the Study; serial tasks take half of ``nap`` seconds to one and a half, in turn.

    ``note`` is written, too: what the processes of wide steps run; ``size`` is their hosts and processes.
    """
    note.write_text(_NOTE)
    note.chmod(0o755)
    fifth = nap / 4
    naps = " ".join(f"{nap + turn * fifth:.3f}" for turn in (-2, 1, -1, 2, 0))
    return _STUDY.format(
        name=name,
        serial=serial,
        nap=f"naps=({naps}); sleep ${{naps[$(NUMBER) % 5]}}" if nap else ": $(NUMBER)",
        turns=", ".join(f'"{turn}"' for turn in range(wide)),
        note=note,
        wide_seconds=wide_seconds,
        nodes=size[0],
        procs=size[1],
    )


class Span(NamedTuple):
    """A process's time on a host; ``what`` is the processor that it may use, or the wide task that it belongs to."""

    host: str
    what: str
    began: float
    ended: float


def spans(path: Path) -> list[Span]:
    """Return what a file of the study says."""
    lines = (line.split() for line in path.read_text().splitlines())
    return [Span(host, what, float(began), float(ended)) for host, what, began, ended in lines]


def most_at_once(found: list[Span]) -> int:
    """Return how many of these ran at one time."""
    marks = sorted([(each.began, 1) for each in found] + [(each.ended, -1) for each in found])
    running = most = 0
    for _, change in marks:
        running += change
        most = max(most, running)
    return most


@dataclass
class Occupancy:
    """``with Occupancy(where) as seen: …``: samples while the body runs; ``where`` is a text of its tasks' environment."""

    where: str
    peak: int = 0
    """The most processes that one processor had at a time: a bound one its own, a node's wide ones all of it."""
    samples: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the first one, and how many cores of the allocation were busy."""
    _ends: threading.Event = field(default_factory=threading.Event)
    _began_at: float = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="occupancy")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._ends.set()
        self._thread.join()

    @property
    def window(self) -> list[int]:
        """The samples from the first busy one to the last."""
        busy = [at for at, (_, count) in enumerate(self.samples) if count]
        return [count for _, count in self.samples[busy[0] : busy[-1] + 1]] if busy else []

    @property
    def mean(self) -> float:
        """The busy share of the allocation's cores, from the first task to the last."""
        return sum(self.window) / (len(self.window) or 1) / (NODES * CORES)

    def mean_until(self, when: float) -> float:
        """The same, up to a time of day in Unix seconds: when the last task began, there was work for all until then."""
        until = when - self._began_at
        first = next((at for at, count in self.samples if count), 0.0)
        found = [count for at, count in self.samples if first <= at <= until]
        return sum(found) / (len(found) or 1) / (NODES * CORES)

    @property
    def seconds(self) -> float:
        """From the first task to the last."""
        busy = [when for when, count in self.samples if count]
        return busy[-1] - busy[0] if busy else 0.0

    def _run(self) -> None:
        began, self._began_at = time.monotonic(), time.time()
        while not self._ends.wait(max(0.0, EVERY - (time.monotonic() - began) % EVERY)):
            found = self._look()
            self.samples.append((time.monotonic() - began, sum(found.values())))
            on_each = Counter(node for node, _ in found.elements())
            bound = max((count for (_, cpu), count in found.items() if cpu), default=0)
            self.peak = max(self.peak, bound, *(-(-count // CORES) for count in on_each.values()), 0)

    def _look(self) -> Counter[tuple[str, str]]:
        """Count the processes by node and, where they are bound to one, processor.

        Only those that are there after the last one was found ran at one time: on a busy machine a look takes so long that
        one task ends in it, and the next one on its core begins.
        """
        found: list[tuple[str, tuple[str, str]]] = []
        for entry in os.scandir("/proc"):
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if Path(entry.path, "comm").read_bytes() != b"sleep\n":
                    continue
                environ = Path(entry.path, "environ").read_text(errors="replace").split("\0")
                given = dict(each.partition("=")[::2] for each in environ)
                if "MERLIN_TASK" in given and any(self.where in value for value in given.values()):
                    status = Path(entry.path, "status").read_text()
                    cpus = status.partition("Cpus_allowed_list:")[2].split()[0]
                    found.append((entry.path, (given.get("SLURMD_NODENAME", ""), cpus if cpus.isdecimal() else "")))
        return Counter(place for path, place in found if _lives(path))


def _lives(process: str) -> bool:
    try:
        return bool(Path(process, "environ").read_bytes())  # a zombie's is empty
    except OSError:
        return False
