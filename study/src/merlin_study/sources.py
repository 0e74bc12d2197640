"""``files`` and ``parametersFrom``: where content comes from that a manifest only names, and what is wrong with that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from merlin_study.bundle import BundleError, check_path
from merlin_study.errors import Fault
from merlin_study.plan import PlannedFile
from merlin_study.spec import FileSource, TableSource

PART_KEY: Final = "part"
"""The key of a ConfigMap that holds one part of some content."""
TABLE: Final = "spec.parametersFrom"
UNREAD: Final = Fault(
    TABLE,
    "expected a table that can be read here, found one in ConfigMaps, which the operator of a cluster reads; "
    "submit the manifest with kubectl, or write the table under global.parameters",
)
"""What is wrong with a good table by reference where nobody could follow the reference."""


def parts_of(source: FileSource | TableSource) -> tuple[tuple[str, str], ...]:
    """Return name and key of the ConfigMaps whose contents, joined, are the file; empty for a path on the site."""
    if source.config_map is not None:
        return ((source.config_map.name, source.config_map.key),)
    return tuple((name, PART_KEY) for name in source.config_maps)


def planned_files(sources: Sequence[FileSource]) -> tuple[tuple[PlannedFile, ...], list[Fault]]:
    """Return the files of a plan, and what is wrong with those that are left out."""
    planned: list[PlannedFile] = []
    faults: list[Fault] = []
    names: set[str] = set()
    for at, source in enumerate(sources):
        path = f"spec.files[{at}]"
        name = "" if source.archive and source.name in (".", "./") else source.name
        if fault := _fault(source, name, path):
            faults.append(fault)
        elif not source.archive and name in names:
            faults.append(Fault(f"{path}.name", f"{name!r} stands twice; give each file a name of its own"))
        else:
            names.add(name)
            planned.append(
                PlannedFile(
                    name=name,
                    sha256=source.sha256 or "",
                    parts=parts_of(source),
                    path=source.path or "",
                    archive=source.archive,
                    executable=source.executable,
                )
            )
    return tuple(planned), faults


def table_fault(source: TableSource, *, beside: bool) -> Fault | None:
    """Judge a table by reference; ``beside`` says that the specification holds one, too."""
    if beside:
        return Fault(TABLE, "expected no other table beside it, found global.parameters; keep one of the two")
    given = (source.config_map is not None) + bool(source.config_maps) + (source.data is not None)
    if given != 1:
        message = f"expected one of configMap, configMaps and data, found {given} of them; name where the table is"
        return Fault(TABLE, message)
    return None


def _fault(source: FileSource, name: str, path: str) -> Fault | None:
    given = [source.config_map is not None, bool(source.config_maps), source.path is not None]
    if sum(given) != 1:
        return Fault(path, f"expected one of configMap, configMaps and path, found {sum(given)} of them")
    if source.sha256 is None:
        return Fault(f"{path}.sha256", "is required: the digest of the content, as `sha256sum FILE` prints it")
    if source.path is not None and (not source.path.startswith("/") or source.archive):
        return Fault(f"{path}.path", "expected the absolute path of a file on the site, which is no archive to unpack")
    try:
        if name:
            check_path(name)
    except BundleError as error:
        return Fault(f"{path}.name", str(error))
    return None
