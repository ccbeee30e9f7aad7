"""The types of the options of a target in a cluster: texts that Kubernetes takes only in a certain form.

Forms: kubernetes.io/docs/concepts/overview/working-with-objects (names, labels, annotations) and
kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, Field

from shipctl.spec.fields import EnvironmentVariable, Named, fault
from shipctl.spec.problems import shorten

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*"
_QUALIFIED = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)"
QUANTITY = r"[0-9]+(?:\.[0-9]{1,9})?(?:m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"
"""A quantity that is not negative, without exponents."""
LABEL_KEY = rf"(?:(?=[^/]{{1,253}}/){_LABEL}(?:\.{_LABEL})*/)?{_QUALIFIED}"
LABEL_VALUE = rf"(?:{_QUALIFIED})?"
OURS = ("shipctl.dev/", "app.kubernetes.io/")
"""What keys of labels and annotations begin with that shipctl writes itself."""
_SECRET = re.compile(
    r"(?:.*_)?(?:SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|(?:ACCESS|PRIVATE|SECRET|API)_KEY)(?:_ID)?",
    re.IGNORECASE,
)
_OWN_FLAGS = (
    "--model-repository",
    "--model-store",
    "--model-control-mode",
    "--strict-readiness",
    "--exit-on-error",
    "--exit-timeout-secs",
    "--http-port",
    "--grpc-port",
    "--metrics-port",
    "--allow-http",
    "--allow-grpc",
    "--allow-metrics",
)


def _not_ours(key: str) -> str:
    if key.startswith(OURS):
        raise fault(f"{shorten(key)} is written by shipctl itself; choose a key of your own, such as team")
    return key


def looks_secret(name: str) -> bool:
    """Say whether an environment variable of that name has a secret; `…_FILE` and `…_PATH` only name a place."""
    return _SECRET.fullmatch(name) is not None


def _no_secret(name: str) -> str:
    if looks_secret(name):
        raise fault(
            f"{shorten(name)} looks like a secret, and everybody who may read the Deployment would see its value; "
            "put it into a Secret of the namespace and name that by credentialsSecret"
        )
    return name


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise fault(
            f"{shorten(text)} is not a range of addresses; write it as 10.0.0.0/8, with no bits set behind the length"
        ) from None
    return text


def _flag(text: str) -> str:
    if text.split("=", 1)[0] in _OWN_FLAGS:
        raise fault(f"{shorten(text)} is set by shipctl itself; remove it from args")
    return _printable(text)


def _printable(text: str) -> str:
    if "\0" in text:
        raise fault(f"{shorten(text)} has a zero byte, which no process can be given; remove it")
    return text


DnsLabel = Annotated[
    str,
    Named(
        _LABEL, "a name of Kubernetes; write at most 63 lower-case letters, digits and '-', such as team-a"
    ),
]
AppName = Annotated[
    str,
    Named(
        r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?",
        "a name for a Service; write at most 40 lower-case letters, digits and '-', beginning with a letter",
    ),
]
Subdomain = Annotated[
    str,
    Named(_SUBDOMAIN, "a name of Kubernetes; write lower-case letters, digits, '-' and '.', such as s3.prod"),
]
Host = Annotated[
    str, Named(rf"(?:\*\.)?{_SUBDOMAIN}", "a host name; write it in lower case, such as digits.example.com")
]
Quantity = Annotated[
    str, Named(QUANTITY, "a quantity of Kubernetes; write a number and a unit, such as 500m or 2Gi")
]
Image = Annotated[
    str,
    Named(
        r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}(?:@sha256:[0-9a-f]{64})?",
        "an image; write registry/repository:tag, or …@sha256:… for one that never changes",
    ),
]
LabelKey = Annotated[
    str,
    Named(LABEL_KEY, "the key of a label; write letters, digits, '-', '_' and '.', such as example.com/team"),
    AfterValidator(_not_ours),
]
LabelValue = Annotated[
    str,
    Named(
        LABEL_VALUE,
        "the value of a label; write at most 63 letters, digits, '-', '_' and '.', such as team-a",
    ),
]
SelectorKey = Annotated[
    str,
    Named(LABEL_KEY, "the key of a label; write letters, digits, '-', '_' and '.', such as example.com/team"),
]
ResourceName = Annotated[
    str,
    Named(
        LABEL_KEY,
        "a resource of nodes; write it as they name it, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb",
    ),
]
Labels = dict[LabelKey, LabelValue]
Selector = dict[SelectorKey, LabelValue]
Annotations = dict[LabelKey, str]
PlainVariable = Annotated[EnvironmentVariable, AfterValidator(_no_secret)]
PlainText = Annotated[str, AfterValidator(_printable)]
Flag = Annotated[
    str,
    Named(r"--[a-z][a-z0-9-]*(?:=[\s\S]*)?", "a flag of tritonserver; write --name or --name=value"),
    AfterValidator(_flag),
]
Network = Annotated[str, AfterValidator(_network)]
PortNumber = Annotated[int, Field(ge=1, le=65535, strict=True)]
KubernetesVersion = Annotated[
    str, Named(r"1\.(?:0|[1-9][0-9]{0,2})", "a version of Kubernetes; write major and minor, such as '1.34'")
]
