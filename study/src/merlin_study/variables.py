"""Variables: names for texts, expanded once for the whole study.

Order and reach are Merlin's: variables, then labels; ``vars`` (``merlin run --vars``) replaces values; a name answers as
it is written and in upper case. A value may use any other name, a circle is a fault. What differs between agents or tasks
(``MERLIN_INFO``, parameters, sample columns) stays a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from merlin_study.errors import Fault
from merlin_study.outcome import EXIT_CODES
from merlin_study.scalars import spell
from merlin_study.spec import SPECROOT, StudySpec
from merlin_study.template import Template

OUTPUT_PATH: Final = "OUTPUT_PATH"


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
        self.names = frozenset(given)
        self._raw = _special(spec, stamp=stamp, base=base, spec_root=spec_root)
        for name, value in given.items():
            self._raw[name] = self._raw[name.upper()] = spell(value)
        self._texts: dict[str, str] = {}
        for name in self._raw:
            self._resolve(name, ())

    def _resolve(self, name: str, above: tuple[str, ...]) -> str:
        if name in self._texts:
            return self._texts[name]
        if name in above:
            circle = " -> ".join((*above[above.index(name) :], name))
            self.faults.append(Fault(f"spec.env.variables.{name}", f"uses itself ({circle}); remove one reference"))
            return self._texts.setdefault(name, "")

        def lookup(token: str) -> str | None:
            return self._resolve(token, (*above, name)) if token in self._raw else None

        return self._texts.setdefault(name, Template.parse(self._raw[name]).render(lookup))

    @property
    def output_path(self) -> str:
        """Where the user wants the workspace to lie; empty where they did not say."""
        return self._texts[OUTPUT_PATH] if OUTPUT_PATH in self.names else ""

    def __contains__(self, name: object) -> bool:
        return name in self._texts

    def expand(self, text: str) -> str:
        """Return ``text`` with every variable, label and study-wide token replaced, literally and once."""
        return Template.parse(text).render(self._texts.get)


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
        OUTPUT_PATH: "$(MERLIN_WORKSPACE)/..",
        **({} if spec_root is None else {SPECROOT: spec_root}),
    }


def expand_tree(tree: object, variables: Variables) -> object:
    """Return a copy of plain data (mappings, lists, scalars) with every text in it expanded, keys included."""
    match tree:
        case str():
            return variables.expand(tree)
        case Mapping():
            return {variables.expand(str(key)): expand_tree(value, variables) for key, value in tree.items()}
        case list() | tuple():
            return [expand_tree(item, variables) for item in tree]
        case _:
            return tree
