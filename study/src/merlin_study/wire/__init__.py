"""What travels between operator and agents, inside the envelope of `merlin_study.seal`.

    operator → task stream      Chunk, Cursor
    agent, operator → report stream   Bound, Start, Report, Recalled (agents), Withdrawn, Noted, Lost, Excused, Dropped,
                                      Restarted, Repaired (operator): the log that the ledger folds
    operator → control stream   PlanDocument (a plan's JSON as it is), Offer, Control, Assignment, Quarantines, Origin: last value counts
    agent → operator            Heartbeat, not stored

Models are strict and closed: an unknown field, a wrong type or a version of another time is refused, never guessed at.

Read ``message`` (the base), ``chunk`` (the task stream), ``log`` (the report stream), ``heartbeat`` and ``word`` (what agents and
operator tell each other about themselves).
"""

from merlin_study.wire.chunk import Chunk, Cursor, LostHolder, epoch_of, first_fence
from merlin_study.wire.heartbeat import (
    BUCKETS,
    MAX_FULL,
    MAX_QUEUES_TOLD,
    AllocationFacts,
    Heartbeat,
    QueueFigures,
    Spread,
)
from merlin_study.wire.log import (
    VERDICTS,
    Bound,
    Dropped,
    Entry,
    Excuse,
    Excused,
    Failure,
    LogEntry,
    Lost,
    Noted,
    Recalled,
    Repaired,
    Report,
    Restarted,
    Result,
    SampleFacts,
    Start,
    Withdrawn,
    decode_log,
)
from merlin_study.wire.message import MAX_EXCEPTIONS, MAX_REPORT_BYTES, MAX_TAIL, SCHEMA_VERSION, Message
from merlin_study.wire.word import (
    Assignment,
    Consumer,
    Control,
    Offer,
    Origin,
    Quarantine,
    Quarantines,
    Recall,
    Timing,
)

__all__ = [
    "BUCKETS",
    "MAX_EXCEPTIONS",
    "MAX_FULL",
    "MAX_QUEUES_TOLD",
    "MAX_REPORT_BYTES",
    "MAX_TAIL",
    "SCHEMA_VERSION",
    "VERDICTS",
    "AllocationFacts",
    "Assignment",
    "Bound",
    "Chunk",
    "Consumer",
    "Control",
    "Cursor",
    "Dropped",
    "Entry",
    "Excuse",
    "Excused",
    "Failure",
    "Heartbeat",
    "LogEntry",
    "Lost",
    "LostHolder",
    "Message",
    "Noted",
    "Offer",
    "Origin",
    "Quarantine",
    "Quarantines",
    "QueueFigures",
    "Recall",
    "Recalled",
    "Repaired",
    "Report",
    "Restarted",
    "Result",
    "SampleFacts",
    "Spread",
    "Start",
    "Timing",
    "Withdrawn",
    "decode_log",
    "epoch_of",
    "first_fence",
]
