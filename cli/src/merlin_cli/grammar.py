"""The command line of what shows and changes studies that are there already: arguments, and which function each calls.

Upstream's flags keep their meaning; what has none here is answered with a sentence (`merlin_cli.upstream`).
"""

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from merlin_cli import upstream
from merlin_cli.exits import CliError, Exit
from merlin_study import nested

if TYPE_CHECKING:
    from merlin_cli.crew import Filter
    from merlin_cli.status import Question

_DEEDS: Final = {
    "cancel": "end a study now, and all that its steps started",
    "suspend": "start no further task of a study",
    "resume": "go on with a study that was suspended",
    "purge": "drop the tasks of a study that wait",
}
_STUDY: Final = "a study's name, its directory, or its specification"
MOST_SLOTS: Final = 4096
_TASK_STATUS: Final = ("INITIALIZED", "RUNNING", "FINISHED", "FAILED", "CANCELLED", "DRY_RUN", "UNKNOWN")
_RETURN_CODES: Final = (
    *("SUCCESS", "SOFT_FAIL", "HARD_FAIL", "STOP_WORKERS", "RESTART", "RETRY", "DRY_SUCCESS", "UNRECOGNIZED"),
)


def add(commands: Any) -> None:
    """Add the parsers of these commands; each names its function as ``call``."""
    for deed, what in _DEEDS.items():
        order = _command(commands, deed, what, _order)
        order.add_argument("targets", nargs="+", metavar="STUDY", help=_STUDY)
        if deed == "purge":
            order.add_argument("-f", "--force", action="store_true", help="do not ask")
            _add_vars(order)
            upstream.add_flags(order, upstream.PURGE_FLAGS)
    _add_restart(_command(commands, "restart", "run again what did not succeed, in a cluster or here", _restart))
    _add_status(_command(commands, "status", "show how a study stands", _status))
    _add_detailed(_command(commands, "detailed-status", "show each task of a study", _detailed))
    monitor = _command(commands, "monitor", "return once no work of a study remains", _monitor)
    monitor.add_argument("target", metavar="STUDY", help=_STUDY)
    _add_steps(monitor, "wait for these steps only")
    _add_vars(monitor)
    monitor.add_argument("--sleep", type=_seconds, default=60.0, metavar="SECONDS", help="between two looks (60)")
    upstream.add_flags(monitor, {**upstream.SERVER_FLAGS, **upstream.MONITOR_FLAGS})
    _add_logs(commands)
    _add_filter(_command(commands, "query-workers", "list the agents of a cluster's sites", _query))
    _add_filter(_command(commands, "stop-workers", "have agents leave when what they run has ended", _stop))
    _add_queues(_command(commands, "queues", "change which queues agents serve, while they run", _serve))
    queues = _command(commands, "queue-info", "show what waits on each queue, and who serves it", _queues)
    queues.add_argument("--spec", metavar="SPEC", help="the queues of this specification")
    queues.add_argument(
        "--specific-queues", nargs="+", action="extend", default=[], metavar="QUEUE", help="these queues"
    )
    queues.add_argument("--dump", metavar="FILE", help="write a .csv or .json file instead")
    _add_steps(queues, "with --spec: the queues of these steps only")
    _add_vars(queues)
    upstream.add_flags(queues, upstream.SERVER_FLAGS)


