"""The names of subjects, streams and consumers, and what stands in their tokens.

JetStream cannot look into a queue, so whatever must match is in the subject:

    merlin.v1.<namespace>.task.<site>.<user>.<queue>.<shape>.<band>.<study uid>.<fence>    task stream (WorkQueue)
    merlin.v1.<namespace>.cursor.<study uid>                                               task stream
    merlin.v1.<namespace>.report.<study uid>.<fence>|bound|recalled|child-<key>|order-<key>   report stream (Limits)
    merlin.v1.<namespace>.report.<study uid>.operator.verdict                              report stream
    merlin.v1.<namespace>.control.plan.<study uid>.<hash>[.<part>], .file.<study uid>.<hash>[.<part>]   control stream (last value)
    merlin.v1.<namespace>.control.study.<study uid>, .offer.<site>, .agent.<site>.<agent>, .quarantines   control stream
    merlin.v1.<namespace>.control.family.<study uid>, .born.<study uid>.<key>                   control stream
    merlin.v1.<namespace>.control.snapshot.<study uid>, .kept.<study uid>.<digest>[.<part>]    control stream
    merlin.v1.<namespace>.heartbeat.<site>.<agent>, .rollcall                              not stored

Names that Merlin accepts are accepted: a token escapes what NATS or a file system could misread, reversibly.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

ROOT: Final = "merlin.v1"
ANY_SITE: Final = "any"
ALL_USERS: Final = "all"
BOUND: Final = "bound"
RECALLED: Final = "recalled"
VERDICT: Final = "operator.verdict"
"""One token more than agents' entries have: a broker that lets agents publish ``report.*.*`` lets them write no verdict."""
CHILD: Final = "child-"
ORDER: Final = "order-"

_EMPTY: Final = "="
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]")
_LITERAL: Final = re.compile(r"[A-Za-z0-9_=-]+")
_ESCAPED: Final = re.compile(r"=([0-9A-F]{2})")


def escape(text: str) -> str:
    """Return ``text`` as one subject token: letters, digits, ``_`` and ``-`` stay, other bytes become ``=XX``.

    The empty text becomes ``=``, which escapes nothing else.
    """
    if not text:
        return _EMPTY
    return "".join(c if _PLAIN.fullmatch(c) else "".join(f"={byte:02X}" for byte in c.encode()) for c in text)


def unescape(token: str) -> str:
    """Undo `escape`."""
    if token == _EMPTY:
        return ""
    raw = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), token)
    return raw.encode("latin-1").decode()


def is_literal(token: str) -> bool:
    """Whether a token that somebody else chose stands for itself alone: nats-server stores ``*`` and ``>`` in subjects as they come."""
    return _LITERAL.fullmatch(token) is not None


def inbox(user: str) -> str:
    """Return the prefix of a broker user's inboxes: the one place where that user may listen for answers."""
    return f"_INBOX_{escape(user)}" if user else "_INBOX"


