"""``merlin run SPEC`` without ``--local``: create the Study in the cluster that the current kubeconfig names.

The study is compiled here first, so that most mistakes are told without a cluster; what the API server refuses besides is
told in its own words (`merlin_cli.kube`).
"""

from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console

from merlin_cli import contexts, freight, names, place, run
from merlin_cli.convert import manifest
from merlin_cli.exits import CliError, Exit
from merlin_cli.kube import KubeConfig
from merlin_cli.summary import say
from merlin_study import nested


class Cluster(Protocol):
    """Where Studies are created."""

    namespace: str
    """The one that is meant where the user names none."""

    def whoami(self) -> str:
        """Return who the cluster says that we are; empty where it does not say."""

    def create(self, namespace: str, body: Mapping[str, Any]) -> str:
        """Create a Study and return its uid.

        Raises:
            CliError: it was refused, or the cluster cannot be reached.
        """

    def create_part(self, namespace: str, body: Mapping[str, Any]) -> bool:
        """Create a ConfigMap; False where there is one of its name already.

        Raises:
            CliError: as `create`.
        """

    def own_part(self, namespace: str, name: str, owner: Mapping[str, Any]) -> bool:
        """Add an owner to a ConfigMap, so that it goes with the last of them; False where there is none.

        Raises:
            CliError: as `create`.
        """

    def drop_part(self, namespace: str, name: str) -> None:
        """Remove a ConfigMap that nobody owns; what stands in the way is no matter."""


def submit(request: run.Request, console: Console, cluster: Cluster | None = None) -> Exit:
    """Create the Study and say what to do next.

    Raises:
        SpecError: the study was refused here.
        CliError: wrong usage, refused by the cluster, or no cluster.
    """
    if request.slots or request.output_path:
        raise CliError(Exit.USAGE, "--slots and --output-path are for --local; in a cluster agents bring their own")
    if request.name and request.name != names.object_name(request.name):
        raise CliError(
            Exit.USAGE,
            f"--name {request.name}: expected at most {names.MAX_NAME} lower-case letters, digits and '-', "
            f"for instance {names.object_name(request.name)}",
        )
    load = freight.load(request)
    found, plan = load.found, load.plan
    run.say_readings(plan)
    stamp = load.stamp or place.stamp()
    name = request.name or found.metadata.get("name") or names.object_name(plan.name, stamp)
    kept = {key: value for key, value in found.metadata.items() if key in ("labels", "annotations")}
    body = manifest(load.spec, {**kept, "name": name})
    body["spec"] |= load.keys(body["spec"])
    body["spec"].setdefault("runId", stamp)  # the workspace carries the stamp that the Study's name does
    cluster = cluster or KubeConfig(instead="run here with --local")
    namespace = request.namespace or found.metadata.get("namespace") or cluster.namespace
    if creator := cluster.whoami():  # an admission policy refuses every other one
        body["metadata"]["annotations"] = {**body["metadata"].get("annotations", {}), nested.CREATOR: creator}
    freight.deliver(cluster, namespace, body, load.contents)
    there = f"study/{name} -n {namespace}"
    say(console, f"Created study {name} in namespace {namespace}.")
    if contexts.chosen() is not None:
        say(console, f"  watch it:    merlin status {name}")
        return Exit.OK
    say(console, f"  watch it:    kubectl get {there} -w")
    say(console, f"  wait for it: kubectl wait --for=condition=Finished --timeout=-1s {there}")
    return Exit.OK
