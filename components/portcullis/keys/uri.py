"""Key material by URI, so that a secret is named by configuration and never passed as a parameter.

| URI | where | for |
|---|---|---|
| `file:/abs/path` | a file, or a file of a mounted Kubernetes Secret | everywhere |
| `k8s-secret:NAMESPACE/NAME/FILE` | a Kubernetes Secret, asked of the API server | where nothing can be mounted |
| `env:NAME` | an environment variable | development only |

A *base* (`file:/abs/dir`, `k8s-secret:NAMESPACE/NAME` or `env:PREFIX`) names a place that holds one key per role;
`role_uri` points into it. In the place of a signing or sealing key there may lie, in one line, the URI of a key that a
service holds (`portcullis.keys.service`).
"""

import base64
import os
import re
from pathlib import Path

from portcullis.errors import DeploymentError, KeyMaterialError, UsageError
from portcullis.files import read_bytes
from portcullis.keys.service import URIS, service_key, variables

MAX_KEY_BYTES = 64 << 10
SYMMETRIC_BYTES = 32
_ROLE = re.compile(r"[a-z][a-z0-9_]*(?:[:.][a-z][a-z0-9_]*)*")
_SECRET = re.compile(r"([a-z0-9][a-z0-9-]{0,62})/([a-z0-9][a-z0-9.-]{0,252})")


def resolve(uri: str) -> bytes:
    """Return the key material that `uri` names.

    Raises:
        KeyMaterialError: Unknown scheme, missing, empty, too large, or readable by other users.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "file" and rest.startswith("/"):
        data = _read_key_file(Path(rest))
    elif scheme == "env" and rest:
        data = os.fsencode(os.environ.get(rest, ""))  # as it lies there, were it not UTF-8
    elif scheme == "k8s-secret":
        data = _read_secret(uri, *rest.rpartition("/")[::2])
    else:
        raise KeyMaterialError(
            f"key URI {uri!r} is none of file:/absolute/path, k8s-secret:NAMESPACE/NAME/FILE and env:NAME"
        )
    if not data:
        raise KeyMaterialError(f"no key at {uri}; create keys with: portcullis keys generate")
    return data


def role_uri(base: str, role: str) -> str:
    """Name the key of `role` (`mask_pii.pem`, `robustness:trained.pem`, `masking.key`) below a base URI.

    A step's colon becomes a dot in a file name, because keys of a Kubernetes Secret may not hold one.

    Raises:
        KeyMaterialError: The base or the role is malformed.
    """
    if not _ROLE.fullmatch(role):
        raise KeyMaterialError(f"{role!r} is not the name of a key")
    scheme, _, rest = base.partition(":")
    if scheme == "file" and rest.startswith("/"):
        return f"file:{rest.rstrip('/')}/{role.replace(':', '.')}"
    if scheme == "env" and rest:
        return f"env:{rest}_{re.sub(r'[^A-Z0-9]', '_', role.upper())}"
    if scheme == "k8s-secret" and _SECRET.fullmatch(rest):
        return f"{base}/{role.replace(':', '.')}"
    raise KeyMaterialError(
        f"key base {base!r} is none of file:/absolute/directory, k8s-secret:NAMESPACE/NAME, env:PREFIX"
    )


def service_reference(data: bytes) -> str | None:
    """Return the URI of a service's key that lies in a key's place, None where the key itself does.

    Raises:
        KeyMaterialError: It begins as one and is none.
    """
    text = data.decode("ascii", "replace").strip()
    if text.partition(":")[0] not in URIS:
        return None
    return service_key(text).uri


def symmetric_key(uri: str) -> bytes:
    """Return a 32-byte secret key, stored as one line of standard base64.

    Raises:
        KeyMaterialError: Missing, not base64, or not 32 bytes.
    """
    text = resolve(uri).strip()
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise KeyMaterialError(f"the key at {uri} is not base64") from error
    if len(key) != SYMMETRIC_BYTES:
        raise KeyMaterialError(f"the key at {uri} has {len(key)} bytes, not {SYMMETRIC_BYTES}")
    return key


def variables_for(uri: str) -> tuple[str, ...]:
    """Return the environment variables by which a process finds and may use the key that `uri` names.

    Raises:
        KeyMaterialError: As `resolve`.
    """
    scheme, _, rest = uri.partition(":")
    own = {"env": (rest,), "k8s-secret": ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")}
    reference = service_reference(resolve(uri))
    return (*own.get(scheme, ()), *(variables(reference) if reference else ()))


def _read_secret(uri: str, secret: str, file: str) -> bytes:
    match = _SECRET.fullmatch(secret)
    if match is None or not _ROLE.fullmatch(file):
        raise KeyMaterialError(f"key URI {uri!r} is not k8s-secret:NAMESPACE/NAME/FILE")
    from portcullis.kubernetes_api import api_client, ask

    try:
        status, answer = ask(api_client(), "GET", f"/api/v1/namespaces/{match[1]}/secrets/{match[2]}")
    except DeploymentError as error:
        raise KeyMaterialError(f"no key at {uri}: {error}") from error
    if status != 200:
        raise KeyMaterialError(f"no key at {uri}: the API server answered {status}; who runs here must get that Secret")
    files = answer.get("data")
    value = files.get(file, "") if isinstance(files, dict) else ""
    try:
        data = base64.b64decode(value, validate=True)
    except (TypeError, ValueError) as error:
        raise KeyMaterialError(f"no key at {uri}: what lies there is not base64") from error
    if len(data) > MAX_KEY_BYTES:
        raise KeyMaterialError(f"no key at {uri}: what lies there is larger than {MAX_KEY_BYTES} bytes")
    return data


def _read_key_file(path: Path) -> bytes:
    try:
        status = path.stat()
        data = read_bytes(path, limit=MAX_KEY_BYTES)
    except (OSError, UsageError) as error:
        raise KeyMaterialError(f"cannot read the key {path}; create keys with: portcullis keys generate") from error
    # A file of ours must be ours alone. A mounted Secret belongs to root and can only be read; it must not be
    # writable by anyone else.
    too_open = 0o077 if status.st_uid == os.geteuid() else 0o022
    if status.st_mode & too_open:
        raise KeyMaterialError(f"the key {path} is open to other users; run: chmod 600 {path}")
    return data
