"""A step asks its agent for a study through the socket: who may, what becomes of it, and what its own command finds."""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

from merlin_agent.desk import LONGEST_PATH
from merlin_study import nested
from merlin_study.compiler import compile_study
from merlin_study.outcome import Outcome
from merlin_study.parse import parse_spec
from merlin_study.plan import Plan
from merlin_study.seal import Signer
from tests.agent.standin import STUDY, Standin, a_plan, a_step
from tests.ground import Broker, eventually

CHILD = """\
description: {name: Child of mine, description: what a step starts}
env: {variables: {OUTPUT_PATH: below, N: 1}}
study:
  - name: say
    description: says it
    run: {cmd: "echo $(N) > said; cat $(SPECROOT)/child.yaml"}
"""


def plan_of(tmp_path: Path, script: str, **changes: object) -> Plan:
    (tmp_path / "child.yaml").write_text(CHILD)
    return a_plan(a_step("start", f"cd {tmp_path}\n{script}", **changes))


def submissions(operator: Standin, *, turn: int = 0, step: str = "start") -> list[nested.Submission]:
    """All that task 0 of a step has asked for, in its order."""
    found: list[nested.Submission] = []
    while True:
        key = nested.submission_key(STUDY, step=step, task=0, turn=turn, number=len(found) + 1)
        messages = operator.raw(f"child-{key}")
        if not messages:
            return found
        (message,) = messages
        subject = operator.space.child(STUDY, key)
        data = operator.keys.open(message, scope=STUDY, context=subject, signer=Signer.AGENT)
        found.append(nested.Submission.model_validate_json(data))


def out(operator: Standin, ending: str = "out") -> str:
    return (operator.root / "start" / f"start.{ending}").read_text()


def test_a_step_starts_studies_and_goes_on(broker: Broker, tmp_path: Path) -> None:
    """Each is in the log once it is told, with the directory where the step stood, and nobody has to be there for it."""
    script = "export PYTHONPATH=/nowhere PYTHONHOME=/nowhere\n"
    plan = plan_of(tmp_path, script + "merlin run child.yaml --vars N=7\nmerlin run child.yaml --vars N=8\n")
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        reports = operator.final(operator.issue([0]))
        assert operator.counts(reports) == {("succeeded", 0): 1}, out(operator, "err")
        first, second = submissions(operator)
        said = out(operator)
    specs = [json.loads(entry.spec) for entry in (first, second)]
    assert [spec["vars"]["N"] for spec in specs] == ["7", "8"]
    assert [spec["vars"]["SPECROOT"] for spec in specs] == [str(tmp_path)] * 2
    assert first.workspace != second.workspace
    for entry, spec in zip((first, second), specs, strict=True):
        assert (entry.step, entry.task, entry.site, entry.name) == ("start", 0, "here", "Child of mine")
        assert entry.workspace == str(tmp_path / "below" / f"Child_of_mine_{spec['runId']}")
        assert Path(entry.workspace).is_dir(), "made at once, so that nobody else takes it"
        assert f"Study workspace: {entry.workspace}\n" in said
        assert f"Submitted study {nested.child_name(entry.name, entry.key(STUDY))};" in said


def test_a_task_that_is_tried_again_finds_what_it_started(broker: Broker, tmp_path: Path) -> None:
    """By the order in which it asks; what it asked for first counts, even where it asks for something else now."""
    plan = plan_of(tmp_path, "merlin run child.yaml --vars N=$(wc -c < tries)\n")
    (tmp_path / "tries").write_text("")
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        operator.final(operator.issue([0]))
        (operator.root / "start" / "MERLIN_FINISHED").unlink()
        (tmp_path / "tries").write_text("x")
        operator.final(operator.issue([0], attempt=2))
        (entry,) = submissions(operator)
        said = out(operator)
        assert "has started study" in said.splitlines()[2]
        assert said.count(f"Study workspace: {entry.workspace}\n") == 2
        assert "what was submitted first counts" in out(operator, "err")
    assert [path.name for path in (tmp_path / "below").iterdir()] == [Path(entry.workspace).name]


def test_each_turn_of_a_restart_script_starts_studies_of_its_own(broker: Broker, tmp_path: Path) -> None:
    """A restart goes on with the task; a chunk of the same turn that was lost asks again for the same."""
    plan = plan_of(tmp_path, "exit 100", restart=f"cd {tmp_path}; merlin run child.yaml; exit 100", max_retries=5)
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        operator.final(operator.issue([0]))
        for attempt in (2, 2, 3):
            operator.final(operator.issue([0], attempt=attempt, restart=True))
        assert [len(submissions(operator, turn=turn)) for turn in (0, 2, 3)] == [0, 1, 1]


def test_a_site_may_forbid_it(broker: Broker, tmp_path: Path) -> None:
    """The step is told so, and its exit code; nothing is left behind."""
    plan = plan_of(tmp_path, "merlin run child.yaml\nexit $?")
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent("--no-submissions")
        assert operator.counts(operator.final(operator.issue([0]))) == {(Outcome.SOFT_FAILED.value, 1): 1}
        assert "site here does not let steps start studies" in out(operator, "err")
        assert not submissions(operator)
    assert not list((tmp_path / "below").iterdir())


