"""What went wrong in a call to S3, whichever client made it, and which of it is worth another try.

Codes are those of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html; Ceph and MinIO use the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol, TypeVar
from xml.etree import ElementTree as ET

from shipctl.errors import StoreError

T = TypeVar("T")

_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "ConcurrentModification",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_DAMAGED = frozenset(
    {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
)
"""The receiver found that a body is not what was promised: it was damaged on the way, so it is sent again."""
_TOKEN = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_ELSEWHERE = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_MAX_WAIT = 20.0
_FORBIDDEN = 403


class Fault(NamedTuple):
    """One failed call."""

    reason: str
    """What is to be said about it; never a credential."""
    code: str = ""
    """S3's name for it, if the server gave one."""
    status: int = 0
    """The answer's HTTP status; 0 without an answer."""
    passing: bool = False
    """Whether the same call may succeed a little later."""
    retry_after: float = 0.0
    """Seconds that the server asks to wait."""
    clock: float | None = None
    """The server's time in seconds since the epoch, where it said so."""
    region: str = ""
    """Where the bucket is, if the server said that it is elsewhere."""
    untrusted: bool = False
    """Whether the server's certificate was refused."""

    @property
    def unanswered(self) -> bool:
        """Whether the server may have done what it was asked, all the same."""
        return self.status == 0 or self.status >= 500  # noqa: PLR2004  (server errors)


class AnswerError(Exception):
    """An answer of the server that is not a success."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason)
        self.fault = fault


class CallError(StoreError):
    """A call that failed for good; the message is for users, ``fault`` for callers that expected it."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


def answered(status: int, headers: dict[str, str], body: bytes) -> Fault:
    """Return what an error answer says. ``headers`` have names in lower case."""
    code = message = ""
    region = headers.get("x-amz-bucket-region", "")
    try:
        for child in ET.fromstring(body) if body.lstrip()[:1] == b"<" else ():  # noqa: S314  (expat ≥ 2.4 bounds it)
            name = child.tag.rpartition("}")[2]
            code = child.text or "" if name == "Code" else code
            message = child.text or "" if name == "Message" else message
            region = child.text or "" if name == "Region" else region
    except ET.ParseError:
        code = message = ""  # a page of some proxy
    said = f"{code}: {message}" if code and message else code or f"HTTP status {status}"
    return Fault(
        reason=said[:300],
        code=code,
        status=status,
        passing=status in _PASSING_STATUS or code in _PASSING_CODES or code in _DAMAGED,
        retry_after=_seconds(headers.get("retry-after", "")),
        clock=_clock(headers.get("date", "")),
        region=region,
    )


def coded(code: str, message: str) -> Fault:
    """Return what one entry of an answer about several objects says."""
    return Fault(f"{code}: {message}"[:300], code=code, status=200, passing=code in _PASSING_CODES)


def fault_of(exc: BaseException) -> Fault | None:
    """Return what an exception of one of the clients means; None for one that is none of theirs (a bug)."""
    import botocore.exceptions as aws
    import urllib3.exceptions as http

    if isinstance(exc, AnswerError):
        return exc.fault
    if isinstance(exc, aws.ClientError):
        metadata = exc.response.get("ResponseMetadata", {})
        headers = {name.lower(): value for name, value in metadata.get("HTTPHeaders", {}).items()}
        error = exc.response.get("Error", {})
        fault = answered(int(metadata.get("HTTPStatusCode", 0)), headers, b"")
        code = str(error.get("Code", ""))
        return fault._replace(
            code=code,
            reason=f"{code}: {error.get('Message', '')}"[:300],
            passing=fault.passing or code in _PASSING_CODES | _DAMAGED,
        )
    if isinstance(exc, ET.ParseError):
        return Fault(f"the answer is no XML ({exc})", passing=True)
    if isinstance(exc, http.SSLError | aws.SSLError):
        return Fault(_innermost(exc), untrusted=True)
    if isinstance(exc, http.LocationValueError | aws.ParamValidationError):
        return Fault(_innermost(exc))
    if isinstance(
        exc, http.HTTPError | aws.HTTPClientError | aws.ConnectionError | TimeoutError | ConnectionError
    ):
        return Fault(_innermost(exc), passing=True)
    return None


@dataclass(frozen=True)
class Retries:
    """How often a call is made, with exponential backoff and full jitter between."""

    attempts: int = 7
    first: float = 0.2
    """Bound of the first wait, in seconds; it doubles with each attempt."""
    longest: float = 10.0

    def wait(self, attempt: int, fault: Fault) -> None:
        """Wait before the attempt after ``attempt`` (from 1)."""
        bound = min(self.longest, self.first * 2 ** (attempt - 1))
        time.sleep(max(random.uniform(0, bound), min(fault.retry_after, _MAX_WAIT)))  # noqa: S311  (no secret)


