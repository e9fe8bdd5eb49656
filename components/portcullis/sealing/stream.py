"""Sealed files: AES-256-GCM or ChaCha20-Poly1305 over segments, for streams of any length, in bounded memory.

The layout is specified in docs/sealed-format.md: a header of 4096 bytes, then segments of ciphertext and tag. It is the
STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", CRYPTO 2015): a segment's nonce holds its number and whether it is the last, so that no segment can
be dropped, swapped or appended. Each file has its own key, derived from the data encryption key (DEK) and a random
salt, so that the counted nonces never repeat under one key.

Neither cipher commits to a key: one ciphertext can be built that opens under two keys to two plaintexts (Dodis, Grubbs,
Ristenpart, Woodage, "Fast Message Franking", CRYPTO 2018). The header therefore holds a key commitment.

A reader does not judge the header it finds: it rebuilds the only header that its key and context allow and compares all
4096 bytes, padding included, so no other spelling passes.
"""

import contextlib
import functools
import hashlib
import hmac
import io
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from portcullis.digest import canonical_json, is_digest, parse_json
from portcullis.errors import DataError, KeyMaterialError, SealError, UsageError
from portcullis.files import BinaryFile, SegmentedFile, write_all

MAGIC = b"portcullis-seal\x01"
LABEL = b"portcullis-seal/v1"
Algorithm = Literal["AES-256-GCM-STREAM", "ChaCha20-Poly1305-STREAM"]
Cipher = AESGCM | ChaCha20Poly1305
_CIPHERS: Mapping[str, type[AESGCM] | type[ChaCha20Poly1305]] = {
    "AES-256-GCM-STREAM": AESGCM,
    "ChaCha20-Poly1305-STREAM": ChaCha20Poly1305,
}
HEADER_SIZE = 4096
SEGMENT_SIZE = 1 << 20
MAX_SEGMENTS = 1 << 32
DEK_SIZE = SALT_SIZE = 32
TAG_SIZE = 16


