"""The command ``merlin-agent``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent; return the exit code."""
    from merlin_agent import config, doctor

    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["script"]:
        from merlin_agent import batchscript

        return batchscript.main(given[1:])
    try:
        settings = config.load(given, os.environ)
        if config.parser().parse_args(given).command == "doctor":  # a setting may have this value
            return doctor.run(settings, print)
        credentials = config.load_credentials(settings.credentials, ca=settings.ca)
        keys = config.load_keys(settings, credentials)
        config.check_transport(settings, credentials)
        config.check_workspace(settings.workspace)
    except config.ConfigError as error:
        print(f"merlin-agent: {error}", file=sys.stderr)  # noqa: T201 - a command line prints
        return error.code
    logging.basicConfig(
        level=logging.DEBUG if settings.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("nats").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each TLS connection that the other side ends

    async def run() -> None:
        from merlin_agent.agent import Agent

        await Agent(settings, keys=keys, credentials=credentials).run()

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
