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
from portcullis.files import read_full
from portcullis.supply_chain.headers import Tensors, read_npy

MAX_MEMBERS = 100_000
MAX_UNPACKED_BYTES = 64 << 30
_LOCAL_HEADER = struct.Struct("<4s2x2HHHIIIHH")
_LOCAL_MAGIC, _DESCRIPTOR_MAGIC = b"PK\x03\x04", b"PK\x07\x08"
_END = struct.Struct("<4s4HIIH")
_END_MAGIC, _WIDE_END_MAGIC, _LOCATOR_MAGIC = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
# What zip64 puts in front of the end: the end again, in wide numbers, then a locator of that.
_WIDE_END, _LOCATOR = struct.Struct("<4sQ4xIIQQQQ"), struct.Struct("<4sIQI")
_TOO_MANY, _TOO_LARGE = 0xFFFF, 0xFFFFFFFF
# Extra fields: sizes and offset in wide numbers, and of headers what PyTorch aligns by.
_WIDE, _PADDING = 0x0001, 0x4246
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
            of them, bytes that no member accounts for, or two ends, or its headers contradict its directory.
    """
    with _damage_is_refused():
        archive = zipfile.ZipFile(stream)
    members = sorted(archive.infolist(), key=lambda it: it.header_offset)
    if not 1 <= len(members) <= MAX_MEMBERS or len({it.filename for it in members}) != len(members):
        raise ModelError("the zip archive has no members, too many, or two of one name")
    end = 0
    for member in members:
        if member.flag_bits & ~(_UTF8 | _DESCRIPTOR) or member.compress_type not in methods or member.comment:
            raise ModelError("a member of the zip archive is encrypted, compressed otherwise, or has a comment")
        if member.orig_filename != member.filename or member.volume or not _extra(member.extra).keys() <= {_WIDE}:
            raise ModelError("a member of the zip archive can be read in two ways")
        end = _require_header(stream, member, end)
    if end != archive.start_dir:
        raise ModelError("bytes lie between the members of the zip archive and its directory")
    _require_end(stream, size, len(members), end)
    return archive


def _require_end(stream: BinaryIO, size: int, members: int, start: int) -> None:
    """Refuse unless the end of the archive tells of one directory of so many members, which fills `start` to the end.

    Where zip64's records are looked for, what lies there must be those, however the rest would be read without them.
    """
    stream.seek(size - _END.size - _LOCATOR.size - _WIDE_END.size)  # the shortest archive of a member is no shorter
    wide_end, locator, end = (read_full(stream, it.size) for it in (_WIDE_END, _LOCATOR, _END))
    magic, *told, comment = _END.unpack(end)
    if magic != _END_MAGIC or comment:
        raise ModelError("bytes follow the end of the zip archive")
    wide = locator.startswith(_LOCATOR_MAGIC)
    stop = size - len(end) - (len(locator) + len(wide_end) if wide else 0)
    true = [0, 0, members, members, stop - start, start]
    if wide:
        magic, length, *again = _WIDE_END.unpack(wide_end)
        sound = (magic, length, again) == (_WIDE_END_MAGIC, _WIDE_END.size - 12, true)
        if not sound or _LOCATOR.unpack(locator) != (_LOCATOR_MAGIC, 0, stop, 1):
            raise ModelError("the zip archive has two ends")
    beyond = [_TOO_MANY] * 4 + [_TOO_LARGE] * 2
    if any(it != is_ and not (wide and it == most) for it, is_, most in zip(told, true, beyond, strict=True)):
        raise ModelError("the end of the zip archive tells of another directory")


def _extra(data: bytes) -> dict[int, bytes]:
    """Return the extra fields of a member by their numbers."""
    fields: dict[int, bytes] = {}
    while data:
        if len(data) < 4:
            raise ModelError("the zip archive is damaged")
        number, length = struct.unpack_from("<HH", data)
        if number in fields or 4 + length > len(data):
            raise ModelError("the zip archive is damaged")
        fields[number], data = data[4 : 4 + length], data[4 + length :]
    return fields


def _require_header(stream: BinaryIO, member: zipfile.ZipInfo, start: int) -> int:
    """Refuse unless the member's header begins at `start` and agrees with the directory; return where it ends."""
    if member.header_offset != start:
        raise ModelError("bytes lie between the members of the zip archive")
    stream.seek(start)
    header = stream.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size:
        raise ModelError("the zip archive is damaged")
    magic, flags, method, _, _, crc, packed, unpacked, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    name, extra = stream.read(name_length), _extra(stream.read(extra_length))
    delayed = bool(flags & _DESCRIPTOR)
    told, true = (unpacked, packed), (member.file_size, member.compress_size)
    if _TOO_LARGE in told and len(extra.get(_WIDE, b"")) == 16:
        told = struct.unpack("<QQ", extra[_WIDE])
    agrees = (
        magic == _LOCAL_MAGIC
        and flags == member.flag_bits
        and method == member.compress_type
        and name == member.orig_filename.encode("utf-8" if flags & _UTF8 else _CODE_PAGE)
        and (delayed or (crc == member.CRC and told == true))
        and extra.keys() <= {_WIDE, _PADDING}
        and not extra.get(_PADDING, b"").strip(b"Z")
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
