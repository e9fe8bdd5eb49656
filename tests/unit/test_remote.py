"""Reading object stores: real clients against servers on loopback, hostile names, sizes and servers included."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import object_store
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from portcullis import remote
from portcullis.dataset import DatasetSpec
from portcullis.digest import content_digest, path_digest
from portcullis.errors import DataError, UsageError
from portcullis.ingest.readers import read_source
from portcullis.remote import fetch, is_remote, remote_objects

LIMIT = 1 << 20
FOLDER = {
    "a.csv": b"1",
    "sub/b.csv": b"2" * 3000,
    "sub/deep/c.gz": b"\x1f\x8b no archive",
    "é x?#%41+&.csv": b"",
    "z": b"3",
}


def remote_files(uri, *, limit):
    objects, is_folder = remote_objects(uri, limit=limit)
    return {it.name: it.read() for it in objects}, is_folder


@pytest.fixture(autouse=True)
def nothing_but_loopback(monkeypatch, tmp_path):
    """No credentials, no region and no server but those that a test sets; nobody asks a cloud's metadata service."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def store(monkeypatch):
    with object_store.serve(page=2) as serving:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", serving.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        serving.buckets["data"] = {f"rows/{name}": data for name, data in FOLDER.items()}
        yield serving


# What is read.


@pytest.mark.parametrize("uri", ["s3://data/rows", "s3://data/rows/", "minio://data/rows"])
def test_a_folder_is_read_page_by_page(store, uri):
    assert remote_files(uri, limit=LIMIT) == (FOLDER, True)


@pytest.mark.parametrize("name", FOLDER)
def test_an_object_is_read_as_it_is(store, name):
    assert remote_files(f"s3://data/rows/{name}", limit=LIMIT) == ({name.rpartition("/")[2]: FOLDER[name]}, False)


def test_a_key_is_no_prefix_of_a_name(store):
    store.buckets["data"]["rows-of-others/x"] = b"not ours"
    assert remote_files("s3://data/rows", limit=LIMIT) == (FOLDER, True)


def test_a_folders_marker_is_no_file(store):
    store.buckets["data"] |= {"rows/": b"", "rows/empty/": b""}
    assert remote_files("s3://data/rows", limit=LIMIT) == (FOLDER, True)


def test_each_object_is_read_by_one_request(store):
    remote_files("s3://data/rows", limit=LIMIT)
    read = [key for method, _, key in store.requests if method == "GET" and key]
    assert sorted(read) == sorted(f"rows/{name}" for name, data in FOLDER.items() if data)


def test_what_is_read_digests_as_it_would_on_disk(store, tmp_path):
    fetch("s3://data/rows", tmp_path / "rows", is_folder=True, limit=LIMIT)
    assert path_digest(tmp_path / "rows") == content_digest(FOLDER)
    fetch("s3://data/rows/a.csv", tmp_path / "a", is_folder=False, limit=LIMIT)
    assert (tmp_path / "a").read_bytes() == FOLDER["a.csv"]


def test_what_was_there_is_replaced(store, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "old").write_bytes(b"old")
    fetch("s3://data/rows", tmp_path / "rows", is_folder=True, limit=LIMIT)
    assert path_digest(tmp_path / "rows") == content_digest(FOLDER)


def test_schemes():
    assert all(map(is_remote, ("s3://b/k", "gs://b/k", "minio://b/k")))
    assert not any(map(is_remote, ("/s3://b/k", "s3:b/k", "S3://b/k", "https://b/k", "file:///k", "", "builtin:x")))


# What is refused, and that nothing is left of it.


def refused(error, uri, destination, *, match, limit=LIMIT):
    with pytest.raises(error, match=match) as caught:
        remote_files(uri, limit=limit)
    assert str(caught.value).isprintable()
    for is_folder in (True, False):
        with pytest.raises(error):
            fetch(uri, destination / "new", is_folder=is_folder, limit=limit)
    assert list(destination.iterdir()) == []


HOSTILE = [
    *("rows/../escape", "rows/sub/../../escape", "rows/..", "rows/./a", "rows//a", "rows//", "rows/sub//a"),
    *("rows/a\x7fb", "rows/a\u202eb", "rows/\u00a0", "rows/sub/../a", "rows//etc/passwd"),
]


