"""``merlin convert SPEC``: the Study manifest of a file, for kubectl.

kubectl reads YAML by other rules than Merlin, so every key and text is quoted as Merlin's reader understood it.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any, Final

from merlin_cli import freight, names, run, source
from merlin_cli.exits import Exit
from merlin_study.errors import Fault, SpecError
from merlin_study.spec import StudySpec
from merlin_study.writer import dump_quoted, to_document

MAX_OBJECT: Final = 1_200_000
"""Bytes of a study as JSON: etcd takes 1.5 MiB, with what the API server and the operator add."""


def convert(file: str) -> Exit:
    """Print the manifest.

    Raises:
        CliError: the file cannot be read.
        SpecError: the study was refused.
    """
    load = freight.load(run.Request(spec=file), elsewhere=True)
    found = load.found
    name = found.metadata.get("name") or names.object_name(load.plan.name)
    body = manifest(load.spec, {**found.metadata, "name": name})
    body["spec"] |= load.keys(body["spec"])
    parts = [part for content in load.contents for part in content.config_maps()]
    sys.stdout.write("---\n".join(map(dump_quoted, [*parts, body])))
    if parts:
        are = "ConfigMap holds" if len(parts) == 1 else "ConfigMaps hold"
        print(
            f"warning: {len(parts)} {are} the files that steps refer to as $(SPECROOT); "
            "delete what nobody needs any more yourself, or submit with `merlin run`",
            file=sys.stderr,
        )
    return Exit.OK


def manifest(spec: StudySpec, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Study as plain data.

    Raises:
        SpecError: it is larger than an object of the API server may be.
    """
    document = to_document(spec)
    size = len(json.dumps(document).encode())
    if size > MAX_OBJECT:
        message = f"expected at most {MAX_OBJECT} bytes in all, found {size}"
        raise SpecError([Fault("spec", f"{message}; put long values and scripts into files beside the specification")])
    return {
        "apiVersion": source.API_VERSION,
        "kind": source.KIND,
        "metadata": dict(metadata),
        "spec": document,
    }
