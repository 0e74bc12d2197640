"""``merlin``: reads the command line, calls the command, and turns what it raises into a sentence and an exit code."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from merlin_cli import grammar, upstream
from merlin_cli.exits import CliError, Exit
from merlin_study.errors import SpecError

_EXIT_CODES = """\
exit codes: 0 all tasks succeeded; 1 the specification was refused; 2 wrong usage; 3 the study finished and some tasks
did not succeed; 4 it could not run; 130 stopped by Ctrl-C, 143 by SIGTERM (merlin restart goes on).
"""
_REPLACED = "replace variables of the specification (after SPEC)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except SpecError as error:
        return _fail(Exit.REFUSED, refusal(error))
    except CliError as error:
        return _fail(error.code, f"merlin: {error}")
    except KeyboardInterrupt:
        return _fail(Exit.INTERRUPTED, "merlin: interrupted")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains while it ends
        return Exit.OK


def _run(given: list[str]) -> int:
    if given and given[0] in upstream.COMMANDS:
        raise CliError(Exit.USAGE, upstream.sentence(given[0]))
    parser = build_parser()
    if not given:
        parser.print_help()
        return Exit.REFUSED  # upstream's exit code without a sub-command
    arguments = parser.parse_args(given)
    return int(arguments.call(arguments)) if "call" in arguments else _dispatch(arguments)


def refusal(error: SpecError) -> str:
    """Every fault on a line of its own, path first."""
    faults = "1 fault" if len(error.faults) == 1 else f"{len(error.faults)} faults"
    return "\n".join([f"merlin: the study was refused, {faults}:", *(f"  {fault}" for fault in error.faults)])


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="merlin",
        description="Run ensembles of simulations that are described in Merlin's or Maestro's language.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-v", "--version", action="version", version=f"merlin {metadata.version('merlin-cli')}")
    upstream.add_flags(parser, upstream.GLOBAL_FLAGS)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    _add_run(commands.add_parser("run", help="run a study, here or in a cluster", allow_abbrev=False))
    grammar.add(commands)
    _add_run_workers(commands.add_parser("run-workers", help="start a specification's agents here", allow_abbrev=False))
    convert = commands.add_parser("convert", help="print a specification as a manifest for kubectl", allow_abbrev=False)
    convert.add_argument("spec", metavar="SPEC", help="a specification of Merlin or Maestro, or a manifest")
    _add_site(commands.add_parser("site", help="set up machines that run agents", allow_abbrev=False))
    _add_server(commands.add_parser("server", help="run studies without Kubernetes", allow_abbrev=False))
    _add_context(commands.add_parser("context", help="choose the cluster or server", allow_abbrev=False))
    commands.add_parser("info", help="show versions", allow_abbrev=False)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("spec", metavar="SPEC", help="a specification of Merlin or Maestro, or a Study manifest")
    run.add_argument("--local", action="store_true", help="run on this machine, without a cluster")
    grammar.add_vars(run, _REPLACED)
    run.add_argument(
        "--maestro",
        action="store_true",
        help="give the keys Maestro's meaning, as dialect: Maestro in the specification does",
    )
    run.add_argument("-n", "--namespace", metavar="NAME", help="the cluster's namespace (default: the kubeconfig's)")
    run.add_argument("--name", help="the Study's name in the cluster (default: the study's name and the time)")
    run.add_argument(
        "--slots", type=grammar.slots, metavar="N", help="with --local: tasks at a time (default: one a CPU)"
    )
    run.add_argument("-o", "--output-path", metavar="DIR", help="with --local: where the study's directory is made")
    run.add_argument("--samplesfile", metavar="FILE", help="a .csv, .tab or .npy file in place of merlin.samples")
    run.add_argument(
        "--pgen", metavar="FILE", help="a Python file whose function get_custom_generator makes the parameters"
    )
    run.add_argument(
        "--pargs", action="append", default=[], metavar="KEY:VALUE", help="an argument of that function (repeatable)"
    )
    run.add_argument("--dry", action="store_true", help="write directories and scripts on this machine, run nothing")
    run.add_argument(
        "--rehearse",
        nargs="?",
        const=0.0,
        type=_seconds,
        metavar="SECONDS",
        help="run no task: agents report each as done after SECONDS (default 0), down the whole path",
    )
    run.add_argument(
        "--no-bundle",
        action="store_true",
        help="bring no files: the site sees the specification's folder under its path",
    )
    run.add_argument(
        "--clone",
        action="store_true",
        help="clone env.dependencies.git here and send the files along (default: the site clones)",
    )
    upstream.add_flags(run, upstream.RUN_FLAGS)


def _add_run_workers(run_workers: argparse.ArgumentParser) -> None:
    run_workers.description = (
        "Start the agents that merlin.resources.workers asks for, inside of an allocation: in its batch script, "
        "or at its prompt. They stay until they are stopped, or the allocation ends."
    )
    run_workers.add_argument("spec", metavar="SPEC", help="a specification of Merlin or Maestro, or a Study manifest")
    run_workers.add_argument("--echo", action="store_true", help="print the launch lines and start nothing")
    run_workers.add_argument("--wait", action="store_true", help="stay until the agents have left, and pass signals on")
    run_workers.add_argument(
        "--steps", nargs="+", action="extend", default=[], metavar="STEP", help="only for these steps (default: all)"
    )
    run_workers.add_argument(
        "--worker-args", default="", metavar="TEXT", help="added to each worker's args, such as '-c 4' for four slots"
    )
    run_workers.add_argument(
        "--agent-args", default="", metavar="TEXT", help="added to each agent's flags, such as '--idle-exit 600'"
    )
    grammar.add_vars(run_workers, _REPLACED)
    upstream.add_flags(run_workers, upstream.RUN_WORKERS_FLAGS)


def _add_server(server: argparse.ArgumentParser) -> None:
    what = server.add_subparsers(title="commands", dest="what", metavar="COMMAND", required=True)
    for name, meaning in (("start", "start it"), ("stop", "end it"), ("status", "say what it runs")):
        one = what.add_parser(name, help=meaning, allow_abbrev=False)
        one.add_argument(
            "-d",
            "--directory",
            type=Path,
            default=Path("~/.merlin/server"),
            metavar="DIR",
            help="keys, addresses, studies and snapshots, of mode 0700 (default: ~/.merlin/server)",
        )
        if name == "start":
            one.add_argument("--address", default="", metavar="HOST", help="how agents reach it (default: this host)")
            one.add_argument("--state", default="", metavar="DIR", help="on a local disk (default: below /var/tmp)")
            one.add_argument(
                "--snapshot-every", type=float, metavar="S", help="seconds between two copies of the log (default: 60)"
            )
            one.add_argument("--name", default="server", metavar="NAME", help="the context's name (default: server)")


def _add_context(context: argparse.ArgumentParser) -> None:
    what = context.add_subparsers(title="commands", dest="what", metavar="COMMAND", required=True)
    what.add_parser("list", help="list contexts; a star marks the one that counts", allow_abbrev=False)
    use = what.add_parser("use", help="choose one", allow_abbrev=False)
    use.add_argument("name", metavar="NAME", help="a server's name, or cluster for the kubeconfig's")


def _add_site(site: argparse.ArgumentParser) -> None:
    what = site.add_subparsers(title="commands", dest="what", metavar="COMMAND", required=True)
    get = what.add_parser("credentials", help="write the one file that an agent needs", allow_abbrev=False)
    get.add_argument("-n", "--namespace", metavar="NAME", help="the release's namespace (default: the kubeconfig's)")
    get.add_argument("--release", default="merlin", metavar="NAME", help="the chart's release (default: merlin)")
    get.add_argument(
        "--secret", default="", metavar="NAME", help="the Secret, where the chart was given one of its own"
    )
    get.add_argument("--server", default="", metavar="URL", help="the broker as agents reach it (default: the chart's)")
    get.add_argument(
        "--site", default="", metavar="NAME", help="the site's name (default: the cluster's, by the agent)"
    )
    get.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the file, of mode 0600 (default: standard output)"
    )
    get.add_argument("--force", action="store_true", help="replace FILE where it is there already")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 31_536_000:  # NaN is neither
        raise argparse.ArgumentTypeError(f"expected seconds, as in --rehearse=0.5, found {text!r}")
    return value


def _dispatch(arguments: argparse.Namespace) -> int:
    # Each command imports what it needs: the help of one must not wait for the client of another's cluster.
    match arguments.command:
        case "run" | "run-workers" | "server" | "context":
            return _DIRECT[arguments.command](arguments)
        case "convert":
            from merlin_cli import convert

            return convert.convert(arguments.spec)
        case "site":
            from merlin_cli import site

            fields = ("namespace", "release", "secret", "server", "site", "output", "force")
            return site.credentials(site.Request(**{name: getattr(arguments, name) for name in fields}))
        case _:
            from merlin_cli import info

            return info.info()


def _run_study(arguments: argparse.Namespace) -> int:
    """On this machine, by the agent whose step calls us, or in a cluster; a namespace that is named means a cluster."""
    from merlin_cli import inside, run, submit
    from merlin_cli.console import Output
    from merlin_cli.desk import Desk

    request = run.Request.of(arguments)
    if arguments.local or arguments.dry:
        return run.run_locally(request, Output())
    desk = None if request.namespace else Desk.of(os.environ)
    return submit.submit(request, Output()) if desk is None else inside.submit(request, desk, Output())


def _run_workers(arguments: argparse.Namespace) -> int:
    from merlin_cli import runworkers
    from merlin_cli.console import Output

    return runworkers.run_workers(runworkers.Request.of(arguments), Output())


def _serve(arguments: argparse.Namespace) -> int:
    from merlin_cli import server
    from merlin_cli.console import Output

    directory = arguments.directory.expanduser().absolute()
    if arguments.what == "start":
        given = {name: getattr(arguments, name) for name in ("address", "state", "snapshot_every", "name")}
        return server.start(directory, Output(), **given)
    return (server.stop if arguments.what == "stop" else server.status)(directory, Output())


def _choose(arguments: argparse.Namespace) -> int:
    from merlin_cli import contexts

    return contexts.command(arguments.what, getattr(arguments, "name", ""))


_DIRECT = {"run": _run_study, "run-workers": _run_workers, "server": _serve, "context": _choose}


def _fail(code: Exit, message: str) -> int:
    """Say why on standard error."""
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
