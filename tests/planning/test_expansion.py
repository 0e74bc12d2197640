"""Tasks, dependencies, directories and scripts that are computed equal those of a naive expansion that lists everything.

The naive one stages a study as Maestro does: combination by combination, by names and texts, without any of our modules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from merlin_study.geometry import Geometry
from merlin_study.plan import IMPLICIT, Plan
from merlin_study.readiness import Readiness, Span
from merlin_study.steptasks import StepTasks
from merlin_study.taskset import TaskSet
from merlin_study.workspace import Layout, TaskTokens
from tests.folding.studies import plan_of

ROOT = "/root/n_1"
KEYS = ("A", "B", "C")
RARELY = st.sampled_from([False, False, True])


@dataclass(frozen=True)
class Spec:
    """A small study: name, script and dependencies of each step; values and label of each parameter; samples.

    ``restarts`` are the restart scripts, empty for none: what they name, their step uses.
    """

    steps: tuple[tuple[str, str, tuple[str, ...]], ...]
    parameters: dict[str, tuple[tuple[str, ...], str]]
    samples: int
    level: int
    restarts: tuple[str, ...] = ()

    def again(self, at: int) -> str:
        return self.restarts[at] if self.restarts else ""

    def yaml(self) -> str:
        lines = ["description: {name: n, description: d}"]
        if self.parameters:
            lines.append("global.parameters:")
            for key, (values, label) in self.parameters.items():
                lines.append(f"  {key}: {{values: [{', '.join(repr(value) for value in values)}], label: '{label}'}}")
        lines.append("study:")
        for at, (name, cmd, depends) in enumerate(self.steps):
            quoted = ", ".join(f"'{each}'" for each in depends)
            restart = f", restart: '{self.again(at)}'" if self.again(at) else ""
            lines.append(f"- name: {name}\n  description: d\n  run: {{cmd: '{cmd}', depends: [{quoted}]{restart}}}")
        if self.samples:
            lines.append(f"merlin: {{samples: {{file: s.csv, column_labels: [S], level_max_dirs: {self.level}}}}}")
        return "\n".join(lines)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Any mix of steps with and without samples and parameters, on any of those before them."""
    rows = draw(st.integers(1, 4))
    keys = draw(st.sets(st.sampled_from(KEYS)))
    value = st.sampled_from(["1", "2", "x y"])
    parameters = {
        key: (tuple(draw(st.lists(value, min_size=rows, max_size=rows))), draw(st.sampled_from([f"{key}.%%", "%%"])))
        for key in KEYS
        if key in keys
    }
    samples = draw(st.integers(0, 7))
    words = [f"$({key}{ending})" for key in sorted(keys) for ending in ("", ".label", ".name")] + ["$(WORKSPACE)"]
    if samples:
        words += ["$(S)", "$(MERLIN_SAMPLE_ID)", "$(MERLIN_SAMPLE_PATH)", "$(MERLIN_GLOB_PATH)", "$(MERLIN_PATHS_ALL)"]
    steps: list[tuple[str, str, tuple[str, ...]]] = []
    restarts: list[str] = []
    for at in range(draw(st.integers(1, 4))):
        before = [name for name, _, _ in steps]
        named = draw(st.lists(st.sampled_from(before), max_size=2, unique=True)) if before else []
        depends = tuple(name + draw(st.sampled_from(["", "_*", "*"])) for name in named)
        known = [*words, *(f"$({name}.workspace)" for name in before)]
        cmd = " ".join(["echo", *draw(st.lists(st.sampled_from(known), max_size=3))])
        restarts.append(
            " ".join(["again", *draw(st.lists(st.sampled_from(known), max_size=2))]) if draw(RARELY) else ""
        )
        steps.append((f"s{at}", cmd, depends))
    return Spec(tuple(steps), parameters, samples, draw(st.integers(2, 4)), tuple(restarts))


