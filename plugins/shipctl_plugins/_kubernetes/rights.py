"""Whether we may do in the namespace what a release does: asked before anything has run, rule by rule.

By SelfSubjectAccessReview (kubernetes.io/docs/reference/access-authn-authz/authorization), which every authorizer
answers; a list of all rules is not complete where a cloud decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from shipctl.errors import ShipctlError, UnavailableError
from shipctl_plugins._kubernetes.api.answers import called
from shipctl_plugins._kubernetes.api.connection import Cluster
from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.manifests.roles import Rule

_AT_ONCE = 8
_OPTIONAL = frozenset(
    {
        "watch",
        "services/proxy",
        "pods/log",
        "events",
        "replicasets",
        "endpointslices",
        "resourcequotas",
        "limitranges",
    }
)
"""Verbs and resources of the rendered Role that make messages better, and without which a release goes all the same."""


class Right(NamedTuple):
    """One thing that somebody may do, or not."""

    verb: str
    group: str
    resource: str
    """Plural, with a subresource behind a slash."""
    name: str
    """Of the one object that it is about; empty for all."""


def check_rights(cluster: Cluster, app: App, rules: Iterable[Rule]) -> None:
    """Look whether we may do all that ``rules`` have.

    :raises UnavailableError: that names all that is missing, with the rules to add to the Role
    """
    asked = [(rule, right) for rule in rules for right in rights_of(rule)]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="shipctl-rights") as threads:
        granted = list(threads.map(lambda item: _granted(cluster, item[1]), asked))
    missing = [(rule, right) for (rule, right), may in zip(asked, granted, strict=True) if not may]
    if not missing:
        return
    listed = ", ".join(dict.fromkeys(f"{right.verb} {right.resource}" for _, right in missing))
    needed = [
        rule for index, (rule, _) in enumerate(missing) if rule not in [other for other, _ in missing[:index]]
    ]
    message = (
        f"{_who(cluster)} may not do in namespace {app.namespace} what a release does: {listed}; have these rules "
        f"added to its Role: {json.dumps(needed)}"
    )
    raise UnavailableError(message)


def rights_of(rule: Rule) -> list[Right]:
    """Return the single rights of a rule that a release cannot do without."""
    return [
        Right(verb, group, resource, name)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
        if verb not in _OPTIONAL and resource not in _OPTIONAL
    ]


def _who(cluster: Cluster) -> str:
    """Return who the cluster says that we are (a SelfSubjectReview, from Kubernetes 1.28 on), else how we log in."""
    version, kind = "authentication.k8s.io/v1", "SelfSubjectReview"
    with suppress(ShipctlError):
        if cluster.has(version, kind):
            found = cluster.create({"apiVersion": version, "kind": kind, "metadata": {"name": ""}})
            if name := found.get("status", {}).get("userInfo", {}).get("username"):
                return str(name)
    return called(cluster.user)


def _granted(cluster: Cluster, right: Right) -> bool:
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "namespace": cluster.namespace,
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "name": right.name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "metadata": {"name": ""},
        "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
    }
    return bool(cluster.create(review).get("status", {}).get("allowed"))
