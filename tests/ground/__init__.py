"""The test ground: real neighbours, started for a test and ended with it.

From the cheapest to the dearest: `Broker` (nats-server with JetStream, 0.1 s), `ControlPlane` (kube-apiserver and etcd,
5 s), `Slurm` (two virtual nodes, 5 s). What is real here is what a fake would get wrong: redelivery after a kill,
admission and CEL, the environment and the signals of an allocation.

Invariants: every server binds 127.0.0.1 only, keeps its state in a directory of its own that is gone afterwards, reads
its secrets from files of mode 0600, and dies with the test process. Only what the ground started is ever signalled.

A Slurm daemon binds every address, so Slurm runs in a `NetworkNamespace`. Loopback is not shared between namespaces: an
end-to-end test starts *everything* in the one namespace (each class takes `netns=`), rather than opening ports to it.
"""

from tests.ground.broker import Broker
from tests.ground.control_plane import ControlPlane
from tests.ground.needs import missing
from tests.ground.network import NetworkNamespace
from tests.ground.processes import Process
from tests.ground.slurm import Slurm
from tests.ground.waiting import eventually, eventually_async, free_port

__all__ = [
    "Broker",
    "ControlPlane",
    "NetworkNamespace",
    "Process",
    "Slurm",
    "eventually",
    "eventually_async",
    "free_port",
    "missing",
]
