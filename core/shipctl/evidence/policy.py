"""The policy of a project: whose signatures count, whether anything may be released without one, and who may approve.

    apiVersion: shipctl.dev/v1
    kind: Policy
    signatures:
      required: true
      keys: [keys/release.pub]            # files beside the policy, or PEM text
      certificates: [keys/root.pem]
      identities: ["release@example.com"]
    approvers:
      - name: ada
        roles: [model-owner]
        keys: [keys/ada.pub]              # then only what is signed with it is an approval of ada's
      - name: grace
        roles: [operator, model-owner]
        users: [ghopper]                  # her account on machines, and her name in the CI

It lies in the project's root as `shipctl-policy.yaml`, or where SHIPCTL_POLICY says.

An approver with keys proves by a signature who approved. One without is known by the name that the machine or the CI
reports, which proves nothing by itself: whoever can write to the store can then approve in that name, so the store is
the boundary of trust. Name keys where that is not enough.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from shipctl.errors import SpecError
from shipctl.evidence.certificates import load_certificates
from shipctl.evidence.keys import PublicKey, read_key_file
from shipctl.evidence.trust import Trust
from shipctl.records import Record
from shipctl.spec.fields import Text, Texts
from shipctl.spec.problems import Keys, Problems, dotted, near
from shipctl.spec.validation import add_validation_errors
from shipctl.spec.yaml import Document, load_document

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

FILE = "shipctl-policy.yaml"
VARIABLE = "SHIPCTL_POLICY"


class SignaturePolicy(Record):
    """`signatures` in a policy."""

    required: bool = Field(True, strict=True, description="Whether only signed packages may be released.")
    keys: Texts = Field(
        (), description="Public keys that are trusted: PEM files relative to the policy, or PEM text."
    )
    certificates: Texts = Field((), description="Root certificates that are trusted, in the same way.")
    identities: tuple[Text, ...] = Field(
        (),
        description="Patterns of the names that certificates must have (subject, e-mail, DNS name or URI).",
    )


class ApproverPolicy(Record):
    """One of `approvers` in a policy."""

    name: Text = Field(description="What the approver is called in approvals.")
    roles: Texts = Field(min_length=1, description="What this person may approve as.")
    keys: Texts = Field(
        (), description="Public keys of this person's, of which one must sign: PEM files, or PEM text."
    )
    users: Texts = Field((), description="Names by which machines and the CI know this person.")


class PolicyFile(Record):
    """What stands in a policy's file."""

    apiVersion: Literal["shipctl.dev/v1"] = Field(description="The version of this form.")  # noqa: N815
    kind: Literal["Policy"] = Field(description="That it is a policy.")
    signatures: SignaturePolicy | None = Field(
        None, description="Who may sign; without it nothing has to be signed."
    )
    approvers: tuple[ApproverPolicy, ...] = Field(
        (), description="Who may approve releases; without any, nobody can."
    )


@dataclass(frozen=True)
class Approver:
    """Somebody who may approve releases."""

    name: str
    roles: tuple[str, ...]
    keys: tuple[PublicKey, ...] = ()
    """One of these has to sign; without any, the name of the account counts."""
    users: tuple[str, ...] = ()

    def is_known_as(self, names: Collection[str]) -> bool:
        """Whether one of these account names is this person's."""
        return not {self.name, *self.users}.isdisjoint(names)

    def may_be(self, names: Collection[str]) -> bool:
        """Whether one of these account names may be this person's, upper and lower case being one."""
        mine = {name.casefold() for name in (self.name, *self.users)}
        return not mine.isdisjoint(name.casefold() for name in names)


@dataclass(frozen=True)
class Policy:
    """A policy with its keys read."""

    path: Path
    required: bool
    trust: Trust
    approvers: tuple[Approver, ...] = ()

    @property
    def name(self) -> str:
        """Its file, for messages."""
        return str(self.path)

    def approver(self, name: str) -> Approver | None:
        """Return the approver of that name."""
        return next((item for item in self.approvers if item.name == name), None)

    def with_roles(self, roles: Collection[str]) -> list[Approver]:
        """Return who has one of these roles; none named means any."""
        return [item for item in self.approvers if not roles or not set(item.roles).isdisjoint(roles)]


def find_policy(project: Path) -> Policy | None:
    """Return the policy of the project whose root is ``project``: SHIPCTL_POLICY, or the file in it; None without one.

    :raises SpecError: if it is wrong, or SHIPCTL_POLICY names a file that does not exist
    """
    named = os.environ.get(VARIABLE)
    if named is not None and not named.strip():
        message = (
            f"{VARIABLE} is set and empty, so nobody knows which policy is meant; name its file, or unset it"
        )
        raise SpecError(message)
    if named:
        return load_policy(Path(named).expanduser().absolute())
    path = project / FILE
    # a link to nowhere is a policy that cannot be read, not none
    return load_policy(path) if path.exists() or path.is_symlink() else None