def _command(commands: Any, name: str, what: str, call: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    parser.set_defaults(call=call)
    parser.add_argument("-n", "--namespace", metavar="NAME", help="the cluster's namespace (default: the kubeconfig's)")
    return parser


def _add_restart(restart: argparse.ArgumentParser) -> None:
    restart.add_argument("target", metavar="STUDY", help=_STUDY)
    restart.add_argument("--local", action="store_true", help="run on this machine, from the study's directory")
    restart.add_argument("--slots", type=slots, metavar="N", help="with --local: tasks at a time (default: one a CPU)")
    _add_steps(restart, "tasks of these steps only")
    restart.add_argument("--tasks", default="", metavar="RANGES", help="tasks with these indices only, as in 0-99,512")
    restart.add_argument(
        "--exit-codes",
        nargs="+",
        type=int,
        action="extend",
        default=[],
        metavar="CODE",
        help="tasks that ended with one of these codes, 0 for successes (default: all that did not succeed)",
    )
    restart.add_argument("--dependants", action="store_true", help="also everything that depends on them")
    restart.add_argument(
        "--scan",
        action="store_true",
        help="also tasks that succeeded and whose mark (MERLIN_FINISHED) was deleted since",
    )


def _add_status(status: argparse.ArgumentParser) -> None:
    _add_study(status)
    upstream.add_flags(status, {**upstream.SERVER_FLAGS, **upstream.STATUS_FLAGS})


def _add_detailed(detailed: argparse.ArgumentParser) -> None:
    _add_study(detailed)
    _add_steps(detailed, "tasks of these steps")
    detailed.add_argument(
        "--task-queues", nargs="+", action="extend", default=[], metavar="QUEUE", help="tasks of steps on these queues"
    )
    detailed.add_argument(
        "--task-status",
        nargs="+",
        action="extend",
        default=[],
        choices=_TASK_STATUS,
        help="tasks in one of these states",
    )
    detailed.add_argument(
        "--return-code", nargs="+", action="extend", default=[], choices=_RETURN_CODES, help="tasks that ended so"
    )
    detailed.add_argument(
        "--workers", nargs="+", action="extend", default=[], metavar="AGENT", help="tasks that these agents ran"
    )
    detailed.add_argument("--max-tasks", type=_count, metavar="N", help="the first N of them")
    detailed.add_argument("--layout", choices=("default", "table"), default="table", help="a table, or lines")
    detailed.add_argument("--disable-pager", action="store_true", help="print at once, however much it is")
    detailed.add_argument("--disable-theme", action="store_true", help="without colours, as NO_COLOR=1")
    detailed.add_argument("--dump", metavar="FILE", help="write a .csv or .json file instead")
    upstream.add_flags(detailed, upstream.SERVER_FLAGS)


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="STUDY", help=_STUDY)
    parser.add_argument(
        "-o", "--output-path", metavar="DIR", help="with a specification: where the directories of its runs lie"
    )
    parser.add_argument("--no-prompts", action="store_true", help="take the newest run, which happens anyway")
    _add_vars(parser)


def _add_logs(commands: Any) -> None:
    what = "show what tasks printed, in any layout of the outputs"
    logs = commands.add_parser("logs", help=what, description=what, allow_abbrev=False)
    logs.set_defaults(call=_logs)
    logs.add_argument("directory", metavar="DIR", help="the study's directory")
    _add_steps(logs, "of these steps only")
    logs.add_argument("--task", type=_index, metavar="INDEX", help="of the task with this index only")
    logs.add_argument("--sample", type=_index, metavar="INDEX", help="of tasks with this sample only, counted from 0")
    logs.add_argument("--failed", action="store_true", help="of tasks that did not succeed")
    what = "write the files of tasks that ran under outputs: lean or packed, as Merlin lays them out"
    files = commands.add_parser("extract", help=what, description=what, allow_abbrev=False)
    files.set_defaults(call=_extract)
    files.add_argument("directory", metavar="DIR", help="the study's directory")
    _add_steps(files, "of these steps only")


def _index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an index from 0, found {text!r}")
    return int(text)


def _logs(arguments: argparse.Namespace) -> int:
    from merlin_cli import logs

    wanted = logs.Wanted(
        arguments.directory, tuple(arguments.steps), arguments.task, arguments.sample, arguments.failed
    )
    return logs.show(wanted)


def _extract(arguments: argparse.Namespace) -> int:
    from merlin_cli import logs

    return logs.extract(arguments.directory, tuple(arguments.steps))


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--spec", metavar="SPEC", help="agents that serve a queue of this specification")
    parser.add_argument(
        "--queues", nargs="+", action="extend", default=[], metavar="QUEUE", help="agents that serve one of these"
    )
    parser.add_argument(
        "--workers", nargs="+", action="extend", default=[], metavar="REGEX", help="agents whose name matches"
    )
    upstream.add_flags(parser, upstream.SERVER_FLAGS)


def _add_queues(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "how",
        choices=("set", "add", "remove"),
        help="serve these only (none: all queues), these too, or these no longer",
    )
    parser.add_argument("names", nargs="*", metavar="QUEUE", help="a queue")
    _add_filter(parser)


