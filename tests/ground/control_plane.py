"""A real API server over a real etcd, without containers: schema, CEL, defaulting, watches, RBAC and admission policies.

There is no controller manager and no kubelet: nothing collects owned objects, fills new namespaces with service accounts
or runs pods, and a deleted namespace stays Terminating for ever. So each test has a namespace of its own and leaves it.

The API server signs its own certificate; the kubeconfigs name it as their authority, so that TLS is verified as it would
be in a cluster. Users come from a token file, which is read only when the API server starts: they are made beforehand.
"""

import functools
import itertools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.ground.needs import ROOT, program
from tests.ground.network import inside
from tests.ground.processes import Process
from tests.ground.waiting import eventually, free_port

BUILD = ROOT / "tools" / "control-plane" / "build"
CRDS = ROOT / "crds"

# `admin` may do everything; the others nothing until a test binds a role to `User` of that name.
USERS = {"admin": "system:masters", "operator": "", "tenant": "", "stranger": ""}

# The requests of the user `operator`, in `ControlPlane.asked`.
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": ["operator"]}, {"level": "None"}],
}

_namespaces = itertools.count(1)


@functools.cache
def binaries() -> Path:
    """The folder of etcd and kube-apiserver, built where it is not there yet: minutes, once a machine."""
    done = subprocess.run([sys.executable, BUILD], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


class ControlPlane:
    """An API server on a port and an etcd that survive its restarts.

    `with ControlPlane() as control_plane: control_plane.kubectl("get", "namespaces")`
    """

    def __init__(self, *, netns: str | None = None) -> None:
        """Choose ports and commands; nothing runs yet. `netns` is the network namespace to run in."""
        self._made = tempfile.TemporaryDirectory(prefix="merlin-control-plane-")
        self.directory = Path(self._made.name)
        self.netns = netns
        self.port = free_port()
        self._etcd_port, self._peer_port = free_port(), free_port()
        self._tokens = {user: secrets.token_hex(16) for user in USERS}
        self._number = itertools.count()
        folder = binaries()
        self.etcd = Process(self._etcd(folder), log=self.directory / "etcd.log", netns=netns)
        self.apiserver = Process(self._apiserver(folder), log=self.directory / "apiserver.log", netns=netns)

    @property
    def url(self) -> str:
        """The API server's address."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.user_kubeconfig("admin")

    def start(self) -> None:
        """Start both and return when the API server is ready."""
        self._write("tokens.csv", "".join(f'{self._tokens[u]},{u},{u},"{g}"\n' for u, g in USERS.items()))
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        self._write("audit.json", json.dumps(AUDIT))
        self._write("accounts.key", key.private_bytes(*pem).decode())
        self.etcd.start()
        self._launch()

    def kill_apiserver(self) -> None:
        """SIGKILL: clients lose their watches, and the objects stay."""
        self.apiserver.kill()

    def restart_apiserver(self) -> None:
        """Start it again on the same port and data; one that still runs is stopped first."""
        self.apiserver.stop()
        self._launch()

    def pause(self) -> None:
        """SIGSTOP of the API server: requests and watches hang."""
        self.apiserver.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self.apiserver.resume()

    def backup(self) -> Path:
        """A copy of etcd's disk as it is now."""
        copy = self.directory / f"etcd.{next(self._number)}"
        self.etcd.pause()
        try:
            shutil.copytree(self.directory / "etcd", copy)
        finally:
            self.etcd.resume()
        return copy

    def restore(self, copy: Path) -> None:
        """Put etcd's disk back to a copy; the API server starts anew, as after `etcdutl snapshot restore`."""
        self.stop()
        shutil.rmtree(self.directory / "etcd")
        shutil.copytree(copy, self.directory / "etcd")
        self.etcd.start()
        self._launch()

    def stop(self) -> None:
        """End both. Nothing outlives the directory, so neither is asked politely: the API server would take seconds."""
        for process in (self.apiserver, self.etcd):
            if process.alive:
                process.kill()

    def __enter__(self) -> Self:
        """Start both; end what started where one of them does not."""
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End both and remove their data."""
        self.stop()
        self._made.cleanup()

    def user_kubeconfig(self, user: str, *, namespace: str = "default") -> Path:
        """The kubeconfig of one of USERS, who may do only what a role binding gives them (`admin`: everything)."""
        return self._kubeconfig(user, self._tokens[user], namespace)

    def granted(self, user: str, role: str | Path, *, may: str, namespace: str) -> Path:
        """The kubeconfig of one of USERS once a role and its binding, applied to `namespace`, are in force.

        The API server's authorizer hears of both from a watch, a while after they are stored; `may` is a verb and a
        resource that the role allows and that tell when it has.
        """
        self.apply(role, namespace=namespace)
        kubeconfig = self.user_kubeconfig(user, namespace=namespace)
        question = ("auth", "can-i", *may.split(), "--namespace", namespace)
        eventually(
            lambda: self.kubectl(*question, kubeconfig=kubeconfig, check=False).returncode == 0,
            message=f"{user} may {may}",
        )
        return kubeconfig

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """The kubeconfig of an existing service account, with a token that the API server issued (for an hour)."""
        token = self.kubectl("create", "token", name, "--namespace", namespace).stdout.strip()
        return self._kubeconfig(f"system:serviceaccount:{namespace}:{name}", token, namespace)

    def kubectl(
        self,
        *arguments: str,
        kubeconfig: Path | None = None,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 180,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl, as the administrator unless told otherwise; AssertionError with its outputs where it fails."""
        done = subprocess.run(
            inside(self.netns, [program("kubectl"), *arguments]),
            env=self.environment(kubeconfig),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(
                f"kubectl {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}{done.stdout}"
            )
        return done

    def get(self, *arguments: str, kubeconfig: Path | None = None) -> dict[str, object]:
        """`kubectl get ... -o json`, parsed."""
        found: dict[str, object] = json.loads(
            self.kubectl("get", *arguments, "-o", "json", kubeconfig=kubeconfig).stdout
        )
        return found

    def environment(self, kubeconfig: Path | None = None) -> dict[str, str]:
        """The environment in which kubectl, the operator and `merlin` talk to this API server and to no other."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("KUBE", "KUBERNETES_"))}
        # kubectl caches what a server offers by its address, and a port may come again with other resources.
        return {**kept, "KUBECONFIG": str(kubeconfig or self.kubeconfig), "KUBECACHEDIR": str(self.directory / "cache")}

    def apply(
        self,
        what: str | Path,
        *options: str,
        namespace: str | None = None,
        kubeconfig: Path | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """`kubectl apply` of a text, or of a file or folder given as a Path."""
        where = [] if namespace is None else ["--namespace", namespace]
        source, text = (str(what), None) if isinstance(what, Path) else ("-", what)
        return self.kubectl(
            "apply", *where, *options, "--filename", source, stdin=text, kubeconfig=kubeconfig, check=check
        )

    def asked(self, namespace: str) -> list[dict[str, Any]]:
        """Every request so far of the user `operator` in a namespace, as events of the audit log."""
        lines = (self.directory / "audit.log").read_text().split("\n")
        events = [json.loads(line) for line in lines[:-1]]  # the last one may be only half written
        return [each for each in events if each.get("objectRef", {}).get("namespace") == namespace]

    def install_crds(self, what: str | Path = CRDS) -> None:
        """Install custom resource definitions (by default this repository's) and wait until they are served."""
        named = self.apply(what, "--server-side", "--output", "name").stdout.split()
        self.kubectl("wait", "--for=condition=Established", "--timeout=180s", *named)

    def namespace(self, prefix: str = "test") -> str:
        """Make a namespace that no other test has; it is never deleted, since nothing here could finish that."""
        name = f"{prefix}-{next(_namespaces)}"
        self.kubectl("create", "namespace", name)
        return name

    def _launch(self) -> None:
        self.apiserver.start()
        try:
            eventually(self._ready, interval=0.1, message="the API server is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.apiserver.describe()}\n{self.etcd.describe()}") from None

    def _ready(self) -> bool:
        assert self.etcd.alive, "etcd ended while the API server started"
        assert self.apiserver.alive, "the API server ended while it started"
        certificate = self.directory / "certificates" / "apiserver.crt"
        return certificate.exists() and self.kubectl("get", "--raw", "/readyz", check=False).returncode == 0

    def _etcd(self, folder: Path) -> list[str]:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        return [
            str(folder / "etcd"),
            "--name=ground",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=ground={peer}",
            # A kill of the process loses nothing by it; only a machine that stops would, and with it the test.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _apiserver(self, folder: Path) -> list[str]:
        key = self.directory / "accounts.key"
        return [
            str(folder / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            "--bind-address=127.0.0.1",
            # Else it looks for a default route to advertise, which a network namespace of its own does not have.
            "--advertise-address=127.0.0.1",
            # A loopback address may not be an endpoint of the service `kubernetes`, which nothing here uses.
            "--endpoint-reconciler-type=none",
            f"--secure-port={self.port}",
            f"--cert-dir={self.directory / 'certificates'}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=198.18.0.0/24",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            f"--audit-policy-file={self.directory / 'audit.json'}",
            f"--audit-log-path={self.directory / 'audit.log'}",
            # Pods would wait for service accounts that no controller makes.
            "--disable-admission-plugins=ServiceAccount",
        ]

    def _kubeconfig(self, user: str, token: str, namespace: str) -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "ground",
            "contexts": [{"name": "ground", "context": {"cluster": "ground", "user": user, "namespace": namespace}}],
            "users": [{"name": user, "user": {"token": token}}],
            "clusters": [
                {
                    "name": "ground",
                    "cluster": {
                        "server": self.url,
                        "certificate-authority": str(self.directory / "certificates" / "apiserver.crt"),
                    },
                }
            ],
        }
        return self._write(f"{user.replace(':', '_')}@{namespace}.kubeconfig", json.dumps(config, indent=1))

    def _write(self, name: str, text: str) -> Path:
        path = self.directory / name
        partial = self.directory / f"{name}.{next(self._number)}"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        return partial.replace(path)
