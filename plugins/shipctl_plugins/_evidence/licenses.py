"""SPDX licence expressions (https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/): reading and judging."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from shipctl.errors import GateError

_OWN = ("LicenseRef-", "DocumentRef-")
"""What SPDX lets everybody define."""


def normal_license(expression: str) -> str:
    """Return the expression with every identifier written as SPDX's list of licences writes it.

    :raises GateError: if it is no expression, or names what is not on that list
    """
    return str(_parsed(expression))


def permits(expression: str, allowed: Callable[[str], bool]) -> bool:
    """Whether ``allowed`` licences are enough: all of what AND joins, at least one of what OR joins.

    A licence with an exception (`GPL-2.0-only WITH Classpath-exception-2.0`) is asked for as a whole.

    :raises GateError: if it is no expression
    """
    return _permits(_parsed(expression), allowed)


def _permits(term: Any, allowed: Callable[[str], bool]) -> bool:
    operator = str(getattr(term, "operator", "")).strip()
    if operator == "OR":
        return any(_permits(part, allowed) for part in term.args)
    if operator == "AND":
        return all(_permits(part, allowed) for part in term.args)
    return allowed(str(term))


@cache
def _spdx() -> Any:
    """Return SPDX's list of licences, which takes tens of milliseconds to build."""
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def _parsed(expression: str) -> Any:
    from license_expression import ExpressionError

    licensing = _spdx()
    try:
        parsed = licensing.parse(expression)
    except (ExpressionError, AttributeError) as exc:  # it stumbles over its own errors at times
        message = f"the licence {expression!r} is no SPDX expression; write one such as 'Apache-2.0 OR MIT'"
        raise GateError(message) from exc
    if parsed is None:
        raise GateError("the licence is empty; write an SPDX expression such as 'Apache-2.0'")
    unknown = [name for name in licensing.unknown_license_keys(parsed) if not name.startswith(_OWN)]
    if unknown:
        message = (
            f"the licence {expression!r} names {unknown[0]!r}, which SPDX does not know; write an identifier of "
            "https://spdx.org/licenses, or LicenseRef-… for one of your own"
        )
        raise GateError(message)
    return parsed
