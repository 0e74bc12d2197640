"""The file that a user hands over: an upstream specification, or a Study manifest.

Both come down to the same blocks, so that everything after this module sees one thing. Upstream's habits stand: unknown
keys are dropped with a warning, and ``--vars`` may only name what the text mentions, so that a misspelt name is caught.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from merlin_cli import needs
from merlin_cli.exits import CliError, Exit
from merlin_study import environment, loader, scalars, workers
from merlin_study.errors import Fault, SpecError
from merlin_study.parse import parse_spec
from merlin_study.spec import StudySpec

API_VERSION: Final = "merlin.dev/v1alpha1"
KIND: Final = "Study"
OUTPUT_PATH: Final = "OUTPUT_PATH"
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class Source:
    """A file as it was read.

    Attributes:
        path: The file, absolute.
        text: Its text.
        raw: The blocks, as plain data.
        metadata: The manifest's metadata; empty for an upstream specification.
    """

    path: Path
    text: str
    raw: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> str:
        """What ``$(SPECROOT)`` stands for."""
        return str(self.path.parent)


def read(file: str) -> Source:
    """Read a file of either kind.

    Raises:
        CliError: there is no such file, or it cannot be read.
        SpecError: it is no YAML, or no study.
    """
    path = Path(os.path.abspath(file))  # noqa: PTH100 symbolic links stay: SPECROOT is the directory as the user names it
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise CliError(Exit.USAGE, f"there is no file {file}; give the path of a specification") from None
    except OSError as error:
        raise CliError(Exit.USAGE, f"can't read {file}: {error.strerror}") from error
    raw = loader.load_yaml(text, source=file)
    if not isinstance(raw, Mapping):
        expected = "expected a mapping with the blocks description and study"
        raise SpecError([Fault(file, f"{expected}, found {scalars.describe(raw)}")])
    decoded = text.decode("utf-8-sig")
    if "kind" not in raw and "apiVersion" not in raw:
        return Source(path, decoded, raw)
    return _manifest(path, decoded, raw)


def _manifest(path: Path, text: str, raw: Mapping[str, Any]) -> Source:
    """Take a manifest apart."""
    faults = [
        Fault(key, f"expected {expected!r}, found {scalars.describe(raw.get(key))}")
        for key, expected in (("apiVersion", API_VERSION), ("kind", KIND))
        if raw.get(key) != expected
    ]
    metadata, spec = raw.get("metadata") or {}, raw.get("spec")
    if not isinstance(metadata, Mapping):
        faults.append(Fault("metadata", f"expected a mapping, found {scalars.describe(metadata)}"))
    elif not isinstance(metadata.get("name", ""), str):
        faults.append(Fault("metadata.name", f"expected a string, found {scalars.describe(metadata['name'])}"))
    if not isinstance(spec, Mapping):
        faults.append(Fault("spec", f"expected a mapping, found {scalars.describe(spec)}"))
    if faults:
        raise SpecError(faults)
    assert isinstance(spec, Mapping)
    return Source(path, text, spec, metadata)


def replaced(source: Source, block: str, value: Any) -> Source:
    """Return a file with another block of this name: what the loader gave is shared and must not be changed."""
    return dataclasses.replace(source, raw={**source.raw, block: value})


def parse(
    source: Source,
    overrides: Mapping[str, str | int],
    *,
    output_path: str | None = None,
    quiet: bool = False,
    elsewhere: bool = False,
) -> StudySpec:
    """Parse the blocks, with the command line's wishes in them; warnings go to standard error.

    ``~`` and ``$NAME`` become what they stand for on this machine, since upstream replaces them when a study is submitted.

    Args:
        source: What `read` gave.
        overrides: What `variables` gave.
        output_path: Where the workspace should lie, in place of the file's OUTPUT_PATH.
        quiet: Whether the warnings have been told already.
        elsewhere: Whether the study is submitted by somebody else, so that this environment means nothing.

    Raises:
        CliError: an override names what the file does not mention.
        SpecError: the study is malformed.
    """
    raw = _overridden(source, overrides, output_path)
    raw = here(raw, elsewhere=elsewhere)
    if not elsewhere:
        raw = needs.rooted(raw, Path.cwd())
    spec, warnings = parse_spec(raw, unknown="warn")
    if spec.merlin.resources.workers:
        warnings = [*warnings, *workers.of_spec(spec).warnings]
    for warning in () if quiet else warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return spec


def here(raw: Any, *, elsewhere: bool) -> Any:
    """Return plain data with ``~`` and ``$NAME`` as they are on this machine, unless it is meant for ``elsewhere``."""
    return raw if elsewhere else environment.expand_tree(raw, os.environ, os.path.expanduser)


def _overridden(source: Source, overrides: Mapping[str, str | int], output_path: str | None) -> Mapping[str, Any]:
    """Put overrides where the parser looks for them; what the loader gave is shared and must not be changed."""
    env = source.raw.get("env")
    variables = env.get("variables") if isinstance(env, Mapping) else None
    labels = env.get("labels") if isinstance(env, Mapping) else None
    known = {**(variables if isinstance(variables, Mapping) else {}), **(labels if isinstance(labels, Mapping) else {})}
    added: dict[str, Any] = {}
    replaced: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in source.text:
            raise CliError(Exit.USAGE, f"--vars {name}={value}: {source.path.name} nowhere mentions {name}")
        (replaced if name in known else added)[name] = value
    if output_path is not None:
        replaced.pop(OUTPUT_PATH, None)
        added[OUTPUT_PATH] = output_path
    raw = dict(source.raw)
    if added:
        raw["env"] = {**(env or {}), "variables": {**(variables or {}), **added}}
    if replaced:
        raw["vars"] = {**(source.raw.get("vars") or {}), **replaced}
    return raw


def variables(assignments: Sequence[str]) -> dict[str, str | int]:
    """Read ``--vars``: what looks like an integer becomes one, as upstream has it.

    Raises:
        CliError: an assignment is malformed.
    """
    found: dict[str, str | int] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or "=" in value or not name:
            raise CliError(Exit.USAGE, f"--vars {assignment}: expected NAME=VALUE with exactly one '='")
        if "$" in name:
            raise CliError(Exit.USAGE, f"--vars {assignment}: a name holds no '$'; write it without $( and )")
        found[name] = int(value) if _INTEGER.fullmatch(value) else value
    return found
