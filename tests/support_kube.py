"""Kubernetes for tests: plain REST calls on plain objects, beside the official client's typed ones.

What the product says of a cluster is checked by a way of its own: none of this goes through the product.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException, AppsV1Api, CoreV1Api, CustomObjectsApi
    from urllib3 import BaseHTTPResponse

Document = dict[str, Any]

SEARCHED = (
    "v1",
    "apps/v1",
    "batch/v1",
    "networking.k8s.io/v1",
    "rbac.authorization.k8s.io/v1",
    "coordination.k8s.io/v1",
    "policy/v1beta1",
    "autoscaling/v2beta2",
    "discovery.k8s.io/v1beta1",
    "apiextensions.k8s.io/v1",
    "gateway.networking.k8s.io/v1",
    "networking.istio.io/v1beta1",
    "argoproj.io/v1alpha1",
    "serving.kserve.io/v1beta1",
    "keda.sh/v1alpha1",
    "monitoring.coreos.com/v1",
)
"""Where a kind without a version is looked for, in this order."""


class Kube:
    """One user's view of a cluster.

    A kind is given as "Deployment" or, with its version, as "apps/v1/Deployment". All methods raise the official
    client's ``ApiException``, with `status` and `body`, for what the server refuses.
    """

    def __init__(self, kubeconfig: Path) -> None:
        import urllib3

        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self.kubeconfig = kubeconfig
        self.url: str = cluster["server"]
        self._headers = {"Authorization": f"Bearer {config['users'][0]['user']['token']}"}
        self._pool = urllib3.PoolManager(
            ca_certs=cluster["certificate-authority"], retries=False, timeout=30, maxsize=4
        )
        self._kinds: dict[str, dict[str, Document]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()
        if "api" in vars(self):
            self.api.rest_client.pool_manager.clear()

    # -- the official client -------------------------------------------------------------------------------

    @cached_property
    def api(self) -> ApiClient:
        from kubernetes import config

        return config.new_client_from_config(str(self.kubeconfig))

    @cached_property
    def core(self) -> CoreV1Api:
        from kubernetes.client import CoreV1Api

        return CoreV1Api(self.api)

    @cached_property
    def apps(self) -> AppsV1Api:
        from kubernetes.client import AppsV1Api

        return AppsV1Api(self.api)

    @cached_property
    def custom(self) -> CustomObjectsApi:
        from kubernetes.client import CustomObjectsApi

        return CustomObjectsApi(self.api)

    # -- plain objects -------------------------------------------------------------------------------------

    def get(self, kind: str, name: str, namespace: str | None = None) -> Document:
        return self.request("GET", self.path(kind, namespace, name))

    def list(self, kind: str, namespace: str | None = None, selector: str = "") -> list[Document]:
        """Return all objects of a kind, in one namespace or in all, that have the labels of ``selector``."""
        answer = self.request("GET", self.path(kind, namespace), labelSelector=selector)
        return list(answer["items"])

    def create(self, document: Document, namespace: str | None = None) -> Document:
        return self.request("POST", self._path_of(document, namespace, named=False), document)

    def replace(self, document: Document, namespace: str | None = None) -> Document:
        """Put an object in the place of what is there; a stale ``resourceVersion`` is a conflict."""
        return self.request("PUT", self._path_of(document, namespace), document)

    def apply(
        self,
        document: Document,
        namespace: str | None = None,
        *,
        manager: str = "test",
        force: bool = False,
        dry_run: bool = False,
    ) -> Document:
        """Apply on the server's side, as the field manager ``manager``."""
        options = {"fieldManager": manager, "force": str(force).lower()}
        if dry_run:
            options["dryRun"] = "All"
        path = self._path_of(document, namespace)
        return self.request("PATCH", path, document, content_type="application/apply-patch+yaml", **options)

    def patch(
        self,
        kind: str,
        name: str,
        namespace: str | None,
        changes: Document,
        *,
        subresource: str = "",
        manager: str = "test",
    ) -> Document:
        """Change some fields (a merge patch: lists are replaced whole, null removes)."""
        path = self.path(kind, namespace, name) + (f"/{subresource}" if subresource else "")
        content_type = "application/merge-patch+json"
        return self.request("PATCH", path, changes, content_type=content_type, fieldManager=manager)

    def set_status(self, kind: str, name: str, namespace: str, status: Document) -> Document:
        """Say what a controller would say, where the status is a subresource (an AnalysisRun's is not: patch it)."""
        return self.patch(kind, name, namespace, {"status": status}, subresource="status")

    def delete(self, kind: str, name: str, namespace: str | None = None) -> None:
        self.request("DELETE", self.path(kind, namespace, name))

    def find(self, kind: str, name: str, namespace: str | None = None) -> Document | None:
        """Return an object, or None if there is none."""
        from kubernetes.client import ApiException

        try:
            return self.get(kind, name, namespace)
        except ApiException as exc:
            if exc.status == 404:
                return None
            raise

    def exists(self, kind: str, name: str, namespace: str | None = None) -> bool:
        return self.find(kind, name, namespace) is not None

    def watch(
        self, kind: str, namespace: str | None = None, *, seconds: int = 3600, **query: str
    ) -> Iterator[tuple[str, Document]]:
        """Yield what becomes of the objects of a kind for so long; without a ``resourceVersion``, ADDED for each first.

        It also ends when the server ends it, such as where it has forgotten the version.
        """
        asked = urlencode({"watch": "true", "timeoutSeconds": str(seconds), **query})
        answer = self._pool.request(
            "GET",
            f"{self.url}{self.path(kind, namespace)}?{asked}",
            headers={**self._headers, "Accept": "application/json"},
            preload_content=False,
            timeout=seconds + 30,
        )
        try:
            if answer.status >= 400:
                raise _refused(answer)
            for line in answer:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                yield event["type"], event["object"]
        finally:
            answer.close()

    # -- REST ----------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Document | None = None,
        *,
        content_type: str = "application/json",
        **query: str,
    ) -> Document:
        """Make one call, without any retry, and return the answer's object."""
        given = {name: value for name, value in query.items() if value}
        answer = self._pool.request(
            method,
            f"{self.url}{path}" + (f"?{urlencode(given)}" if given else ""),
            body=None if body is None else json.dumps(body, ensure_ascii=False),
            headers={**self._headers, "Content-Type": content_type, "Accept": "application/json"},
        )
        if answer.status >= 400:
            raise _refused(answer)
        return dict(json.loads(answer.data))

    def path(self, kind: str, namespace: str | None = None, name: str = "") -> str:
        """Return the path of a kind, or of one object of it."""
        version, _, kind = kind.rpartition("/")
        for candidate in (version,) if version else SEARCHED:
            known = self._kinds_of(candidate)
            if kind in known:
                prefix = "/api/v1" if candidate == "v1" else f"/apis/{candidate}"
                inside = f"/namespaces/{namespace}" if namespace and known[kind]["namespaced"] else ""
                return f"{prefix}{inside}/{known[kind]['name']}" + (f"/{name}" if name else "")
        raise LookupError(f"the API server knows no kind {kind}")

    def _path_of(self, document: Document, namespace: str | None, *, named: bool = True) -> str:
        metadata = document["metadata"]
        kind = f"{document['apiVersion']}/{document['kind']}"
        namespace = namespace or metadata.get("namespace")
        return self.path(kind, namespace, metadata["name"] if named else "")

    def _kinds_of(self, version: str) -> dict[str, Document]:
        if version not in self._kinds:
            found = self.request("GET", "/api/v1" if version == "v1" else f"/apis/{version}")
            self._kinds[version] = {one["kind"]: one for one in found["resources"] if "/" not in one["name"]}
        return self._kinds[version]


def _refused(answer: BaseHTTPResponse) -> ApiException:
    from kubernetes.client import ApiException

    refusal = ApiException(status=answer.status, reason=answer.reason)
    refusal.body = answer.data.decode()
    return refusal
