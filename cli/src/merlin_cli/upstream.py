"""What upstream's command line has and this one does not yet: told in one sentence, never taken silently."""

import argparse
from collections.abc import Sequence
from typing import Any, Final

COMMANDS: Final = {
    "example": "there are examples in docs/examples of this project",
    "config": "agents are configured in ~/.merlin/agent.yaml, and clusters by kubeconfig",
    "database": "studies are objects of the cluster: `kubectl get studies`",
}
"""Sub-commands, each with what to do instead."""

RUN_FLAGS: Final = {
    "--no-errors": "leave it out",
}
"""Flags of ``merlin run``, each with what to do instead."""

RUN_WORKERS_FLAGS: Final = {
    "--disable-logs": "agents write to standard error, which the batch script may send where you like; leave it out",
}
"""Flags of ``merlin run-workers``, each with what to do instead."""

STATUS_FLAGS: Final = {
    "--cb-help": "nothing is told by colour alone, so leave it out",
    "--dump": "use `merlin detailed-status --dump`, which writes a row for each task",
}
"""Flags of ``merlin status``, each with what to do instead."""

SERVER_FLAGS: Final = {
    "--task_server": "there is no other server to name, so leave it out",
}
"""Flags of all commands that asked a task server."""

PURGE_FLAGS: Final = {
    "--steps": "purge drops all that waits of a study, so leave it out",
}
"""Flags of ``merlin purge``."""

MONITOR_FLAGS: Final = {
    "--no-restart": "what was lost is handed out again by itself, so leave it out",
}
"""Flags of ``merlin monitor``."""

GLOBAL_FLAGS: Final = {
    "-lvl": "leave it out",
    "--level": "leave it out",
}
"""Flags of ``merlin`` itself."""


class _NotYet(argparse.Action):
    """Ends the command with the sentence that stands in ``const``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002 argparse's signature
        values: str | Sequence[Any] | None,  # noqa: ARG002
        option_string: str | None = None,
    ) -> None:
        parser.exit(2, f"{parser.prog}: {option_string} is not supported yet; {self.const}\n")


def add_flags(parser: argparse.ArgumentParser, flags: dict[str, str]) -> None:
    """Make a parser answer upstream's flags."""
    for flag, instead in flags.items():
        parser.add_argument(flag, action=_NotYet, const=instead, nargs="*", help=argparse.SUPPRESS, dest="_")


def sentence(command: str) -> str:
    """The answer to one of `COMMANDS`."""
    return f"'{command}' is not supported yet; {COMMANDS[command]}"
