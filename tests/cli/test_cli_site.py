"""``merlin site credentials``: the file, for its owner alone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from merlin_cli import site
from merlin_cli.exits import CliError, Exit
from merlin_study import sitefile
from tests.ground import ControlPlane

FILE = sitefile.SiteFile(
    server="tls://merlin-nats.team.svc:4222", namespace="team", user="agents", password="pSECRET", ca="",
    seal_key="5e" * 32, signing_key="51" * 32,
    operator_key="d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
)  # fmt: skip


class Fake:
    """A cluster with one Secret."""

    namespace = "team"

    def __init__(self, text: str = FILE.encode(), name: str = "merlin-agents") -> None:
        self.text, self.name = text, name

    def secret(self, namespace: str, name: str) -> dict[str, bytes]:
        """Return it, if it is that one."""
        assert (namespace, name) == ("team", self.name)
        return {site.KEY: self.text.encode()}


def test_the_file_is_for_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the umask, and with what the user knows better in the place of what the cluster has."""
    path = tmp_path / "site.yaml"
    before = os.umask(0)
    try:
        request = site.Request(output=path, server="tls://nats.example.org:4222", site="quartz")
        assert site.credentials(request, Fake()) == Exit.OK
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["site.yaml"]
    found = sitefile.parse(json.loads(path.read_text()))
    assert (found.server, found.site, found.password) == ("tls://nats.example.org:4222", "quartz", "pSECRET")
    said = capsys.readouterr()
    assert "merlin-agent --credentials" in said.err
    assert "SECRET" not in said.err + said.out


def test_an_address_inside_the_cluster_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.credentials(site.Request(output=tmp_path / "site.yaml"), Fake())
    assert "inside the cluster only; give --server" in capsys.readouterr().err


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    """Unless --force says otherwise; and then it is as private as a new one."""
    path = tmp_path / "site.yaml"
    path.write_text("mine")
    path.chmod(0o644)
    with pytest.raises(CliError, match="--force") as raised:
        site.credentials(site.Request(output=path), Fake())
    assert (raised.value.code, path.read_text()) == (Exit.USAGE, "mine")
    site.credentials(site.Request(output=path, force=True), Fake())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("release", "secret", "name"),
    [
        ("merlin", "", "merlin-agents"),
        ("my-merlin", "", "my-merlin-agents"),
        ("x", "", "x-merlin-agents"),
        ("a" * 45, "", "a" * 40 + "-agents"),
        ("x", "mine", "mine"),
    ],
)
def test_the_secret_s_name_follows_the_chart_s_rule(release: str, secret: str, name: str, tmp_path: Path) -> None:
    site.credentials(site.Request(release=release, secret=secret, output=tmp_path / "f"), Fake(name=name))


@pytest.mark.parametrize("text", ["SECRET: [", "{}", "[1]", "merlin_site: 1\npassword: SECRET"])
def test_a_secret_with_something_else_is_explained_and_not_quoted(text: str, tmp_path: Path) -> None:
    with pytest.raises(CliError, match="expected the site file of the chart") as raised:
        site.credentials(site.Request(output=tmp_path / "f"), Fake(text))
    assert "SECRET" not in str(raised.value)
    assert not (tmp_path / "f").exists()


def test_a_password_would_not_travel_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="expected tls://"):
        site.credentials(site.Request(output=tmp_path / "f", server="nats://nats.example.org:4222"), Fake())


def merlin(control_plane: ControlPlane, *arguments: str, user: str = "admin", **options: Any) -> Any:
    """Run the command as a user."""
    environ = control_plane.environment(control_plane.user_kubeconfig(user))
    command = [sys.executable, "-m", "merlin_cli", "site", "credentials", *arguments]
    return subprocess.run(command, env=environ, check=False, timeout=180, **options)


def test_against_a_real_api_server(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    """Printed to a pipe, refused to an open file before the secret is read, refused without the right."""
    place = ["-n", namespace]
    said = merlin(control_plane, *place, capture_output=True, text=True)
    assert (said.returncode, "is the chart installed" in said.stderr) == (Exit.CANNOT_RUN, True)
    secret = {"metadata": {"name": "merlin-agents"}, "stringData": {site.KEY: FILE.encode()}}
    control_plane.apply(json.dumps({"apiVersion": "v1", "kind": "Secret", **secret}), namespace=namespace)
    said = merlin(control_plane, *place, "--server", "tls://x:1", capture_output=True, text=True)
    assert (said.returncode, json.loads(said.stdout)["server"], said.stderr) == (0, "tls://x:1", "")
    said = merlin(control_plane, *place, user="stranger", capture_output=True, text=True)
    assert (said.returncode, "-site-credentials" in said.stderr) == (Exit.CANNOT_RUN, True)
    for mode, code in ((0o644, Exit.USAGE), (0o600, Exit.OK)):
        path = tmp_path / f"{mode:o}"
        path.touch()
        path.chmod(mode)
        with path.open("w") as file:
            done = merlin(control_plane, *place, stdout=file, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, bool(path.read_text())) == (code, code == Exit.OK)
        assert ("-o site.yaml" in done.stderr) == (code != Exit.OK)