def test_what_the_operator_would_refuse_is_refused_at_once(broker: Broker, tmp_path: Path) -> None:
    """A family that is full, by the operator's word."""
    plan = plan_of(tmp_path, "merlin run child.yaml")
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        full = nested.Family(study=STUDY, depth=3, full="10000 studies belong to root r, and no more may")
        operator.put(operator.space.family(STUDY), full.encode())
        operator.agent()
        operator.final(operator.issue([0]))
        assert "10000 studies belong to root r" in out(operator, "err")
        assert not submissions(operator)


def test_only_the_own_user_and_a_running_task_are_answered(broker: Broker, tmp_path: Path) -> None:
    """The socket is private and its path short; a token dies with its task; other users get no answer."""
    script = 'echo "$MERLIN_SOCKET" > where; echo "$MERLIN_TASK" > token; env > env.part; mv env.part env; while ! [ -e go ]; do sleep 0.05; done'
    with Standin(broker, tmp_path) as operator:
        operator.up(plan_of(tmp_path, script))
        operator.agent(env={"MERLIN_AGENT_VERBOSE": "false"})
        chunk = operator.issue([0])
        path = eventually(lambda: (tmp_path / "env").exists() and (tmp_path / "where").read_text().strip())
        assert isinstance(path, str)
        assert len(path) <= LONGEST_PATH
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
        environment = (tmp_path / "env").read_text()
        assert "MERLIN_STEP_CORES=1\n" in environment
        assert operator.keys.seal_key.hex() not in environment
        assert "MERLIN_AGENT_" not in environment
        token = (tmp_path / "token").read_text().strip()
        assert "not understand" in ask(path, b'{"token": "x"}\n')["refused"]
        assert "has ended" in ask(path, request("another"))["refused"]
        if os.getuid() == 0:
            assert connect_as_nobody(path) == "", "another user gets no answer"
        (tmp_path / "go").touch()
        operator.final(chunk)
        eventually(lambda: "has ended" in ask(path, request(token))["refused"], message="the token ends with the task")
        directory = Path(path).parent
        operator.agents[0].stop()
        eventually(lambda: not directory.exists(), message="a leaving agent leaves nothing")


def test_a_killed_agent_leaves_no_socket(broker: Broker, tmp_path: Path) -> None:
    """Its reaper removes the directory."""
    with Standin(broker, tmp_path) as operator:
        operator.up(plan_of(tmp_path, 'echo "$MERLIN_SOCKET" > where'))
        agent = operator.agent()
        operator.final(operator.issue([0]))
        directory = Path((tmp_path / "where").read_text().strip()).parent
        agent.kill()
        eventually(lambda: not directory.exists())


def test_a_study_runs_in_place_in_the_steps_own_slot(broker: Broker, tmp_path: Path) -> None:
    """``--local`` brings its own engine, and as many slots as the step has cores; what it runs speaks to its own agent."""
    inner = CHILD.replace(
        "echo $(N) > said", "echo $MERLIN_SOCKET $MERLIN_STEP_CORES > said; echo > $(MERLIN_INFO)/$$.ran"
    )
    plan = plan_of(tmp_path, 'echo "$MERLIN_SOCKET"; merlin run child.yaml --local')
    (tmp_path / "child.yaml").write_text(inner)
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        reports = operator.final(operator.issue([0]), timeout=180)
        assert operator.counts(reports) == {("succeeded", 0): 1}, out(operator, "err") + out(operator)
        outer, *_ = out(operator).splitlines()
        (said,) = (tmp_path / "below").glob("*/say/said")
        socket_path, cores = said.read_text().split()
        assert socket_path != outer
        assert cores == "1"
        assert not submissions(operator)


def request(token: str) -> bytes:
    return nested.Request(token=token, name="x", spec="{}", workspace="/x").encode() + b"\n"


def ask(path: str, line: bytes) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(line)
        with connection.makefile("rb") as answer:
            found: dict[str, str] = json.loads(answer.readline())
            return found


def connect_as_nobody(path: str) -> str:
    """What another user gets who came by an open directory and socket: the file modes are not the only guard."""
    there = Path(path)
    there.parent.chmod(0o755)
    there.chmod(0o666)
    program = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(b'{}\\n'); print(s.recv(100).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=False, timeout=120
    )
    there.parent.chmod(0o700)
    there.chmod(0o600)
    assert "Permission" not in done.stderr, done.stderr
    return done.stdout.strip()


