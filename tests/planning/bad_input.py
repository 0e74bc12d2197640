"""Specifications and sample files that nobody can run, by what is wrong with them; `docs/refusals.md` has each message."""

from __future__ import annotations

import itertools
import struct
from typing import Final

_HEAD: Final = "description: {name: n, description: d}\n"
_DIGEST: Final = "a" * 64


def _one(cmd: str, rest: str = "") -> str:
    return f"{_HEAD}study: [{{name: a, description: d, run: {{cmd: {cmd}}}}}]\n{rest}\n"


def _run(keys: str, rest: str = "") -> str:
    return f"{_HEAD}study: [{{name: a, description: d, run: {{cmd: x, {keys}}}}}]\n{rest}\n"


def _steps(*steps: tuple[str, str]) -> str:
    lines = [f"- {{name: {name}, description: d, run: {{cmd: x, depends: [{depends}]}}}}" for name, depends in steps]
    return "\n".join([f"{_HEAD}study:", *lines, ""])


def _variables(text: str) -> str:
    return _one("x", f"env: {{variables: {{{text}}}}}")


SPECS: Final = {
    "a step that waits for itself": _steps(("a", "a")),
    "steps that wait for each other": _steps(("a", "b"), ("b", "c"), ("c", "a")),
    "a step that is not there": _steps(("sim", ""), ("look", "simm")),
    "two steps of one name": _steps(("a", ""), ("a", "")),
    "names that differ only by case": _steps(("sim", ""), ("Sim", "")),
    "names that share a directory": _steps(("a b", ""), ("a_b", "")),
    "a name that leaves the workspace": _steps(("..", "")),
    "a name with a slash": _steps(("a/b", "")),
    "a name that commands read as an option": _steps(("-a", "")),
    "a name of letters that no directory keeps": _steps(("日本", "")),
    "a name that is too long": _steps(("n" * 201, "")),
    "a study without steps": f"{_HEAD}study: []",
    "parameters of unequal length": _one(
        "x", "global.parameters: {A: {values: [1, 2], label: A.%%}, B: {values: [1], label: B.%%}}"
    ),
    "a parameter without values": _one("x", "global.parameters: {A: {values: [], label: A.%%}}"),
    "a table by reference from nowhere": _one("x", f"parametersFrom: {{sha256: {_DIGEST}}}"),
    "a table by reference where no operator is": _one("x", f"parametersFrom: {{configMaps: [t], sha256: {_DIGEST}}}"),
    "two tables of parameters": _one(
        "x",
        f"parametersFrom: {{configMaps: [t], sha256: {_DIGEST}}}\nglobal.parameters: {{A: {{values: [1], label: A.%%}}}}",
    ),
    "labels that share a directory": _one("echo $(P)", "global.parameters: {P: {values: [a b, a_b], label: P.%%}}"),
    "a token of ours that is not there": _one("$(MERLIN_WORKSPCE)"),
    "a misspelt variable": _one("$(N_SAMPLE)", "env: {variables: {N_SAMPLES: 1}}"),
    "the workspace of a step that is not there": _one("ls $(b.workspace)"),
    "a token of samples without samples": _one("$(MERLIN_SAMPLE_ID)"),
    "variables in a circle": _variables("A: $(B), B: $(A)"),
    "variables that unfold without end": _variables(
        ", ".join([*(f"V{at}: $(V{at + 1})$(V{at + 1})" for at in range(20)), "V20: " + "a" * 14])
    ),
    "a variable that the system fills": _variables("WORKSPACE: /x"),
    "a value with a NUL byte": _variables('A: "a\\0b"'),
    "a value that is too long": _variables("A: " + "a" * 16_385),
    "a number beyond all numbers": _variables("A: .inf"),
    "a word that YAML reads as a boolean": _variables("A: yes"),
    "a key that YAML reads as a boolean": _variables("no: 1"),
    "a negative number of retries": _run("max_retries: -1"),
    "no process at all": _run("procs: 0"),
    "more hosts than any machine has": _run("nodes: 1000001"),
    "a delay of more than a year": _run("retry_delay: 31536001"),
    "a number in quotes": _run("nodes: '2'"),
    "a walltime that is none": _run("walltime: soon"),
    "a walltime of nothing": _run("walltime: 00:00:00"),
    "a batch type that is none": _one("x", "batch: {type: slrum}"),
    "a queue that differs between samples": _run(
        "task_queue: q_$(S)", "merlin: {samples: {file: s.csv, column_labels: [S]}}"
    ),
    "a size that differs between samples": _run("procs: $(S)", "merlin: {samples: {file: s.csv, column_labels: [S]}}"),
    "an interpreter that differs between samples": _run(
        "shell: /bin/$(S)", "merlin: {samples: {file: s.csv, column_labels: [S]}}"
    ),
    "a launcher that differs between combinations": _run(
        "batch: {type: $(P)}", "global.parameters: {P: {values: [slurm, local], label: P.%%}}"
    ),
    "a size of a combination that is none": _run(
        "nodes: $(P)", "global.parameters: {P: {values: [1, x], label: P.%%}}"
    ),
    "an environment variable in a name": _one("x").replace("name: n,", "name: run-$USER,"),
    "a key that the language does not have": _run("dpends: [b]"),
    "a key that stands twice": _run("cmd: y"),
    "a tab": f"{_HEAD}study:\n\t- {{name: a}}",
    "a tag that builds objects": _one("!!python/object/apply:os.system [ls]"),
    "aliases that unfold without end": _one(
        "x",
        "user:\n"
        + "".join(f"  {b}: &{b} [{', '.join([f'*{a}'] * 20)}]\n" for a, b in itertools.pairwise("abcdefg")).replace(
            "*a", "1"
        ),
    ),
    "lists within lists without end": _one("x", "user: " + "[" * 70 + "]" * 70),
    "a file that is too large": _one("x", "#" * (4 << 20)),
    "a control character": _one('"\x01"'),
    "a number that is none": _one("x", "user: 0b_"),
    "a script that is too long": _one("x" * 262_145),
    "scripts that are too long together": _steps(("a", ""), ("b", "")).replace("cmd: x", "cmd: " + "x" * 250_000),
    "an alias that holds itself": _one("x", "user: &a {b: *a}"),
    "two documents": _one("x", f"---\n{_HEAD}"),
    "samples without a file": _one("x", "merlin: {samples: {column_labels: [A]}}"),
    "more tasks in a step than there may be": _one(
        "echo $(P) $(MERLIN_SAMPLE_ID)",
        "global.parameters: {P: {values: [1, 2, 3], label: P.%%}}\nmerlin: {samples: {count: 400000000}}",
    ),
    "columns of samples that are counted": _one("$(S)", "merlin: {samples: {count: 3, column_labels: [S]}}"),
    "samples of an unknown kind": _one("x", "merlin: {samples: {file: s.txt}}"),
    "directories of one entry": _one("x", "merlin: {samples: {file: s.csv, level_max_dirs: 1}}"),
    "a column that stands twice": _one("x", "merlin: {samples: {file: s.csv, column_labels: [A, A]}}"),
    "a column that is a parameter": _one(
        "x", "global.parameters: {A: {values: [1], label: A.%%}}\nmerlin: {samples: {file: s.csv, column_labels: [A]}}"
    ),
    "two revisions of one clone": _one(
        "x", "env: {dependencies: {git: [{name: G, path: /g, url: u, tag: t, branch: b}]}}"
    ),
    "a relative path without a submitter": _one("x", "env: {dependencies: {paths: [{name: P, path: data}]}}"),
    "a spack package": _one("x", "env: {dependencies: {spack: {name: s, package_name: p}}}"),
}
"""What to apply or run, for each fault."""


