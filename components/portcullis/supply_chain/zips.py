"""Zip archives, judged by their structure before anything is unpacked.

Two programs may read one zip archive as two: by the directory at its end, by the headers in front of each member, with
or without what lies between, before or behind. So an archive is refused unless all of these agree and nothing lies
between: only then is what was judged here what a loader will see.
"""

import codecs
import contextlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from portcullis.errors import ModelError
from portcullis.supply_chain.headers import Tensors, read_npy

MAX_MEMBERS = 100_000
MAX_UNPACKED_BYTES = 64 << 30
_LOCAL_HEADER = struct.Struct("<4s2x2HHHIIIHH")
_LOCAL_MAGIC, _DESCRIPTOR_MAGIC, _DIRECTORY_MAGIC = b"PK\x03\x04", b"PK\x07\x08", b"PK\x01\x02"
_END = struct.Struct("<4s4HIIH")
_END_MAGIC = b"PK\x05\x06"
_UTF8, _DESCRIPTOR = 0x800, 0x8
# The names of members are in this code page; Python loads it when it is first used, which a locked process cannot.
_CODE_PAGE = codecs.lookup("cp437").name


def open_archive(stream: BinaryIO, size: int, *, methods: frozenset[int]) -> zipfile.ZipFile:
    """Open a zip archive whose parts agree with one another and leave no gaps.

    Args:
        stream: The file, seekable.
        size: Its length in bytes.
        methods: The compression methods that members may have (`zipfile.ZIP_STORED`, …).

    Raises:
        ModelError: It is encrypted, spanned, commented, compressed otherwise, has two members of one name or too many
            of them, or bytes that no member accounts for, or its headers contradict its directory.
    """
    with _damage_is_refused():
        archive = zipfile.ZipFile(stream)
    members = sorted(archive.infolist(), key=lambda it: it.header_offset)
    if not 1 <= len(members) <= MAX_MEMBERS or len({it.filename for it in members}) != len(members):
        raise ModelError("the zip archive has no members, too many, or two of one name")
    stream.seek(size - _END.size)
    if archive.comment or stream.read(4) != _END_MAGIC:
        raise ModelError("bytes follow the end of the zip archive")
    end = 0
    for member in members:
        if member.flag_bits & ~(_UTF8 | _DESCRIPTOR) or member.compress_type not in methods or member.comment:
            raise ModelError("a member of the zip archive is encrypted, compressed otherwise, or has a comment")
        end = _require_header(stream, member, end)
    if end != archive.start_dir:
        raise ModelError("bytes lie between the members of the zip archive and its directory")
    return archive


def _require_header(stream: BinaryIO, member: zipfile.ZipInfo, start: int) -> int:
    """Refuse unless the member's header begins at `start` and agrees with the directory; return where it ends."""
    if member.header_offset != start:
        raise ModelError("bytes lie between the members of the zip archive")
    stream.seek(start)
    header = stream.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size:
        raise ModelError("the zip archive is damaged")
    magic, flags, method, _, _, crc, packed, unpacked, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    name = stream.read(name_length)
    delayed = bool(flags & _DESCRIPTOR)
    known = (crc, packed, unpacked) if not delayed else (member.CRC, member.compress_size, member.file_size)
    wide = 0xFFFFFFFF  # the size stands in a zip64 extra field, which zipfile reads of the directory
    agrees = (
        magic == _LOCAL_MAGIC
        and flags == member.flag_bits
        and method == member.compress_type
        and name == member.orig_filename.encode("utf-8" if flags & _UTF8 else _CODE_PAGE)
        and known[0] == member.CRC
        and known[1] in (member.compress_size, wide)
        and known[2] in (member.file_size, wide)
    )
    if not agrees:
        raise ModelError("a header of the zip archive contradicts its directory")
    end: int = start + _LOCAL_HEADER.size + name_length + extra_length + member.compress_size
    return end + (_descriptor_length(stream, end, member) if delayed else 0)


def _descriptor_length(stream: BinaryIO, position: int, member: zipfile.ZipInfo) -> int:
    stream.seek(position)
    descriptor = stream.read(24)
    for layout in ("<4sIII", "<4sIQQ"):
        length = struct.calcsize(layout)
        told = (_DESCRIPTOR_MAGIC, member.CRC, member.compress_size, member.file_size)
        if len(descriptor) >= length and struct.unpack(layout, descriptor[:length]) == told:
            return length
    raise ModelError("a header of the zip archive contradicts its directory")


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """Return a member's content.

    Raises:
        ModelError: It is larger than `limit` bytes, or damaged.
    """
    if member.file_size > limit:
        raise ModelError("a member of the archive is larger than its kind can be")
    with _damage_is_refused():
        return archive.read(member)  # and its CRC is compared


def has_member(stream: BinaryIO, name: str) -> bool:
    """Tell whether what looks like a zip archive has a member of this name in its one folder; nothing is judged."""
    try:
        with _damage_is_refused(), zipfile.ZipFile(stream) as archive:
            return any(entry.partition("/")[2] == name for entry in archive.namelist())
    except ModelError:
        return False


def read_npz(stream: BinaryIO, size: int) -> Tensors:
    """Judge an archive of NumPy arrays, as `numpy.savez` and `savez_compressed` write it.

    Raises:
        ModelError: The archive is unsound, holds anything but arrays of numbers, or unpacks to more than
            MAX_UNPACKED_BYTES.
    """
    methods = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
    arrays = []
    with _damage_is_refused(), open_archive(stream, size, methods=methods) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
            raise ModelError(f"the archive unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        for member in members:
            if not re.fullmatch(r"[^/\\\x00]{1,200}\.npy", member.filename):
                raise ModelError("the archive has a member that is no array")
            with archive.open(member) as array:
                arrays.append(read_npy(array, member.file_size))  # type: ignore[arg-type]
                while array.read(1 << 20):  # to the end, where the CRC is compared
                    pass
    return Tensors(len(arrays), sum(array.elements for array in arrays))


@contextlib.contextmanager
def _damage_is_refused() -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, OSError, EOFError) as error:
        raise ModelError("the zip archive is damaged") from error
