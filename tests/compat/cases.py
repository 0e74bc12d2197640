"""What is run with both tools, and where their results may differ, each with the reason."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.compat.running import Case
from tests.compat.trees import Difference, matches

CORNERS: Final = (
    *("names", "variables", "environment", "parameters", "funnels", "samples_and_parameters", "one_sample", "deep"),
    *("numbers", "in_a_comment", "anchors", "exits", "restarts", "shells", "tokens", "text", "diamond", "queues"),
    *("maestro", "hard_fail", "stop_workers", "exhausted"),
)
"""Specifications of our own, each for one corner of the language."""

RUN: Final = (
    Case("workflows/restart_delay/restart_delay.yaml"),  # first: ours waits for the delays, upstream's --local does not
    Case("workflows/hello/hello.yaml"),
    Case("workflows/hello/hello_samples.yaml"),
    Case("workflows/simple_chain/simple_chain.yaml"),
    Case("workflows/feature_demo/feature_demo.yaml"),
    Case("workflows/restart/restart.yaml"),
    Case("workflows/null_spec/null_spec.yaml", options=("--vars", "TIME=0")),
    *(Case(f"specs/{name}.yaml") for name in CORNERS),
    Case("dev_workflows/multiple_workers.yaml"),
    Case("dev_workflows/restart_shell.yaml"),
    Case("dev_workflows/minimum_format.yaml"),
)
"""Examples that need nothing but bash, python3 and numpy (and a stand-in for spellbook), and our own."""

DRY: Final = (
    *(Case(f"workflows/{name}.yaml", dry=True) for name in (
        "hello/hello",
        "hello/hello_samples",
        "simple_chain/simple_chain",
        "feature_demo/feature_demo",
        "remote_feature_demo/remote_feature_demo",
        "restart/restart",
        "restart_delay/restart_delay",
        "null_spec/null_spec",
        "null_spec/null_chain",
        "flux/flux_local",
        "flux/flux_par",
        "flux/flux_par_restart",
        "flux/paper",
        "lsf/lsf_par",
        "lsf/lsf_par_srun",
        "slurm/slurm_par",
        "slurm/slurm_par_restart",
        "openfoam_wf/openfoam_wf_docker_template",
        "openfoam_wf_no_docker/openfoam_wf_no_docker_template",
        "openfoam_wf_singularity/openfoam_wf_singularity_template",
        "optimization/optimization_basic",
    )),
    Case("workflows/iterative_demo/iterative_demo.yaml", dry=True, options=("--vars", "PYTHON=python3")),
    Case("workflows/hpc_demo/hpc_demo.yaml", dry=True, options=("--vars", "PYTHON=python3")),
)  # fmt: skip
"""Every example that is a whole specification."""

BLANK: Final = tuple(
    Case(f"workflows/{name}.yaml", dry=True)
    for name in (
        "hello/my_hello",
        "openfoam_wf/openfoam_wf",
        "openfoam_wf_no_docker/openfoam_wf_no_docker",
        "openfoam_wf_singularity/openfoam_wf_singularity",
    )
)
"""Tutorials whose reader fills in the blanks; as they are, no tool takes them."""


@dataclass(frozen=True)
class Allowed:
    """A difference that is meant.

    Attributes:
        reason: Why.
        path: Pattern of the path.
        theirs: Pattern of upstream's side; None: there is nothing.
        ours: Pattern of our side; None: there is nothing.
        alike: What is left of both sides that is the same; None: nothing.
        cases: Whose difference it is; empty for every one that has it. A named case must have it.
    """

    reason: str
    path: str
    theirs: str | None = ".*"
    ours: str | None = ".*"
    alike: Callable[[str], object] | None = None
    cases: tuple[str, ...] = ()

    def covers(self, case: Case, found: Difference) -> bool:
        """Whether this is the difference that is meant."""
        return (
            (not self.cases or case.id in self.cases)
            and matches(found.path, self.path)
            and _fits(found.theirs, self.theirs)
            and _fits(found.ours, self.ours)
            and (self.alike is None or self.alike(found.theirs or "") == self.alike(found.ours or ""))
        )


def _fits(text: str | None, pattern: str | None) -> bool:
    if text is None or pattern is None:
        return text is None and pattern is None
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def _listed(text: str) -> list[str]:
    return [line for line in text.splitlines() if line not in ("MERLIN_STATUS.json", "status.lock")]


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


ALLOWED: Final = (
    Allowed("outcomes are in merlin_info/outcomes, not in a file for each task", "*MERLIN_STATUS.json", ours=None),
    Allowed("no task's status is written by two at a time", "*status.lock", ours=None),
    *(
        Allowed("how a run is found, claimed and told, for `merlin status` and `merlin restart`", path, theirs=None)
        for path in (
            "merlin_info/plan.json",
            "merlin_info/workspace.json",
            "merlin_info/agents/*",
            "merlin_info/outcome.json",
            "merlin_info/outcomes/*",
            "merlin_info/sample_paths.txt",
            "merlin_info/specroot/*",
        )
    ),
    Allowed(
        "samples are made by this script as by any other, so it names its shell",
        "merlin_info/cmd.sh",
        ours=r"#!/bin/sh\n\n.*",
    ),
    Allowed("a script's lines end as its author ended them; upstream's dumper trims some", "*.sh", alike=_trimmed),
    Allowed(
        "the step lists a directory, in which upstream's status files lie",
        "step2/*/*.out",
        alike=_listed,
        cases=("simple_chain",),
    ),
    Allowed(
        "the step writes down what time it is",
        "*/timings.txt",
        theirs=r"\d\d:\d\d:\d\d [AP]M",
        ours=r"\d\d:\d\d:\d\d [AP]M",
        cases=("restart_delay",),
    ),
    Allowed(
        "an exit code is replaced in the file as in the script",
        "merlin_info/*.expanded.yaml:study*:run:cmd",
        theirs=r'"exit \$\(MERLIN_STOP_WORKERS\)"',
        ours='"exit 105"',
        cases=("remote_feature_demo-dry", "flux_par-dry", "slurm_par-dry", "stop_workers"),
    ),
    Allowed(
        "a variable keeps its text; upstream's file has the list that YAML makes of it without its quotes",
        "merlin_info/optimization_basic.*.yaml:env:variables:BOUNDS_X",
        theirs=r"\[.*\]",
        ours=r'"\[.*\]"',
        cases=("optimization_basic-dry",),
    ),
    Allowed("a restart script is written when it runs", "*.restart.sh", ours=None, cases=("restarts",)),
    Allowed(
        "the environment is replaced where the file is read, so that this file means the same elsewhere",
        "merlin_info/environment.partial.yaml:study*",
        theirs=r'"\$COMPAT_WORD"',
        ours='"from outside"',
        cases=("environment",),
    ),
    Allowed(
        "a quoted text stays a text; upstream's file loses the quotes",
        "merlin_info/variables.*.yaml:env:variables:QUOTED",
        theirs="8",
        ours='"010"',
        cases=("variables",),
    ),
    Allowed(
        "a variable is found by its name as written too; upstream's file has only those in upper case, its scripts have all",
        "merlin_info/variables.*.yaml:*",
        theirs=r".*\$\((lower|Mixed)\).*",
        cases=("variables",),
    ),
)
