"""Where an interrupted training goes on: one file that only whoever wrote it can have written.

    MAC (32 bytes) | length of the state (4 bytes, big-endian) | state, canonical JSON | tensors, safetensors

The MAC is HMAC-SHA-256 under a key of the training step's own, over the subject and all that follows it. A file that
was altered, or another's, would be a model that this step did not train, so it is refused and nothing of it is parsed.
The subject is a digest of everything that the training depends on: rows, model, settings, versions. Neither part can
hold code.
"""

import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from portcullis.digest import canonical_json, is_digest
from portcullis.errors import SealError, UsageError
from portcullis.files import read_bytes, write_bytes
from portcullis.models.pytorch import torch
from portcullis.models.store import MAX_WEIGHTS_BYTES

# Weights, their mean, the best ones, and Adam's two moments.
MAX_BYTES = 5 * MAX_WEIGHTS_BYTES + (16 << 20)
_MAC_BYTES, _LENGTH_BYTES = 32, 4


@dataclass(frozen=True)
class Checkpoints:
    """The folder of one step's checkpoints.

    Attributes:
        folder: On storage that outlives the process; made if it is missing.
        key: Secret, at least 32 bytes.

    Raises:
        UsageError: The key is too short.
    """

    folder: Path
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) < _MAC_BYTES:
            raise UsageError("the key of checkpoints has fewer than 32 bytes")

    def write(self, subject: str, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace the subject's checkpoint by this one, whole or not at all.

        Raises:
            UsageError: It cannot be written.
        """
        described = canonical_json(dict(state))
        # Tensors that share memory would be refused, and a view would be written with what surrounds it.
        apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        body = len(described).to_bytes(_LENGTH_BYTES, "big") + described + save(apart)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path(subject), self._mac(subject, body) + body, mode=0o600)
        except OSError as error:
            raise UsageError(f"cannot write a checkpoint to {self.folder}: {error.strerror}") from error

    def read(self, subject: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Return the state and the tensors of the subject's checkpoint, on the CPU; None if there is none.

        Raises:
            SealError: There is one, and it was altered or cut short, or another key wrote it.
            UsageError: It cannot be read.
        """
        path = self._path(subject)
        if not os.path.lexists(path):
            return None
        data = read_bytes(path, limit=MAX_BYTES)
        mac, body = data[:_MAC_BYTES], data[_MAC_BYTES:]
        if len(body) < _LENGTH_BYTES or not hmac.compare_digest(mac, self._mac(subject, body)):
            raise SealError(f"the checkpoint {path} was altered, or another key wrote it; delete it to train anew")
        end = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "big")
        return json.loads(body[_LENGTH_BYTES:end]), load(body[end:])

    def remove(self, subject: str) -> None:
        """Delete the subject's checkpoint, if there is one: it is needed no more."""
        self._path(subject).unlink(missing_ok=True)

    def _path(self, subject: str) -> Path:
        if not is_digest(subject):
            raise UsageError("a checkpoint's subject is a SHA-256 in hexadecimal")
        return self.folder / f"{subject}.checkpoint"

    def _mac(self, subject: str, body: bytes) -> bytes:
        return hmac.digest(self.key, subject.encode() + body, "sha256")
