"""Who we are: credentials from a profile, the environment, files, STS, or the machine's metadata service.

botocore's chain does the finding and the renewing; what it does not know (MINIO_ACCESS_KEY, the role of a spec) is
put into it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from shipctl.errors import UnavailableError

_NAMES = {
    "assume-role": "the profile's role",
    "assume-role-with-web-identity": "the web identity token",
    "container-role": "the container's role",
    "custom-process": "the profile's credential process",
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "iam-role": "the machine's metadata service",
    "minio": "the environment (MINIO_ACCESS_KEY)",
    "shared-credentials-file": "the shared credentials file",
    "config-file": "the AWS configuration file",
    "sso": "single sign-on",
    "sts": "the role",
}
_TOKEN_FILE = "AWS_WEB_IDENTITY_TOKEN_FILE"  # noqa: S105  (the name of a variable)
_SESSION = "shipctl"
"""The name by which the server's log shows a role's session."""


class Frozen(NamedTuple):
    """Credentials of one request, as :func:`minio.signer.sign_v4_s3` wants them."""

    access_key: str
    secret_key: str
    session_token: str | None

    def __repr__(self) -> str:
        return "Frozen(…)"


class Identity:
    """Credentials that renew themselves, for botocore's session and for the minio client."""

    def __init__(self, session: Any, found: Any, source: str) -> None:
        self.session = session
        self._found = found
        self.source = source
        """Where they came from, in words."""

    def retrieve(self) -> Frozen:
        """Return what is valid now (the minio client calls this once per request)."""
        now = self._found.get_frozen_credentials()
        return Frozen(now.access_key, now.secret_key, now.token)


def identify(
    uri: str, *, profile: str | None, role: str | None, region: str, endpoint: str | None, ca: str | None
) -> Identity:
    """Find credentials for a store. ``endpoint`` is that of S3: MinIO and Ceph answer STS calls there as well.

    :raises UnavailableError: if there are none, or half of them; the message says what to set
    """
    from botocore.exceptions import BotoCoreError, ClientError, PartialCredentialsError, ProfileNotFound
    from botocore.session import Session

    session = Session(profile=profile)
    session.set_config_variable("region", region)
    sts = {
        "endpoint_url": os.environ.get("AWS_ENDPOINT_URL_STS") or endpoint,
        "verify": ca,
        "region_name": region,
    }
    try:
        if profile is None:
            _know_minio(session)
        if role is not None:
            _take_role(session, role, profile, sts)
        found = session.get_credentials()
        if found is None:
            message = (
                f"no credentials for {uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "(or MINIO_ACCESS_KEY and MINIO_SECRET_KEY), or name a `profile:` of the shared credentials file"
            )
            raise UnavailableError(message)
        found.get_frozen_credentials()  # a role is assumed now, so that what is wrong with it is said here
    except ProfileNotFound as exc:
        message = (
            f"no credentials for {uri}: there is no profile {profile!r}; "
            "add it to ~/.aws/credentials or correct `profile:`"
        )
        raise UnavailableError(message) from exc
    except PartialCredentialsError as exc:
        message = f"half of the credentials for {uri}: {exc}; set both the access key and the secret key"
        raise UnavailableError(message) from exc
    except (BotoCoreError, ClientError) as exc:
        message = f"no credentials for {uri}: {_said(exc)}; check {'`role:`' if role else 'how this machine gets them'}"
        raise UnavailableError(message) from exc
    source = f"role {role}" if role else _NAMES.get(found.method, str(found.method))
    return Identity(session, found, f"{source} (profile {profile})" if profile else source)


def _said(exc: Exception) -> str:
    """Return what an STS call or botocore said, without the wrapper's words."""
    response: Mapping[str, Any] = getattr(exc, "response", {})
    error = response.get("Error", {})
    return f"{error['Code']}: {error.get('Message', '')}" if "Code" in error else str(exc)


def _know_minio(session: Any) -> None:
    """Put MINIO_ACCESS_KEY and MINIO_SECRET_KEY behind AWS's own variables."""
    from botocore.credentials import CredentialProvider, Credentials
    from botocore.exceptions import PartialCredentialsError

    class MinioEnvironment(CredentialProvider):  # type: ignore[misc]  # botocore ships no types
        METHOD = "minio"
        CANONICAL_NAME = "minio"

        def load(self) -> Any:
            names = ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY")
            values = [os.environ.get(name) for name in names]
            if not any(values):
                return None
            for name, value in zip(names, values, strict=True):
                if not value:
                    raise PartialCredentialsError(provider="minio", cred_var=name)
            return Credentials(*values, method="minio")

    resolver = session.get_component("credential_provider")
    resolver.insert_after("env", MinioEnvironment())


def _take_role(session: Any, role: str, profile: str | None, sts: Mapping[str, Any]) -> None:
    """Make the session's credentials those of a role, assumed with what it would have used otherwise."""
    from botocore.credentials import CredentialProvider, RefreshableCredentials
    from botocore.session import Session

    token_file = os.environ.get(_TOKEN_FILE)
    own = Session(profile=profile)
    if profile is None:
        _know_minio(own)
    assume = (
        _by_web_identity(own, role, token_file, sts)
        if token_file and profile is None
        else _by_keys(own, role, sts)
    )

    class Role(CredentialProvider):  # type: ignore[misc]  # botocore ships no types
        METHOD = "sts"
        CANONICAL_NAME = "sts"

        def load(self) -> Any:
            return RefreshableCredentials.create_from_metadata(
                metadata=assume(), refresh_using=assume, method="sts"
            )

    resolver = session.get_component("credential_provider")
    resolver.providers.insert(0, Role())


def _by_keys(own: Any, role: str, sts: Mapping[str, Any]) -> Callable[[], dict[str, str]]:
    def assume() -> dict[str, str]:
        answer = own.create_client("sts", **sts).assume_role(RoleArn=role, RoleSessionName=_SESSION)
        return _metadata(answer["Credentials"])

    return assume


def _by_web_identity(
    own: Any, role: str, token_file: str, sts: Mapping[str, Any]
) -> Callable[[], dict[str, str]]:
    def assume() -> dict[str, str]:
        from botocore import UNSIGNED
        from botocore.config import Config

        try:
            with open(token_file, encoding="utf-8") as stream:  # noqa: PTH123  (as the variable names it)
                token = stream.read().strip()
        except OSError as exc:
            message = (
                f"cannot read the web identity token {token_file} ({exc.strerror}); correct {_TOKEN_FILE}"
            )
            raise UnavailableError(message) from exc
        client = own.create_client("sts", config=Config(signature_version=UNSIGNED), **sts)
        answer = client.assume_role_with_web_identity(
            RoleArn=role, RoleSessionName=_SESSION, WebIdentityToken=token
        )
        return _metadata(answer["Credentials"])

    return assume


def _metadata(answer: Mapping[str, Any]) -> dict[str, str]:
    return {
        "access_key": answer["AccessKeyId"],
        "secret_key": answer["SecretAccessKey"],
        "token": answer["SessionToken"],
        "expiry_time": answer["Expiration"].isoformat(),
    }
