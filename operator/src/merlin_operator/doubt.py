"""Whether a log says all that happened, and who can tell what it lacks. Pure; `merlin_operator.repair` carries it out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from merlin_study import subjects, wire
from merlin_study.bitmap import Bitmap
from merlin_study.ledger import Ledger

MOST_RANGES: Final = 200
"""Ranges of fences that a recall names as known; what is not named is told again, which changes nothing."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a study's status says of its life so far, whatever became of its log."""

    started_at: float | None = None
    """When its first chunk was claimed, in Unix seconds."""
    over: bool = False
    site: str = ""
    workspace: str = ""
    restarted: str = ""
    """The id of the last restart after which all was over."""

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> Past:
        """Read a status as the API server has it."""
        conditions = status.get("conditions") or ()
        started = str(status.get("startTime") or "")
        return cls(
            started_at=datetime.fromisoformat(started).timestamp() if started else None,
            over=any(each.get("type") == "Finished" and each.get("status") == "True" for each in conditions),
            site=str(status.get("site") or ""),
            workspace=str(status.get("workspace") or ""),
            restarted=str(status.get("restarted") or ""),
        )

    @property
    def begun(self) -> bool:
        """Whether any of it was ever claimed, so that it has a workspace."""
        return self.started_at is not None


def known_fences(
    closed: Bitmap, most: int = MOST_RANGES, *, returned: Collection[int] = ()
) -> tuple[tuple[int, int], ...]:
    """Return the ``most`` lowest ranges (first, last) of fences of which nothing more can come.

    Of one that was ``returned`` as it was, somebody else may have more to tell: who had claimed it before its broker was put back.
    """
    found: list[tuple[int, int]] = []
    for tasks in closed.sets():
        is_whole = tasks.mask is None and not any(each in tasks for each in returned)
        singly = ((each, each) for each in tasks.indices() if each not in returned)
        for first, last in [(tasks.first, tasks.end - 1)] if is_whole else singly:
            if found and first == found[-1][1] + 1:
                found[-1] = found[-1][0], last
            elif len(found) == most:
                return tuple(found)
            else:
                found.append((first, last))
    return tuple(found)


def unaccounted(ledger: Ledger, cursor: wire.Cursor, waiting: Iterable[int]) -> int:
    """Return how many fences a cursor counts as issued in its epoch that neither the log nor the task stream knows."""
    base = wire.first_fence(cursor.epoch)
    width = cursor.next_fence - base
    if width <= 0:
        return 0
    closed = ledger.closed.read(base, width)
    known = {number for number, fence in ledger.fences.items() if fence.holder is not None} | set(waiting)
    there = sum(base <= number < cursor.next_fence and not closed >> (number - base) & 1 for number in known)
    return width - closed.bit_count() - there


def words(ledger: Ledger, epoch: int, reading: str) -> dict[str, wire.Recalled]:
    """Return by site what was said of its workspace and counts: in this epoch or later, to whoever reads the log since it asked.

    What was said to an earlier reader may stand behind a log that lost again what it speaks of, and that this one never saw.
    """
    return {site: word for site, word in ledger.recalled.items() if word.epoch >= epoch and word.reading == reading}


def sites_to_ask(ledger: Ledger, epoch: int, past: Past, *, reading: str, site: str, live: Iterable[str]) -> list[str]:
    """Return the sites whose word on what they have of a study has still to come.

    That there is no workspace is believed only of a study that never had one as far as anybody knows.

    Args:
        ledger: what the log says.
        epoch: the study's epoch; what was said in an earlier one does not count.
        past: what else is known of the study.
        reading: who asks; what was said to another one does not count, either.
        site: the one that runs it, or `subjects.ANY_SITE`.
        live: the sites that have agents.
    """
    said = {each: word for each, word in words(ledger, epoch, reading).items() if not word.unread}
    if any(word.found for word in said.values()):
        return []
    if site == subjects.ANY_SITE:
        site = past.site or site
    if site != subjects.ANY_SITE:
        has_begun = past.begun or ledger.bound is not None
        return [] if site in said and not has_begun else [site]
    missing = sorted(set(live) - said.keys())
    return missing if missing or said else [subjects.ANY_SITE]


def complaint(past: Past, site: str, blind: Iterable[str], unread: Mapping[str, str] | None = None) -> str:
    """Say what has to be done where no agent can tell.

    Args:
        past: what is known of the study beside its log.
        site: the one that is asked, or `subjects.ANY_SITE`.
        blind: agents that see no workspace.
        unread: by agent, why it can't read what the workspace records.
    """
    where = f" {past.workspace}" if past.workspace else ""
    at = f" of site {site}" if site != subjects.ANY_SITE else ""
    if unread:
        agent, why = min(unread.items())
        return (
            f"{why}: the broker may have lost some of what it knew of the study, and agent {agent} can't read there what the "
            f"workspace{where} records: have it readable for that agent, or start one{at} that can read it; it is tried again "
            "each minute, and nothing is lost meanwhile"
        )
    if agent := min(blind, default=""):
        return (
            f"the broker lost what it knew of the study, and agent {agent} sees no workspace{where} of it: start an agent"
            f"{at} that sees it; where it is gone for good, delete the study and apply it anew"
        )
    return (
        f"the broker may have lost some of what it knew of the study, and an agent{at} has to read that in the workspace"
        f"{where}: start one"
    )
