"""What steps ask for, as entries of their study's log: named by who asks, so that nothing is asked for twice.

A submission is safe once it is in the log; the operator may be away. Where the broker is, the step waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from typing import Final

from pydantic import ValidationError

from merlin_agent import files
from merlin_agent.badges import Badges, Speaker
from merlin_agent.broker import ConflictError
from merlin_agent.post import Post, until_answered
from merlin_study import nested, workspace
from merlin_study.seal import SealError, Signer

_log: Final = logging.getLogger(__name__)

WORD_SECONDS: Final = 5.0
"""How long an order waits for the operator's word; it is carried out later all the same."""


class Submissions:
    """Answers the requests of this agent's steps."""

    def __init__(
        self, post: Post, badges: Badges, *, agent: str, site: str, allowed: bool, cancelled: Callable[[str], bool]
    ) -> None:
        """Keep what is needed.

        Args:
            post: the way to the log.
            badges: who may speak.
            agent: our id.
            site: our site, where the new study will run: its paths mean this site's file system.
            allowed: whether steps may start studies here.
            cancelled: whether a study is.
        """
        self._post, self._badges, self._agent, self._site = post, badges, agent, site
        self._allowed, self._cancelled = allowed, cancelled

    async def serve(self, request: nested.AnyRequest) -> nested.Answer:
        """Pass a request on, or refuse it with a sentence."""
        speaker = self._badges.speaker(request.token)
        if speaker is None:
            return nested.Answer(refused="the task that asks has ended, so nothing can be started for it any more")
        if isinstance(request, nested.Where):
            return nested.Answer(workspace=os.path.dirname(speaker.info))
        if refused := self._refusal(request, speaker):
            return nested.Answer(refused=refused)
        if not isinstance(request, nested.Request):
            return await self._order(speaker, request)
        speaker.asked += 1
        number = speaker.asked
        if number > nested.MAX_PER_TASK:
            return nested.Answer(refused=f"a task may start {nested.MAX_PER_TASK} studies, and this one has")
        entry = nested.Submission(
            agent=self._agent,
            site=self._site,
            step=speaker.step,
            task=speaker.task,
            turn=speaker.turn,
            number=number,
            name=request.name,
            spec=request.spec,
            workspace=request.workspace,
        )
        return await self._submit(speaker, entry)

    def _refusal(self, request: nested.AnyRequest, speaker: Speaker) -> str:
        """Why a step gets nothing of what it asks for; empty where it may."""
        if not self._allowed:
            return (
                f"site {self._site} does not let steps start studies (its agents say submissions: false); "
                "run it in place with --local"
            )
        if isinstance(request, nested.Request) and self._cancelled(speaker.study):
            return "the study that this step belongs to is cancelled"
        return ""

    async def _submit(self, speaker: Speaker, entry: nested.Submission) -> nested.Answer:
        size = len(entry.encode())
        if size > nested.MAX_SUBMISSION:
            return nested.Answer(
                refused=f"expected a study of at most {nested.MAX_SUBMISSION} bytes, found {size}; put large tables "
                "into files and name those"
            )
        key = entry.key(speaker.study)
        subject = self._post.space.child(speaker.study, key)
        earlier = await self._earlier(speaker.study, subject)
        if earlier is None:
            if refused := await self._full(speaker.study):
                return nested.Answer(refused=refused)
            try:
                await until_answered(lambda: self._post.store(speaker.study, subject, entry, first=True))
                await asyncio.get_running_loop().run_in_executor(None, _keep, speaker.info, key, entry)
                _log.info("study %s: step %s starts %s", speaker.study, entry.step, entry.workspace)
                return nested.Answer(study=nested.child_name(entry.name, key), workspace=entry.workspace)
            except ConflictError:
                earlier = await self._earlier(speaker.study, subject)
        if earlier is None:
            return nested.Answer(refused="this study's log can't be read here; is it being deleted?")
        if earlier == entry:  # our own, whose confirmation was lost on the way
            return nested.Answer(study=nested.child_name(entry.name, key), workspace=entry.workspace)
        return nested.Answer(
            study=nested.child_name(earlier.name, key),
            workspace=earlier.workspace,
            known=True,
            changed=_meaning(earlier) != _meaning(entry),
        )

    async def _order(self, speaker: Speaker, command: nested.Command | nested.Stop) -> nested.Answer:
        """Pass an order on, and wait a moment for the operator's word on it."""
        entry = self._entry(speaker, command)
        space = self._post.space
        subject = space.order(speaker.study, entry.word)
        with contextlib.suppress(ConflictError):  # our own, whose confirmation was lost on the way
            await until_answered(lambda: self._post.store(speaker.study, subject, entry, first=True))
        word = space.born(speaker.study, entry.word)
        deadline = time.monotonic() + WORD_SECONDS
        while time.monotonic() < deadline:
            data = await until_answered(lambda: self._post.broker.last(space.control_stream, word))
            if data is not None:
                return self._told(speaker.study, word, data)
            await asyncio.sleep(0.2)
        return nested.Answer(study=command.target if isinstance(command, nested.Command) else "")

    def _entry(self, speaker: Speaker, command: nested.Command | nested.Stop) -> nested.AnyOrder:
        agent, word = self._agent, secrets.token_hex(8)
        if isinstance(command, nested.Stop):
            return nested.Dismissal(agent=agent, step=speaker.step, task=speaker.task, queues=command.queues, word=word)
        return nested.Order(
            agent=agent, step=speaker.step, task=speaker.task, deed=command.deed, target=command.target, word=word
        )

    def _told(self, study: str, subject: str, data: bytes) -> nested.Answer:
        """The operator's word on an order."""
        born = self._post.word(nested.Born, subject, data, scope=study)
        if born is None:
            return nested.Answer(refused="the operator's word on it does not open here")
        return nested.Answer(refused=born.refused, study=born.name, known=True, agents=born.agents)

    async def _earlier(self, study: str, subject: str) -> nested.Submission | None:
        """What was asked for under this name before."""
        stream = self._post.space.report_stream
        data = await until_answered(lambda: self._post.broker.first(stream, subject))
        if data is None:
            return None
        try:
            return nested.Submission.model_validate_json(
                self._post.open(subject, data, scope=study, signer=Signer.AGENT)
            )
        except (SealError, ValidationError):
            _log.warning("%s: a submission does not open", subject)
            return None

    async def _full(self, study: str) -> str:
        """Why no more studies may come below this one; empty where they may."""
        subject = self._post.space.family(study)
        data = await until_answered(lambda: self._post.broker.last(self._post.space.control_stream, subject))
        family = None if data is None else self._post.word(nested.Family, subject, data, scope=study)
        if family is None:
            return ""  # the operator decides; this only spares a step the wait
        if family.depth >= nested.MAX_DEPTH:
            return f"this study is {family.depth} generations below the first one, and no deeper than that is allowed"
        return family.full


def _keep(info: str, key: str, entry: nested.Submission) -> None:
    """Write a submission into its parent's workspace, for who restarts that without a broker that remembers."""
    directory = f"{info}/{workspace.SUBMISSIONS}"
    try:
        os.makedirs(directory, exist_ok=True)
        files.write_once(f"{directory}/{key}.json", entry.encode())
    except OSError as error:
        _log.warning("%s: can't be written: %s", directory, error.strerror)


def _meaning(entry: nested.Submission) -> tuple[str, str]:
    """What a study does, without where and when: the stamp of a repetition differs."""
    try:
        spec = json.loads(entry.spec)
    except ValueError:
        return entry.name, entry.spec
    if isinstance(spec, dict):
        spec.pop("runId", None)
    return entry.name, json.dumps(spec, sort_keys=True)