@dataclass(frozen=True, slots=True)
class Space:
    """All names of one namespace."""

    namespace: str

    @property
    def _token(self) -> str:
        return escape(self.namespace)

    @property
    def task_stream(self) -> str:
        """The WorkQueue stream of chunks and cursors."""
        return f"MERLIN_TASKS_{self._token}"

    @property
    def report_stream(self) -> str:
        """The stream that is the log."""
        return f"MERLIN_REPORTS_{self._token}"

    @property
    def control_stream(self) -> str:
        """The stream of last values: plans, offers, words on studies."""
        return f"MERLIN_CONTROL_{self._token}"

    def chunk(self, route: Route, study: str, fence: int) -> str:
        """Return the subject of one publication of a chunk."""
        return f"{ROOT}.{self._token}.task.{route.token}.{study}.{fence}"

    def chunks(self, route: Route) -> str:
        """Return the filter of the consumer that serves a route."""
        return f"{ROOT}.{self._token}.task.{route.token}.*.*"

    def chunks_of(self, study: str) -> str:
        """Return the filter for all of a study's chunks."""
        return f"{ROOT}.{self._token}.task.*.*.*.*.*.{study}.*"

    @property
    def all_chunks(self) -> str:
        """The filter for every chunk of the namespace."""
        return f"{ROOT}.{self._token}.task.>"

    def cursor(self, study: str) -> str:
        """Return the subject of a study's cursor."""
        return f"{ROOT}.{self._token}.cursor.{study}"

    @property
    def all_cursors(self) -> str:
        """The filter for every cursor of the namespace."""
        return f"{ROOT}.{self._token}.cursor.*"

    def reports(self, study: str, fence: int) -> str:
        """Return the subject of a fence's reports, whose first message is its claim."""
        return f"{ROOT}.{self._token}.report.{study}.{fence}"

    def bound(self, study: str) -> str:
        """Return the subject whose first message binds a study to a site."""
        return f"{ROOT}.{self._token}.report.{study}.{BOUND}"

    def recalled(self, study: str) -> str:
        """Return the subject of agents' words that they told a study's log anew."""
        return f"{ROOT}.{self._token}.report.{study}.{RECALLED}"

    def verdicts(self, study: str) -> str:
        """Return the subject of the operator's verdicts, appended by compare-and-set."""
        return f"{ROOT}.{self._token}.report.{study}.{VERDICT}"

    def child(self, study: str, key: str) -> str:
        """Return the subject whose first message is a study's submission of that name."""
        return f"{ROOT}.{self._token}.report.{study}.{CHILD}{key}"

    def order(self, study: str, key: str) -> str:
        """Return the subject of what a study's step orders."""
        return f"{ROOT}.{self._token}.report.{study}.{ORDER}{key}"

    def family(self, study: str) -> str:
        """Return the subject of what agents have to know of a study's ancestors and descendants."""
        return f"{ROOT}.{self._token}.control.family.{study}"

    def born(self, study: str, key: str) -> str:
        """Return the subject of the operator's word on a submission."""
        return f"{ROOT}.{self._token}.control.born.{study}.{key}"

    def born_of(self, study: str) -> str:
        """Return the filter for the operator's words on all submissions of a study."""
        return f"{ROOT}.{self._token}.control.born.{study}.*"

    def reports_of(self, study: str) -> str:
        """Return the filter for a study's whole log."""
        return f"{ROOT}.{self._token}.report.{study}.>"

    @property
    def all_verdicts(self) -> str:
        """The filter for the verdicts of every study of the namespace."""
        return f"{ROOT}.{self._token}.report.*.{VERDICT}"

    @property
    def all_reports(self) -> str:
        """The filter for the log of every study of the namespace."""
        return f"{ROOT}.{self._token}.report.>"

    def plan(self, study: str, plan_hash: str) -> str:
        """Return the subject under which a plan is stored."""
        return f"{ROOT}.{self._token}.control.plan.{study}.{plan_hash}"

    def plans_of(self, study: str) -> str:
        """Return the filter for a study's plans, with all their parts."""
        return f"{ROOT}.{self._token}.control.plan.{study}.>"

    def file(self, study: str, digest: str) -> str:
        """Return the subject under which a file of a study is stored, by its SHA-256."""
        return f"{ROOT}.{self._token}.control.file.{study}.{digest}"

    def files_of(self, study: str) -> str:
        """Return the filter for a study's files, with all their parts."""
        return f"{ROOT}.{self._token}.control.file.{study}.>"

    def control(self, study: str) -> str:
        """Return the subject of the word on a study."""
        return f"{ROOT}.{self._token}.control.study.{study}"

    def finale(self, study: str) -> str:
        """Return the subject of what came of a study that is over."""
        return f"{ROOT}.{self._token}.control.finale.{study}"

    def snapshot(self, study: str) -> str:
        """Return the subject of the head of a study's snapshot."""
        return f"{ROOT}.{self._token}.control.snapshot.{study}"

    def kept(self, study: str, digest: str) -> str:
        """Return the subject of a part of a study's snapshots, by its digest."""
        return f"{ROOT}.{self._token}.control.kept.{study}.{digest}"

    def kept_of(self, study: str) -> str:
        """Return the filter for all parts of a study's snapshots."""
        return f"{ROOT}.{self._token}.control.kept.{study}.>"

    @property
    def origin(self) -> str:
        """The subject of what is known of the broker that keeps the namespace's logs."""
        return f"{ROOT}.{self._token}.control.origin"

    def offer(self, site: str) -> str:
        """Return the subject of what a site's agents may pull."""
        return f"{ROOT}.{self._token}.control.offer.{escape(site)}"

    def assignment(self, site: str, agent: str) -> str:
        """Return the subject of what one agent is told to do."""
        return f"{ROOT}.{self._token}.control.agent.{escape(site)}.{escape(agent)}"

    @property
    def quarantines(self) -> str:
        """The subject of the hosts that get no work, for the next operator."""
        return f"{ROOT}.{self._token}.control.quarantines"

    @property
    def all_of_studies(self) -> tuple[str, ...]:
        """The filters for the last values that belong to a study, but the words on studies, which outlive these."""
        kinds = ("plan.*.>", "file.*.>", "born.*.*", "family.*", "snapshot.*", "kept.*.>", "finale.*")
        return tuple(f"{ROOT}.{self._token}.control.{each}" for each in kinds)

    @property
    def all_control(self) -> str:
        """The filter for every last value of the namespace."""
        return f"{ROOT}.{self._token}.control.>"

    def heartbeat(self, site: str, agent: str) -> str:
        """Return the subject of an agent's heartbeats."""
        return f"{ROOT}.{self._token}.heartbeat.{escape(site)}.{escape(agent)}"

    @property
    def all_heartbeats(self) -> str:
        """The filter for every heartbeat of the namespace."""
        return f"{ROOT}.{self._token}.heartbeat.*.*"

    @property
    def rollcall(self) -> str:
        """Where the operator asks every agent to announce itself at once."""
        return f"{ROOT}.{self._token}.rollcall"


