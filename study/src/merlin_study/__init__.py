"""What Merlin's parts agree on: the language, the plan, the messages, the workspace, the outcomes.

Read in the order in which data flows: ``loader``, ``spec`` and ``parse`` (what a user may say), ``judge``, ``checks`` and
``notyet`` (what is refused), ``variables`` and ``compiler`` with ``basis``, ``drafts``, ``sizing`` and ``steps`` (what it means: a
``plan``), ``geometry`` (how tasks are numbered),
``taskset`` and ``bitmap`` (sets of tasks), ``wire``, ``subjects`` and ``seal`` (what travels, where, and in which
envelope), ``template``, ``samples`` and ``workspace`` (what a task looks like on disk), ``outcome`` and ``outcomelog``
(what came of it), ``readiness``, ``steptasks`` and ``ledger`` (what follows from that).

Nothing here does I/O or reads a clock: the operator, the agent and the command line each bring their own.
"""