def load_policy(path: Path) -> Policy:
    """Read a policy and the keys that it names.

    :raises SpecError: that tells everything that is wrong with it, by file, line and column
    """
    if not path.exists():
        raise SpecError(
            f"{path}: there is no such policy; name its file (`--policy`, {VARIABLE}), or write it"
        )
    document = load_document(path)
    problems = Problems(document)
    found = _validated(document, problems)
    problems.raise_if_any()
    assert found is not None  # noqa: S101  (else there was a problem)
    approvers = tuple(_approvers(found.approvers, path.parent, problems))
    signatures = found.signatures
    if signatures is None:
        problems.raise_if_any()
        return Policy(path, required=False, trust=Trust(), approvers=approvers)
    trust = Trust(
        keys=tuple(_keys(signatures.keys, path.parent, problems, ("signatures",))),
        roots=tuple(_roots(signatures.certificates, path.parent, problems)),
        identities=signatures.identities,
    )
    problems.raise_if_any()
    if signatures.required and not trust:
        problems.add(
            ("signatures",),
            "signatures are required and nobody is trusted to make them; name a public key in 'keys', or a root "
            "certificate in 'certificates'",
            "key",
        )
    if signatures.identities and not trust.roots:
        problems.add(
            ("signatures", "identities"),
            "identities are names in certificates, and no root certificate is trusted; add 'certificates'",
            "key",
        )
    problems.raise_if_any()
    return Policy(path, signatures.required, trust, approvers)


def _validated(document: Document, problems: Problems) -> PolicyFile | None:
    # the top level is looked at here, because in its own words the validation speaks of specs
    data: dict[str, Any] = document.data
    known = list(PolicyFile.model_fields)
    for key in data:
        if key not in known:
            hint = near(key, known) or f"; it takes {', '.join(known)}"
            problems.add((key,), f"{key!r} is not known in a policy{hint}", "key")
    for key, value in (("apiVersion", "shipctl.dev/v1"), ("kind", "Policy")):
        if key not in data:
            problems.add((), f"{key!r} is missing; add '{key}: {value}'")
        elif data[key] != value:
            problems.add((key,), f"{key} must be {value!r}; write that")
    if "signatures" in data and data["signatures"] is None:
        problems.add(("signatures",), "'signatures' is empty; say who may sign, or leave it out", "key")
    if "approvers" in data and not data["approvers"]:
        problems.add(("approvers",), "'approvers' is empty; say who may approve, or leave it out", "key")
    if problems:
        return None
    try:
        return PolicyFile.model_validate(data)
    except ValidationError as exc:
        add_validation_errors(problems, exc, PolicyFile, data)
        return None


def _approvers(listed: Sequence[ApproverPolicy], base: Path, problems: Problems) -> list[Approver]:
    """Return the approvers; what belongs to one person must not belong to another as well."""
    found: list[Approver] = []
    owners: dict[str, str] = {}
    known: dict[str, str] = {}
    for index, item in enumerate(listed):
        at: Keys = ("approvers", index)
        keys = _keys(item.keys, base, problems, at)
        for key in keys:
            owner = owners.setdefault(key.id, item.name)
            if owner != item.name:
                problems.add(
                    (*at, "keys"), f"key {key.id} is {owner}'s already; give everybody a key of his own"
                )
        for user, place in [(item.name, "name"), *((user, "users") for user in item.users)]:
            owner = known.setdefault(user.casefold(), item.name)
            if owner != item.name:
                problems.add((*at, place), f"{user!r} is {owner} already; one name is one person")
        if any(item.name == other.name for other in found):
            problems.add((*at, "name"), f"approver {item.name!r} stands here twice; put the two together")
        found.append(Approver(item.name, item.roles, tuple(keys), item.users))
    return found


def _keys(texts: Sequence[str], base: Path, problems: Problems, at: Keys) -> list[PublicKey]:
    found = []
    for index, text in enumerate(texts):
        try:
            found.append(PublicKey.load(*_pem(text, base, f"{dotted(at)}.keys[{index}]")))
        except SpecError as exc:
            problems.add((*at, "keys", index), str(exc))
    return found


def _roots(texts: Sequence[str], base: Path, problems: Problems) -> list[Certificate]:
    found: list[Certificate] = []
    for index, text in enumerate(texts):
        try:
            found += load_certificates(*_pem(text, base, f"signatures.certificates[{index}]"))
        except SpecError as exc:
            problems.add(("signatures", "certificates", index), str(exc))
    return found


def _pem(text: str, base: Path, where: str) -> tuple[str | bytes, str]:
    """Return PEM text and what to call it: the text itself, or that of the file it names."""
    if "-----BEGIN" in text:
        return text, where
    path = base / Path(text).expanduser()
    return read_key_file(path), str(path)
