"""Whether a candidate fits beside what serves: what the namespace's quotas leave, and what nodes can hold.

A quota (kubernetes.io/docs/concepts/policy/resource-quotas) is a hard limit, so what does not fit is refused. Nodes
may come when pods ask for them, so a pod that no node of today could hold is only told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

from shipctl.errors import ShipctlError
from shipctl_plugins._kubernetes.api.connection import Cluster, ForbiddenError

Object = dict[str, Any]

_QUANTITY = re.compile(r"([0-9.]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|u|n|[eE][+-]?[0-9]+)?")
_FACTORS = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15),
    "E": Decimal(10**18), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip
_COUNTED = ("pods", "count/pods")


def number_of(quantity: str | int) -> Decimal:
    """Return a quantity in its base unit: cores, bytes, pieces.

    :raises ValueError: if it is none
    """
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None:
        message = f"{quantity!r} is not a quantity of Kubernetes"
        raise ValueError(message)
    unit = found[2] or ""
    return (
        Decimal(found[1] + unit)
        if unit[:1] in {"e", "E"} and unit not in _FACTORS
        else Decimal(found[1]) * _FACTORS[unit]
    )


def pod_needs(deployment: Object) -> dict[str, Decimal]:
    """Return what one pod of a Deployment counts for in a quota: by the names that quotas have."""
    needs = {"pods": Decimal(1), "count/pods": Decimal(1)}
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        for kind, amounts in (container.get("resources") or {}).items():
            for name, amount in amounts.items():
                key = f"{kind}.{name}"
                needs[key] = needs.get(key, Decimal(0)) + number_of(amount)
    for name in ("cpu", "memory"):
        if f"requests.{name}" in needs:
            needs[name] = needs[f"requests.{name}"]  # the short names of quotas mean requests
    return needs


def quota_problem(cluster: Cluster, deployment: Object, pods: int) -> str | None:
    """Say with the numbers which quota has no room for so many more pods; None if all have, or nobody may tell.

    :raises ShipctlError: if the cluster cannot be asked
    """
    if pods <= 0:
        return None
    try:
        quotas = cluster.list("v1", "ResourceQuota")
    except ForbiddenError:
        return None
    needs = pod_needs(deployment)
    for quota in quotas:
        if quota.get("spec", {}).get("scopes") or quota.get("spec", {}).get("scopeSelector"):
            continue  # counts only some pods; the API server will say it
        problem = _exceeded(quota, needs, pods)
        if problem is not None:
            return problem
    return None


def _exceeded(quota: Object, needs: Mapping[str, Decimal], pods: int) -> str | None:
    status = quota.get("status", {})
    for name, hard in (status.get("hard") or quota.get("spec", {}).get("hard") or {}).items():
        each = needs.get(name)
        if each is None:
            continue
        used = (status.get("used") or {}).get(name, "0")
        left = number_of(hard) - number_of(used)
        if each * pods > left:
            count = f"{pods} more pods" if name in _COUNTED else f"{pods} × {_shown(name, each)} of {name}"
            return (
                f"quota {quota['metadata']['name']} has no room for {count}: it allows {hard} of {name}, and {used} "
                f"are used, which leaves {_shown(name, max(left, Decimal(0)))}"
            )
    return None


def node_problem(cluster: Cluster, deployment: Object) -> str | None:
    """Say in one line that no node of today could hold one pod; None if one could, or nobody may tell."""
    nodes: Sequence[Object] = ()
    with suppress(ShipctlError):  # few may look at nodes
        nodes = cluster.list("v1", "Node", deployment["spec"]["template"]["spec"].get("nodeSelector"))
    wanted = {
        name.removeprefix("requests."): amount
        for name, amount in pod_needs(deployment).items()
        if name.startswith("requests.")
    }
    usable = [node for node in nodes if not node.get("spec", {}).get("unschedulable")]
    if not usable or any(_holds(node, wanted) for node in usable):
        return None
    for name, amount in wanted.items():
        most = max((number_of(_allocatable(node).get(name, "0")) for node in usable), default=Decimal(0))
        if amount > most:
            return (
                f"no node could hold a pod: it asks for {_shown(name, amount)} of {name}, and the largest of "
                f"{len(usable)} nodes has {_shown(name, most)}"
            )
    return f"no one of {len(usable)} nodes has all that a pod asks for"


def _holds(node: Object, wanted: Mapping[str, Decimal]) -> bool:
    there = _allocatable(node)
    return all(number_of(there.get(name, "0")) >= amount for name, amount in wanted.items())


def _allocatable(node: Object) -> dict[str, str]:
    return dict(node.get("status", {}).get("allocatable") or {})


def _shown(name: str, amount: Decimal) -> str:
    if "memory" in name or "storage" in name:
        return f"{amount / 2**20:,.0f} MiB"
    return f"{amount.normalize():f}"
