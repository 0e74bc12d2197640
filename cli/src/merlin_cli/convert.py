"""``merlin convert SPEC``: the Study manifest of a file, for kubectl.

kubectl reads YAML by other rules than Merlin, so every key and text is quoted as Merlin's reader understood it.
"""

import sys
from collections.abc import Mapping
from typing import Any

from merlin_cli import names, run, source
from merlin_cli.exits import Exit
from merlin_study import loader
from merlin_study.parse import to_document
from merlin_study.spec import StudySpec


def convert(file: str) -> Exit:
    """Print the manifest.

    Raises:
        CliError: the file cannot be read.
        SpecError: the study was refused.
    """
    found = source.read(file)
    spec = source.parse(found, {}, elsewhere=True)
    plan = run.compiled(spec, found)
    name = found.metadata.get("name") or names.object_name(plan.name)
    sys.stdout.write(loader.dump_quoted(manifest(spec, {**found.metadata, "name": name})))
    if "SPECROOT)" in found.text:
        print(
            "warning: $(SPECROOT) means the directory of this file, which a cluster does not know; "
            "replace it by a path on the site, or submit with `merlin run`",
            file=sys.stderr,
        )
    return Exit.OK


def manifest(spec: StudySpec, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Study as plain data."""
    return {
        "apiVersion": source.API_VERSION,
        "kind": source.KIND,
        "metadata": dict(metadata),
        "spec": to_document(spec),
    }
