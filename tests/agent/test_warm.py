"""Warm interpreters: what a script can see, and what happens when something is killed, equals a started script's."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from merlin_agent import badges, files, launch, warm, warmbash
from merlin_agent.badges import Badges
from merlin_agent.chunkrun import Stop
from merlin_agent.launch import DirectLauncher, Script
from merlin_agent.slot import Slot
from merlin_agent.warmth import interpreter
from tests.ground import eventually

SHELL = "/bin/bash"
ENVIRON = {
    b"PATH": os.environb[b"PATH"],
    b"HOME": b"/nonexistent",
    b"X": b"\xff",
    b"LANG": b"C.UTF-8",
    b"BASH_FUNC_greet%%": b"() {  echo hello $1\n}",
}


def a_script(directory: Path, text: str, *, shell: str = SHELL, preload: tuple[str, ...] = ()) -> Script:
    """A script that is written, and may run warm."""
    directory.mkdir(parents=True, exist_ok=True)
    path = f"{directory}/s s.sh"
    files.write_script(path, shell, text, replace=True)
    return Script(
        str(directory),
        path,
        f"{directory}/s.out",
        f"{directory}/s.err",
        shell,
        own=badges.variables(3),
        token="-a_token",
        text=text,
        warm=interpreter(shell, preload),
    )


class Runs:
    """Two slots: one that starts each script, one that keeps interpreters warm."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, environ: dict[bytes, bytes], grace: float = 0.3) -> None:
        monkeypatch.setattr(launch, "_leave_common_directory", lambda: False)
        self.complaints: list[str] = []
        self.cells: list[int] = []
        self.warm = warm.makers(environ, self.complaints.append)()
        self.cold_slot = Slot(0, DirectLauncher(environ), lambda *_: None, grace=grace, badges=Badges())
        self.slot = Slot(
            1,
            DirectLauncher(environ),
            lambda _, group: self.cells.append(group),
            grace=grace,
            badges=Badges(),
            warm=self.warm,
        )

    @property
    def were_warm(self) -> list[bool]:
        """Of each run whether a warm shell had it."""
        return [group < 0 for group in self.cells if group]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """Both slots; the warm one is closed at the end."""
    for handle in range(3, 1024):  # what whoever runs the tests left open is not the agent's doing
        with contextlib.suppress(OSError):
            os.set_inheritable(handle, False)
    made = Runs(monkeypatch, ENVIRON)
    yield made
    made.slot.close()


