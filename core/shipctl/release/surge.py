"""How replicas are replaced where there is no room for all of both revisions: a few at a time."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from shipctl.records import Record
from shipctl.spec.units import Percentage

Amount = Annotated[int, Field(ge=0)] | Percentage
"""A number of replicas, or a percentage of them."""


class Surge(Record):
    """How many replicas there may be more, and how many fewer ready ones, than a revision has, on the way.

    The terms and the rounding are those of a Kubernetes Deployment: `maxSurge` is rounded up, `maxUnavailable` down.
    """

    maxSurge: Amount = Field(  # noqa: N815
        default=Percentage("25%"), description="Replicas above the wanted number, or a percentage of it."
    )
    maxUnavailable: Amount = Field(  # noqa: N815
        default=0, description="Replicas that may be missing from the wanted number, or a percentage of it."
    )

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if not self.maxSurge and not self.maxUnavailable:
            message = (
                "maxSurge and maxUnavailable are both 0, so no replica could be replaced; write maxSurge: 1"
            )
            raise ValueError(message)
        return self

    def of(self, replicas: int) -> tuple[int, int]:
        """Return how many more, and how many fewer, there may be than ``replicas``; one of the two is at least 1."""
        more = math.ceil(_counted(self.maxSurge, replicas))
        fewer = math.floor(_counted(self.maxUnavailable, replicas))
        return (more, min(fewer, replicas)) if more or fewer else (0, 1)


def _counted(amount: int | Percentage, replicas: int) -> float:
    return round(float(amount) * replicas, 9) if isinstance(amount, Percentage) else amount
