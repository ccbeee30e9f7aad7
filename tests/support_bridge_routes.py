"""A live HTTPRoute, as the Envoy of tests is told it: by its rules, and by nothing that shipctl notes beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shipctl.release.traffic import WHOLE, Mirror, Segment, Sticky, Traffic
from support_kube import Kube

Json = dict[str, Any]
Shares = dict[str, int]

KIND = "httproutes.gateway.networking.k8s.io"
_DURATION = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
SESSION_PERSISTENCE = {
    "type": "object",
    "properties": {
        "sessionName": {"type": "string", "maxLength": 128},
        "type": {"type": "string", "enum": ["Cookie", "Header"], "default": "Cookie"},
        "absoluteTimeout": _DURATION,
        "idleTimeout": _DURATION,
        "cookieConfig": {
            "type": "object",
            "properties": {
                "lifetimeType": {"type": "string", "enum": ["Permanent", "Session"], "default": "Session"}
            },
        },
    },
}
"""Of a rule, since 1.1 (GEP-1619)."""
PERCENT = {"type": "integer", "format": "int32", "minimum": 0, "maximum": 100}
FRACTION = {
    "type": "object",
    "required": ["numerator"],
    "properties": {
        "numerator": {"type": "integer", "format": "int32", "minimum": 0},
        "denominator": {"type": "integer", "format": "int32", "minimum": 1, "default": 100},
    },
}
"""Of a copy, since 1.2 (GEP-3171)."""


def make_experimental(kube: Kube) -> None:
    """Have the cluster's HTTPRoute be that of the experimental channel of 1.2, as far as shipctl writes it."""
    definition = kube.get("CustomResourceDefinition", KIND)
    (version,) = definition["spec"]["versions"]
    rule = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rules"]["items"][
        "properties"
    ]
    rule["sessionPersistence"] = SESSION_PERSISTENCE
    for filters in (rule["filters"], rule["backendRefs"]["items"]["properties"]["filters"]):
        mirror = filters["items"]["properties"]["requestMirror"]["properties"]
        mirror.update(percent=PERCENT, fraction=FRACTION)
    kube.replace(definition)


def traffic_of(route: Json, revisions: Mapping[str, str]) -> Traffic | None:
    """Return what a route asks for; None for a closed one.

    ``revisions`` are those of the Services that there are.

    :raises KeyError: if it names another one
    :raises ValueError: if it asks for what the Envoy of tests cannot do
    """
    rules = route["spec"]["rules"]
    plain = [rule for rule in rules if not headers_of(rule)]
    if not plain:
        return None
    rest = plain[-1]
    weights = shares_of(rest, revisions)
    if not weights:
        return None
    return Traffic(
        weights=weights,
        segments=tuple(segment_of(rule, weights, revisions) for rule in rules if headers_of(rule)),
        mirror=mirror_of(rest),
        sticky=sticky_of(rest),
    )


def headers_of(rule: Json) -> list[tuple[str, str]]:
    """Return the headers, with their values, of each kind of requests that a rule is for."""
    found = []
    for match in rule.get("matches") or ():
        headers = match.get("headers") or ()
        if len(headers) > 1 or any(header.get("type", "Exact") != "Exact" for header in headers):
            message = f"more than one header, or not its exact value: {match}"
            raise ValueError(message)
        found += [(header["name"], header["value"]) for header in headers]
    return found


def shares_of(rule: Json, revisions: Mapping[str, str]) -> Shares:
    """Return the percentage of each revision among the requests that a rule is for."""
    weights = {ref["name"]: int(ref.get("weight", 1)) for ref in rule.get("backendRefs") or ()}
    total = sum(weights.values())
    return {revisions[name]: round(WHOLE * weight / total) for name, weight in weights.items() if weight}


def segment_of(rule: Json, rest: Shares, revisions: Mapping[str, str]) -> Segment:
    """Return the requests that a rule tells by a header: they go to one revision, or by weight like the ``rest``."""
    shares = shares_of(rule, revisions)
    told = headers_of(rule)
    header, values = told[0][0], tuple(value for _, value in told)
    if len(shares) > 1 and shares != rest:
        message = f"requests with {header} have weights of their own: {shares}"
        raise ValueError(message)
    only = next(iter(shares)) if len(shares) == 1 else None
    return Segment(name=f"{header}={','.join(values)}", header=header, values=values, revision=only)


def mirror_of(rule: Json) -> Mirror | None:
    """Return what is copied; in place of a candidate stands the Service that gets the copies."""
    for each in rule.get("filters") or ():
        if each["type"] != "RequestMirror":
            continue
        mirror = each["requestMirror"]
        fraction = mirror.get("fraction") or {"numerator": mirror.get("percent", WHOLE)}
        percent = WHOLE * fraction["numerator"] / fraction.get("denominator", WHOLE)
        return Mirror(percent=percent, candidate=mirror["backendRef"]["name"])
    return None


def sticky_of(rule: Json) -> Sticky | None:
    """Return by which cookie requests stay with one revision. (Whoever asks brings it here; gateways set it.)"""
    persistence = rule.get("sessionPersistence")
    if persistence is None:
        return None
    name = persistence.get("sessionName") or persistence["cookie"]["name"]
    return Sticky(kind="cookie", name=name)
