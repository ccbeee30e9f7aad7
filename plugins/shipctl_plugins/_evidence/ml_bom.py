"""The bill of materials of a model: CycloneDX 1.6 with a model card (https://cyclonedx.org/docs/1.6/json/).

The model is the component that the document is about, with its files inside it; data sets and required
distributions stand beside it, and the dependency graph says that the model needs them. The same arguments give the
same bytes: the serial number is derived from the content, and there is no time in it.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from shipctl.errors import GateError, UnavailableError
from shipctl.evidence.provenance import package_url, public_uri
from shipctl.records import canonical_json
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import FileEntry
from shipctl.stages.context import Lineage, LineageSource
from shipctl_plugins._evidence.licenses import normal_license
from shipctl_plugins._evidence.requirements import Requirement, read_requirements

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

SPEC_VERSION = "1.6"
MODEL_REF = "model"
"""`bom-ref` of the model itself."""

_RESERVED = "/:?#[]@!$&'()*+,;=%~"
"""What RFC 3986 lets stand in a URI as it is."""
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://shipctl.dev/ml-bom/v1")
_APPROACHES = frozenset(
    {"supervised", "unsupervised", "reinforcement-learning", "semi-supervised", "self-supervised"}
)
_PARAMETERS = {
    "task": "task", "architecture": "modelArchitecture", "architecture_family": "architectureFamily",
}  # fmt: skip
_CONSIDERATIONS = {
    "users": "users", "use_cases": "useCases", "intended_use": "useCases", "limitations": "technicalLimitations",
    "limits": "technicalLimitations", "tradeoffs": "performanceTradeoffs", "ethics": "ethicalConsiderations",
}  # fmt: skip


def ml_bom(
    *,
    name: str,
    version: str,
    owner: str | None,
    description: str | None,
    license: str | None,  # noqa: A002  (the word of every format that this goes to)
    files: Sequence[FileEntry],
    signature: Signature,
    metrics: Mapping[str, float],
    datasets: Sequence[LineageSource],
    lineage: Lineage,
    requirements: str | None,
    card: Mapping[str, str],
) -> bytes:
    """Return the ML-BOM of a model as canonical JSON.

    ``license`` is an SPDX expression, ``files`` are the model's, ``metrics`` are in base units, ``requirements`` is
    the text of its requirements.txt. Of ``card``, `task`, `architecture`, `architecture_family`, `approach`, `users`,
    `use_cases` (`intended_use`), `limitations` (`limits`), `tradeoffs` and `ethics` have fields of their own in
    CycloneDX (a line each in the lists); the rest become properties.

    :raises GateError: if the licence is no SPDX expression, or the requirements bring what they do not name
    :raises UnavailableError: without the extra `evidence`
    """
    try:
        import cyclonedx.output.json as writers

        import packaging  # noqa: F401  (for read_requirements)
    except ImportError as exc:
        message = f"an ML-BOM needs {exc.name}, which is not installed: pip install 'shipctl[evidence]'"
        raise UnavailableError(message) from exc
    model = _model(name, version, owner, description, license, files, lineage)
    bom = _document(model, datasets, _required(requirements or ""), lineage)
    document: dict[str, Any] = json.loads(writers.JsonV1Dot6(bom).output_as_string())
    # The library has no model cards and no data (seen in 11.12), so these are put in here; and it insists on a time.
    del document["metadata"]["timestamp"], document["serialNumber"]
    document["metadata"]["component"]["modelCard"] = _model_card(signature, metrics, datasets, card)
    described = {source.name: source for source in datasets}
    for component in document.get("components", ()):
        if source := described.get(component["bom-ref"]):
            component["data"] = [_data(source)]
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, canonical_json(document).decode())}"
    return canonical_json(document)


def _document(
    model: Component, datasets: Sequence[LineageSource], required: Iterable[Component], lineage: Lineage
) -> Bom:
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository

    tool = Component(name="shipctl", version=lineage.shipctl or None, type=ComponentType.APPLICATION)
    bom = Bom(metadata=BomMetaData(component=model, tools=ToolRepository(components=[tool])))
    beside = [*(_dataset(source) for source in datasets), *required]
    for component in beside:
        bom.components.add(component)
    bom.register_dependency(model, beside)
    return bom


def _model(
    name: str,
    version: str,
    owner: str | None,
    description: str | None,
    license: str | None,  # noqa: A002
    files: Sequence[FileEntry],
    lineage: Lineage,
) -> Component:
    from cyclonedx.model.component import Component, ComponentType, Pedigree
    from cyclonedx.model.contact import OrganizationalEntity
    from cyclonedx.model.license import LicenseExpression
    from packageurl import PackageURL

    inside = [
        Component(
            name=entry.path,
            type=ComponentType.FILE,
            bom_ref=f"file:{entry.path}",
            hashes=[_hash(entry.sha256)],
        )
        for entry in files
    ]
    ancestors = [_ancestor(source) for source in lineage.sources if source.name == "model"]
    facts = {"spec:sha256": lineage.spec, "revision": lineage.revision}
    return Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=MODEL_REF,
        description=description,
        manufacturer=OrganizationalEntity(name=owner) if owner else None,
        licenses=[LicenseExpression(normal_license(license))] if license else None,
        purl=PackageURL("generic", name=name, version=version),
        hashes=[_hash(files[0].sha256)] if len(files) == 1 else None,
        components=inside,
        pedigree=Pedigree(ancestors=ancestors) if ancestors else None,
        properties=_properties(facts),
    )


def _ancestor(source: LineageSource) -> Component:
    """Describe the source model: what the packaged one was made from."""
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=public_uri(source.uri) or source.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"source:{source.name}",
        components=[
            Component(name=path, type=ComponentType.FILE, hashes=[_hash(source.files[path])])
            for path in sorted(source.files)
        ],
        properties=_properties({"artifact": source.digest}),
    )


def _dataset(source: LineageSource) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    digests = list(source.files.values())
    return Component(
        name=source.name,
        type=ComponentType.DATA,
        bom_ref=source.name,
        hashes=[_hash(digests[0])] if len(digests) == 1 else None,
        properties=_properties({"artifact": source.digest}),
    )


def _data(source: LineageSource) -> dict[str, Any]:
    """Return CycloneDX's `componentData` of a data set."""
    files = {f"sha256:{path}": digest for path, digest in sorted(source.files.items())}
    contents: dict[str, Any] = {"url": quote(public_uri(source.uri), safe=_RESERVED)} if source.uri else {}
    if files:
        contents["properties"] = [{"name": f"shipctl:{key}", "value": value} for key, value in files.items()]
    return {"type": "dataset", "name": source.name, "contents": contents}