SAME = {
    "nothing": ":",
    "output": "echo out; echo err >&2; printf 'no end'",
    "exit": "exit 7",
    "exit in a function": "f() { exit 9; }\nf\necho no",
    "exit in a subshell": "(exit 5)\necho $?",
    "exit in a loop": "for i in 1 2 3; do [[ $i == 2 ]] && exit 33; done",
    "exit in a pipe": "echo a | (cat; exit 3)\necho ${PIPESTATUS[@]}",
    "exit 255": "exit -1",
    "exit 137 is no signal": "exit 137",
    "exit 141 is no signal": "exit 141",
    "exit 147 is no stop": "exit 147",
    "last command fails": "true\nfalse",
    "last command dies": "bash -c 'kill -9 $$'",
    "last command segfaults": "sh -c 'kill -SEGV $$'",
    "killed": "kill -9 $BASHPID",
    "terminated": "kill -TERM $BASHPID",
    "interrupted": "kill -INT $BASHPID",
    "hung up": "kill -HUP $BASHPID",
    "aborted": "kill -ABRT $BASHPID",
    "user signal": "kill -USR1 $BASHPID; echo no",
    "its whole group": "kill -TERM 0; sleep 5",
    "stopped and continued": "me=$BASHPID; (sleep 0.3; kill -CONT $me) & kill -19 $me; echo on; exit 3",
    "stopped and killed": "me=$BASHPID; (sleep 0.3; kill -KILL $me) & kill -19 $me; echo on; exit 3",
    "not found": "no-such-program\necho $?",
    "not found, with errexit": "set -e\nno-such-program\necho no",
    "syntax error": "echo before\nif then\necho after",
    "syntax error at the end": "echo before\nif true; then\necho x",
    "unbalanced quote": "echo 'a\necho b",
    "errexit": "set -e\necho a\nfalse\necho b",
    "errexit in a function": "set -euo pipefail\nf() { false; echo f; }\nf\necho b",
    "nounset": "set -u\necho $UNDEFINED\necho b",
    "pipefail": "set -o pipefail\nfalse | true\necho $?",
    "xtrace": "set -x\na=1\necho $a",
    "readonly": "readonly a=1\na=2\necho $?",
    "options at the start": "[[ -o monitor ]] 2>/dev/null; set -o | sort; shopt | sort",
    "flags": "case $SHELLOPTS in *) echo $SHELLOPTS $BASHOPTS;; esac",
    "name": 'echo "$0"; basename "$0"; echo "$BASH_SOURCE ${BASH_SOURCE[0]}"; echo $(dirname "$0")',
    "line numbers": "echo $LINENO\n\nf() { echo $LINENO; }\nf\nno-such",
    "arguments": 'echo $# "$@" "$1"',
    "directory": "pwd; pwd -P; echo $PWD; cd /; echo $OLDPWD",
    "old directory": 'echo "[${OLDPWD-unset}]"; cd - ; echo $?',
    "environment": "env | sort | grep -v ^_=",
    "exported later": "export A=1 b=2; env | sort | grep -v ^_=",
    "variables": "( set -o posix; compgen_=; echo ${!B*} ${!_*} ${!m*} ${!S*} )",
    "bytes": "printf '%s' \"$X\"",
    "exported function": "greet you; type greet",
    "own functions and aliases": "f() { echo f; }; alias x='echo x'; shopt -s expand_aliases\nf\nx; declare -F",
    "no functions": "declare -F; type f; alias",
    "standard input": "cat; read x; echo $?",
    "here document": "cat <<E\n$0 $HOME\nE",
    "here string": "cat <<< text",
    "descriptors": "for d in /dev/fd/*; do [[ $d == */255 ]] || echo $d; done; ls /dev/fd | wc -l",
    "reads descriptors": "cat <&3; cat <&4; echo x >&5; echo $?",
    "closes descriptors": "exec <&- >&- 2>&-; exit 4",
    "closes more descriptors": 'for i in {3..300}; do eval "exec $i>&-"; done; exit 5',
    "redirects itself": "exec > other 2>&1\necho x; cat other >&2",
    "becomes another program": "exec sh -c 'echo $0; exit 6'",
    "becomes a program that dies": "exec sh -c 'kill -SEGV $$'",
    "becomes nothing": "exec /no/such\necho no",
    "background child that lives on": "sleep 0.2 &\necho done",
    "background children awaited": "(exit 3) & wait $!; echo $?; (exit 4) & (exit 5) & wait; echo $?; echo ${!-none} | wc -w",
    "no background child yet": 'echo "[$!]"; wait; echo $?',
    "a child killed in the middle": "sh -c 'kill -9 $$'; echo $?; sh -c 'kill -TERM $$'; echo $?",
    "process substitution": "cat <(echo a) <(echo b); exec > >(cat >&2); echo x; sleep 0.1",
    "coprocess of a pipe": "yes | head -1; echo ${PIPESTATUS[0]}",
    "pipe status": "true | false; echo ${PIPESTATUS[*]}",
    "fills the pipe": "for i in {1..3000}; do echo 0123456789012345678901234567890123456789; done; echo x >&2",
    "umask and limits": "umask; ulimit -a; umask 077; touch new; stat -c %a new; ulimit -n 20; ulimit -n",
    "seconds": "echo $SECONDS",
    "fixed random": "RANDOM=7; echo $RANDOM $RANDOM",
    "subshells": "(cd /; pwd); pwd; echo $(cd /; pwd)",
    "sources a file": "echo 'a=5; return 3; echo no' > lib; . ./lib; echo $? $a",
    "sources a file that exits": "echo 'exit 8' > lib; . ./lib; echo no",
    "sources a file that traps": "echo 'tr\"\"ap \"echo bye\" EXIT' > lib; . ./lib; echo hi; exit 2",
    "evaluates": "eval 'echo $0; exit 3'",
    "a trap by eval": 'a=ap; eval "tr$a \'echo bye\' EXIT"; echo hi; exit 2',
    "a trap on a signal by eval": 'a=ap; eval "tr$a \'echo got\' TERM"; kill -TERM $BASHPID; echo on',
    "process number": "echo $(( $$ == BASHPID ))",
    "parent": "echo $PPID",
    "trap on exit": "trap 'echo bye' EXIT\nexit 3",
    "trap on a signal": "trap 'echo got' USR1; kill -USR1 $$; echo on",
    "trap on error": "set -E; trap 'echo line $LINENO' ERR\nfalse\ntrue",
    "returns": "return 4\necho on",
    "stack": "f() { echo ${FUNCNAME[@]} ${BASH_SOURCE[@]} ${BASH_LINENO[@]}; caller 0; }\nf",
    "subshell level": "echo $BASH_SUBSHELL $SHLVL",
    "job control": "set -m\nsleep 0.1 &\nwait\njobs\necho ok",
    "its options": "echo $-; set -f; echo $-",
    "last argument": "echo $_",
    "last argument in braces": "echo ${_}; echo ${_:-none}",
    "a name with an underscore": "_a=1; __b=2; echo $_a ${_a} ${__b:-}",
    "its own command line": "tr '\\0' ' ' < /proc/self/cmdline; tr '\\0' '\\n' < /proc/$BASHPID/cmdline",
    "locale": "LC_ALL=C; x=äöü; echo ${#x}; LC_ALL=C.UTF-8; echo ${#x}",
    "a long line": "echo " + "x" * 100_000,
    "carriage returns": "echo a\r\nexit 3\r",
    "no such option": "shopt -s nothing; echo $?; set -o nothing; echo $?",
    "division by zero": "echo $((1/0))\necho on",
    "an error in a test": "[[ 09 -eq 1 ]]; echo $?; let x=1/0; echo $?; printf %d x; test a -eq 1; echo on",
    "an error in a substitution": 'x=; echo "${x:?is empty}"; echo on',
    "a bad substitution": "echo ${a b}\necho on",
    "octal by accident": "i=08\necho $((i + 1))\necho on",
    "local outside": "local a=1\necho $?\nbreak\necho on\nshift 3\necho $?",
    "bad subscript": "a=()\na[-1]=3\necho on",
    "bad names": "export a-b=1\necho $?\nunset UID\necho $?\nread a-b\necho on",
    "recursion": "n=0; f() { ((n++ < 50)) && f; echo -n .; }; f",
    "arithmetic loop": "for ((i=0;i<3;i++)); do echo $i; done",
    "reads a loop": "while read -r a; do echo \"<$a>\"; done < <(printf 'x\\ny\\n')",
    "stops by name": "me=$BASHPID; (sleep 0.3; kill -CONT $me) & kill -STOP $me; exit 3",
    "a time": "TIMEFORMAT=x; time true",
    "timed out": "timeout 0.1 sleep 5; echo $?",
    "deletes its directory": 'rm -rf "$PWD"; echo x; exit 3',
    "deletes its script": 'rm "$0"; echo still here; exit 3',
    "a number that is none in a subscript": "a=(1 2)\necho ${a[08]}\necho on; a[08]=1\necho on",
    "a bad subscript of a builtin": "read 'a[1/0]' <<< x\necho on\nprintf -v 'a[1/0]' x\necho on\nunset 'a[1/0]'\ntest -v 'a[1/0]'\necho on",
    "kills its first job": "sleep 5 & kill %1; echo $?; wait %1; echo $?",
    "ends after one command": "set -t\necho a\necho b",
    "ends after one command, by name": "set -o onecmd\necho a\necho b",
    "traces, as a second option": "set -e -x\necho a",
    "traces, by a variable": "o=-x; set $o\necho a",
    "writes on in itself": "echo a\necho 'echo more' >> \"$0\"\necho b",
    "exits with too much": "shift 1 2\necho on\nexit 1 2\necho on",
    "quits": "kill -QUIT $BASHPID; echo on",
    "quits by number": "kill -3 $BASHPID; echo on; kill -s 3 $BASHPID; echo on",
    "sources with a backslash": "echo 'return 3' > lib; \\. ./lib; echo $?; case a in a) . ./lib; esac; echo $?",
    "words that look like options": "f() { echo $*; }; f --set x -max -t; ./offset -x -m; echo $?",
    "lists its variables": "declare | grep -e ^BASH_SOURCE -e ^FUNCNAME -e ^BASH_ARGV; typeset > f; grep ^BASH_LINENO f",
    "survives a failed exec": "shopt -s execfail; exec /no/such; echo on $?",
    "reads at the end of a pipe": "shopt -s lastpipe; echo a b | read x y; echo $y",
    "ignored signals": "python3 -c 'import signal as s; print([n for n in range(1, 65) if n != 3 and s.getsignal(n) == s.SIG_IGN])'",
    "ignored signals of a background child": "python3 -c 'import signal as s; print([n for n in range(1, 65) if s.getsignal(n) == s.SIG_IGN])' & wait",
    "executes itself": '[[ -n $again ]] && { echo again; exit 3; }; again=1 exec "$0"',
}  # fmt: skip

