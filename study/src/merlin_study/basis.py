"""What is known of a study before its steps are looked at: its names, its tables, its files; and where faults are noted.

Every part of the compiler is given one `Basis` and adds to its faults, so that one submission shows a user all mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final

from merlin_study import checks, environment
from merlin_study import table as tables
from merlin_study.errors import INVALID_SPEC, NOT_YET_SUPPORTED, UNDEFINED_TOKEN, Fault, did_you_mean
from merlin_study.outcome import EXIT_CODES
from merlin_study.plan import Parameter, SampleTable
from merlin_study.sources import TABLE, UNREAD, planned_files, table_fault
from merlin_study.spec import SPECROOT, StudySpec, TableSource
from merlin_study.table import Table
from merlin_study.template import tokens
from merlin_study.variables import Variables
from merlin_study.workspace import IN_PARAMETERS

COUNT_TOKENS: Final = frozenset({"MERLIN_GLOB_PATH", "MERLIN_PATHS_ALL"})
"""What can be filled in, in any step, once the number of samples is known."""
SAMPLE_TOKENS: Final = frozenset({"MERLIN_SAMPLE_ID", "MERLIN_SAMPLE_PATH", *COUNT_TOKENS})
STUDY_TOKENS: Final = frozenset({"MERLIN_WORKSPACE", "MERLIN_INFO", "OUTPUT_PATH"})
TASK_TOKENS: Final = frozenset({"WORKSPACE", *STUDY_TOKENS, *SAMPLE_TOKENS})
"""What an agent fills in for each task."""


class Basis:
    """A study's names and tables, and all faults found so far."""

    def __init__(self, spec: StudySpec, *, stamp: str, base: str, spec_root: str | None, table: Table | None) -> None:
        """Collect them; the arguments are those of `merlin_study.compiler.compile_study`."""
        self.spec, self.stamp, self.base = spec, stamp, base
        spec_root = _told_root(spec) or spec_root
        elsewhere = spec.model_copy(update={"vars": _without(spec.vars, SPECROOT)}) if spec_root else spec
        self.variables = Variables(elsewhere, stamp=stamp, base=base, spec_root=None)
        """For what agents fill in the rest of: there ``$(SPECROOT)`` stays, since the folder may be gone one day."""
        self.names = Variables(spec, stamp=stamp, base=base, spec_root=spec_root)
        """For what is decided here."""
        self.spec_root = spec_root or ""
        self.faults: list[Fault] = self.variables.faults
        self.files, faults = planned_files(spec.files)
        self.faults += faults
        if spec.parameters_from is not None:
            table = self._by_reference(spec.parameters_from, table)
        self.table = tables.of_spec(spec) if table is None else table
        samples = spec.merlin.samples
        self.columns = tuple(map(self.variables.expand, samples.column_labels)) if samples is not None else ()
        """Labels of the sample table's columns."""
        if table is not None:
            self.faults += tables.faults(table, "global.parameters")
        self.faults += checks.column_faults(self.columns, self.table)

    def _by_reference(self, source: TableSource, table: Table | None) -> Table | None:
        """Return the table that a specification refers to: read for us where it lies elsewhere, or with the reference."""
        wrong = table_fault(source, beside=bool(self.spec.global_parameters))
        if wrong is None and table is None and source.data is not None:
            try:
                return tables.of_inline(source)
            except tables.TableError as error:
                wrong = Fault(f"{TABLE}.data", str(error))
        self.add(wrong or (UNREAD if table is None else None))
        return table

    @property
    def broken(self) -> bool:
        """Whether there are faults, beside what is not built yet."""
        return any(fault.reason != NOT_YET_SUPPORTED for fault in self.faults)

    def add(self, fault: Fault | None) -> None:
        """Note what a check found, if anything."""
        if fault is not None:
            self.faults.append(fault)

    def fault(self, path: str, message: str, reason: str = INVALID_SPEC) -> None:
        """Note a fault."""
        self.faults.append(Fault(path, message, reason))

    def known_here(self, text: str, path: str) -> None:
        """Refuse a text that is needed before an agent with an environment has seen it."""
        if environment.refers(text):
            self.fault(
                path,
                f"{text!r} holds an environment variable or '~', which only `merlin run` replaces; write the text out",
            )

    @property
    def has_samples(self) -> bool:
        """Whether the study has a table of samples."""
        return self.spec.merlin.samples is not None

    def is_of_samples(self, token: str) -> bool:
        """Whether a token differs between samples."""
        lowered = token.lower()
        return lowered in ("merlin_sample_id", "merlin_sample_path") or lowered in (c.lower() for c in self.columns)

    def judge(self, token: str, path: str, steps: Mapping[str, object]) -> None:
        """Refuse a token that looks like one of ours; any other is the shell's. ``steps`` are those that come before."""
        known = [*self.variables.names, *sorted(self.table), *self.columns, *TASK_TOKENS, *EXIT_CODES]
        if token == SPECROOT:
            if not self.files and not self.spec_root:
                cure = "name the files in spec.files, or submit the study with `merlin run`, which brings them"
                self.fault(path, f"$({token}): no file came with the study; {cure}", UNDEFINED_TOKEN)
        elif " " in token or "\t" in token:  # a command of the shell's that ends like one of ours
            return
        elif token.endswith(".workspace"):
            hint = did_you_mean(token, [f"{name}.workspace" for name in steps])
            self.fault(path, f"$({token}): no such step comes before this one{hint}", UNDEFINED_TOKEN)
        elif token.startswith("MERLIN_") or (token.isupper() and did_you_mean(token, known)):
            self.fault(path, f"$({token}) is not defined{did_you_mean(token, known)}", UNDEFINED_TOKEN)

    @cached_property
    def token_columns(self) -> Mapping[str, Sequence[str]]:
        """What each token of a parameter becomes, row by row: ``X`` its values, ``X.label`` its labels, ``X.name`` its name."""
        columns: dict[str, Sequence[str]] = {}
        for each in self.parameters:
            columns |= {each.key: each.values, f"{each.key}.label": each.labels}
            columns[f"{each.key}.name"] = (each.name or each.key,) * len(each.values)
        return columns

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameter table with its variables expanded, sorted by key."""
        result = []
        for key in sorted(self.table):
            column = self.table[key]
            values = tuple(map(self.names.expand, column.values))
            if isinstance(column.label, str):
                label = self.names.expand(column.label)
                labels = tuple(label.replace("%%", value) for value in values)
            else:
                labels = tuple(map(self.names.expand, column.label))
            for token in dict.fromkeys(token for value in values if "$(" in value for token in tokens(value)):
                self._judge_value(token, f"spec.global.parameters.{key}")
            result.append(Parameter(key=key, values=values, labels=labels, name=self.names.expand(column.name)))
        return tuple(result)

    def _judge_value(self, token: str, path: str) -> None:
        """Refuse a token in a parameter's value that nobody would fill in there."""
        if token == SPECROOT:
            message = f"a value can't hold $({SPECROOT}), which is another folder on each site; write it in the script"
            self.fault(path, message)
        elif token in self.table or self.is_of_samples(token) or token in COUNT_TOKENS - IN_PARAMETERS:
            message = f"a value can't hold $({token}), which is itself filled in for each task; write it in the script"
            self.fault(path, message)
        elif token not in IN_PARAMETERS:
            self.judge(token, path, {})

    def samples(self, directory: str) -> SampleTable | None:
        """Return where the samples come from; ``directory`` is where a generator runs."""
        table = self.spec.merlin.samples
        if table is None:
            return None
        path = "spec.merlin.samples"
        if table.file is None and table.count is None:
            self.fault(f"{path}.file", "is required: the .csv, .tab or .npy file that holds the samples")
        if table.level_max_dirs < 2:
            self.fault(
                f"{path}.level_max_dirs", "expected at least 2 directories a level, found 1; they would nest for ever"
            )
        if table.count is not None:
            return SampleTable(
                generate=None, file="", columns=(), level_max_dirs=table.level_max_dirs, count=table.count
            )
        file = self.variables.expand(table.file or "", f"{path}.file")
        if not file.endswith((".csv", ".tab", ".npy")):
            self.fault(f"{path}.file", f"expected a name that ends in .csv, .tab or .npy, found {file!r}")
        generate = self.variables.expand(table.generate.cmd) if table.generate is not None else None
        for text, where in ((generate or "", f"{path}.generate.cmd"), (file, f"{path}.file")):
            for token in tokens(text):
                if token not in STUDY_TOKENS:
                    self.judge(token, where, {})
        return SampleTable(
            generate=generate, file=file, columns=self.columns, level_max_dirs=table.level_max_dirs, directory=directory
        )


def _told_root(spec: StudySpec) -> str:
    """Return the folder of the specification where ``vars`` tells it; empty where only an environment knows."""
    root = str(spec.vars.get(SPECROOT, ""))
    return "" if environment.refers(root) else root


def _without(given: Mapping[str, str | float | bool], name: str) -> dict[str, str | float | bool]:
    return {key: value for key, value in given.items() if key != name}