def test_a_step_gives_orders_and_hears_what_became_of_them(broker: Broker, tmp_path: Path) -> None:
    """By name or by directory; the operator's word decides the exit code, and without one the order is passed on."""
    script = (
        "merlin cancel one; echo $?; merlin purge mine; echo $?; merlin suspend one 2>&1; echo $?;"
        " merlin restart mine; merlin cancel child.yaml"
    )
    plan = plan_of(tmp_path, script)
    mark = tmp_path / "mine" / "merlin_info" / "workspace.json"
    mark.parent.mkdir(parents=True)
    mark.write_text('{"study": "its-uid", "more": 1}')
    answers = [
        nested.Born(name="one"),
        nested.Born(name="mine"),
        nested.Born(refused="study one belongs to somebody else"),
    ]
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        operator.agent()
        chunk = operator.issue([0])
        given: list[nested.Order] = []
        for answer in answers:
            order = eventually(lambda: operator.order_after(given), message="the next order")
            assert isinstance(order, nested.Order)
            given.append(order)
            operator.put(operator.space.born(STUDY, order.word), answer.encode())
        operator.final(chunk, timeout=180)
        said = out(operator)
        last = operator.order_after(given)
        assert "child.yaml: no study that was made from it is known to this step" in out(operator, "err")
    assert [(order.deed, order.target) for order in given] == [
        ("cancel", "one"),
        ("purge", "its-uid"),
        ("suspend", "one"),
    ]
    assert last is not None
    assert (last.deed, last.target) == ("restart", "its-uid")
    assert said.splitlines()[:2] == ["cancel study one: done.", "0"]
    assert "belongs to somebody else" in said
    assert "restart study its-uid: passed on; the operator will do it." in said


BEFORE = """\
description: {name: Child, description: an earlier run of the file lies beside the study whose step asks}
study: [{name: say, description: says it, run: {cmd: "cat $(SPECROOT)/child.yaml $(P.label)"}}]
"""


def test_a_specification_means_its_runs_wherever_the_step_stands(broker: Broker, tmp_path: Path) -> None:
    """What the step's studies started, begun or not, and what lies beside its own study; a longer name is another study."""
    script = "merlin status child.yaml; merlin run child.yaml && merlin purge child.yaml --vars N=2; merlin status child.yaml"
    plan = plan_of(tmp_path, script)
    with Standin(broker, tmp_path) as operator:
        operator.up(plan)
        for name, uid in (("Child_of_mine_20200101-000000", "old"), ("Child_of_mine_too_20300101-000000", "other")):
            info = operator.root.parent / name / "merlin_info"
            info.mkdir(parents=True)
            (info / "plan.json").write_bytes(plan.to_json())
            (info / "workspace.json").write_text(json.dumps({"study": uid}))
        operator.agent()
        chunk = operator.issue([0])
        given: list[nested.Order] = []
        for _ in range(2):
            order = eventually(lambda: operator.order_after(given), message="the next order")
            assert isinstance(order, nested.Order)
            given.append(order)
            operator.put(operator.space.born(STUDY, order.word), nested.Born(name=order.target).encode())
        reports = operator.final(chunk, timeout=180)
        (entry,) = submissions(operator)
        assert operator.counts(reports) == {("succeeded", 0): 1}, out(operator, "err")
        assert out(operator).count("Child_of_mine_20200101-000000: not finished") == 2
    assert [(order.deed, order.target) for order in given] == [
        ("purge", nested.child_name(entry.name, entry.key(STUDY))),
        ("purge", "old"),
    ]


def test_a_step_brings_clones_and_tables_of_any_label_and_no_copies_where_it_wants_none(
    broker: Broker, tmp_path: Path
) -> None:
    """What the command line says elsewhere counts in a step, too."""
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    code = tmp_path / "code"
    for words in (["init", "-q", str(code)], ["-C", str(code), "commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run([*git, *words], check=True)
    (code / "tool").write_text("a tool")
    for words in (["add", "tool"], ["commit", "-q", "-m", "t"]):
        subprocess.run([*git, "-C", str(code), *words], check=True)
    needs = f"{{dependencies: {{git: [{{name: CODE, path: /nowhere, url: {code}}}]}}}}"
    (tmp_path / "clones.yaml").write_text(f"{BEFORE.replace('$(P.label)', '$(CODE)/tool')}env: {needs}\n")
    (tmp_path / "table.yaml").write_text(BEFORE)
    (tmp_path / "gen.py").write_text(
        "from maestrowf.datastructures.core import ParameterGenerator\n"
        "def get_custom_generator(env, **kwargs):\n    made = ParameterGenerator()\n"
        "    made.add_parameter('P', [1, 2], ['one', 'two'])\n    return made\n"
    )
    script = "merlin run clones.yaml --clone; merlin run table.yaml --pgen gen.py --no-bundle"
    with Standin(broker, tmp_path) as operator:
        operator.up(plan_of(tmp_path, script))
        operator.agent()
        operator.final(operator.issue([0]))
        clones, table = submissions(operator)
    spec = json.loads(clones.spec)
    assert spec["env"]["variables"]["CODE"] == "$(MERLIN_INFO)/merlin-clones/CODE"
    assert "git" not in spec["env"]["dependencies"]
    assert (Path(clones.workspace) / "merlin_info/merlin-clones/CODE/tool").read_text() == "a tool"
    assert (Path(clones.workspace) / "merlin_info/specroot/child.yaml").exists()
    assert not (Path(table.workspace) / "merlin_info/specroot").exists()
    plan = compile_study(parse_spec(json.loads(table.spec))[0], stamp="20260102-030405")
    assert plan.parameters[0].labels == ("one", "two")
