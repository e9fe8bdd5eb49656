"""A ledger in an object store: a write is conditional on the entity tag that was read, or on there being no object.

Conditional writes: AWS S3 (If-None-Match and If-Match since 2024), MinIO, Ceph and others. A server that ignores the
conditions would lose one of two charges unseen, so each write first asks for some that must fail, of an object beside
the ledger, and refuses where they do not.

Requests are signed by AWS Signature Version 4 (docs.aws.amazon.com, "Create a signed AWS API request"), since Arrow's
client, which reads the data elsewhere, knows no conditions. Server, region and credentials come from the environment as
for `portcullis.remote`; of the credentials only AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN count.
"""

import datetime as dt
import hashlib
import hmac
import http.client
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from portcullis.errors import InconclusiveError, KeyMaterialError, UsageError
from portcullis.ledger.entries import MAX_LEDGER_BYTES
from portcullis.ledger.stores import ChangedError, Held
from portcullis.remote import parse_uri, s3_endpoint

REQUEST_SECONDS = 30.0
PROBE = ".conditions"  # beside the ledger; holds nothing
_FIRST = {"If-None-Match": "*"}


@dataclass(frozen=True)
class Credentials:
    """What requests are signed by.

    Attributes:
        access_key: The key's id.
        secret_key: The key.
        session_token: Of temporary credentials; empty for others.
    """

    access_key: str
    secret_key: str
    session_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.access_key!r})"


@dataclass(frozen=True)
class S3Store:
    """One object of a bucket.

    Attributes:
        scheme: `https`, or `http` for a server of one's own.
        host: Host and port; the bucket is the first part of the path.
        region: The one that requests are signed for.
        bucket: Its name.
        key: The object's.
        credentials: Who asks.
    """

    scheme: Literal["http", "https"]
    host: str
    region: str
    bucket: str
    key: str
    credentials: Credentials

    @classmethod
    def connect(cls, uri: str) -> "S3Store":
        """Name an object by its URI; nothing is asked yet.

        Raises:
            UsageError: The URI or the environment is malformed, or names no server or region.
            KeyMaterialError: There are no credentials in the environment.
        """
        scheme, bucket, key = parse_uri(uri)
        if key.endswith("/"):
            raise UsageError("the URI of a ledger names one object, not a folder")
        server, host, region = s3_endpoint(own_server=scheme == "minio")
        found = [os.environ.get(f"AWS_{name}", "") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")]
        if not (found[0] and found[1]):
            raise KeyMaterialError("a ledger in an object store needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        return cls("http" if server == "http" else "https", host, region, bucket, key, Credentials(*found))

    def read(self) -> Held:
        """Return what the object holds; nothing, where there is none."""
        status, headers, body = self._ask("GET", self.key)
        if status == 404 and b"<Code>NoSuchKey</Code>" in body:
            return Held(b"", "")
        tag = headers.get("etag", "")
        if status != 200 or not tag.startswith('"'):
            raise UsageError(f"cannot read {self._named}: the store answered {status}; check bucket and credentials")
        return Held(body, tag)

    def replace(self, data: bytes, *, over: Held) -> None:
        """Put the object, if it still is the very one that was read."""
        self._require_conditions()
        condition = {"If-Match": over.version} if over.version else _FIRST
        status, _, body = self._ask("PUT", self.key, data, condition)
        # 404: it was deleted meanwhile. 409: another write is under way.
        if status in (404, 409, 412) and b"<Code>NoSuchBucket</Code>" not in body:
            raise ChangedError(f"{self._named} was changed meanwhile")
        if status != 200:
            raise UsageError(f"cannot write {self._named}: the store answered {status}; nothing is released")

    def _require_conditions(self) -> None:
        """Refuse a store that overwrites what a condition protects."""
        probe = self.key + PROBE
        self._ask("PUT", probe, b"", _FIRST)  # the first time, it is made by this
        answers = [
            self._ask("PUT", probe, b"", condition)[0]
            for condition in (_FIRST, {"If-Match": '"00000000000000000000000000000000"'})
        ]
        if not set(answers) <= {409, 412}:
            raise UsageError(
                f"{self._named}: the store answered {answers} to writes whose condition does not hold, not 412; two "
                "runs at once could overwrite each other's charges there, so nothing is released"
            )

    @property
    def _named(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def _ask(
        self, method: str, key: str, body: bytes = b"", condition: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        path = quote(f"/{self.bucket}/{key}", safe="/-_.~")
        headers = sign_request(
            method,
            path,
            host=self.host,
            region=self.region,
            body=body,
            credentials=self.credentials,
            now=dt.datetime.now(dt.UTC),
            headers=condition or {},
        )
        if self.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self.host, timeout=REQUEST_SECONDS, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(self.host, timeout=REQUEST_SECONDS)
        try:
            connection.request(method, path, body=body if method == "PUT" else None, headers=headers)
            answer = connection.getresponse()
            data = answer.read(MAX_LEDGER_BYTES + 1)
            found = {name.lower(): value for name, value in answer.getheaders()}
        except (OSError, http.client.HTTPException) as error:
            said = " ".join(str(error).split())[:200]
            raise InconclusiveError(f"{self._named} cannot be reached: {said or type(error).__name__}") from error
        finally:
            connection.close()
        if len(data) > MAX_LEDGER_BYTES:
            raise UsageError(f"{self._named} is larger than the {MAX_LEDGER_BYTES} bytes allowed")
        if answer.status == 429 or answer.status >= 500:
            raise InconclusiveError(f"{self._named} cannot be reached: the store answered {answer.status}; run again")
        return answer.status, found, data


def sign_request(
    method: str,
    path: str,
    *,
    host: str,
    region: str,
    body: bytes,
    credentials: Credentials,
    now: dt.datetime,
    headers: Mapping[str, str],
) -> dict[str, str]:
    """Return the headers of a signed request of S3 without a query.

    Args:
        method: The HTTP method.
        path: From the slash after the host, percent-encoded.
        host: Host and port.
        region: Such as `us-east-1`.
        body: What is sent.
        credentials: Who asks.
        now: In UTC.
        headers: Further ones; they are signed too.
    """
    stamp, day = f"{now:%Y%m%dT%H%M%SZ}", f"{now:%Y%m%d}"
    digest = hashlib.sha256(body).hexdigest()
    sent = {**headers, "Host": host, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    if credentials.session_token:
        sent["x-amz-security-token"] = credentials.session_token
    ordered = sorted((name.lower(), " ".join(value.split())) for name, value in sent.items())
    signed = ";".join(name for name, _ in ordered)
    lines = "".join(f"{name}:{value}\n" for name, value in ordered)
    request = "\n".join((method, path, "", lines, signed, digest))
    scope = f"{day}/{region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    sent["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope},SignedHeaders={signed},Signature={signature}"
    )
    return sent
