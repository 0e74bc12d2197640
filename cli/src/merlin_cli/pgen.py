"""``--pgen FILE --pargs KEY:VALUE``: parameters from a Python function of the user's, run here and never in a cluster.

The file defines ``get_custom_generator(env, **kwargs)`` and returns a `ParameterGenerator`. Generators are written against
Maestro and import it from there; where Maestro is not installed, a stand-in of ours answers to the same name while the file
runs. What comes back is read by its attributes ``parameters`` and ``labels``, whichever of the two it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from merlin_cli.exits import CliError, Exit
from merlin_study.table import Column, Table
from merlin_study.template import Template

FUNCTION: Final = "get_custom_generator"
_STAND_IN: Final = "maestrowf"


class ParameterGenerator:
    """Collects the columns of the parameter table, as Maestro's class of this name does.

    Attributes:
        parameters: The values of each parameter.
        labels: The label of each, with ``%%`` for the value, or a list with one for each value.
        names: What each is called in words.
    """

    def __init__(self, token: str = "$", ltoken: str = "%%") -> None:  # noqa: S107 no password: the sign of a token
        self.token, self.label_token = token, ltoken
        self.parameters: dict[str, list[Any]] = {}
        self.labels: dict[str, str | list[str]] = {}
        self.names: dict[str, str] = {}
        self.length = 0

    def add_parameter(
        self, key: str, values: Sequence[Any], label: str | Sequence[str] | None = None, name: str | None = None
    ) -> None:
        """Add a column; all columns have one length.

        Raises:
            ValueError: the lengths differ, or the key was added before.
        """
        column = list(values)
        if key in self.parameters:
            raise ValueError(f"parameter {key} was added before; give each key once")
        if self.parameters and len(column) != self.length:
            raise ValueError(f"parameter {key} has {len(column)} values, those before have {self.length}")
        if label is not None and not isinstance(label, str) and len(label) != len(column):
            raise ValueError(f"parameter {key} has {len(column)} values and {len(label)} labels")
        self.parameters[key], self.length = column, len(column)
        if label is None:
            self.labels[key] = f"{key}.{self.label_token}"
        else:
            self.labels[key] = label if isinstance(label, str) else list(label)
        self.names[key] = key if name is None else name


class _Nowhere:
    """A path that nobody knows yet: whoever uses it is told so."""

    def _told(self, *_: object) -> Any:
        raise CliError(
            Exit.REFUSED,
            "--pgen: the generator reads OUTPUT_PATH, which is not known before an agent takes the study; "
            "make OUTPUT_PATH absolute in env.variables, or run with --local",
        )

    __str__ = __fspath__ = __format__ = __add__ = __radd__ = __truediv__ = _told


@dataclass(frozen=True)
class Variable:
    """One variable of the study, as ``env.find`` gives it."""

    name: str
    value: Any

    def __str__(self) -> str:
        return f"$({self.name})"

    def __fspath__(self) -> str:
        path: str = os.fspath(self.value)
        return path

    def get_var(self) -> str:
        """Return its token."""
        return str(self)


@dataclass(frozen=True)
class Dependency:
    """A path that the study depends on, or the directory of a clone, as ``env.find`` gives it."""

    name: str
    path: str


class Environment:
    """What a generator sees of the study: its variables, expanded, and where its dependencies are."""

    def __init__(self, variables: Mapping[str, Any], dependencies: Mapping[str, str], *, maestro: bool) -> None:
        """Take them; a variable of None has a value that nobody knows yet. ``maestro``: the study is one of Maestro's."""
        self.maestro = maestro
        self._variables = {
            name: Variable(name, _Nowhere() if value is None else value) for name, value in variables.items()
        }
        self._dependencies = {name: Dependency(name, path) for name, path in dependencies.items()}

    def find(self, key: str) -> Variable | Dependency | None:
        """Return a variable or a dependency, or None."""
        return self._dependencies.get(key) or self._variables.get(key)

    def apply_environment(self, item: str) -> str:
        """Return a text with the variables in it replaced."""
        return Template.parse(item).render(
            lambda name: str(self._variables[name].value) if name in self._variables else None
        )

    def keywords(self) -> dict[str, Any]:
        """Return what Maestro adds to ``--pargs``, in its own types: a path, and a variable."""
        if not self.maestro:
            return {}
        return {"OUTPUT_PATH": self._variables["OUTPUT_PATH"].value, "SPECROOT": self._variables["SPECROOT"]}


