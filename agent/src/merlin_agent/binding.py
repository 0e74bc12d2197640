"""Binding a study to its site: who claims first writes ``merlin_info`` and the mark, and tells the log.

From then on an agent of another site hands chunks back, and so does one of this site that does not see the mark: then it looks
at another file system, and what it ran would lie where nobody looks for it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from merlin_agent import files
from merlin_agent.broker import ConflictError
from merlin_agent.post import Post, until_answered
from merlin_study import provenance, wire, workspace
from merlin_study.plan import Plan
from merlin_study.seal import Signer


class RefusedError(Exception):
    """This agent can't run the study's chunks; the operator issues them again. The message says why, path first."""


class Mark(BaseModel):
    """The content of the mark's file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    study: str
    mark: str
    plan: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where and for whom this agent works."""

    site: str
    agent: str


def read_mark(info: str) -> Mark | None:
    """Return the mark of a workspace, None where there is none."""
    try:
        with open(f"{info}/{workspace.MARK}", "rb") as file:
            return Mark.model_validate_json(file.read(1 << 16))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise RefusedError(f"{info}/{workspace.MARK}: expected a workspace mark, found something else") from error


def prepare(root: str, plan: Plan, study: str) -> Mark:
    """Make the workspace of a study that is bound to no site yet, or find it as somebody else made it.

    Raises:
        OSError: it can't be written.
        RefusedError: what lies there is not ours, or is another study's.
    """
    info = f"{root}/{workspace.INFO}"
    for name in plan.provenance:
        if name != os.path.basename(name) or name in ("", ".", "..", workspace.MARK, workspace.PLAN_FILE):
            raise RefusedError(f"{info}/{name}: expected the name of a file to put there; the plan is refused")
    for directory in (info, f"{info}/{workspace.OUTCOMES}", f"{info}/{workspace.PRESENCE}"):
        os.makedirs(directory, exist_ok=True)
    mark = _marked(info, Mark(study=study, mark=secrets.token_hex(16), plan=plan.hash))
    if mark.study != study:
        raise RefusedError(f"{root}: belongs to study {mark.study}; give this one another runId or name")
    for name, text in plan.provenance.items():
        files.write_whole(f"{info}/{name}", provenance.placed(name, text, root=root, info=info).encode())
    files.write_whole(f"{info}/{workspace.PLAN_FILE}", plan.to_json())
    return mark


def _marked(info: str, mine: Mark) -> Mark:
    """Leave the mark where there is none; return the one that stands. It comes before all else, so that nothing is overwritten."""
    if files.write_once(f"{info}/{workspace.MARK}", mine.model_dump_json().encode()):
        return mine
    found = read_mark(info)
    if found is None:
        raise RefusedError(f"{info}/{workspace.MARK}: was there and is gone; is somebody removing the workspace?")
    return found


async def bind(post: Post, place: Place, *, study: str, plan: Plan, root: str) -> bool:
    """Make sure that the study runs on this site and that ``root`` is its workspace; return whether this agent made it.

    Raises:
        RefusedError: it does not, or is not.
        OSError: the workspace can't be written or read.
    """
    loop = asyncio.get_running_loop()
    bound, new = await _bound(post, study), False
    if bound is None:
        new = await loop.run_in_executor(None, read_mark, f"{root}/{workspace.INFO}") is None
        made = await loop.run_in_executor(None, prepare, root, plan, study)
        bound = await _try_to_bind(
            post, study, wire.Bound(site=place.site, agent=place.agent, mark=made.mark, workspace=root)
        )
    if bound.site != place.site:
        raise RefusedError(f"bound to site {bound.site}")
    found = await loop.run_in_executor(None, read_mark, f"{root}/{workspace.INFO}")
    if found is None or found.mark != bound.mark:
        seen = "none" if found is None else "another one"
        raise RefusedError(
            f"{root}/{workspace.INFO}/{workspace.MARK}: expected the mark that {bound.agent} left in {bound.workspace}, found {seen}; "
            f"host {place.agent} does not see that file system: give it the same --workspace, or another --site"
        )
    return new and bound.agent == place.agent


async def _bound(post: Post, study: str) -> wire.Bound | None:
    subject = post.space.bound(study)
    data = await until_answered(lambda: post.broker.first(post.space.report_stream, subject))
    if data is None:
        return None
    entry = wire.decode_log(post.open(subject, data, scope=study, signer=Signer.AGENT))
    if not isinstance(entry, wire.Bound):
        raise RefusedError(f"{subject}: expected who bound the study, found a {entry.kind}")
    return entry


async def _try_to_bind(post: Post, study: str, mine: wire.Bound) -> wire.Bound:
    async def attempt() -> wire.Bound | None:
        try:
            await post.store(study, post.space.bound(study), mine, first=True)
        except ConflictError:
            return await _bound(post, study)
        return mine

    won = await until_answered(attempt)
    if won is None:
        raise RefusedError(
            "the broker says both that the study is bound and that it is not; this is a bug of it or of us"
        )
    return won
