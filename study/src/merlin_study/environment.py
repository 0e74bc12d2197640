"""``~`` and environment variables: what ``$HOME/data`` stands for is known only where somebody's environment is at hand.

Upstream replaces both when a study is submitted, everywhere but in scripts (``cmd`` and ``restart``), whose shell does it
itself. `merlin run` does the same with `expand_tree`. A Study that was applied with kubectl has met no environment of its
user's; the operator's means nothing, so the compiler keeps such texts, and the agent replaces what they hold.

Pure: the environment is an argument. Unlike upstream's, ``$_`` is the shell's own and stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

_REFERENCE: Final = re.compile(r"\$(?:(?P<bare>(?!_\b)[A-Za-z_]\w*)|\{(?P<braced>(?!_\})[A-Za-z_]\w*)\})", re.ASCII)
_SCRIPTS: Final = frozenset({"cmd", "restart"})
_TABLES: Final = (("env", "variables"), ("env", "labels"), ("vars",), ("global.parameters",))
"""Where a key called ``cmd`` is a name and not a script."""


def refers(text: str) -> bool:
    """Whether a text means something else in another environment: it begins with ``~``, or holds ``$NAME`` or ``${NAME}``."""
    return text.startswith("~") or _REFERENCE.search(text) is not None


def expand(text: str, environ: Mapping[str, str], expanduser: Callable[[str], str]) -> str:
    """Return ``text`` with a leading ``~`` and every variable replaced; one that is not set stays, as upstream has it.

    Args:
        text: any text.
        environ: names and values, as `os.environ` has them.
        expanduser: replaces a leading ``~`` or ``~user``, as `os.path.expanduser` does.
    """

    def value(found: re.Match[str]) -> str:
        return environ.get(found["bare"] or found["braced"], found[0])

    return _REFERENCE.sub(value, expanduser(text))


def expand_tree(tree: Any, environ: Mapping[str, str], expanduser: Callable[[str], str]) -> Any:
    """Return a copy of a specification's plain data with every text expanded but scripts and keys; see `expand`."""
    return _expanded(tree, lambda text: expand(text, environ, expanduser), ())


def _expanded(tree: Any, replace: Callable[[str], str], path: tuple[str, ...]) -> Any:
    match tree:
        case str():
            return replace(tree)
        case Mapping():
            return {
                key: value if key in _SCRIPTS and path not in _TABLES else _expanded(value, replace, (*path, str(key)))
                for key, value in tree.items()
            }
        case list() | tuple():
            return [_expanded(item, replace, path) for item in tree]
        case _:
            return tree