def arguments(given: Sequence[str]) -> dict[str, str]:
    """Read ``--pargs``: each is split at its first colon.

    Raises:
        CliError: one has none.
    """
    found: dict[str, str] = {}
    for each in given:
        key, colon, value = each.partition(":")
        if not colon or not key.isidentifier():
            raise CliError(
                Exit.USAGE, f"--pargs {each}: expected KEY:VALUE, where KEY is a Python name; for instance --pargs N:10"
            )
        found[key] = value
    return found


def generate(file: str, given: Sequence[str], env: Environment) -> Table:
    """Run a generator and return its parameters.

    Args:
        file: The generator's file.
        given: What ``--pargs`` said, each once.
        env: What it sees of the study.

    Raises:
        CliError: there is no such file, it fails, or it returns something else; the message says what to mend.
    """
    kwargs = {**arguments(given), **env.keywords()}
    path = Path(file)
    if not path.is_file():
        raise CliError(Exit.USAGE, f"--pgen {file}: there is no such file; give the path of a Python file")
    with _maestro(), _told(file):
        function = runpy.run_path(str(path), run_name=path.stem).get(FUNCTION)
        if not callable(function):
            raise CliError(
                Exit.REFUSED, f"--pgen {file}: expected a function {FUNCTION}(env, **kwargs), found none; define it"
            )
        made = function(env, **kwargs)
    return _table(file, made, named=env.maestro)


@contextlib.contextmanager
def _told(file: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a sentence with the line at fault."""
    try:
        yield
    except CliError:
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(Path(file))]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        place = f"{file}:{line}" if line else file
        cure = "mend it there, and see --pargs for what it is given"
        raise CliError(
            Exit.REFUSED, f"--pgen {place}: the generator failed: {type(error).__name__}: {error}; {cure}"
        ) from error


@contextlib.contextmanager
def _maestro() -> Iterator[None]:
    """Let ``maestrowf.datastructures.core`` be imported, also where Maestro is not installed."""
    if _STAND_IN in sys.modules or importlib.util.find_spec(_STAND_IN) is not None:
        yield
        return
    core = types.ModuleType(f"{_STAND_IN}.datastructures.core")
    core.ParameterGenerator = ParameterGenerator  # type: ignore[attr-defined]
    datastructures = types.ModuleType(f"{_STAND_IN}.datastructures")
    datastructures.core = core  # type: ignore[attr-defined]
    top = types.ModuleType(_STAND_IN)
    top.datastructures = datastructures  # type: ignore[attr-defined]
    made = {module.__name__: module for module in (top, datastructures, core)}
    for module in (top, datastructures):
        module.__path__ = []
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


def _table(file: str, made: Any, *, named: bool) -> Table:
    parameters, labels = getattr(made, "parameters", None), getattr(made, "labels", None)
    if not isinstance(parameters, Mapping) or not isinstance(labels, Mapping):
        found = type(made).__name__
        raise CliError(
            Exit.REFUSED, f"--pgen {file}: expected {FUNCTION} to return a ParameterGenerator, found {found}"
        )
    if not parameters:
        raise CliError(
            Exit.REFUSED, f"--pgen {file}: the generator added no parameter; call add_parameter, and check --pargs"
        )
    names = {key: str(name) for key, name in getattr(made, "names", {}).items() if name not in (None, key)}
    if names and not named:
        for key, name in names.items():
            print(
                f"warning: --pgen {file}: $({key}.name) stays {key}, as in Merlin; with --maestro it would be {name!r}",
                file=sys.stderr,
            )
        names = {}
    sign = getattr(made, "label_token", "%%")
    return {
        str(key): Column(tuple(map(_text, values)), _label(labels.get(key, f"{key}.%%"), sign), names.get(key, ""))
        for key, values in parameters.items()
    }


def _label(label: Any, sign: str) -> str | tuple[str, ...]:
    return label.replace(sign, "%%") if isinstance(label, str) else tuple(map(str, label))


def _text(value: Any) -> str:
    """A value as upstream spells it; one of NumPy's as the number that it holds."""
    return str(value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value)
