"""``merlin run --clone``: repositories of ``env.dependencies.git``, cloned here and sent along with the study.

For sites whose hosts reach no repository. What is checked out travels below ``$(SPECROOT)``, as the study's other files do, without
its history and other hidden directories, and the clone's token stands for that directory. Without the option a first step of the
study clones where its tasks run.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from merlin_cli import bundling, source
from merlin_cli.exits import CliError, Exit
from merlin_study import dependencies
from merlin_study.bundle import Entry
from merlin_study.errors import SpecError
from merlin_study.spec import SPECROOT, StudySpec
from merlin_study.variables import Variables

FOLDER: Final = "merlin-clones"
"""Below ``$(SPECROOT)``: one directory for each clone."""


def fetched(found: source.Source, spec: StudySpec, root: str = f"$({SPECROOT})") -> tuple[source.Source, list[Entry]]:
    """Return the file with variables in the place of its repositories, and what is in them.

    Args:
        found: The file.
        spec: The same, parsed.
        root: The directory that they will lie in, below `FOLDER`.

    Raises:
        SpecError: a name or address is none.
        CliError: one can't be cloned, or all together are too large.
    """
    names = Variables(spec, stamp="", base="", spec_root=found.directory)
    if faults := [fault for fault in dependencies.faults(spec, names) if ".git[" in fault.path]:
        raise SpecError(faults)
    entries: list[Entry] = []
    for at, clone in enumerate(spec.env.dependencies.git):
        revision = dependencies.revision(clone, names)[1]
        with tempfile.TemporaryDirectory(prefix="merlin-clone-") as scratch:
            _clone(f"env.dependencies.git[{at}]", names.expand(clone.url), revision, scratch)
            entries += bundling.below(Path(scratch), f"{FOLDER}/{clone.name}")
    env: Mapping[str, Any] = found.raw["env"]
    places = {clone.name: f"{root}/{FOLDER}/{clone.name}" for clone in spec.env.dependencies.git}
    needed = {kind: block for kind, block in env["dependencies"].items() if kind != "git"}
    own = {**env, "variables": {**(env.get("variables") or {}), **places}, "dependencies": needed}
    return source.replaced(found, "env", own), entries


def _clone(path: str, url: str, revision: str, directory: str) -> None:
    checkout = [["git", "-C", directory, "checkout", "--quiet", revision]] if revision else []
    for command in (["git", "clone", "--quiet", "--", url, directory], *checkout):
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise CliError(
                Exit.CANNOT_RUN, "--clone: there is no git here; install it, or leave the option out"
            ) from None
        if done.returncode:
            what = f"check out {revision} of {url}" if "checkout" in command else f"clone {url}"
            raise CliError(Exit.CANNOT_RUN, f"{path}: can't {what}: {done.stderr.strip()}")
