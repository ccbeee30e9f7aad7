"""Optimisation profiles: the sizes of a model's varying dimensions, as shapes of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

from shipctl.errors import SpecError
from shipctl.signature import Signature
from shipctl_plugins._tensorrt.options import EngineOptions, Profile, Range

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shapes:
    """Shapes of the inputs with a varying dimension, by name, in one profile."""

    min: dict[str, Shape]
    opt: dict[str, Shape]
    max: dict[str, Shape]


def complete_profiles(signature: Signature, options: EngineOptions) -> tuple[Profile, ...]:
    """Return the profiles with every varying dimension of ``signature``; none for a model that has no such one.

    :raises SpecError: for a dimension that the model does not have, or one without sizes
    """
    varying = _varying(signature)
    if not varying:
        if options.profiles:
            message = "profiles: no dimension of this model varies; leave profiles out"
            raise SpecError(message)
        return ()
    batch = (
        next(spec.shape[0] for spec in signature.inputs if spec.is_batched) if _batched(signature) else None
    )
    return tuple(
        _complete(profile, varying, str(batch), options.batch) for profile in options.profiles or ({},)
    )


def _batched(signature: Signature) -> bool:
    return any(spec.is_batched for spec in signature.inputs)


def _varying(signature: Signature) -> dict[str, str]:
    """Return the varying dimensions of the inputs, each with the first input that has it."""
    found: dict[str, str] = {}
    for spec in signature.inputs:
        for size in spec.shape:
            if isinstance(size, str):
                found.setdefault(size, str(spec))
    return found


def _complete(profile: Profile, varying: dict[str, str], batch: str, usual: Range) -> Profile:
    if unknown := sorted(set(profile) - set(varying)):
        message = f"profiles: the model has no varying dimension {unknown[0]!r}, only {', '.join(varying)}"
        raise SpecError(message)
    full = {batch: usual, **profile} if batch in varying else dict(profile)
    if missing := [name for name in varying if name not in full]:
        name = missing[0]
        message = (
            f"profiles: dimension {name!r} varies ({varying[name]}) and has no sizes; "
            f"say them: `profiles: [{{{name}: {{min: 1, opt: 64, max: 256}}}}]`"
        )
        raise SpecError(message)
    return {name: full[name] for name in varying}


def shapes(signature: Signature, profile: Profile) -> Shapes:
    """Return the shapes of a complete profile."""

    def at(end: str) -> dict[str, Shape]:
        return {
            spec.name: tuple(
                getattr(profile[size], end) if isinstance(size, str) else size for size in spec.shape
            )
            for spec in signature.inputs
            if any(isinstance(size, str) for size in spec.shape)
        }

    return Shapes(min=at("min"), opt=at("opt"), max=at("max"))
