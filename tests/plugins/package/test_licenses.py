"""SPDX licence expressions."""

from __future__ import annotations

import pytest

pytest.importorskip("license_expression")

from shipctl.errors import GateError
from shipctl_plugins._evidence.licenses import normal_license, permits

GOOD = frozenset({"MIT", "Apache-2.0"})


@pytest.mark.parametrize(
    ("expression", "permitted"),
    [
        ("MIT", True),
        ("mit", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("MIT AND Apache-2.0", True),
        ("MIT OR GPL-3.0-only", True),
        ("(GPL-3.0-only OR MIT) AND Apache-2.0", True),
        ("(GPL-3.0-only OR X11) AND Apache-2.0", False),
        ("MIT WITH Classpath-exception-2.0", False),
        ("LicenseRef-ours", False),
    ],
)
def test_alternatives_and_conjunctions_are_followed(expression: str, permitted: bool) -> None:
    assert permits(expression, GOOD.__contains__) is permitted


def test_identifiers_are_written_as_spdx_writes_them() -> None:
    assert normal_license("mit or apache-2.0") == "MIT OR Apache-2.0"
    assert normal_license("LicenseRef-ours") == "LicenseRef-ours"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "the licence is empty; write an SPDX expression such as 'Apache-2.0'"),
        ("MIT AND", "the licence 'MIT AND' is no SPDX expression; write one such as 'Apache-2.0 OR MIT'"),
        ("(MIT", "the licence '(MIT' is no SPDX expression; write one such as 'Apache-2.0 OR MIT'"),
        (
            "MIT OR Ours",
            (
                "the licence 'MIT OR Ours' names 'Ours', which SPDX does not know; write an identifier of "
                "https://spdx.org/licenses, or LicenseRef-… for one of your own"
            ),
        ),
    ],
)
def test_what_is_no_expression_is_refused(expression: str, message: str) -> None:
    with pytest.raises(GateError) as caught:
        normal_license(expression)
    assert str(caught.value) == message
