"""The one package, beside kopf, that talks to the API server: it shows studies and agents as Kubernetes objects.

access (which cluster, as whom) ─► api (the few requests) ─► statuses (of Studies) ─► board (they, Allocations, expiry)
"""

from merlin_operator.cluster.access import ClusterConfigError, connect, login
from merlin_operator.cluster.api import (
    ALLOCATIONS,
    CHANGED,
    GROUP,
    PAGE,
    STUDIES,
    TIMEOUT,
    VERSION,
    Api,
    ApiError,
    Traffic,
    submission_of,
)
from merlin_operator.cluster.board import ClusterBoard

__all__ = [
    "ALLOCATIONS",
    "CHANGED",
    "GROUP",
    "PAGE",
    "STUDIES",
    "TIMEOUT",
    "VERSION",
    "Api",
    "ApiError",
    "ClusterBoard",
    "ClusterConfigError",
    "Traffic",
    "connect",
    "login",
    "submission_of",
]
