"""Which cluster we are in, and as whom: one answer for the Kubernetes client and for kopf."""

from __future__ import annotations

import os

import kopf
from kubernetes import client, config


class ClusterConfigError(Exception):
    """There is neither a service account nor a kubeconfig that could be used."""


def connect() -> client.Configuration:
    """Find the cluster: the service account of the pod that we are in, else the current kubeconfig.

    Raises:
        ClusterConfigError: there is neither.
    """
    found = client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
        else:
            # Read at every call: the library's own default is fixed when it is imported.
            path = os.environ.get("KUBECONFIG") or None
            config.load_kube_config(path, client_configuration=found)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise ClusterConfigError(f"no usable service account or kubeconfig: {error}") from error
    # An absent server is our own schedule's business; the library's retries would multiply each timeout by four.
    found.retries = False
    return found


def login(configuration: client.Configuration) -> kopf.ConnectionInfo:
    """Return the same way into the same cluster for kopf; called again whenever the server refuses the credentials."""
    header = configuration.get_api_key_with_prefix("BearerToken") or ""
    scheme, _, token = header.rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        username=configuration.username or None,
        password=configuration.password or None,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