@dataclass(frozen=True, slots=True)
class Route:
    """What a chunk must match: where, whose, which queue, which shape, how soon. Fields are unescaped."""

    site: str
    queue: str
    shape: str
    band: str
    user: str = ALL_USERS

    @property
    def token(self) -> str:
        """The five subject tokens."""
        return ".".join(escape(part) for part in (self.site, self.user, self.queue, self.shape, self.band))

    @property
    def consumer(self) -> str:
        """A short, stable name for the route's consumer (NATS advises fewer than 32 characters)."""
        return "r" + hashlib.sha256(self.token.encode()).hexdigest()[:24]


def study_of(subject: str) -> str:
    """Return the uid of the study that a chunk, a cursor, a log entry or one of `Space.all_of_studies` belongs to; empty for other subjects."""
    tokens = subject.split(".")
    at = {"task": 9, "cursor": 4, "report": 4, "control": 5}.get(tokens[3] if len(tokens) > 3 else "", len(tokens))
    return tokens[at] if at < len(tokens) else ""


def parse_chunks(filter_subject: str) -> Route:
    """Return the route that a consumer's filter (see `Space.chunks`) serves.

    Raises:
        ValueError: it is not such a filter.
    """
    return parse_chunk(filter_subject.removesuffix("*") + "0").route


@dataclass(frozen=True, slots=True)
class ChunkAddress:
    """What a chunk's subject says."""

    route: Route
    study: str
    fence: int


def parse_chunk(subject: str) -> ChunkAddress:
    """Return what a chunk's subject says.

    Raises:
        ValueError: it is not the subject of a chunk.
    """
    tokens = subject.split(".")
    if len(tokens) != 11 or tokens[3] != "task":
        raise ValueError(f"not the subject of a chunk: {subject!r}")
    site, user, queue, shape, band = (unescape(token) for token in tokens[4:9])
    return ChunkAddress(Route(site, queue, shape, band, user), tokens[9], int(tokens[10]))


def parse_report(subject: str) -> tuple[str, str]:
    """Return (study uid, fence or words) of a log entry's subject.

    Raises:
        ValueError: it is not the subject of a log entry.
    """
    tokens = subject.split(".", 5)
    if len(tokens) != 6 or tokens[3] != "report":
        raise ValueError(f"not the subject of a log entry: {subject!r}")
    return tokens[4], tokens[5]
