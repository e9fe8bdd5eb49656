"""A small S3 server on loopback: ListObjectsV2 in pages, HEAD, GET with a range, and conditional PUT, path-style.

A PUT's conditions are those of Amazon S3 (docs.aws.amazon.com, "How to prevent object overwrites with conditional
writes"): `If-None-Match: *` fails with 412 where there is an object, `If-Match` with 412 where its entity tag is
another, and with 404 where there is none.

It holds what it is given, also keys that no file may have, and answers only requests that name its access key.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCESS_KEY = "AKIATEST"
REGION = "us-east-1"


class ObjectStore:
    """Buckets of objects, and a record of the requests (method, bucket, key)."""

    def __init__(self, *, page: int = 1000) -> None:
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.page = page
        self.requests: list[tuple[str, str, str]] = []
        self.before_get: Callable[[str], None] = lambda key: None
        self.before_put: Callable[[str], None] = lambda key: None
        self.honours_conditions = True
        self.outages = 0
        self.lock = threading.Lock()
        self.endpoint = ""

    def put(self, bucket: str, key: str, data: bytes, condition: dict[str, str]) -> tuple[int, str]:
        """Store an object if its condition holds; the status and the code of the error."""
        with self.lock:
            objects = self.buckets[bucket]
            if self.honours_conditions:
                if condition.get("If-None-Match") == "*" and key in objects:
                    return 412, "PreconditionFailed"
                if "If-Match" in condition and key not in objects:
                    return 404, "NoSuchKey"
                if "If-Match" in condition and condition["If-Match"] != tag_of(objects[key]):
                    return 412, "PreconditionFailed"
            objects[key] = data
            return 200, ""

    def list(self, bucket: str, query: dict[str, str]) -> str:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, str] = {}
        for key, data in sorted(self.buckets[bucket].items()):
            if not key.startswith(prefix):
                continue
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                folder = escape(prefix + head + delimiter)
                entries[folder] = f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
            else:
                when = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                entries[key] = f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>{when}</Contents>"
        start = int(query.get("continuation-token", "0"))
        stop = start + min(self.page, int(query.get("max-keys", "1000")))
        more = stop < len(entries)
        token = f"<NextContinuationToken>{stop}</NextContinuationToken>" if more else ""
        part = list(entries.values())[start:stop]
        head = f"<KeyCount>{len(part)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        return f"<ListBucketResult>{head}{''.join(part)}</ListBucketResult>"


def tag_of(data: bytes) -> str:
    """Return an object's entity tag: S3's is the MD5 of what was put at once, in quotes."""
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: two would each wait for the other's acknowledgement
    store: ObjectStore

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        bucket, _, key = unquote(urlsplit(self.path).path.removeprefix("/")).partition("/")
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.store.requests.append((self.command, bucket, key))
        self.store.before_put(key)
        condition = {name: self.headers[name] for name in ("If-Match", "If-None-Match") if name in self.headers}
        if self.store.outages:
            self.store.outages -= 1
            self._error(503, "SlowDown")
        elif f"Credential={ACCESS_KEY}/" not in self.headers.get("Authorization", ""):
            self._error(403, "AccessDenied")
        elif hashlib.sha256(data).hexdigest() != self.headers.get("x-amz-content-sha256"):
            self._error(400, "XAmzContentSHA256Mismatch")
        elif bucket not in self.store.buckets:
            self._error(404, "NoSuchBucket")
        else:
            status, code = self.store.put(bucket, key, data, condition)
            self._error(status, code) if code else self._send(200, b"")

    def _answer(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path.removeprefix("/")).partition("/")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.store.requests.append((self.command, bucket, key))
        objects = self.store.buckets.get(bucket)
        if f"Credential={ACCESS_KEY}/" not in self.headers.get("Authorization", ""):
            self._error(403, "AccessDenied")
        elif objects is None:
            self._error(404, "NoSuchBucket")
        elif not key:
            body = self.store.list(bucket, query) if self.command == "GET" else ""
            self._send(200, body.encode(), kind="application/xml")
        elif key not in objects:
            self._error(404, "NoSuchKey")
        else:
            if self.command == "GET":
                self.store.before_get(key)
            data = objects[key]
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last or len(data)) + 1]
            self._send(206 if "Range" in self.headers else 200, part, tag=tag_of(data))

    def _error(self, status: int, code: str) -> None:
        self._send(
            status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode(), kind="application/xml"
        )

    def _send(self, status: int, body: bytes, *, kind: str = "application/octet-stream", tag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if tag:
            self.send_header("ETag", tag)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serve(*, page: int = 1000) -> Iterator[ObjectStore]:
    """Serve an empty store on a free port of loopback until the block ends."""
    store = ObjectStore(page=page)
    handler = type("Handler", (_Handler,), {"store": store})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()