@dataclass(frozen=True)
class Place:
    """What messages say about where a call went."""

    uri: str
    endpoint: str
    bucket: str
    credentials: str
    """Where the credentials came from, in words."""


class Caller(Protocol):
    """Makes calls about one object as often as they are worth; see :func:`calling`."""

    def __call__(self, call: Callable[[], T], doing: str) -> T:
        """Return what ``call`` returns."""


def calling(
    call: Callable[[], T],
    doing: str,
    place: Place,
    retries: Retries,
    *,
    lost: Callable[[Fault], None] | None = None,
) -> T:
    """Return what ``call`` returns, after as many attempts as it is worth.

    ``lost`` hears of every fault after which the server may have acted.

    :raises CallError: if it failed for good
    """
    began = time.monotonic()
    attempt = 0
    while True:
        attempt += 1
        try:
            return call()
        except Exception as exc:
            fault = fault_of(exc)
            if fault is None:
                raise
            if lost and fault.unanswered:
                lost(fault)
            if not fault.passing or attempt >= retries.attempts:
                tried = (attempt, time.monotonic() - began)
                raise CallError(
                    f"cannot {doing} {place.uri}: {_explained(fault, place, tried)}", fault
                ) from exc
        retries.wait(attempt, fault)


def _explained(fault: Fault, place: Place, tried: tuple[int, float]) -> str:
    """Say what is wrong and what to do next."""
    refused = _about_credentials(fault, place)
    if refused:
        return refused
    if fault.untrusted:
        return (
            f"the certificate of {place.endpoint} is not trusted ({fault.reason}); "
            "name the file of its authority with `ca:` or AWS_CA_BUNDLE"
        )
    if fault.code == "NoSuchBucket":
        return f"there is no bucket {place.bucket!r} at {place.endpoint}; create it or correct `uri:`"
    if fault.code == "NoSuchKey":
        return "there is no such object; publish it again"
    if fault.code in _ELSEWHERE or fault.status in {301, 307}:
        where = (
            f"region {fault.region}; set `region: {fault.region}`"
            if fault.region
            else "another region; set `region:`"
        )
        return f"the bucket is in {where}"
    if fault.code in _DAMAGED:
        return (
            f"the server got other bytes than were sent, {tried[0]} times ({fault.code}); "
            "check the file and the network between here and there"
        )
    if fault.passing:
        attempts, seconds = tried
        often = f"tried {attempts} times in {seconds:.0f} s"
        return f"{fault.reason} ({often}); check {place.endpoint} and run the same command again"
    return f"{fault.reason}; check `store:` and ask who runs {place.endpoint}"


def _about_credentials(fault: Fault, place: Place) -> str | None:
    ours = f"the credentials from {place.credentials}"
    if fault.code == "RequestTimeTooSkewed":
        return (
            f"{_clock_difference(fault)} (RequestTimeTooSkewed); set the clock and run the same command again"
        )
    if fault.code in _TOKEN:
        return f"{ours} have expired ({fault.code}); get new ones and run the same command again"
    if fault.code in {"InvalidAccessKeyId", "InvalidClientTokenId", "InvalidToken"}:
        return f"the server does not know {ours} ({fault.code}); check the access key and `endpoint:`"
    if fault.code == "SignatureDoesNotMatch":
        return f"{ours} are a secret key that is not the one of its access key ({fault.code}); correct them"
    if fault.status == _FORBIDDEN:
        said = fault.code or "HTTP status 403"
        wanted = f"for reading, writing and listing of bucket {place.bucket!r}"
        return f"{ours} may not do this ({said}); check them, or ask {wanted}"
    return None


def _clock_difference(fault: Fault) -> str:
    if fault.clock is None:
        return "this machine's clock differs too much from the server's"
    ahead = time.time() - fault.clock
    side = "ahead of" if ahead > 0 else "behind"
    return f"this machine's clock is {abs(ahead) / 60:.0f} min {side} the server's"


def _clock(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def _innermost(exc: BaseException) -> str:
    """Return the message of what lies below the wrappers: `Connection refused` rather than five class names."""
    seen = exc
    while True:
        inner = getattr(seen, "reason", None) or seen.__cause__ or _wrapped(seen)
        if not isinstance(inner, BaseException) or inner is seen:
            break
        seen = inner
    text = seen.strerror if isinstance(seen, OSError) and seen.strerror else str(seen)
    return (text or type(seen).__name__)[:300]


def _wrapped(exc: BaseException) -> BaseException | None:
    return next((item for item in exc.args if isinstance(item, BaseException)), None)