COLD = {
    "process number", "trap on exit", "trap on a signal", "trap on error", "returns", "stack", "subshell level",
    "job control", "last argument", "last argument in braces", "its own command line", "last command dies",
    "last command segfaults", "own functions and aliases", "no functions", "closes more descriptors", "xtrace", "readonly", "division by zero", "sources a file", "bad subscript",
    "sources a file that exits", "sources a file that traps", "evaluates", "a trap by eval", "a bad substitution",
    "a trap on a signal by eval", "octal by accident", "recursion", "arithmetic loop", "bad names", "variables",
    "becomes a program that dies", "stops by name", "a child killed in the middle", "options at the start",
    "a number that is none in a subscript", "a bad subscript of a builtin", "kills its first job", "ends after one command",
    "ends after one command, by name", "traces, as a second option", "traces, by a variable", "writes on in itself",
    "exits with too much", "lists its variables", "survives a failed exec", "quits", "quits by number", "sources with a backslash",
}  # fmt: skip
"""Scripts that could tell, or whose text can't be told from one that could."""


def seen(directory: Path, outcome: tuple[int, bool]) -> dict[str, object]:
    """Everything that a run left, with what differs each time taken out."""
    found: dict[str, object] = {"": outcome}
    for path in sorted(directory.rglob("*")) if directory.exists() else []:
        if path.is_file():
            found[str(path.relative_to(directory))] = re.sub(
                rb"line (\d+): +\d+ ", rb"line \1: PID ", path.read_bytes()
            )
    return found


