"""``env.dependencies``: paths that have to exist, and repositories to clone, as one script that sees to both.

Upstream does it where a study is submitted, and so does ``merlin run --local``. In a cluster the script is an implicit step on
which every other waits: paths have to exist where the tasks run, and the operator runs nothing of a user's.

The script may run twice, since an agent can be lost in the middle: a clone is made beside its place, gets a mark that names
the study's workspace, and is moved there whole. What lies there with another mark, or none, is not touched.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from merlin_study.checks import check_clone_name, holds_token
from merlin_study.errors import UNDEFINED_TOKEN, Fault
from merlin_study.plan import DEPENDENCIES_STEP, Plan
from merlin_study.spec import GitDependency, StudySpec
from merlin_study.variables import Variables, url_name

PATH: Final = "spec.env.dependencies"
_START: Final = """\
fail() { printf '%s\\n' "$1" >&2; exit 102; }
[ -t 0 ] || export GIT_TERMINAL_PROMPT=0 GIT_SSH_COMMAND="${GIT_SSH_COMMAND:-ssh -o BatchMode=yes}"
IFS= read -r workspace <<'MERLIN_TEXT'
$(MERLIN_WORKSPACE)
MERLIN_TEXT
"""
_EXISTS: Final = """\
IFS= read -r place <<'MERLIN_TEXT'
{place}
MERLIN_TEXT
[ -e "$place" ] || fail "{path}: expected a path that exists, found none at $place on ${{HOSTNAME:-this host}}"
"""
_CLONE: Final = """\
IFS= read -r place <<'MERLIN_TEXT'
{place}
MERLIN_TEXT
IFS= read -r url <<'MERLIN_TEXT'
{url}
MERLIN_TEXT
if ! [ -e "$place" ]; then
  mkdir -p "${{place%/*}}" || fail "{path}.path: can't make ${{place%/*}}"
  part="$place.part.$$"
  trap 'rm -rf "$part"' EXIT
  git clone --quiet -- "$url" "$part" || fail "{path}.url: can't clone $url"
  {checkout}printf '%s\\n' "$workspace" > "$part/.git/merlin-study" && mv -T "$part" "$place" || fail "{path}.path: can't write $place"
elif [ "$(cat "$place/.git/merlin-study" 2>/dev/null)" != "$workspace" ]; then
  fail "{path}: expected room for a clone, found $place there already; remove it, or give the clone another path"
fi
"""
_CHECKOUT: Final = """\
git -C "$part" checkout --quiet {revision} || fail "{path}.{key}: the repository $url has no such {key}"
  """


def script(spec: StudySpec, variables: Variables) -> str:
    """Return the script in bash, empty where nothing is needed; ``$(MERLIN_WORKSPACE)`` is still in it.

    It ends with 102 and one line on standard error at the first thing that is not as it should be.
    """
    needed = spec.env.dependencies
    parts = [
        _EXISTS.format(place=variables.expand_script(f"$({path.name})"), path=f"env.dependencies.paths[{at}].path")
        for at, path in enumerate(needed.paths)
    ]
    for at, clone in enumerate(needed.git):
        path = f"env.dependencies.git[{at}]"
        key, wanted = revision(clone, variables)
        checkout = _CHECKOUT.format(revision=shlex.quote(wanted), path=path, key=key) if wanted else ""
        place, url = (variables.expand_script(f"$({name})") for name in (clone.name, url_name(clone.name)))
        parts.append(_CLONE.format(place=place, url=url, path=path, checkout=checkout))
    return _START + "".join(parts) if parts else ""


def without_step(plan: Plan) -> Plan:
    """Return the plan of a study whose dependencies have been seen to: nothing waits for them any more."""
    if plan.steps[0].name != DEPENDENCIES_STEP:
        return plan
    steps = [
        step.model_copy(
            update={
                "edges": tuple(
                    edge.model_copy(update={"parent": edge.parent - 1}) for edge in step.edges if edge.parent > 0
                )
            }
        )
        for step in plan.steps[1:]
    ]
    return plan.model_copy(update={"steps": tuple(steps)})


def faults(spec: StudySpec, variables: Variables) -> list[Fault]:
    """Find what is wrong with a study's dependencies once variables are expanded."""
    needed = spec.env.dependencies
    found = [
        fault
        for at, path in enumerate(needed.paths)
        for fault in _of_text(f"{PATH}.paths[{at}].path", variables.expand(path.path), rooted=True)
    ]
    for at, clone in enumerate(needed.git):
        where = f"{PATH}.git[{at}]"
        found += _of_text(f"{where}.path", variables.expand(clone.path), rooted=True)
        found += _of_text(f"{where}.url", variables.expand(clone.url))
        key, wanted = revision(clone, variables)
        found += _of_text(f"{where}.{key}", wanted) if wanted else ()
        if wanted.startswith("-"):
            found.append(Fault(f"{where}.{key}", f"git would read the leading '-' of {wanted!r} as an option"))
        if fault := check_clone_name(clone.name, f"{where}.name"):
            found.append(fault)
    return found


def _of_text(path: str, text: str, *, rooted: bool = False) -> Iterator[Fault]:
    if holds_token(text):
        yield Fault(path, f"{text!r} holds a token that no variable defines", UNDEFINED_TOKEN)
    elif "\n" in text:
        yield Fault(path, "expected one line, found several")
    elif rooted and not text.startswith(("/", "~", "$")):
        cure = "write it from the root; only `merlin run` knows the directory of the submission"
        yield Fault(path, f"expected an absolute path, found {text!r}; {cure}")


def revision(clone: GitDependency, variables: Variables) -> tuple[str, str]:
    """Return which key names what to check out, and what git is told; both empty for the default branch."""
    for key, text in (("tag", clone.tag), ("hash", clone.hash), ("branch", clone.branch)):
        if text:
            return key, variables.expand(text) if key != "tag" else f"tags/{variables.expand(text)}"
    return "", ""