def _add_steps(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--steps", nargs="+", action="extend", default=[], metavar="STEP", help=what)


def _add_vars(parser: argparse.ArgumentParser) -> None:
    add_vars(parser, "with a specification: replace variables (after STUDY)")


def add_vars(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--vars NAME=VALUE …``, with its help."""
    parser.add_argument("--vars", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=what)


def slots(text: str) -> int:
    """Read a number of tasks."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_SLOTS:
        raise argparse.ArgumentTypeError(f"expected a number of tasks from 1 to {MOST_SLOTS}, found {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number of tasks, found {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 10**6:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, found {text!r}")
    return value


# Each imports what it needs: the help of one must not wait for the client of another's cluster.


def _in_step(arguments: argparse.Namespace) -> bool:
    """Whether a step of a study calls us, so that the agent which runs it passes the order on."""
    return not arguments.namespace and bool(os.environ.get(nested.SOCKET))


def _order(arguments: argparse.Namespace) -> int:
    from merlin_cli import inside, steer
    from merlin_cli.console import Output

    if _in_step(arguments):
        variables = getattr(arguments, "vars", ())
        return inside.command(arguments.command, arguments.targets, Output(), variables=variables)
    purge = arguments.command == "purge"
    wish = steer.Wish(
        arguments.command,
        tuple(arguments.targets),
        arguments.namespace,
        variables=tuple(arguments.vars) if purge else (),
        sure=not purge or arguments.force,
    )
    return steer.steer(wish, Output())


def _restart(arguments: argparse.Namespace) -> int:
    from merlin_cli import inside, restart, steer
    from merlin_cli.console import Output

    which = steer.Which.of(arguments)
    if arguments.local:
        plain = steer.Which(dependants=which.dependants, scan=True) if which.scan else steer.Which()
        if which != plain or arguments.namespace:
            message = (
                "--local runs all that did not succeed, with --scan what has no mark, too; --steps, --tasks, --exit-codes and -n "
                "are for a cluster, --dependants also for --scan"
            )
            raise CliError(Exit.USAGE, message)
        return restart.restart_locally(arguments.target, which, slots=arguments.slots, console=Output())
    if arguments.slots:
        raise CliError(Exit.USAGE, "--slots is for --local; in a cluster agents bring their own")
    if _in_step(arguments):
        if which != steer.Which():
            raise CliError(
                Exit.USAGE, "in a step restart takes no options; name the namespace with -n to use kubeconfig"
            )
        return inside.command("restart", [arguments.target], Output())
    return steer.steer(steer.Wish("restart", (arguments.target,), arguments.namespace, which=which), Output())


def question(arguments: argparse.Namespace) -> "Question":
    """Return which study a command that shows something is asked about."""
    from merlin_cli.status import Question

    where = getattr(arguments, "output_path", None)
    return Question(arguments.target, arguments.namespace, tuple(arguments.vars), where)


def _status(arguments: argparse.Namespace) -> int:
    from merlin_cli import status
    from merlin_cli.console import Output

    return status.status(question(arguments), Output())


def _detailed(arguments: argparse.Namespace) -> int:
    from merlin_cli import detail
    from merlin_cli.console import Output

    wanted = detail.Selection(
        steps=frozenset(arguments.steps) - {"all"},
        queues=frozenset(arguments.task_queues),
        states=frozenset(arguments.task_status),
        codes=frozenset(arguments.return_code),
        agents=frozenset(arguments.workers),
        most=arguments.max_tasks,
    )
    shown = detail.Shown(arguments.layout, not arguments.disable_pager, arguments.dump)
    console = Output(no_color=True) if arguments.disable_theme else Output()
    return detail.detailed(question(arguments), wanted, shown, console)


def _monitor(arguments: argparse.Namespace) -> int:
    from merlin_cli import status
    from merlin_cli.console import Output

    watch = status.Watch(frozenset(arguments.steps) - {"all"}, arguments.sleep)
    return status.monitor(question(arguments), watch, Output())


def _filter(arguments: argparse.Namespace) -> "Filter":
    from merlin_cli.crew import Filter

    queues = arguments.specific_queues if arguments.command == "queue-info" else arguments.queues
    return Filter(
        spec=arguments.spec,
        queues=tuple(queues),
        workers=tuple(getattr(arguments, "workers", ())),
        steps=tuple(getattr(arguments, "steps", ())),
        variables=tuple(getattr(arguments, "vars", ())),
        namespace=arguments.namespace,
    )


def _query(arguments: argparse.Namespace) -> int:
    from merlin_cli import crew
    from merlin_cli.console import Output

    return crew.query(_filter(arguments), Output())


def _stop(arguments: argparse.Namespace) -> int:
    from merlin_cli import direct, inside
    from merlin_cli.console import Output

    which = _filter(arguments)
    if _in_step(arguments):
        if which.workers:
            cure = "choose them by --queues or --spec, or name the namespace with -n to use kubeconfig"
            raise CliError(Exit.USAGE, f"--workers: in a step agents can't be chosen by name; {cure}")
        return inside.stop_workers(sorted(which.wanted_queues()), Output())
    return direct.stop(which, Output())


def _serve(arguments: argparse.Namespace) -> int:
    from merlin_cli import direct
    from merlin_cli.console import Output

    if not arguments.names and arguments.how != "set":
        raise CliError(Exit.USAGE, f"queues {arguments.how}: expected queues, found none")
    return direct.queues(arguments.how, arguments.names, _filter(arguments), Output())


def _queues(arguments: argparse.Namespace) -> int:
    from merlin_cli import crew
    from merlin_cli.console import Output

    return crew.queue_info(_filter(arguments), Output(), dump=arguments.dump)