@pytest.mark.parametrize("name", SAME)
def test_a_script_can_not_tell(name: str, runs: Runs, tmp_path: Path) -> None:
    """Output, exit status and files are the same, whether it was started or run warm; also the second time."""
    text = SAME[name]
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    directory = tmp_path / "link" / "the place"
    found = []
    for slot in (runs.cold_slot, runs.slot, runs.slot):
        script = a_script(directory, text)
        found.append(seen(directory, slot.launch(script, 20)))
        subprocess.run(["rm", "-rf", str(directory)], check=True)
    assert found[1] == found[0]
    assert found[2] == found[0]
    cold = name in COLD
    assert runs.complaints == []
    assert runs.were_warm == [not cold, not cold], runs.cells


@pytest.mark.parametrize(
    ("options", "warm"), [("errexit", False), ("xtrace", False), ("braceexpand:hashall:pipefail", True), ("", True)]
)
def test_options_of_all_shells_are_the_scripts_and_end_no_warm_shell(
    options: str, *, warm: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A batch script that exports SHELLOPTS after ``set -e`` gives them to every bash."""
    runs = Runs(monkeypatch, ENVIRON | {b"SHELLOPTS": options.encode()})
    found = []
    for slot in (runs.cold_slot, runs.slot):
        left = seen(tmp_path / "d", slot.launch(a_script(tmp_path / "d", "false | true\nfalse\nexit 3"), 20))
        traced = left["s.err"]
        assert isinstance(traced, bytes)
        left["s.err"] = sorted(traced.splitlines())  # both sides of a pipe trace at once
        found.append(left)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    runs.slot.close()
    assert found[1] == found[0]
    assert (runs.were_warm, runs.complaints) == ([warm], [])


@pytest.mark.parametrize(
    ("shell", "name"),
    [
        ("/bin/bash -e", "last command fails"),
        ("/bin/bash -eu", "nounset"),
        ("/usr/bin/env bash", "name"),
        ("/usr/bin/bash", "syntax error"),
    ],
)
def test_the_first_lines_options_count(shell: str, name: str, runs: Runs, tmp_path: Path) -> None:
    """Options of the shell are the script's."""
    found = []
    for slot in (runs.cold_slot, runs.slot):
        script = a_script(tmp_path / "d", SAME[name] + "\necho on", shell=shell)
        found.append(seen(tmp_path / "d", slot.launch(script, None)))
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    assert found[1] == found[0]
    assert runs.were_warm == [True]


@pytest.mark.parametrize(
    "name", ["nothing", "exit", "environment", "descriptors", "not found", "syntax error", "xtrace"]
)
def test_a_bash_that_is_called_sh_stays_one(name: str, runs: Runs, tmp_path: Path) -> None:
    """Many systems' /bin/sh is a bash in POSIX mode."""
    (tmp_path / "sh").symlink_to("/bin/bash")
    found = []
    for slot in (runs.cold_slot, runs.slot):
        script = a_script(tmp_path / "d", SAME[name] + "\n[[ -o posix ]]", shell=f"{tmp_path}/sh")
        found.append(seen(tmp_path / "d", slot.launch(script, None)))
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    assert found[1] == found[0]
    assert runs.were_warm == [name != "xtrace"]


def test_an_old_bash_runs_warm_what_does_not_ask_for_its_name(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 5.0 a shell can't be told the name of a script."""
    monkeypatch.setattr(warmbash, "NAMES_IF", "false")
    for name in ("line numbers", "not found", "environment", "name"):
        found = []
        for slot in (runs.cold_slot, runs.slot):
            found.append(seen(tmp_path / "d", slot.launch(a_script(tmp_path / "d", SAME[name]), None)))
            subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
        assert found[1] == found[0]
    assert runs.were_warm == [True, True, True, False]


@pytest.mark.parametrize("broken", ["the error file", "the directory"])
def test_what_is_wrong_before_the_script_is_as_if_it_had_been_started(broken: str, runs: Runs, tmp_path: Path) -> None:
    """Nothing of it has run then."""
    script = a_script(tmp_path / "d", "echo ran")
    if broken == "the error file":
        (tmp_path / "d" / "s.err").mkdir()
    else:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    found = []
    for slot in (runs.cold_slot, runs.slot):
        with pytest.raises(Exception, match=r"directory") as caught:
            slot.launch(script, None)
        found.append((type(caught.value), str(caught.value)))
    assert found[1] == found[0]
    assert "ran" not in "".join(path.read_text() for path in (tmp_path / "d").rglob("*.out"))


def test_nothing_leaks_from_one_task_into_the_next(runs: Runs, tmp_path: Path) -> None:
    """Neither directory, variables, functions, limits, options nor random numbers."""
    runs.slot.launch(
        a_script(
            tmp_path / "a",
            "cd /; LEAK=1; export LEAK; f() { :; }; alias a=b; set -e; shopt -s nullglob; umask 0; ulimit -n 50; exec 7</dev/null",
        ),
        None,
    )
    look = "pwd; env; set -o; shopt; umask; ulimit -n; ls /dev/fd; f; echo $RANDOM"
    outputs = []
    for name in ("b", "c"):
        runs.slot.launch(a_script(tmp_path / name, look), None)
        outputs.append((tmp_path / name / "s.out").read_text(errors="replace"))
    runs.cold_slot.launch(a_script(tmp_path / "c2", look), None)
    assert runs.were_warm == [True, True, True]
    plain = [
        [line for line in text.splitlines()[:-1] if not line.startswith("_=")]
        for text in (*outputs, (tmp_path / "c2" / "s.out").read_text(errors="replace"))
    ]
    plain = [[line.replace(str(tmp_path), "") for line in lines] for lines in plain]
    strip = [[line for line in lines if not line.startswith(("PWD=", "/"))] for lines in plain]
    assert strip[0] == strip[1] == strip[2]
    assert outputs[0].splitlines()[-1] != outputs[1].splitlines()[-1]


def pids(path: Path, count: int) -> list[int]:
    """Wait for the process numbers that a script writes."""

    def written() -> list[int]:
        found = [int(word) for word in path.read_text().split()] if path.exists() else []
        return found if len(found) == count else []

    return eventually(written)


def gone(pid: int) -> bool:
    """Whether a process is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_task_whose_time_is_up_is_ended_with_its_whole_group(runs: Runs, tmp_path: Path) -> None:
    """TERM, the grace, KILL; also what ignores TERM; the next task runs."""
    text = f"sh {tmp_path}/stubborn & sleep 600"
    (tmp_path / "stubborn").write_text("trap '' TERM\necho $$\nsleep 600\nsleep 600\n")
    assert runs.slot.launch(a_script(tmp_path / "d", text), 0.5) == (-signal.SIGTERM, True)
    (pid,) = pids(tmp_path / "d" / "s.out", 1)
    eventually(lambda: gone(pid))
    assert runs.slot.launch(a_script(tmp_path / "e", "exit 3"), 60) == (3, False)
    assert runs.were_warm == [True, True]


def in_thread(slot: Slot, script: Script) -> tuple[threading.Thread, list[tuple[int, bool]]]:
    """Launch beside this thread."""
    found: list[tuple[int, bool]] = []
    thread = threading.Thread(target=lambda: found.append(slot.launch(script, None)))
    thread.start()
    return thread, found


def shell_of(runs: Runs) -> int:
    """The warm shell that runs something."""
    return -eventually(lambda: runs.cells[-1] if runs.cells else 0)


def test_a_struck_task_ends_and_others_do_not(runs: Runs, tmp_path: Path) -> None:
    """What an earlier task of the same shell left behind lives on, as it does behind a started script."""
    assert runs.slot.launch(a_script(tmp_path / "a", "sleep 600 & echo $!"), None) == (0, False)
    (left,) = pids(tmp_path / "a" / "s.out", 1)
    thread, found = in_thread(runs.slot, a_script(tmp_path / "b", "sleep 600 & echo $!; sleep 600"))
    (inner,) = pids(tmp_path / "b" / "s.out", 1)
    assert runs.slot.strike(Stop.CANCELLED, signal.SIGTERM)
    thread.join(20)
    assert found == [(-signal.SIGTERM, False)]
    assert gone(inner)
    assert not gone(left)
    os.kill(left, signal.SIGKILL)
    assert not runs.slot.strike(Stop.CANCELLED, signal.SIGTERM)
    assert runs.slot.launch(a_script(tmp_path / "c", "exit 3"), None) == (3, False)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_warm_shell_that_is_killed_takes_its_task_with_it_and_no_other(
    runs: Runs, tmp_path: Path, number: signal.Signals
) -> None:
    """As if the task's own shell had been killed."""
    assert runs.slot.launch(a_script(tmp_path / "a", "sleep 600 & echo $!"), None) == (0, False)
    (left,) = pids(tmp_path / "a" / "s.out", 1)
    thread, found = in_thread(runs.slot, a_script(tmp_path / "b", "echo $BASHPID; sleep 600; echo on"))
    (task,) = pids(tmp_path / "b" / "s.out", 1)
    os.kill(shell_of(runs), number)
    thread.join(20)
    assert found == [(-number, False)]
    assert gone(task)
    assert not gone(left)
    os.kill(left, signal.SIGKILL)
    assert runs.slot.launch(a_script(tmp_path / "c", "exit 3"), None) == (3, False)


def test_a_warm_shell_that_was_killed_while_idle_costs_nothing(runs: Runs, tmp_path: Path) -> None:
    """The next script is started, the one after it runs warm again."""
    assert runs.slot.launch(a_script(tmp_path / "a", "exit 3"), None) == (3, False)
    os.kill(-runs.cells[0], signal.SIGKILL)
    eventually(lambda: gone(-runs.cells[0]))
    for name in ("b", "c"):
        assert runs.slot.launch(a_script(tmp_path / name, "echo x; exit 3"), None) == (3, False)
        assert (tmp_path / name / "s.out").read_text() == "x\n"


AGENT = """
import os, sys
from merlin_agent import warm
from merlin_agent.badges import Badges
from merlin_agent.launch import DirectLauncher, Script
from merlin_agent.reaper import Reaper
from merlin_agent.slot import Slot
from merlin_agent.warmth import interpreter
reaper = Reaper(2)
environ = {b"PATH": os.environb[b"PATH"]}
slot = Slot(1, DirectLauncher(environ), reaper.watch, grace=1.0, badges=Badges(), warm=warm.makers(environ, print)())
d = sys.argv[1]
slot.launch(Script(d, d + "/s s.sh", d + "/s.out", d + "/s.err", "/bin/bash", text="sleep", warm=interpreter("/bin/bash", ())), None)
"""


def test_the_reaper_ends_a_warm_task_of_a_killed_agent(tmp_path: Path) -> None:
    """With its group, and the shell."""
    a_script(tmp_path / "d", "sleep 600 & echo $BASHPID $! $PPID; read -t 600 < <(sleep 600)")
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(tmp_path / "d")])
    task, child, parent = pids(tmp_path / "d" / "s.out", 3)
    assert parent == agent.pid
    shell = int(Path(f"/proc/{task}/stat").read_text().rpartition(")")[2].split()[1])
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    eventually(lambda: gone(task) and gone(child) and gone(shell))


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ("echo hello", "what it reads as it starts prints"),
        ("export ME=$$", r"BASH_ENV=.*start: holds '\$\$'"),
        ("set -eu", r"sets options of the shell: .*e"),
        (None, "BASH_ENV=.*start: can't be read: No such file"),
    ],
)
def test_a_start_up_file_that_would_show_keeps_nothing_warm_and_it_is_said_why(
    start: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that prints would do so for each task, and with ``errexit`` the warm shell itself would end."""
    if start is not None:
        (tmp_path / "start").write_text(f"{start}\n")
    runs = Runs(monkeypatch, ENVIRON | {b"BASH_ENV": os.fsencode(tmp_path / "start")})
    assert runs.slot.launch(a_script(tmp_path / "d", "exit 3"), None) == (3, False)
    assert runs.were_warm == [False]
    (said,) = runs.complaints
    assert re.search(why, said)
    script = a_script(tmp_path / "p", "raise SystemExit(4)", shell=sys.executable, preload=("json",))
    assert runs.slot.launch(script, 60) == (4, False)
    assert runs.were_warm == [False, True], "Python does not read it"
    runs.slot.close()


def test_a_function_in_the_way_of_the_warm_shell_keeps_nothing_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(monkeypatch, ENVIRON | {b"BASH_FUNC_unset%%": b"() { :; }"})
    assert runs.slot.launch(a_script(tmp_path / "d", "exit 3"), None) == (3, False)
    assert runs.were_warm == [False]


MODULES = """\
[[ ${-/x} == $- ]] && was=+x || was=-x
case "$-" in *v*) verbose=-v ;; *) verbose=+v ;; esac
set +xv
A=1; export B=2
_g=; for _h in ${_g:-}; do :; done; unset _g _h
f() { if [ -z $1 ]; then return 3; fi; }
load() { eval "$(echo "export $1=loaded")"; }
export -f load
set $was $verbose
unset was verbose
"""
"""What start-up files of module systems do: they silence tracing, define functions, and put the options back."""


def test_a_start_up_file_that_only_prepares_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what module systems do."""
    (tmp_path / "start").write_text(MODULES)
    runs = Runs(monkeypatch, ENVIRON | {b"BASH_ENV": os.fsencode(tmp_path / "start")})
    found = []
    for slot in (runs.cold_slot, runs.slot):
        script = a_script(tmp_path / "d", "echo $A $B; f; echo $?; load C; echo $C; env | sort | grep -v ^_=")
        found.append(seen(tmp_path / "d", slot.launch(script, None)))
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    runs.slot.close()
    assert found[1] == found[0]
    assert runs.were_warm == [True]


