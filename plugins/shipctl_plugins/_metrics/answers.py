"""What somebody else's code, on this machine or behind a webhook, may answer, and how that becomes samples."""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from shipctl.errors import StageError
from shipctl.records import Record
from shipctl.release.metrics import MetricContext, Samples
from shipctl.spec.problems import dotted
from shipctl_plugins._metrics.web import excerpt

RAW_KEPT = 2000
"""Characters of an answer that are kept in a record."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Answer(Record):
    """An answer: counts have to be there, and no field is taken for another."""

    model_config = ConfigDict(strict=True)

    requests: int = Field(ge=0, description="Requests in the window that were meant for the revision.")
    errors: int = Field(ge=0, description="Of these, how many failed.")
    durations: list[Seconds] | None = Field(
        default=None, description="Seconds of each answered request, in order."
    )
    times: list[Finite] | None = Field(
        default=None, description="When each of `durations` ended, seconds since the epoch."
    )
    value: Finite | None = Field(default=None, description="One number, in base units.")
    coverage: float = Field(
        default=1.0, ge=0, le=1, allow_inf_nan=False, description="Share of the window that is covered."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.errors > self.requests:
            message = f"there are more errors ({self.errors}) than requests ({self.requests})"
            raise ValueError(message)
        if self.durations is not None and len(self.durations) > self.requests:
            message = f"there are more durations ({len(self.durations)}) than requests ({self.requests})"
            raise ValueError(message)
        if self.times is not None and len(self.times) != len(self.durations or ()):
            message = f"there are {len(self.times)} times of {len(self.durations or ())} durations"
            raise ValueError(message)
        return self


def question(ctx: MetricContext, revision: str, since: float, until: float) -> dict[str, Any]:
    """Return the fields that a webhook or a function is asked with; ``version`` is "" where it has none yet."""
    return {
        "pipeline": ctx.pipeline,
        "model": ctx.model,
        "revision": revision,
        "version": ctx.versions.get(revision, ""),
        "since": since,
        "until": until,
    }


def samples(text: str, asked: dict[str, Any], who: str) -> Samples:
    """Return what an answer in JSON says.

    :raises StageError: if it is anything else than an :class:`Answer`
    """
    try:
        answer = Answer.model_validate(_object(text))
    except ValidationError as exc:
        raise StageError(f"{who} answered wrongly: {_all(exc)}; it said {excerpt(text)}") from None
    except (ValueError, RecursionError) as exc:
        message = f"{who} did not answer with a JSON object ({exc}); it said {excerpt(text) or 'nothing'}"
        raise StageError(message) from None
    return Samples(
        revision=asked["revision"],
        since=asked["since"],
        until=asked["until"],
        requests=answer.requests,
        errors=answer.errors,
        durations=None if answer.durations is None else tuple(answer.durations),
        times=None if answer.times is None else tuple(answer.times),
        value=answer.value,
        coverage=answer.coverage,
        query=f"{who} {json.dumps(asked)}",
        raw=excerpt(text, RAW_KEPT),
    )


def _object(text: str) -> dict[str, Any]:
    said = json.loads(text, parse_constant=_refuse)
    if not isinstance(said, dict):
        message = f"it is a {type(said).__name__}"
        raise ValueError(message)  # noqa: TRY004  (the text is wrong, not an argument)
    return said


def _all(exc: ValidationError) -> str:
    said = []
    for error in exc.errors(include_url=False):
        place = dotted(error["loc"])
        message = str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = "is not known"
        said.append(f"{place} {message[:1].lower()}{message[1:]}".strip())
    return "; ".join(said[:5])


def _refuse(name: str) -> NoReturn:
    message = f"{name} is not JSON"
    raise ValueError(message)