def _npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


SAMPLES: Final[dict[str, tuple[str, bytes | None]]] = {
    "no file": ("s.csv", None),
    "an empty file": ("s.csv", b""),
    "rows of unequal length": ("s.csv", b"1,2\n3\n"),
    "fewer columns than labels": ("s.csv", b"1\n2\n"),
    "lines that end as on old Macs": ("s.csv", b"1,2\r3,4\r"),
    "another encoding": ("s.csv", b"1,\xe4\n"),
    "pickled objects": ("s.npy", _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"c")),
    "an array that was cut short": (
        "s.npy",
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}", b"\0" * 8),
    ),
    "an array of three dimensions": (
        "s.npy",
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2, 2)}", b"\0" * 64),
    ),
    "no array": ("s.npy", b"1,2\n"),
    "columns of different types": (
        "s.npy",
        _npy("{'descr': [('a', '<f8'), ('b', '<i4')], 'fortran_order': False, 'shape': (1,)}", b"\0" * 12),
    ),
    "a header that nests without end": ("s.npy", _npy("-" * 50_000 + "1")),
    "a row without end": ("s.csv", b"1,2\n" + b"x" * 10_000_000),
    "a very wide table": ("s.csv", b"1," * 600_000 + b"1\n"),
    "a very wide array": (
        "s.npy",
        _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 10000000)}", b"\0" * 8),
    ),
    "texts without end in an array": (
        "s.npy",
        _npy("{'descr': '<U1000000000', 'fortran_order': False, 'shape': (2, 2)}", b"\0" * 8),
    ),
}
"""Name and content of a table that should have two columns, for each fault."""
