"""Time stamps of a third party: a signed word that a document existed by a certain instant.

Source: RFC 3161, Time-Stamp Protocol. The authority sees a hash and never the document. Whether its certificates were
revoked is not asked.
"""

import datetime as dt
import http.client
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from portcullis.errors import EvidenceError, InconclusiveError, MissingDependencyError, UsageError

MAX_STAMP_BYTES = 64 << 10
SECONDS = 30
_MEDIA = "application/timestamp-query", "application/timestamp-reply"
# An authority that states no accuracy writes whole seconds, so it may be off by one.
_UNSTATED = dt.timedelta(seconds=1)
_HELP = "time stamps need a package that is not installed: pip install 'kfp-portcullis[timestamp]'"


@dataclass(frozen=True)
class Stamped:
    """When a document was stamped: between two instants, milliseconds since the epoch.

    Attributes:
        earliest: The authority's time less its accuracy.
        latest: Its time and its accuracy: the document existed by then.
    """

    earliest: int
    latest: int

    def before(self, other: "Stamped") -> bool:
        """Tell whether this is certainly the earlier one (RFC 3161, 2.4.2, `ordering`)."""
        return self.latest < other.earliest


def request_stamp(url: str, document: bytes, roots: bytes) -> bytes:
    """Have a document stamped, and return the answer once it verifies.

    Args:
        url: The authority's, http or https: what it answers is signed, and it is told a hash only.
        document: What is stamped; not empty.
        roots: Certificates that the authority is known by, PEM.

    Returns:
        The `TimeStampResp`, DER.

    Raises:
        UsageError: The URL or the certificates are malformed.
        InconclusiveError: The authority cannot be reached or does not answer with a stamp.
        EvidenceError: Its stamp does not verify.
        MissingDependencyError: rfc3161-client is not installed.
    """
    try:
        from rfc3161_client import HashAlgorithm, TimestampRequestBuilder
    except ImportError as error:
        raise MissingDependencyError(_HELP) from error

    request = TimestampRequestBuilder().data(document).hash_algorithm(HashAlgorithm.SHA256).build()
    answer = _post(url, request.as_bytes())
    verify_stamp(answer, document, roots, nonce=request.nonce)
    return answer


def verify_stamp(stamp: bytes, document: bytes, roots: bytes, *, nonce: int | None = None) -> Stamped:
    """Return when a document was stamped.

    Args:
        stamp: The `TimeStampResp`, DER; it is not trusted.
        document: What was stamped.
        roots: Certificates that authorities are known by, PEM. Certificates count as of the stamped instant.
        nonce: What the stamp was asked for with, while it is fresh.

    Raises:
        EvidenceError: The stamp is malformed, of another document, or not by a known authority.
        UsageError: The certificates are malformed, or there is none.
        MissingDependencyError: rfc3161-client is not installed.
    """
    from cryptography.x509 import load_pem_x509_certificates

    try:
        from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response
    except ImportError as error:
        raise MissingDependencyError(_HELP) from error

    try:
        certificates = load_pem_x509_certificates(roots)
    except ValueError as error:
        raise UsageError("the time-stamp authority's certificates are not PEM") from error
    verifier = VerifierBuilder(roots=certificates, nonce=nonce).build()
    if len(stamp) > MAX_STAMP_BYTES:
        raise EvidenceError(f"the time stamp is larger than {MAX_STAMP_BYTES} bytes")
    try:
        response = decode_timestamp_response(stamp)
        # The library raises where something does not fit; what it returns is asked for all the same.
        if verifier.verify_message(response, document) is not True:
            raise EvidenceError("the time stamp does not verify")
        info = response.tst_info
        stated, instant = info.accuracy, info.gen_time
        accuracy = (
            dt.timedelta(seconds=stated.seconds or 0, milliseconds=stated.millis or 0, microseconds=stated.micros or 0)
            if stated
            else _UNSTATED
        )
        if accuracy < dt.timedelta(0):
            raise EvidenceError("the time stamp is malformed: its accuracy is below zero")
        return Stamped(_milliseconds(instant - accuracy), _milliseconds(instant + accuracy) + 1)
    except VerificationError as error:
        raise EvidenceError(f"the time stamp does not verify: {error}") from error
    except (ValueError, OverflowError, AttributeError) as error:
        raise EvidenceError("the time stamp is malformed") from error


def _milliseconds(instant: dt.datetime) -> int:
    return (instant - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(milliseconds=1)


def _post(url: str, body: bytes) -> bytes:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError("the URL of the time-stamp authority is malformed") from error
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.fragment:
        raise UsageError("the URL of a time-stamp authority is http(s)://HOST/…, without a user's name")
    if not (target.isascii() and target.isprintable()) or " " in target:
        raise UsageError("the URL of the time-stamp authority holds characters that a URL may not have")
    connection = (
        http.client.HTTPSConnection(host, port, timeout=SECONDS, context=ssl.create_default_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=SECONDS)
    )
    try:
        connection.request("POST", target, body, {"Content-Type": _MEDIA[0], "Accept": _MEDIA[1]})
        response = connection.getresponse()
        status, media = response.status, response.headers.get_content_type()
        answer = response.read(MAX_STAMP_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise InconclusiveError(f"the time-stamp authority cannot be asked: {type(error).__name__}") from error
    finally:
        connection.close()
    if (status, media) != (200, _MEDIA[1]):
        raise InconclusiveError(f"the time-stamp authority answered {status}, {media[:60]!a}, instead of a time stamp")
    return answer