@pytest.mark.parametrize("key", HOSTILE, ids=ascii)
def test_a_name_that_no_file_may_have_is_refused(store, tmp_path, key):
    store.buckets["data"][key] = b"hostile"
    refused(DataError, "s3://data/rows", tmp_path, match="a name that no file may have")


def test_an_object_that_is_a_folder_too_is_refused(store, tmp_path):
    store.buckets["data"]["rows/a.csv/b"] = b""
    refused(DataError, "s3://data/rows", tmp_path, match="a.csv is both an object and a folder")


def test_an_empty_folder_is_refused(store, tmp_path):
    store.buckets["data"] = {"rows/": b""}
    refused(DataError, "s3://data/rows", tmp_path, match="holds no object")


def test_sizes_are_summed_before_anything_is_read(store, tmp_path):
    size = sum(map(len, FOLDER.values()))
    assert remote_files("s3://data/rows", limit=size)
    store.requests.clear()
    refused(DataError, "s3://data/rows", tmp_path, match=f"holds {size} bytes, larger than", limit=size - 1)
    refused(DataError, "s3://data/rows/sub/b.csv", tmp_path, match="holds 3000 bytes", limit=2999)
    assert not [key for method, _, key in store.requests if method == "GET" and key]


def test_names_are_counted(store, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "MAX_ENTRIES", 6)  # five objects and two folders
    refused(DataError, "s3://data/rows", tmp_path, match="more than 6 names")


@pytest.mark.parametrize("grown", [b"2" * 3001, b"2" * 2999, b""])
def test_an_object_that_changes_while_it_is_read_is_refused(store, tmp_path, grown):
    whole = dict(store.buckets["data"])

    def change(key):
        store.buckets["data"]["rows/sub/b.csv"] = grown

    for read in (
        lambda: remote_files("s3://data/rows", limit=LIMIT),
        lambda: fetch("s3://data/rows", tmp_path / "new", is_folder=True, limit=LIMIT),
    ):
        store.buckets["data"] = dict(whole)
        store.before_get = change
        with pytest.raises(DataError, match=r"sub/b\.csv changed while it was read"):
            read()
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_goes_away_is_refused(store, tmp_path):
    store.before_get = lambda key: store.buckets["data"].pop("rows/z", None)
    with pytest.raises(UsageError, match="cannot read s3://data/rows"):
        fetch("s3://data/rows", tmp_path / "new", is_folder=True, limit=LIMIT)
    assert list(tmp_path.iterdir()) == []


MISSING = ["s3://data/nothing", "s3://data/row", "s3://other/rows", "s3://data/rows/a.csv/", "s3://data/rows?a=b"]


@pytest.mark.parametrize("uri", MISSING)
def test_what_is_missing_is_a_usage_error(store, tmp_path, uri):
    refused(UsageError, uri, tmp_path, match="no such object or folder")


@pytest.mark.parametrize("region", ["", "us-east-1"])
def test_a_store_that_sends_elsewhere_is_not_followed(store, monkeypatch, region):
    """Else a store could have this process read what only its own network reaches, and hand over its session token."""
    asked = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("x-amz-security-token")))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = f"http://127.0.0.1:{server.server_port}/latest/meta-data"
    answer = object_store._Handler._answer

    def redirecting(self):
        if self.command != "GET" or "list-type" in self.path:
            return answer(self)
        self.send_response(307)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        return self.end_headers()

    monkeypatch.setattr(object_store._Handler, "_answer", redirecting)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "SESSION")
    monkeypatch.setenv("AWS_REGION", region)
    store.buckets["bucket"] = {"elsewhere": b"a"}
    with pytest.raises(UsageError, match="307"):
        remote_files("s3://bucket/elsewhere", limit=100)
    server.shutdown()
    server.server_close()
    assert asked == []


