"""The templates of manifests, and those of a project that stand in for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import SpecError
from shipctl.spec.problems import listed, near
from shipctl.templates import environment, folder
from shipctl_plugins._kubernetes.manifests.documents import Manifest, in_yaml, objects_in

if TYPE_CHECKING:
    from jinja2 import Environment

OWNER = "kubernetes"
"""The folder of our templates."""
_ENDING = ".yaml.j2"


@dataclass(frozen=True)
class Templates:
    """Our templates, and before them those of ``own``, a folder, if there is one.

    In a template every value goes through `toyaml`, which makes one YAML value of it whatever is in it; durations
    go through `seconds` (whole seconds, rounded up).
    """

    own: Path | None = None

    def objects(self, name: str, **values: Any) -> list[Manifest]:
        """Return the objects that the template ``name`` (without its ending) makes of ``values``.

        :raises SpecError: if a template of the project does not work
        """
        from jinja2 import TemplateError

        try:
            text = self._environment().get_template(f"{name}{_ENDING}").render(values)
        except (TemplateError, TypeError, ValueError) as exc:
            raise SpecError(f"{self._where(name)}: {exc}; correct it") from exc
        return objects_in(text, self._where(name))

    def one(self, name: str, metadata: Mapping[str, Any], **values: Any) -> Manifest:
        """Return the one object that the template makes, which is to have this ``metadata``, or more.

        :raises SpecError: as :meth:`objects`, and if a template of the project makes another object than it should:
            what has another name, namespace or label would never be found again
        """
        found = self.objects(name, metadata=metadata, **values)
        if len(found) != 1:
            raise SpecError(f"{self._where(name)} makes {len(found)} objects and not one; correct it")
        for key in ("name", "namespace", "labels", "annotations"):
            self._keeps(name, key, metadata.get(key), found[0]["metadata"].get(key))
        return found[0]

    def _keeps(self, name: str, key: str, wanted: Any, got: Any) -> None:
        if isinstance(wanted, dict) and isinstance(got, dict):
            got = {item: got.get(item) for item in wanted}
        if wanted is not None and got != wanted:
            raise SpecError(
                f"{self._where(name)} does not keep metadata.{key}: it has {got!r} and not {wanted!r}, and shipctl "
                "would not find the object again; write `metadata: {{ metadata | toyaml }}`"
            )

    def _where(self, name: str) -> str:
        file = f"{name}{_ENDING}"
        return f"the template {self.own / file if self.own and (self.own / file).is_file() else file}"

    def _environment(self) -> Environment:
        return _environment(self.own)


def templates_in(own: Path | None) -> Templates:
    """Return the templates with those in the folder ``own`` before ours.

    :raises SpecError: if there is no such folder, or a file in it stands in for none of ours
    """
    if own is None:
        return Templates()
    if not own.is_dir():
        raise SpecError(
            f"templates {str(own)!r} is no folder; write the path of one, relative to the spec's folder"
        )
    known = sorted(path.name for path in folder(OWNER).glob(f"*{_ENDING}"))
    for path in sorted(own.glob("*.j2")):
        if path.name not in known:
            hint = near(path.name, known) or f"; there are {listed(known)}"
            raise SpecError(f"the template {path} stands in for none of shipctl's{hint}")
    return Templates(own)


@cache
def _environment(own: Path | None) -> Environment:
    from jinja2 import ChoiceLoader, FileSystemLoader

    found = environment(OWNER)
    if own is not None:
        found.loader = ChoiceLoader([FileSystemLoader(own), FileSystemLoader(folder(OWNER))])
    found.filters["toyaml"] = in_yaml
    found.filters["seconds"] = lambda duration: math.ceil(float(duration))
    return found
