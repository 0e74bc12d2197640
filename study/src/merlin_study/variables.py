"""Variables: names for texts, expanded once for the whole study.

Order and reach are Merlin's: variables, then labels, then the paths of dependencies; ``vars`` (``merlin run --vars``) replaces
values; a name answers as it is written and in upper case. A value may use any other name, a circle is a fault. What differs
between agents or tasks (``MERLIN_INFO``, parameters, sample columns) stays a token.

A value that holds ``~`` or ``$NAME`` was written for an environment that nobody has here. In scripts its token stays too, and
`Variables.late` holds the text for the agent, who has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from merlin_study import environment
from merlin_study.errors import Fault
from merlin_study.outcome import EXIT_CODES
from merlin_study.scalars import spell
from merlin_study.spec import SPECROOT, StudySpec
from merlin_study.template import Lookup, Template, TooLongError, tokens

OUTPUT_PATH: Final = "OUTPUT_PATH"
MAX_EXPANDED: Final = 1_000_000
"""Characters of one text once its variables are in it: a few short values that use each other could fill any memory."""
MAX_DEPTH: Final = 100
"""Variables that use each other in a row."""


class Variables:
    """The texts that ``$(NAME)`` stands for, and an expander of other texts. ``faults`` tells what is wrong with them."""

    def __init__(self, spec: StudySpec, *, stamp: str, base: str, spec_root: str | None) -> None:
        """Collect and resolve all names of a study.

        Args:
            spec: the study as it was parsed.
            stamp: the value of ``$(MERLIN_TIMESTAMP)``, YYYYMMDD-HHMMSS.
            base: the name that the provenance files in ``merlin_info`` begin with.
            spec_root: the directory of the specification's file, where there is one.
        """
        self.faults: list[Fault] = []
        given = {**spec.env.variables, **spec.env.labels, **spec.vars}
        paths = _dependencies(spec)
        self.names = frozenset((*given, *paths))
        self._raw = _special(spec, stamp=stamp, base=base, spec_root=spec_root)
        self._paths = _places(spec)
        for name, value in given.items():
            self._raw[name] = self._raw[name.upper()] = spell(value)
        self._raw |= paths
        self._texts: dict[str, str] = {}
        self.output_path = self._resolve(OUTPUT_PATH, ()) if OUTPUT_PATH in given else ""
        """Where the user wants the workspace to lie; empty where they did not say."""
        if spec.dialect == "Maestro":
            self._raw[OUTPUT_PATH] = "$(MERLIN_WORKSPACE)"
            self._texts.clear()
        for name in self._raw:
            self._resolve(name, ())
        self._late = {name for name, text in self._texts.items() if environment.refers(text)}

    def _resolve(self, name: str, above: tuple[str, ...]) -> str:
        if name in self._texts:
            return self._texts[name]
        path = self._paths.get(name, f"spec.env.variables.{name}")
        if name in above:
            circle = " -> ".join((*above[above.index(name) :], name))
            self.faults.append(Fault(path, f"uses itself ({circle}); remove one reference"))
            return self._texts.setdefault(name, "")
        if len(above) > MAX_DEPTH:
            self.faults.append(Fault(path, f"is used through more than {MAX_DEPTH} other variables; use it directly"))
            return self._texts.setdefault(name, "")

        def lookup(token: str) -> str | None:
            return self._resolve(token, (*above, name)) if token in self._raw else None

        return self._texts.setdefault(name, self._render(self._raw[name], lookup, path))

    def _render(self, text: str, lookup: Lookup, path: str) -> str:
        try:
            return Template.parse(text).render(lookup, limit=MAX_EXPANDED)
        except TooLongError:
            self.faults.append(
                Fault(
                    path, f"expected at most {MAX_EXPANDED} characters once variables are replaced; put it into a file"
                )
            )
            return ""

    def __contains__(self, name: object) -> bool:
        return name in self._texts

    def expand(self, text: str, path: str = "spec") -> str:
        """Return ``text`` with every variable, label and study-wide token replaced, literally and once.

        ``path`` is where it stands; what grows beyond all bounds becomes a fault there, and an empty text.
        """
        return self._render(text, self._texts.get, path)

    def expand_script(self, text: str, path: str = "spec") -> str:
        """As `expand`, but keep the tokens whose text only an agent's environment completes (see `late`)."""
        return self._render(text, lambda name: None if name in self._late else self._texts.get(name), path)

    def late(self, texts: Iterable[str]) -> dict[str, str]:
        """Return what an agent has to replace in texts that `expand_script` gave: names and values, sorted."""
        return {
            name: self._texts[name] for name in sorted({name for text in texts for name in tokens(text)} & self._late)
        }


def _special(spec: StudySpec, *, stamp: str, base: str, spec_root: str | None) -> dict[str, str]:
    columns = spec.merlin.samples.column_labels if spec.merlin.samples is not None else ()
    return {
        **{name: str(code) for name, code in EXIT_CODES.items()},
        "MERLIN_TIMESTAMP": stamp,
        "MERLIN_SAMPLE_VECTOR": " ".join(f"$({column})" for column in columns),
        "MERLIN_SAMPLE_NAMES": " ".join(columns),
        "MERLIN_SPEC_ORIGINAL_TEMPLATE": f"$(MERLIN_INFO)/{base}.orig.yaml",
        "MERLIN_SPEC_EXECUTED_RUN": f"$(MERLIN_INFO)/{base}.partial.yaml",
        "MERLIN_SPEC_ARCHIVED_COPY": f"$(MERLIN_INFO)/{base}.expanded.yaml",
        **({} if spec_root is None else {SPECROOT: spec_root}),
    }


def url_name(clone: str) -> str:
    """Return the name by which a repository's address is a text like others; nothing but its own script uses it."""
    return f"{clone}.url"


def _dependencies(spec: StudySpec) -> dict[str, str]:
    """Names and texts of the tokens that dependencies define: a path, or the directory of a clone."""
    needed = spec.env.dependencies
    return {
        **{path.name: path.path for path in needed.paths},
        **{clone.name: f"{clone.path.rstrip('/')}/{clone.name}" for clone in needed.git},
        **{url_name(clone.name): clone.url for clone in needed.git},
    }


def _places(spec: StudySpec) -> dict[str, str]:
    """Where names stand that are no variables."""
    needed, path = spec.env.dependencies, "spec.env.dependencies"
    return {
        **{name: f"spec.env.labels.{name}" for name in spec.env.labels},
        **{each.name: f"{path}.paths[{at}].path" for at, each in enumerate(needed.paths)},
        **{each.name: f"{path}.git[{at}].path" for at, each in enumerate(needed.git)},
        **{url_name(each.name): f"{path}.git[{at}].url" for at, each in enumerate(needed.git)},
    }