PYTHON = {
    "nothing": "",
    "output": "import sys\nprint('out')\nprint('err', file=sys.stderr)",
    "name": "import sys\nprint(__name__, __file__, sys.argv, sys.path, __spec__, __doc__, __package__, sorted(globals()))",
    "exit": "import sys\nsys.exit(7)",
    "exit with words": "raise SystemExit('no')",
    "os exit": "import os\nos._exit(9)",
    "exception": "def f():\n    raise ValueError('x')\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    f()",
    "syntax error": "print('a')\nif",
    "interrupt": "raise KeyboardInterrupt",
    "killed": "import os\nos.kill(os.getpid(), 9)",
    "at exit": "import atexit\natexit.register(print, 'bye')\nprint('hi')",
    "unflushed": "f = open('x', 'w')\nf.write('text')\nprint('no end', end='')",
    "standard input": "import sys\nprint(repr(sys.stdin.read()), sys.stdin, sys.stdout, sys.stderr)",
    "descriptors": "import os\nprint(os.listdir('/dev/fd'))",
    "directory": "import os\nprint(os.getcwd(), os.environ.get('PWD'))",
    "children": "import subprocess, sys\nsys.stdout.flush()\nprint(subprocess.run(['sh', '-c', 'echo $0; exit 3']))",
    "processes": "import multiprocessing as m\nif __name__ == '__main__':\n    print(m.get_context('spawn').Pool(1).map(len, ['abc']))",
    "threads": (
        "import threading\nmain = threading.main_thread()\n"
        "threading.Thread(target=lambda: (main.join(), print('late'))).start()\nprint('soon')"
    ),
    "pickles": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__module__)",
    "dataclass": "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int\nprint(A(3))",
    "hook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0])\n1 / 0",
    "signals": "import signal\nprint([signal.getsignal(n) for n in (2, 13, 15)])",
}  # fmt: skip