class SealingWriter(io.RawIOBase):
    """A sealed file as a file to write into; it holds one segment. `sealing` makes and finishes it.

    To close it writes nothing, so a file whose writer was only closed or forgotten lacks its last segment.
    """

    def __init__(self, target: BinaryFile, block: bytes, cipher: Cipher, segment_size: int) -> None:
        self._target, self._cipher, self._segment_size = target, cipher, segment_size
        self._associated = hashlib.sha256(block).digest()
        self._plain = memoryview(bytearray(segment_size))
        self._sealed = memoryview(bytearray(segment_size + TAG_SIZE))
        self._filled = self._index = 0
        self._finished = False
        write_all(target, block)

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Take all of `data`.

        Raises:
            UsageError: The file is finished, or would exceed 2**32 segments (4 PiB).
        """
        if self._finished:
            raise UsageError("the sealed file is finished; nothing can be added to it")
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            if self._filled == self._segment_size:  # only what follows tells that a segment is not the last
                self._put(last=False)
            part = rest[: self._segment_size - self._filled]
            self._plain[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
        return size

    def finish(self) -> None:
        """Write the last segment, without which nothing opens the file.

        Raises:
            UsageError: As `write`.
        """
        if not self._finished:
            self._put(last=True)

    def _put(self, *, last: bool) -> None:
        if self._index == MAX_SEGMENTS:
            raise UsageError(f"the source is longer than {MAX_SEGMENTS} segments; split it")
        index, self._index = self._index, self._index + 1  # a segment that could not be written leaves a gap for good
        plain, sealed = self._plain[: self._filled], self._sealed[: self._filled + TAG_SIZE]
        self._cipher.encrypt_into(_nonce(index, last=last), plain, self._associated, sealed)
        write_all(self._target, sealed)
        self._filled = 0
        self._finished = last


@contextlib.contextmanager
def sealing(
    target: BinaryFile,
    *,
    dek: bytes,
    context: Mapping[str, str],
    algorithm: Algorithm | None = None,
    _segment_size: int = SEGMENT_SIZE,
) -> Iterator[SealingWriter]:
    """Give a file to write plaintext into, which is sealed into `target`; neither needs to be seekable.

    Only when the block ends without an exception is the last segment written. Otherwise what `target` has received is
    no sealed file, and nothing opens it. An `OSError` of the target passes through.

    Args:
        target: Receives the header and the segments.
        dek: Data encryption key, 32 random bytes.
        context: What the file is, such as a model's digest and a name. It is stored in the clear and demanded again of
            the reader.
        algorithm: By which cipher; `fast_algorithm()` when None. Readers take both.

    Raises:
        KeyMaterialError: `dek` is not 32 bytes.
        UsageError: The context is empty, not printable text, or too long for the header; it would exceed 2**32
            segments (4 PiB); or the target is in non-blocking mode.
    """
    salt = secrets.token_bytes(SALT_SIZE)
    block, cipher = _header(dek, context, algorithm or fast_algorithm(), salt, _segment_size)
    writer = SealingWriter(target, block, cipher, _segment_size)
    yield writer
    writer.finish()


def seal(
    source: BinaryIO,
    target: BinaryFile,
    *,
    dek: bytes,
    context: Mapping[str, str],
    algorithm: Algorithm | None = None,
    _segment_size: int = SEGMENT_SIZE,
) -> None:
    """Encrypt `source` to its end into `target`, holding three segments in memory; neither needs to be seekable.

    If this raises, what `target` has received so far is no sealed file: its last segment is missing. An `OSError` of
    either stream passes through.

    Args:
        source: Plaintext of any length.
        target: As for `sealing`; so are the others.
        dek: Data encryption key.
        context: What the file is.
        algorithm: By which cipher.

    Raises:
        KeyMaterialError: As `sealing`.
        UsageError: As `sealing`; or the source is in non-blocking mode.
    """
    with sealing(target, dek=dek, context=context, algorithm=algorithm, _segment_size=_segment_size) as writer:
        while segment := _read(source, _segment_size):
            writer.write(segment)


class EncryptedFile(SegmentedFile):
    """An open sealed file of `size` plaintext bytes, each segment of which is authenticated before it is given out.

    It can be read and sought in as any file, holding a few segments in memory; what is read costs the segments that it
    lies in. `readinto` decrypts whole segments straight into the caller's buffer.
    """

    def __init__(self, source: "_Source", size: int, cipher: Cipher, associated: bytes, segment_size: int) -> None:
        super().__init__(size, segment_size)
        self._source, self._cipher, self._associated = source, cipher, associated
        self._segments = max(1, -(-size // segment_size))

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as the file goes; returns the number of bytes.

        Raises:
            SealError: A segment was altered; what the buffer holds then is no plaintext.
        """
        wanted = memoryview(buffer).cast("B")
        wanted = wanted[: max(0, self.size - self._position)]
        filled, sealed = 0, None
        while filled < len(wanted):
            index, start = divmod(self._position, self._segment_size)
            length = min(self._segment_size, self.size - index * self._segment_size)
            if start == 0 and length <= len(wanted) - filled:
                sealed = sealed or self._buffer()
                self._decrypt(index, sealed, wanted[filled:])
            else:
                length = super().readinto(wanted[filled : filled + length - start])
                self._position -= length
            filled += length
            self._position += length
        return filled

    def segment(self, index: int) -> bytes:
        """Decrypt a segment.

        Raises:
            SealError: It was altered.
        """
        return bytes(self._decrypt(index, self._buffer(), self._buffer()))

    def chunks(self) -> Iterator[bytes]:
        """Yield the plaintext in order, segment by segment, holding three segments in memory.

        Raises:
            SealError: A segment was altered.
        """
        sealed, plain = self._buffer(), self._buffer()
        for index in range(self._segments):
            yield bytes(self._decrypt(index, sealed, plain))

    def read_all(self) -> bytes:
        """Decrypt the whole file straight into one buffer of `size` bytes.

        Raises:
            SealError: A segment was altered.
        """
        plaintext = io.BytesIO()  # unlike a bytearray, it gives its buffer away as `bytes` without a copy
        if self.size:
            plaintext.seek(self.size - 1)
            plaintext.write(b"\0")
        self.seek(0)
        with plaintext.getbuffer() as plain:
            self.readinto(plain)
        return plaintext.getvalue()

    def authenticate_end(self) -> None:
        """Decrypt the final segment and forget it.

        Raises:
            SealError: It is not the segment that was sealed as the final one.
        """
        self._decrypt(self._segments - 1, self._buffer(), self._buffer())

    def _buffer(self) -> memoryview:
        return memoryview(bytearray(self._segment_size + TAG_SIZE))

    def _decrypt(self, index: int, sealed: memoryview, plain: memoryview) -> memoryview:
        """Read segment `index` into `sealed`, decrypt it into the start of `plain` and return that part."""
        length = min(self._segment_size, self.size - index * self._segment_size)
        sealed, plain = sealed[: length + TAG_SIZE], plain[:length]
        if self._source.read_at(HEADER_SIZE + index * (self._segment_size + TAG_SIZE), sealed) < len(sealed):
            raise SealError(f"{self._source.name} was truncated while it was read")
        last = index == self._segments - 1
        try:
            self._cipher.decrypt_into(_nonce(index, last=last), sealed, self._associated, plain)
        except InvalidTag as error:
            plain[:] = bytes(length)  # it may hold what was decrypted before the tag was found to be another
            damage = "altered, truncated or extended" if last else "altered"
            raise SealError(f"{self._source.name} was {damage}: segment {index} is not authentic") from error
        return plain


