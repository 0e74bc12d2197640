"""What travels to a cluster beside the manifest: the files that steps refer to, samples, and large tables of parameters.

They go as ConfigMaps that are named by their content, so that a second submission finds those of the first, and that belong
to the Study, so that they go with it. They are made before the Study, because the operator looks for them at once, and are
given to it afterwards, because only then it has a uid.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from merlin_cli import bundling, clones, inputs, run, source
from merlin_cli.exits import CliError, Exit
from merlin_cli.place import Place
from merlin_study import table as tables
from merlin_study.bundle import MAX_BUNDLE, Entry
from merlin_study.plan import Plan
from merlin_study.spec import SPECROOT, StudySpec
from merlin_study.writer import to_document

if TYPE_CHECKING:
    from merlin_cli.submit import Cluster

SAMPLES: Final = "merlin-samples"
"""Below ``$(SPECROOT)``: the table that ``--samplesfile`` names."""


@dataclass(frozen=True)
class Load:
    """A study ready to travel."""

    found: source.Source
    spec: StudySpec
    plan: Plan
    bundle: bundling.Content | None
    table: bundling.Content | None
    in_place: bool
    stamp: str
    """What its workspace ends with where that was told already; empty otherwise."""

    @property
    def contents(self) -> tuple[bundling.Content, ...]:
        """All that goes as ConfigMaps."""
        return tuple(each for each in (self.bundle, self.table) if each is not None)

    def keys(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest says of it, given what it says already."""
        keys: dict[str, Any] = {}
        if self.bundle is not None:
            keys["files"] = [*written.get("files", ()), {"name": ".", "archive": True, **self.bundle.source}]
        if self.table is not None:
            keys["parametersFrom"] = self.table.source
        if self.in_place:
            keys["vars"] = {**written.get("vars", {}), SPECROOT: self.found.directory}
        return keys


def load(request: run.Request, *, elsewhere: bool = False) -> Load:
    """Read, compile and pack what is to be submitted, by us or by somebody ``elsewhere``, whose environment is not ours.

    Raises:
        SpecError: the study was refused.
        CliError: wrong usage, or its files can't travel.
    """
    found = source.read(request.spec)
    extra: list[Entry] = []
    if request.samples_file:
        file = inputs.samples_file(request.samples_file)
        if file.stat().st_size > 4 * MAX_BUNDLE:
            cure = "put it where the site's machines see it, and name that path in merlin.samples.file"
            raise CliError(
                Exit.REFUSED, f"--samplesfile {request.samples_file}: is too large to travel with the study; {cure}"
            )
        found = inputs.with_samples(found, f"$({SPECROOT})/{SAMPLES}/{file.name}")
        extra.append(Entry(f"{SAMPLES}/{file.name}", executable=False, data=file.read_bytes()))
    overrides = source.variables(request.vars)
    if request.clone:
        if not request.bundle:
            raise CliError(Exit.USAGE, "--clone brings files and --no-bundle brings none; leave one of them out")
        found, cloned = clones.fetched(found, source.parse(found, overrides, quiet=True))
        extra += cloned
    place = Place(None)
    spec, table = run.parsed(request, found, overrides, place=place, elsewhere=elsewhere)
    document = to_document(spec)
    in_place = not request.bundle and bool(bundling.references(document))
    entries = [] if in_place else _entries(document, found, extra)
    return Load(
        found,
        spec,
        run.compiled(spec, found, table=table),
        bundling.archive(entries) if entries else None,
        None if table is None else bundling.Content.of(tables.encode(table)),
        in_place,
        place.stamp,
    )


def _entries(document: Any, found: source.Source, extra: Sequence[Entry]) -> list[Entry]:
    entries, absent = bundling.collect(document, found.path.parent)
    brought = (PurePosixPath(entry.path) for entry in extra)
    ours = {str(each) for path in brought for each in (path, *path.parents)}
    ours |= {each.get("name") for each in document.get("files", ())}
    for path in absent:
        if path not in ours:
            print(f"warning: $({SPECROOT})/{path}: is not there now, so agents will not find it", file=sys.stderr)
    entries = [*(entry for entry in entries if entry.path not in ours), *extra]
    if absent and not entries and not ours:
        message = f"$({SPECROOT}): nothing of what the steps refer to is in {found.directory}; put it there"
        raise CliError(Exit.REFUSED, message)
    return entries


def deliver(cluster: "Cluster", namespace: str, body: Mapping[str, Any], contents: Sequence[bundling.Content]) -> None:
    """Create a Study with all that belongs to it.

    Raises:
        CliError: the cluster refused it, or cannot be reached; then nothing of it is left there.
    """
    parts = {part["metadata"]["name"]: part for content in contents for part in content.config_maps()}
    made: list[str] = []
    try:
        made.extend(name for name, part in parts.items() if cluster.create_part(namespace, part))
        uid = cluster.create(namespace, body)
    except CliError:
        for name in made:
            cluster.drop_part(namespace, name)
        raise
    owner = {"apiVersion": source.API_VERSION, "kind": source.KIND, "name": body["metadata"]["name"], "uid": uid}
    for name, part in parts.items():
        if not cluster.own_part(namespace, name, owner):  # it went with an older study in between
            metadata = {**part["metadata"], "ownerReferences": [owner]}
            cluster.create_part(namespace, {**part, "metadata": metadata})
