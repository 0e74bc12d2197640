r"""The log of a chunk under ``outputs: lean``: scripts, outputs and endings of its tasks in one file, one after the other.

    {"merlin": "tasks", "version": 1, "step": "sim", "fence": 7, "attempt": 1, ...}\n
    {"script": 0, "combination": 0, "shell": "/bin/bash", "size": 31, "crc": ...}\n   <31 bytes>\n
    {"task": 5, "script": 0, "outcome": "succeeded", "code": 0, "out": 6, "err": 0, "crc": ...}\n   <6 bytes>\n

Each header says how long what follows it is, so whoever looks for one task reads headers and passes over the rest. A script stands
once; where it differs between samples it stands with their tokens, and each task has its ``values``. The log of an agent that died may
end in the middle of a record; what is not whole, or does not match its checksum, does not count.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from merlin_study.outcome import Outcome
from merlin_study.template import Template

VERSION: Final = 1
BLOCK: Final = 1 << 18
"""Tasks whose logs share a directory; no chunk spans more."""
MAX_HEADER: Final = 4 << 20
_PIECE: Final = 1 << 20
_ENCODE: Final = json.JSONEncoder(separators=(",", ":")).encode
_NAME: Final = re.compile(r"(\d+)-(\d+)\.(\d+)\.(.+)\.(?:log|zip)")


class Opening(BaseModel):
    """The first line: whose log it is. ``began`` is a Unix time by the agent's clock."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int
    study: str
    plan: str
    step: str
    fence: int
    attempt: int
    restart: bool
    samples: int
    agent: str
    host: str
    began: float


@dataclass(frozen=True, slots=True)
class Text:
    """A script: the interpreter's line without ``#!``, and the text, with tokens where it differs between samples."""

    shell: str
    text: str

    def filled(self, values: Mapping[str, str]) -> str:
        """Return the file's content for a task with these values (keys in lower case)."""
        text = Template.parse(self.text).render(lambda name: values.get(name.lower())) if values else self.text
        return f"#!{self.shell}\n\n{text}\n"


@dataclass(frozen=True, slots=True)
class Ran:
    """One execution of a task, and where its output stands in the log: ``out`` bytes at ``at``, then ``err`` bytes.

    ``kept``: the task left files, and its script and output lie beside them as well.
    """

    task: int
    script: Text
    values: Mapping[str, str]
    outcome: Outcome
    code: int
    seconds: float
    out: int
    err: int
    at: int
    kept: bool

    @property
    def content(self) -> str:
        """The script's file as it ran."""
        return self.script.filled(self.values)


def file_name(*, first: int, last: int, fence: int, agent: str) -> str:
    """Return the name of a chunk's log below its step's directory of logs."""
    return f"{first // BLOCK:05d}/{first}-{last}.{fence}.{agent}.log"


def blocks(first: int, last: int) -> Iterator[str]:
    """Yield the directories in which logs of these tasks may lie."""
    for block in range(max(0, first // BLOCK - 1), last // BLOCK + 1):
        yield f"{block:05d}"


def covers(name: str) -> range:
    """Return the tasks that a log or an archive may speak of, by its file's name; none where it is neither."""
    match = _NAME.fullmatch(name)
    return range(int(match[1]), int(match[2]) + 1) if match else range(0)


def header(fields: Mapping[str, Any]) -> bytes:
    """Return a line of the log."""
    return _ENCODE(fields).encode() + b"\n"


def ran_header(  # noqa: PLR0913 - its fields
    task: int,
    *,
    script: int,
    outcome: Outcome,
    code: int,
    seconds: float,
    sizes: tuple[int, int],
    crc: int,
    values: Mapping[str, str],
    kept: bool,
) -> bytes:
    """Return the line of an execution; as `header` would write it, in a fraction of the time."""
    own = f',"values":{_ENCODE(values)}' if values else ""
    more = ',"kept":true' if kept else ""
    return (
        f'{{"task":{task},"outcome":"{outcome}","code":{code},"seconds":{round(seconds, 6)!r},"out":{sizes[0]},"err":{sizes[1]},'
        f'"crc":{crc}{own}{more},"script":{script}}}\n'
    ).encode()


def opening(facts: Opening) -> bytes:
    """Return the log's first line."""
    return header({"merlin": "tasks", **facts.model_dump()})


def script_entry(number: int, script: Text) -> bytes:
    """Return the entry of a script."""
    body = script.text.encode("utf-8", "surrogateescape")
    fields = {"script": number, "shell": script.shell, "size": len(body), "crc": zlib.crc32(body)}
    return header(fields) + body + b"\n"


def read(file: BinaryIO) -> tuple[Opening, Iterator[Ran]] | None:
    """Return whose log a file is, and the executions in it, as far as they are whole; None where it is none."""
    first = _line(file)
    if first is None or first.get("merlin") != "tasks" or first.get("version") != VERSION:
        return None
    try:
        return Opening.model_validate(first), _entries(file)
    except ValidationError:
        return None


def _entries(file: BinaryIO) -> Iterator[Ran]:
    scripts: dict[int, Text] = {}
    while (line := _line(file)) is not None:
        try:
            if "size" in line:
                body = file.read(line["size"] + 1)
                if len(body) != line["size"] + 1 or zlib.crc32(body[:-1]) != line["crc"]:
                    return
                scripts[line["script"]] = Text(line["shell"], body[:-1].decode("utf-8", "surrogateescape"))
                continue
            at = file.tell()
            if not _is_whole(file, line["out"] + line["err"], line["crc"]):
                return
            end = file.tell()
            yield Ran(
                line["task"],
                scripts[line["script"]],
                line.get("values", {}),
                Outcome(line["outcome"]),
                line["code"],
                line["seconds"],
                line["out"],
                line["err"],
                at,
                line.get("kept", False),
            )
            file.seek(end)  # whoever was given it may have read its output
        except (KeyError, TypeError, ValueError):
            return


def _is_whole(file: BinaryIO, size: int, crc: int) -> bool:
    found = 0
    while size:
        piece = file.read(min(size, _PIECE))
        if not piece:
            return False
        found, size = zlib.crc32(piece, found), size - len(piece)
    return file.read(1) == b"\n" and found == crc


def _line(file: BinaryIO) -> dict[str, Any] | None:
    data = file.readline(MAX_HEADER)
    if not data.endswith(b"\n"):
        return None
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