@contextlib.contextmanager
def open_sealed(
    path: Path | BinaryFile, *, dek: bytes, context: Mapping[str, str], name: str = ""
) -> Iterator[EncryptedFile]:
    """Open a sealed file once its header, key commitment and final segment are authentic; a truncated one fails here.

    Args:
        path: The file; or one that is open to be read and sought in, of fsspec or an object store, say. It stays the
            caller's to close, and nobody else may move its position.
        dek: Data encryption key.
        context: What it was sealed for.
        name: What messages call a file that is open already.

    Raises:
        SealError: Altered, truncated, sealed under another key or for another context.
        KeyMaterialError: `dek` is not 32 bytes.
        UsageError: The file cannot be opened or is not a regular file, or the context is empty or not printable text.
    """
    with _source_of(path, name) as source:
        block = bytearray(HEADER_SIZE)
        source.read_at(0, memoryview(block))
        algorithm, salt, segment_size, found = _parse_header(source.name, bytes(block))
        expected, cipher = _header(dek, context, algorithm, salt, segment_size)
        if found != dict(context):
            raise SealError(
                f"{source.name} was sealed for another context, which differs in: {_difference(found, context)}"
            )
        if not hmac.compare_digest(block, expected):
            raise SealError(f"this key does not open {source.name}: it is the wrong key, or the header was altered")
        body = source.size() - HEADER_SIZE
        segments = max(1, -(-body // (segment_size + TAG_SIZE)))
        size = body - segments * TAG_SIZE
        final = size - (segments - 1) * segment_size
        if segments > MAX_SEGMENTS or final < 0 or (final == 0 and segments > 1):
            raise SealError(f"{source.name} was truncated or extended: no sealed file has its length")
        opened = EncryptedFile(source, size, cipher, hashlib.sha256(block).digest(), segment_size)
        opened.authenticate_end()
        yield opened


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for unbuffered reading; links and special files are refused.

    Raises:
        UsageError: Missing, unreadable, a link, or not a regular file.
    """
    try:
        # O_NONBLOCK keeps a FIFO from hanging us; it means nothing to a regular file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def check_context(context: Mapping[str, str]) -> None:
    """Refuse a context that names nothing or cannot be shown as it is.

    Raises:
        UsageError: It is empty, or a name or value is empty or not printable text.
    """
    if not context:
        raise UsageError("the context is empty; name at least what is sealed")
    for text in (text for entry in context.items() for text in entry):
        if not isinstance(text, str) or not text or not text.isprintable():
            raise UsageError(f"the context holds {text!r}; only printable text can be shown and compared")


def check_dek(dek: bytes) -> None:
    """Refuse what cannot be a data encryption key.

    Raises:
        KeyMaterialError: It is not 32 bytes.
    """
    if not isinstance(dek, bytes) or len(dek) != DEK_SIZE:
        raise KeyMaterialError(f"a data encryption key is {DEK_SIZE} random bytes")


def derive(dek: bytes, *, salt: bytes | None, info: bytes, length: int) -> bytes:
    """Derive `length` bytes from a data encryption key with HKDF-SHA-512 (RFC 5869)."""
    return HKDF(algorithm=hashes.SHA512(), length=length, salt=salt, info=info).derive(dek)


@functools.cache
def fast_algorithm() -> Algorithm:
    """Return AES-256-GCM where the processor has instructions for it, else ChaCha20-Poly1305 (RFC 8439)."""
    try:
        words = Path("/proc/cpuinfo").read_text(errors="replace").split()
    except OSError:
        words = ["aes"]  # not Linux: both are sound, and of other machines nearly all have them
    return "AES-256-GCM-STREAM" if "aes" in words else "ChaCha20-Poly1305-STREAM"


def _header(
    dek: bytes, context: Mapping[str, str], algorithm: str, salt: bytes, segment_size: int
) -> tuple[bytes, Cipher]:
    """Build the one header block for these parameters, and the cipher under the file key."""
    check_dek(dek)
    check_context(context)
    fields = {"algorithm": algorithm, "context": dict(context), "salt": salt.hex(), "segment_size": segment_size}
    # The commitment cannot be part of what it is derived from; everything else in the header is.
    info = LABEL + hashlib.sha256(canonical_json(fields)).digest()
    derived = derive(dek, salt=salt, info=info, length=64)
    file_key, commitment = derived[:32], derived[32:]
    block = MAGIC + canonical_json(fields | {"commitment": commitment.hex()})
    if len(block) > HEADER_SIZE:
        raise UsageError(f"the context is {len(block) - HEADER_SIZE} bytes too long for the header")
    return block.ljust(HEADER_SIZE, b"\0"), _CIPHERS[algorithm](file_key)


def _parse_header(name: str, block: bytes) -> tuple[str, bytes, int, Any]:
    """Return the algorithm, salt, segment size and context that a header claims; nothing of it is authentic yet."""
    if not block.startswith(MAGIC):
        raise SealError(f"{name} is not a sealed file of a known version")
    try:
        fields = parse_json(block[len(MAGIC) :].rstrip(b"\0"))
    except DataError as error:
        raise SealError(f"{name} has an altered header: {error}") from error
    match fields:
        case {"algorithm": str(algorithm), "salt": salt, "segment_size": int(size), "context": context}:
            if algorithm in _CIPHERS and is_digest(salt) and 0 < size <= SEGMENT_SIZE:
                return algorithm, bytes.fromhex(salt), int(size), context  # int(): JSON's true would pass as 1
    raise SealError(f"{name} has an altered header: a field is missing or out of range")


def _difference(found: Any, context: Mapping[str, str]) -> str:
    names = [name for name in context if not isinstance(found, dict) or found.get(name) != context[name]]
    return ", ".join(names) or "entries that are not given here"


def _nonce(index: int, *, last: bool) -> bytes:
    return struct.pack(">7xIB", index, last)


def _read(source: BinaryIO, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end; a pipe or socket gives them in pieces."""
    pieces = []
    while size and (piece := source.read(size)):
        pieces.append(piece)
        size -= len(piece)
    if size and piece is None:
        raise UsageError("the source is in non-blocking mode; its end cannot be told from a pause")
    return b"".join(pieces)


class _Source:
    """Sealed bytes that are read by their position."""

    def __init__(self, stream: BinaryFile, name: str) -> None:
        self.name, self._stream = name, stream

    def size(self) -> int:
        with self._errors():
            return int(self._stream.seek(0, os.SEEK_END))

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer as far as the file goes."""
        filled = 0
        with self._errors():
            self._stream.seek(offset)
            while filled < len(buffer) and (part := self._stream.read(len(buffer) - filled)):
                if len(part) > len(buffer) - filled:
                    raise SealError(f"{self.name}: its store gave more than it was asked for")
                buffer[filled : filled + len(part)] = part
                filled += len(part)
        return filled

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SealError(f"cannot read {self.name}: {error.strerror or type(error).__name__}") from error


class _LocalSource(_Source):
    """The same of a regular file: one system call, whatever its position, so that threads may share it."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        super().__init__(stream, name)
        self._descriptor = stream.fileno()

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read_at(self, offset: int, buffer: memoryview) -> int:
        with self._errors():
            return os.preadv(self._descriptor, [buffer], offset)


@contextlib.contextmanager
def _source_of(path: Path | BinaryFile, name: str) -> Iterator[_Source]:
    if isinstance(path, Path):
        with open_regular(path) as stream:
            yield _LocalSource(stream, str(path))
    else:
        yield _Source(path, name or "the sealed file")
