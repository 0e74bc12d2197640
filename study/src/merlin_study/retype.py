"""A token in the place of a list, a number or a truth value: upstream puts variables into the text and then reads it as YAML.

So ``level_max_dirs: $(WIDTH)`` and ``values: $(LIST)`` mean what the variable's value means to YAML 1.1. Where text is
welcome anyway a token stays one, and the compiler replaces it; here are the other places.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Final, Union, get_args, get_origin

from merlin_study.errors import SpecError
from merlin_study.loader import load_yaml
from merlin_study.template import TOKEN

MAX_DEPTH: Final = 20
"""Variables that are nothing but another variable, in a row."""


def table(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``$(NAME)`` stands for in a specification's plain data: variables, labels, overrides, in upper case too."""
    env = raw.get("env")
    env = env if isinstance(env, Mapping) else {}
    found: dict[str, Any] = {}
    for block in (env.get("variables"), env.get("labels"), raw.get("vars")):
        for name, value in block.items() if isinstance(block, Mapping) else ():
            found[name] = found[name.upper()] = value
    return found


def retype(annotation: Any, value: Any, variables: Mapping[str, Any]) -> Any:
    """Return what a value means where its field takes no text; anything but one defined token stays as it is."""
    if not isinstance(value, str) or str in _types(annotation):
        return value
    meant: Any = value
    for _ in range(MAX_DEPTH):
        found = TOKEN.fullmatch(meant) if isinstance(meant, str) else None
        if found is None or found[1] not in variables:
            break
        meant = variables[found[1]]
    if meant is value:
        return value
    return _read(meant) if isinstance(meant, str) else meant


def _read(text: str) -> Any:
    try:
        return load_yaml(text, source="value")
    except SpecError:
        return text


def _types(annotation: Any) -> set[Any]:
    """The types that an annotation takes, unions and ``Annotated`` unpacked; of a generic one, its origin."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return {found for part in get_args(annotation) for found in _types(part)}
    if origin is not None and any(isinstance(part, str) for part in get_args(annotation)):
        return {str}  # one of some words
    return {origin or annotation}