@pytest.mark.parametrize("name", PYTHON)
def test_a_python_script_can_not_tell(name: str, runs: Runs, tmp_path: Path) -> None:
    """Output, exit status and files are the same, whether it was started or forked from one with modules imported."""
    found = []
    for slot in (runs.cold_slot, runs.slot, runs.slot):
        script = a_script(tmp_path / "d", PYTHON[name], shell=sys.executable, preload=("json", "decimal"))
        found.append(seen(tmp_path / "d", slot.launch(script, 60)))
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert runs.complaints == []
    assert runs.were_warm == [True, True]


def test_a_preloaded_python_has_imported_and_draws_other_numbers(runs: Runs, tmp_path: Path) -> None:
    """What is seeded at import would give all tasks the same numbers."""
    outputs = []
    for name in ("a", "b"):
        text = "import sys\nprint('decimal' in sys.modules)\nimport random\nprint(random.random())"
        script = a_script(tmp_path / name, text, shell=sys.executable, preload=("decimal", "random"))
        assert runs.slot.launch(script, 60) == (0, False)
        outputs.append((tmp_path / name / "s.out").read_text().split())
    assert [first for first, _ in outputs] == ["True", "True"]
    assert outputs[0][1] != outputs[1][1]


def test_what_can_not_be_preloaded_is_told_and_the_script_started(runs: Runs, tmp_path: Path) -> None:
    """Once for all slots."""
    for _ in range(2):
        script = a_script(tmp_path / "d", "print('ran')", shell=sys.executable, preload=("no_such_module",))
        assert runs.slot.launch(script, 60) == (0, False)
    assert len(runs.complaints) == 1
    assert "no_such_module" in runs.complaints[0]
