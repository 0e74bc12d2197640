"""Merlin's operator: unrolls studies lazily and folds what agents report.

Read it in the order in which a study passes it: ``__main__`` and ``config`` (how the parts are put together),
``handlers`` (how a Study arrives, over kopf's watch, with what ``storages`` remembers on it), ``engine`` with ``study``,
``unroll`` and ``fleet`` (what is decided: which chunks come next, who is lost), ``stream`` (the only module that speaks
NATS), ``view`` and ``board`` (the seam between the engine and whoever shows its work), ``conditions`` and ``allocations``
(what the user reads, as pure functions), ``cluster`` (the only module, beside kopf, that talks to the API server),
``health`` and ``metrics`` (whether it still does its work, and how much).
"""
