"""``merlin-operator``: puts the parts together and runs them until told to end. ``merlin-operator bootstrap`` makes keys.

Exit codes: 0 asked to end, 1 a part failed, 2 wrong usage, 3 keys or credentials, 4 no usable cluster configuration.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Sequence

import kopf

from merlin_operator import cluster, config, handlers, health, metrics, nursery
from merlin_operator.core import EngineConfig
from merlin_operator.engine import Engine
from merlin_study.seal import KeyFileError, Keyring

FAILED, USAGE, SECRETS, CLUSTER = 1, 2, 3, 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an operator; return the process's exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["bootstrap"]:
        from merlin_operator import bootstrap

        return bootstrap.main(given[1:])
    try:
        settings = config.parse(given)
        operator = assemble(settings)
    except config.ConfigError as error:
        return _explain(error, USAGE)
    except (KeyFileError, config.CredentialsError) as error:
        return _explain(error, SECRETS)
    except cluster.ClusterConfigError as error:
        return _explain(error, CLUSTER)
    kopf.configure(debug=settings.log_level == "debug", quiet=settings.log_level == "warning", log_prefix=True)
    asyncio.run(run(operator, settings.namespace))
    return FAILED if operator.failures else 0


def assemble(settings: config.Settings) -> handlers.Operator:
    """Make all parts of an operator, none of them running.

    Raises:
        config.ConfigError, KeyFileError, config.CredentialsError, cluster.ClusterConfigError: what they need is not there.
    """
    keyring = Keyring.load(settings.keys)
    options = config.connection(settings)
    api = cluster.Api(cluster.connect(), settings.namespace)
    board = cluster.ClusterBoard(api)
    engine = Engine(
        EngineConfig(
            namespace=settings.namespace,
            server=settings.server,
            options=options,
            keyring=keyring,
            timing=settings.timing,
            window_seconds=settings.window_seconds,
            quarantine_chunks=settings.quarantine_chunks,
            quarantine_seconds=settings.quarantine_seconds,
            replicas=settings.replicas,
            renew=functools.partial(config.connection, settings),
        ),
        board,
        nursery.ClusterNursery(api),
        reader=api,
    )
    silent_after = settings.timing.lost_after
    collector = metrics.MerlinCollector(engine, board, settings.namespace, silent_after=silent_after)
    registry = metrics.registry_of(collector)
    host, port = settings.address
    return handlers.Operator(engine, board, health.Health(engine, api), registry, host, port)


async def run(operator: handlers.Operator, namespace: str) -> None:
    """Let kopf deliver to an operator until a signal comes, or until one of its parts fails."""
    await kopf.operator(
        registry=handlers.registry(),
        settings=handlers.settings(),
        memo=operator,
        namespaces=[namespace],
        standalone=True,
        stop_flag=operator.stop,
    )


def _explain(error: Exception, code: int) -> int:
    logging.getLogger(__name__).debug("refused to start", exc_info=error)
    print(f"merlin-operator: {error}", file=sys.stderr)  # noqa: T201 there is no log yet
    return code


if __name__ == "__main__":
    sys.exit(main())
