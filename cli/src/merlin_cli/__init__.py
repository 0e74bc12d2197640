"""The ``merlin`` command: studies on this machine or in a cluster, their progress, and what is left of them.

Read ``__main__`` (the commands), then ``source`` (a file becomes blocks) and ``run``; from there ``local`` with
``children``, ``broker``, ``progress`` and ``bars`` for this machine, ``submit`` for a cluster; ``restart``, ``tally`` and
``status`` work on a workspace alone. Engine and agent are separate processes, so this package imports neither.
"""