@pytest.mark.parametrize("size", [-1, None, 1.5, True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(DataError, match="names no size"):
        remote.StoreObject("s3://bucket/a", "a", size, "bucket/a", None)


def test_another_access_key_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER")
    refused(UsageError, "s3://data/rows", tmp_path, match="ACCESS_DENIED.*check its name, the endpoint")


BAD_URIS = [
    *("s3://", "s3://data", "s3://data/", "s3:///rows", "s3://data//", "s3://data//rows", "s3://data/rows//"),
    *(
        "s3://data/../rows",
        "s3://data/rows/..",
        "s3://data/./rows",
        "s3://data/a\nb",
        "s3://data/a\x00",
        "s3://data/\udc80",
    ),
    *(
        "s3://user:word@data/rows",
        "s3://data:9000/rows",
        "s3://DATA/rows",
        "s3://da ta/rows",
        "gs://data",
        "minio://data",
    ),
    *("http://data/rows", "/data/rows", ""),
]


@pytest.mark.parametrize("uri", BAD_URIS, ids=ascii)
def test_a_malformed_uri_is_a_usage_error_and_asks_nobody(store, tmp_path, uri):
    refused(UsageError, uri, tmp_path, match="are written")
    assert not store.requests


def test_a_password_in_a_uri_is_not_repeated(store):
    with pytest.raises(UsageError) as caught:
        remote_files("s3://user:hunter2@data/rows", limit=LIMIT)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://data/rows", "s3://data/rows/a.csv"])
def test_the_other_kind_is_refused(store, tmp_path, uri):
    with pytest.raises(UsageError, match="name the other kind"):
        fetch(uri, tmp_path / "new", is_folder=uri.endswith(".csv"), limit=LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_cannot_be_written_is_a_usage_error(store, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for uri, is_folder in (("s3://data/rows", True), ("s3://data/rows/a.csv", False)):
        with pytest.raises(UsageError, match="cannot write"):
            fetch(uri, tmp_path / "file" / "below", is_folder=is_folder, limit=LIMIT)


def test_a_name_too_long_for_a_file_is_refused(store, tmp_path):
    store.buckets["data"] = {f"rows/{'x' * 300}": b""}
    with pytest.raises(UsageError, match="cannot write"):
        fetch("s3://data/rows", tmp_path / "new", is_folder=True, limit=LIMIT)
    assert list(tmp_path.iterdir()) == []


# Where the server, the region and the credentials come from.


def test_the_service_specific_server_goes_first(store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert remote_files("s3://data/rows", limit=LIMIT) == (FOLDER, True)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{store.endpoint}/")
    assert remote_files("minio://data/rows", limit=LIMIT) == (FOLDER, True)


def test_credentials_may_lie_in_a_file(store, monkeypatch, tmp_path):
    file = tmp_path / "credentials"
    file.write_text(f"[default]\naws_access_key_id = {object_store.ACCESS_KEY}\naws_secret_access_key = secret\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert remote_files("s3://data/rows", limit=LIMIT) == (FOLDER, True)


def test_a_server_of_ones_own_must_be_named(store, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    with pytest.raises(UsageError, match="set AWS_ENDPOINT_URL_S3"):
        remote_files("minio://data/rows", limit=LIMIT)


SERVERS = {
    "http://minio-service.kubeflow:9000": ("http", "minio-service.kubeflow:9000", "aws-global"),
    "https://s3.example.com/": ("https", "s3.example.com", "aws-global"),
    "minio:9000": ("https", "minio:9000", "aws-global"),
    "http://[::1]:9000": ("http", "[::1]:9000", "aws-global"),
}


@pytest.mark.parametrize("named", SERVERS)
def test_how_a_server_is_named(named, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", named)
    asked = {}
    monkeypatch.setattr(remote.fs, "S3FileSystem", lambda **options: asked.update(options))
    remote._s3("data", own_server=False)
    assert (asked["scheme"], asked["endpoint_override"], asked["region"]) == SERVERS[named]


def test_without_a_server_it_is_aws_in_the_buckets_region(monkeypatch):
    asked = {}
    monkeypatch.setattr(remote.fs, "S3FileSystem", lambda **options: asked.update(options))
    monkeypatch.setattr(remote.fs, "resolve_s3_region", lambda bucket: f"region-of-{bucket}")
    remote._s3("data", own_server=False)
    assert asked["region"] == "region-of-data" and "endpoint_override" not in asked
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    remote._s3("data", own_server=False)
    assert asked["region"] == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    remote._s3("data", own_server=False)
    assert asked["region"] == "eu-west-2"


BAD_SERVERS = [
    "http://",
    "ftp://host",
    "http://user:word@host:9000",
    "http://host/path",
    "http://host:1?x",
    "ho st",
    "file:///x",
]


@pytest.mark.parametrize("named", BAD_SERVERS)
def test_a_malformed_server_is_a_usage_error(named, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", named)
    with pytest.raises(UsageError, match="AWS_ENDPOINT_URL is not a server's address") as caught:
        remote_files("s3://data/rows", limit=LIMIT)
    assert "word" not in str(caught.value)


# Google Cloud Storage: its JSON interface, as far as it is asked.


class _Google(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    objects: dict[str, bytes]

    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        bucket, _, key = unquote(url.path).removeprefix("/storage/v1/b/").partition("/o")
        key = key.removeprefix("/")
        if not self.headers.get("Authorization", "").startswith("Bearer ") or bucket != "data":
            self._send(403, b"{}")
        elif not key:
            listed = [self._stated(name) for name in self.objects if name.startswith(query.get("prefix", ""))]
            self._send(200, json.dumps({"kind": "storage#objects", "items": listed}).encode())
        elif key not in self.objects:
            self._send(404, b'{"error": {"code": 404, "message": "no such object"}}')
        elif query.get("alt") == "media":
            self._send(200, self.objects[key])
        else:
            self._send(200, json.dumps(self._stated(key)).encode())

    def _stated(self, name):
        size = str(len(self.objects[name]))
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "data",
            "size": size,
            "updated": "2026-01-01T00:00:00Z",
        }

    def _send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def google(monkeypatch, tmp_path_factory):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "private_key_id": "1",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "client_email": "reader@project.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
    }
    file = tmp_path_factory.mktemp("google") / "account.json"
    file.write_text(json.dumps(account))
    objects = {f"rows/{name}": data for name, data in FOLDER.items()}
    handler = type("Handler", (_Google,), {"objects": objects})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield objects
        server.shutdown()
        thread.join()


def test_a_folder_of_googles_store_is_read_without_markers(google, tmp_path):
    assert remote_files("gs://data/rows", limit=LIMIT) == (FOLDER, True)
    fetch("gs://data/rows/sub", tmp_path / "sub", is_folder=True, limit=LIMIT)
    assert (tmp_path / "sub" / "deep" / "c.gz").read_bytes() == FOLDER["sub/deep/c.gz"]


def test_an_object_of_googles_store_is_read(google):
    assert remote_files("gs://data/rows/a.csv", limit=LIMIT) == ({"a.csv": b"1"}, False)


def test_googles_store_is_not_trusted_either(google, tmp_path):
    refused(UsageError, "gs://data/nothing", tmp_path, match="no such object or folder")
    refused(UsageError, "gs://other/rows", tmp_path, match="cannot read gs://other/rows")
    refused(DataError, "gs://data/rows", tmp_path, match="larger than", limit=10)
    google["rows/../escape"] = b""
    refused(DataError, "gs://data/rows", tmp_path, match="a name that no file may have")


# Ingestion: the same rows with the same digests, wherever they lie.

SPEC = DatasetSpec.from_yaml("""
name: small
label: {column: label, classes: ["no", "yes"]}
features: {columns: ["f*"], shape: [2], low: -1, high: 10}
""")
HEADER = b"f0,f1,label\n"
ROWS = {"b/2.csv": HEADER + b"1,2,no\n", "a.csv": HEADER + b"3,4.5,yes\n"}


def test_the_same_files_are_the_same_source_on_disk_and_in_a_store(store, tmp_path):
    for name, data in ROWS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    store.buckets["data"] = {f"in/{name}": data for name, data in ROWS.items()}
    for name in ("", "/a.csv", "/b", "/b/2.csv"):
        local = read_source(f"{tmp_path}{name}", SPEC)
        there = read_source(f"s3://data/in{name}", SPEC)
        assert there.raw_digest == local.raw_digest == path_digest(Path(f"{tmp_path}{name}"))
        assert (there.files, there.reader, there.spec) == (local.files, local.reader, local.spec)
        assert there.table.equals(local.table)


def test_a_source_in_a_store_is_judged_as_any_other(store):
    store.buckets["data"] = {"in/a.csv": ROWS["a.csv"], "in/x.txt": b""}
    with pytest.raises(DataError, match=r"x\.txt is not a"):
        read_source("s3://data/in", SPEC)
    store.buckets["data"] = {"in/a.csv": HEADER + b"3,4,maybe\n"}
    with pytest.raises(DataError, match=r"a\.csv, line 2 \(row 1\): column 'label'"):
        read_source("s3://data/in", SPEC)
    with pytest.raises(DataError, match="larger than the 5 allowed"):
        read_source("s3://data/in", SPEC, limit=5)
    with pytest.raises(UsageError, match="no such object"):
        read_source("minio://data/other", SPEC)
