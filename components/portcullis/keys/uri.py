"""Key material by URI, so that a secret is named by configuration and never passed as a parameter.

| URI | where | for |
|---|---|---|
| `file:/abs/path` | a file, or a file of a mounted Kubernetes Secret | everywhere |
| `env:NAME` | an environment variable | development only |

A *base* (`file:/abs/dir` or `env:PREFIX`) names a place that holds one key per role; `role_uri` points into it.
"""

import base64
import os
import re
from pathlib import Path

from portcullis.errors import KeyMaterialError, UsageError
from portcullis.files import read_bytes

MAX_KEY_BYTES = 64 << 10
SYMMETRIC_BYTES = 32
_ROLE = re.compile(r"[a-z][a-z0-9_]*(?:[:.][a-z][a-z0-9_]*)*")


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
    else:
        raise KeyMaterialError(f"key URI {uri!r} is neither file:/absolute/path nor env:NAME")
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
    raise KeyMaterialError(f"key base {base!r} is neither file:/absolute/directory nor env:PREFIX")


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