class Naive:
    """Every task by its directory, with its script and the directories of the tasks that it waits for."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.rows = len(next(iter(spec.parameters.values()))[0]) if spec.parameters else 1
        self.used: dict[str, set[str]] = {}
        self.sampled: dict[str, bool] = {}
        self.scripts: dict[str, str] = {}
        self.again: dict[str, str] = {}
        self.waits: dict[str, set[str]] = {}
        self.of_step: dict[str, list[str]] = {}
        self.paths = self._odometer()
        for at, (name, cmd, depends) in enumerate(spec.steps):
            self._stage(name, cmd, spec.again(at), depends)

    def _odometer(self) -> list[str]:
        if self.spec.samples <= 1:
            return [""] * self.spec.samples
        wheels = 1
        while self.spec.level**wheels < self.spec.samples:
            wheels += 1
        state, found = [0] * wheels, []
        for _ in range(self.spec.samples):
            found.append("/".join(map(str, state)))
            for wheel in reversed(range(wheels)):
                state[wheel] = (state[wheel] + 1) % self.spec.level
                if state[wheel]:
                    break
        return found

    def _label(self, key: str, row: int) -> str:
        values, label = self.spec.parameters[key]
        return label.replace("%%", values[row])

    def _combination(self, name: str, row: int) -> str:
        return ".".join(self._label(key, row) for key in sorted(self.used[name])).replace(" ", "_")

    def _directory(self, name: str, row: int) -> str:
        return "/".join(filter(None, (ROOT, name, self._combination(name, row))))

    def _stage(self, name: str, cmd: str, again: str, depends: tuple[str, ...]) -> None:
        funnels = {entry.rstrip("*").rstrip("_") for entry in depends if entry.endswith("*")}
        plain = [entry for entry in depends if not entry.endswith("*")]
        self.used[name] = {key for key in self.spec.parameters if re.search(rf"\$\({key}(\.\w+)?\)", cmd + again)}
        mentioned = re.findall(r"\$\((\w+)\.workspace\)", cmd + again)
        for other in (*plain, *(other for other in mentioned if other not in funnels)):
            self.used[name] |= self.used[other]
        self.sampled[name] = any(
            token in cmd + again for token in ("$(S)", "$(MERLIN_SAMPLE_ID)", "$(MERLIN_SAMPLE_PATH)")
        )
        self.of_step[name] = []
        for row in range(self.rows):
            directory = self._directory(name, row)
            if any(task == directory or task.startswith(directory + "/") for task in self.of_step[name]):
                continue
            text, other_text = self._filled(cmd, name, row, funnels), self._filled(again, name, row, funnels)
            parents = {task for other in funnels for task in self.of_step[other]}
            for sample, below in enumerate(self.paths if self.sampled[name] else [""]):
                task = f"{directory}/{below}".rstrip("/")
                self.of_step[name].append(task)
                self.scripts[task] = self._of_sample(text, sample, below) if self.sampled[name] else text
                self.again[task] = self._of_sample(other_text, sample, below) if self.sampled[name] else other_text
                self.waits[task] = parents | {
                    above
                    for other in plain
                    for above in self._above(other, row, sample if self.sampled[name] else None)
                }

    def _above(self, name: str, row: int, sample: int | None) -> list[str]:
        directory = self._directory(name, row)
        if not self.sampled[name]:
            return [directory]
        chosen = self.paths if sample is None else [self.paths[sample]]
        return [f"{directory}/{below}".rstrip("/") for below in chosen]

    def _filled(self, cmd: str, name: str, row: int, funnels: set[str]) -> str:
        for key, (values, _) in self.spec.parameters.items():
            cmd = cmd.replace(f"$({key})", values[row]).replace(f"$({key}.label)", self._label(key, row))
            cmd = cmd.replace(f"$({key}.name)", key)
        for other in self.used:
            place = f"{ROOT}/{other}" if other in funnels else self._directory(other, row)
            cmd = cmd.replace(f"$({other}.workspace)", place)
        depth = self.paths[0].count("/") + 1 if self.paths and self.paths[0] else 0
        cmd = cmd.replace("$(MERLIN_GLOB_PATH)", "*/" * depth).replace("$(MERLIN_PATHS_ALL)", " ".join(self.paths))
        return cmd.replace("$(WORKSPACE)", self._directory(name, row))

    @staticmethod
    def _of_sample(text: str, sample: int, below: str) -> str:
        text = text.replace("$(S)", f"value{sample}").replace("$(MERLIN_SAMPLE_ID)", str(sample))
        return text.replace("$(MERLIN_SAMPLE_PATH)", below)


class Computed:
    """The same, from the plan: nothing is kept but arithmetic."""

    def __init__(self, plan: Plan, samples: int) -> None:
        self.plan, self.geometry = plan, Geometry(plan, samples)
        self.layout = Layout(ROOT, self.geometry)
        self.steps = [at for at, step in enumerate(plan.steps) if step.name not in IMPLICIT]

    def directories(self, step: int) -> list[str]:
        return [self.layout.task_dir(step, task) for task in range(self.geometry.total(step))]

    def scripts(self, step: int, task: int) -> tuple[str, str]:
        combination, sample = self.geometry.split(step, task)
        tokens, values = TaskTokens(self.layout, step), (f"value{sample}",)
        cmd, restart = (
            tokens.render(each, combination=combination, sample=sample, values=values)
            for each in (tokens.cmd, tokens.restart)
        )
        return cmd, restart

    def waits(self) -> dict[str, set[str]]:
        """Who waits for whom: a task waits for another where it may not run while only that other is not over."""
        found: dict[str, set[str]] = {each: set() for step in self.steps for each in self.directories(step)}
        for parent in self.steps:
            for task, directory in enumerate(self.directories(parent)):
                steps = self._all_over_but(parent, task)
                readiness = Readiness(self.geometry, steps)
                for child in self.steps:
                    total = self.geometry.total(child)
                    over, _ = readiness.read(Span(child, 0, total))
                    for at, name in enumerate(self.directories(child)):
                        if not over >> at & 1:
                            found[name].add(directory)
        return found

    def _all_over_but(self, step: int, task: int) -> list[StepTasks]:
        steps = [StepTasks(self.geometry.total(at)) for at in range(len(self.plan.steps))]
        for at, tasks in enumerate(steps):
            for index in range(self.geometry.total(at)):
                if (at, index) != (step, task):
                    tasks.final.add(TaskSet(first=index, width=1))
                    tasks.combination_done[self.geometry.split(at, index)[0]] += 1
        return steps


@settings(max_examples=120, deadline=None)
@given(spec=specs())
def test_what_is_computed_is_what_listing_everything_gives(spec: Spec) -> None:
    naive, computed = Naive(spec), Computed(plan_of(spec.yaml()), spec.samples)
    assert {computed.plan.steps[at].name: computed.directories(at) for at in computed.steps} == naive.of_step
    for at in computed.steps:
        for task, directory in enumerate(computed.directories(at)):
            assert computed.scripts(at, task) == (naive.scripts[directory], naive.again[directory])
    assert computed.waits() == naive.waits


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_task_index_and_its_combination_and_sample_are_one_and_the_same_at_any_size(data: st.DataObject) -> None:
    """Up to 10⁸ samples for each of many combinations, without listing any of them."""
    rows = data.draw(st.integers(1, 50))
    values = data.draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows))
    spec = Spec((("a", "echo $(A) $(S)", ()),), {"A": (tuple(map(str, values)), "A.%%")}, 2, 25)
    samples = data.draw(st.integers(1, 10**8))
    geometry = Geometry(plan_of(spec.yaml()), samples)
    combinations = len(set(values))
    assert geometry.total(1) == combinations * samples
    task = data.draw(st.integers(0, combinations * samples - 1))
    combination, sample = geometry.split(1, task)
    assert (0 <= combination < combinations, 0 <= sample < samples) == (True, True)
    assert combination * samples + sample == task
    row = geometry.row(1, combination)
    assert geometry.combination_of_row(1, row) == combination
    assert values.index(values[row]) == row
    path = Layout(ROOT, geometry).sample_path(1, sample)
    assert (
        sum(int(digit) * 25**at for at, digit in enumerate(reversed(path.split("/")))) == sample
        if path
        else samples == 1
    )
