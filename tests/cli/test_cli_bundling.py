"""What travels with a study: the files that its steps name, and nothing that they do not."""

import os
from pathlib import Path
from typing import Any

import pytest

from merlin_cli import bundling, freight
from merlin_cli.exits import CliError, Exit
from merlin_cli.run import Request
from merlin_study import bundle, table
from tests.cli.test_cli_submit import Recorder, submitted

SPEC = """\
description: {name: bundled, description: "see $(SPECROOT)/README"}
env: {variables: {LIB: $(SPECROOT)/lib}}
study:
  - name: one
    description: d
    run: {cmd: "sh \\"$(SPECROOT)/bin/run.sh\\" $(LIB)/x $(SPECROOT)/data/$(N).csv; cat $(SPECROOT)/in/*.txt"}
global.parameters: {N: {values: [1, 2], label: N.%%}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("bin/run.sh", "lib/x", "lib/.git/config", "lib/__pycache__/x.pyc", "data/1.csv", "in/a.txt", "other"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tmp_path / "bin/run.sh").chmod(0o755)
    (tmp_path / "lib" / "run_20260101-000000" / "merlin_info").mkdir(parents=True)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("python $(SPECROOT)/a/b.py --x", {"a/b.py"}),
        ("PYTHONPATH=$(SPECROOT)/lib:$PYTHONPATH", {"lib"}),
        ("cp $(SPECROOT)/a/$(X).csv $(SPECROOT)/b/*.txt", {"a", "b"}),
        ("cp $(SPECROOT)/a-$(X) .", {""}),
        ('cp -r "$(SPECROOT)" "$(SPECROOT)//a/./b/"', {"", "a/b"}),
        ("cat '$(SPECROOT)/../x'", {"../x"}),
        ("echo $(SPECROOTS) SPECROOT", set()),
    ],
)
def test_references_are_found_in_any_text(text: str, found: set[str]) -> None:
    assert bundling.references({"study": [{"run": {"cmd": text}}], "description": "$(SPECROOT)/no"}) == found


def files(body: dict[str, Any], cluster: Recorder) -> dict[str, bool]:
    """The paths that travel, and whether each may be executed."""
    import base64

    [source] = body["spec"]["files"]
    data = b"".join(base64.b64decode(cluster.parts[name]["binaryData"]["part"]) for name in source["configMaps"])
    return {entry.path: entry.executable for entry in bundle.unpack(data)}


def test_what_steps_name_travels_with_its_modes_and_belongs_to_the_study(folder: Path) -> None:
    """Directories go whole, but without what is hidden and without workspaces."""
    load = freight.load(Request(spec=str(folder / "spec.yaml")))
    cluster = Recorder()
    body = {"metadata": {"name": "x"}, "spec": load.keys({})}
    freight.deliver(cluster, "mine", body, load.contents)
    assert files(body, cluster) == {"bin/run.sh": True, "data/1.csv": False, "in/a.txt": False, "lib/x": False}
    assert list(cluster.owners.values()) == [["uid-1"]]
    freight.deliver(cluster, "mine", body, load.contents)
    assert list(cluster.owners.values()) == [["uid-1", "uid-2"]]


class Refusing(Recorder):
    """A cluster that takes parts and no Study."""

    def create(self, namespace: str, body: Any) -> str:
        """Refuse it."""
        raise CliError(Exit.REFUSED, f"no {body['metadata']['name']} in {namespace}")


def test_a_refused_study_leaves_nothing_in_the_cluster(folder: Path) -> None:
    load = freight.load(Request(spec=str(folder / "spec.yaml")))
    cluster = Refusing()
    with pytest.raises(CliError):
        freight.deliver(cluster, "mine", {"metadata": {"name": "x"}}, load.contents)
    assert cluster.parts == {}


def test_too_large_a_bundle_is_refused_with_its_biggest_files(folder: Path) -> None:
    (folder / "lib/mesh.h5").write_bytes(os.urandom(bundle.MAX_BUNDLE + 1))
    with pytest.raises(
        CliError, match=r"may have 16 MiB .* the biggest are lib/mesh\.h5 \(16 MiB\), .*--no-bundle"
    ) as told:
        freight.load(Request(spec=str(folder / "spec.yaml")))
    assert told.value.code == Exit.REFUSED


def test_a_link_is_followed_in_the_folder_and_refused_out_of_it(folder: Path) -> None:
    (folder / "lib/y").symlink_to("x")
    assert {each.path for each in bundling.collect("$(SPECROOT)/lib", folder)[0]} == {"lib/x", "lib/y"}
    (folder / "lib/z").symlink_to("/etc/hostname")
    with pytest.raises(CliError, match="lib/z: is a link that leads out of the specification's folder"):
        bundling.collect("$(SPECROOT)/lib", folder)
    with pytest.raises(CliError, match="leads out of the specification's folder"):
        bundling.collect("$(SPECROOT)/../x", folder)


def test_a_file_that_is_not_there_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "spec.yaml").write_text(SPEC.replace("$(LIB)/x", "$(SPECROOT)/typo.py"))
    freight.load(Request(spec=str(folder / "spec.yaml")))
    assert "warning: $(SPECROOT)/typo.py: is not there now" in capsys.readouterr().err


def test_without_a_bundle_the_folder_itself_is_meant(folder: Path) -> None:
    _, body, _ = submitted(Request(spec=str(folder / "spec.yaml"), bundle=False))
    assert body["spec"]["vars"] == {"SPECROOT": str(folder)}
    assert "files" not in body["spec"]


def test_a_samples_file_travels_too(folder: Path) -> None:
    text = SPEC.replace("$(N).csv", "$(S).csv") + "merlin: {samples: {file: x.npy, column_labels: [S]}}\n"
    (folder / "spec.yaml").write_text(text)
    (folder / "mine.csv").write_text("1\n2\n")
    _, body, _ = submitted(Request(spec=str(folder / "spec.yaml"), samples_file=str(folder / "mine.csv")))
    assert body["spec"]["merlin"]["samples"]["file"] == "$(SPECROOT)/merlin-samples/mine.csv"


def test_a_table_beyond_a_manifests_size_travels_by_reference(folder: Path) -> None:
    """100,000 combinations leave a manifest that any client takes."""
    (folder / "gen.py").write_text(
        "from maestrowf.datastructures.core import ParameterGenerator as P\n"
        "def get_custom_generator(env, **kwargs):\n    p = P()\n    p.add_parameter('N', range(100_000))\n    return p\n"
    )
    load = freight.load(Request(spec=str(folder / "spec.yaml"), pgen=str(folder / "gen.py")))
    assert load.table is not None
    keys = load.keys({})
    assert keys["parametersFrom"] == {"configMaps": [load.table.parts[0][0]], "sha256": load.table.sha256}
    assert len(table.decode(load.table.parts[0][1])["N"].values) == 100_000
    assert len(load.plan.parameters[0].values) == 100_000
