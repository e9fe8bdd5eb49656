"""Time stamps: what a known authority signed about this very document counts, and nothing else."""

import datetime as dt
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timestamp_authority import NOW, REJECTION, Authority, serving

from portcullis.errors import EvidenceError, InconclusiveError, MissingDependencyError, UsageError
from portcullis.timestamps import MAX_STAMP_BYTES, Stamped, request_stamp, verify_stamp

RECORDED = Path(__file__).parents[1] / "data" / "timestamps"
DOCUMENT = b"what was committed to"


def milliseconds(instant: dt.datetime) -> int:
    return round(instant.timestamp() * 1000)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def stamped(authority: Authority, **how) -> bytes:
    with serving(lambda request: authority.answer(request, **how)) as url:
        return request_stamp(url, DOCUMENT, authority.pem)


def test_a_stamp_of_openssl_verifies() -> None:
    found = verify_stamp((RECORDED / "stamp.tsr").read_bytes(), b"portcullis", (RECORDED / "root.pem").read_bytes())
    instant = milliseconds(dt.datetime(2026, 11, 29, 14, 18, 49, tzinfo=dt.UTC))
    assert found == Stamped(instant - 1500, instant + 1501)


@pytest.mark.parametrize(("accuracy", "before", "after"), [(None, 1000, 1001), (250, 250, 251)])
def test_a_stamp_is_asked_for_and_verifies(authority, accuracy: int | None, before: int, after: int) -> None:
    found = verify_stamp(stamped(authority, accuracy=accuracy), DOCUMENT, authority.pem)
    assert found == Stamped(milliseconds(NOW) - before, milliseconds(NOW) + after)


def test_one_of_several_known_authorities_is_enough(authority) -> None:
    verify_stamp(stamped(authority), DOCUMENT, Authority().pem + authority.pem)
    verify_stamp(stamped(authority), DOCUMENT, authority.pem + authority.pem)  # and nobody minds one twice


def test_an_accuracy_below_zero_is_refused(authority) -> None:
    with pytest.raises(EvidenceError, match="malformed"):
        stamped(authority, accuracy=-5)


def test_earlier_means_certainly_earlier() -> None:
    first = Stamped(1000, 3000)
    assert first.before(Stamped(3001, 5000))
    assert not first.before(Stamped(3000, 5000)) and not first.before(first) and not Stamped(3001, 5000).before(first)


def test_a_stamp_of_another_document_is_refused(authority) -> None:
    with pytest.raises(EvidenceError, match="does not verify"):
        verify_stamp(stamped(authority), DOCUMENT + b".", authority.pem)


def test_a_stamp_by_an_unknown_authority_is_refused(authority) -> None:
    with pytest.raises(EvidenceError, match="does not verify"):
        verify_stamp(stamped(authority), DOCUMENT, Authority().pem)


def test_an_unknown_authority_is_not_believed_when_it_is_asked(authority) -> None:
    with serving(Authority().answer) as url, pytest.raises(EvidenceError, match="does not verify"):
        request_stamp(url, DOCUMENT, authority.pem)


@pytest.mark.parametrize("days", [-2, 2])
def test_a_stamp_outside_its_certificates_days_is_refused(authority, days: int) -> None:
    with pytest.raises(EvidenceError, match="does not verify"):
        stamped(authority, when=NOW + dt.timedelta(days=days))


def test_a_certificate_for_another_use_stamps_nothing() -> None:
    from cryptography.x509 import ExtendedKeyUsageOID

    with pytest.raises(EvidenceError, match="does not verify"):
        stamped(Authority(ExtendedKeyUsageOID.CODE_SIGNING))


def test_a_replayed_stamp_is_refused(authority) -> None:
    with pytest.raises(EvidenceError, match="Nonce"):
        stamped(authority, nonce=7)


@pytest.mark.parametrize("data", [b"", b"\x30", REJECTION, b"\x30\x80" * 40, bytes(MAX_STAMP_BYTES + 1)])
def test_what_is_no_stamp_is_refused(authority, data: bytes) -> None:
    with pytest.raises(EvidenceError):
        verify_stamp(data, DOCUMENT, authority.pem)
    with serving(lambda request: data) as url, pytest.raises((EvidenceError, InconclusiveError)):
        request_stamp(url, DOCUMENT, authority.pem)


@pytest.mark.parametrize("how", [{"status": 500}, {"media": "text/html"}])
def test_an_answer_of_another_kind_is_no_stamp(authority, how) -> None:
    with serving(authority.answer, **how) as url, pytest.raises(InconclusiveError, match="instead of a time stamp"):
        request_stamp(url, DOCUMENT, authority.pem)


def test_nobody_there(authority) -> None:
    with pytest.raises(InconclusiveError, match="cannot be asked"):
        request_stamp("http://127.0.0.1:1/", DOCUMENT, authority.pem)


@pytest.mark.parametrize(
    "url",
    ["", "tsa.example", "file:///etc/passwd", "ftp://a/", "http:///x", "http://me@a/", "http://a:b/", "http://a/ b"],
)
def test_a_malformed_url_is_refused(authority, url: str) -> None:
    with pytest.raises(UsageError):
        request_stamp(url, DOCUMENT, authority.pem)


@pytest.mark.parametrize("roots", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_malformed_certificates_are_refused(authority, roots: bytes) -> None:
    with pytest.raises(UsageError, match="not PEM"):
        verify_stamp(stamped(authority), DOCUMENT, roots)


def test_without_the_package_it_says_what_to_install(authority, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    for call in (lambda: verify_stamp(b"", DOCUMENT, b""), lambda: request_stamp("http://a/", DOCUMENT, b"")):
        with pytest.raises(MissingDependencyError, match=r"kfp-portcullis\[timestamp\]"):
            call()


def test_whatever_byte_is_altered_the_stamp_says_the_same_or_nothing(authority) -> None:
    stamp = stamped(authority)
    said = verify_stamp(stamp, DOCUMENT, authority.pem)

    @given(st.integers(0, len(stamp) - 1), st.integers(1, 255))
    def holds(place: int, change: int) -> None:
        altered = bytearray(stamp)
        altered[place] ^= change
        try:
            found = verify_stamp(bytes(altered), DOCUMENT, authority.pem)
        except EvidenceError:
            return
        assert found == said  # some bytes, such as the answer's free text, are not signed

    holds()
