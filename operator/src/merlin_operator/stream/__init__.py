"""NATS, as the engine sees it: the only package of the operator that speaks it.

    connection ─► configuration (the streams, the consumers) ─► broker (reads, writes) ─► batch (chunks) · following (the log)
                                                             └► fullness (how much is in it) · copies (of whole streams)

Three streams a namespace: tasks (WorkQueue: chunks and cursors), reports (the log), control (last values). Every write
either says that it happened, or that it was refused by a compare-and-set (`Conflict`), or that nobody knows (`Outage`):
after the last, read, never write again.
"""

from merlin_operator.stream.answers import Absent, Conflict, Missing, Outage, Stored
from merlin_operator.stream.broker import Broker
from merlin_operator.stream.configuration import ConsumerSpec

__all__ = ["Absent", "Broker", "Conflict", "ConsumerSpec", "Missing", "Outage", "Stored"]