def _required(text: str) -> list[Component]:
    """Return a library component per distribution and version that the requirements name."""
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    parsed = read_requirements(text)
    if parsed.unreadable:
        number, line = parsed.unreadable[0]
        message = (
            f"requirements.txt:{number}: {line[:80]!r} brings something that it does not name; "
            "write name==version, a line each"
        )
        raise GateError(message)
    lines: dict[tuple[str, str], list[Requirement]] = {}
    for item in parsed.found:
        lines.setdefault((item.name, item.version or ""), []).append(item)
    return [
        Component(
            name=name,
            version=version or None,
            bom_ref=package_url(name, version) if version else f"requirement:{name}",
            purl=PackageURL("pypi", name=name, version=version or None),
            properties=[
                *_properties({"requirement": item.specifier, "marker": item.marker} for item in items),
            ],
        )
        for (name, version), items in lines.items()
    ]


def _model_card(
    signature: Signature,
    metrics: Mapping[str, float],
    datasets: Sequence[LineageSource],
    card: Mapping[str, str],
) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "inputs": [{"format": _format(tensor)} for tensor in signature.inputs],
        "outputs": [{"format": _format(tensor)} for tensor in signature.outputs],
    }
    if datasets:
        parameters["datasets"] = [{"ref": source.name} for source in datasets]
    considerations: dict[str, Any] = {}
    others: dict[str, str] = {}
    for key, text in sorted(card.items()):
        lines = [line.strip().removeprefix("- ").strip() for line in text.splitlines() if line.strip()]
        if not lines:
            continue
        if key in _PARAMETERS:
            parameters[_PARAMETERS[key]] = text.strip()
        elif key == "approach" and text.strip() in _APPROACHES:
            parameters["approach"] = {"type": text.strip()}
        elif key in _CONSIDERATIONS:
            field = _CONSIDERATIONS[key]
            items = [{"name": line} for line in lines] if field == "ethicalConsiderations" else lines
            considerations[field] = [*considerations.get(field, ()), *items]
        else:
            others[f"shipctl:card:{key}"] = text.strip()
    found: dict[str, Any] = {"modelParameters": parameters}
    if metrics:
        rows = [{"type": metric, "value": _number(metrics[metric])} for metric in sorted(metrics)]
        found["quantitativeAnalysis"] = {"performanceMetrics": rows}
    if considerations:
        found["considerations"] = considerations
    if others:
        found["properties"] = [{"name": key, "value": value} for key, value in others.items()]
    return found


def _format(tensor: TensorSpec) -> str:
    return f"{tensor.dtype}[{', '.join(map(str, tensor.shape))}] {tensor.name}"


def _number(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else str(value)


def _hash(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _properties(facts: Mapping[str, str] | Iterable[Mapping[str, str]]) -> list[Property]:
    from cyclonedx.model import Property

    rows = [facts] if isinstance(facts, Mapping) else list(facts)
    return [
        Property(name=f"shipctl:{key}", value=row[key]) for row in rows for key in sorted(row) if row[key]
    ]
