"""Licences of what is required, as far as the installed distributions say them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution
from typing import Any

from shipctl.errors import GateError
from shipctl_plugins._evidence.licenses import normal_license
from shipctl_plugins._evidence.requirements import Requirement

_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "Zope Public License": "ZPL-2.1",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
}
_PREFIX = "License :: OSI Approved :: "


def rows_of(required: Sequence[Requirement]) -> list[dict[str, Any]]:
    """Return a row per requirement with its SPDX expression; empty where nothing is known of that version.

    Only a distribution that is installed in the very version that is required says anything, so the answer does not
    depend on what else happens to be installed.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for item in required:
        expression, source = _license(item)
        rows[item.name, item.version or ""] = {
            "of": item.name, "version": item.version or item.specifier, "license": expression, "source": source,
        }  # fmt: skip
    return [rows[key] for key in sorted(rows)]


def _license(item: Requirement) -> tuple[str, str]:
    from packaging.version import InvalidVersion, Version

    try:
        found = distribution(item.name)
        if item.version is None or Version(found.version).public != Version(item.version).public:
            return "", "not installed in this version"
    except (PackageNotFoundError, InvalidVersion):
        return "", "not installed in this version"
    return _from_metadata(found.metadata)


def _from_metadata(metadata: PackageMetadata) -> tuple[str, str]:
    for key in ("License-Expression", "License"):
        for text in metadata.get_all(key) or ():
            try:
                return normal_license(text.strip()), key
            except GateError:
                continue
    classes = [
        _CLASSIFIERS[text.removeprefix(_PREFIX)]
        for text in metadata.get_all("Classifier") or ()
        if text.startswith(_PREFIX) and text.removeprefix(_PREFIX) in _CLASSIFIERS
    ]
    return (" AND ".join(sorted(set(classes))), "Classifier") if classes else ("", "its metadata do not say")
