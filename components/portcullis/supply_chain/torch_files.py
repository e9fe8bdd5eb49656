"""What `torch.save` writes, in its two layouts: a zip archive, and before PyTorch 1.6 a row of pickles."""

import re
import struct
import zipfile
from typing import BinaryIO

from portcullis.errors import ModelError
from portcullis.files import read_full
from portcullis.supply_chain.pickled import PickledTensors, read_pickle
from portcullis.supply_chain.zips import open_archive, read_member

MAX_PICKLE_BYTES = 64 << 20
MAX_SMALL_BYTES = 4096
_MEMBER = re.compile(
    r"(?P<root>[^/\\\x00]{1,200})/(?:(?P<pickle>data\.pkl)|data/(?P<storage>\d{1,9})"
    r"|(?P<small>version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id))"
)
# The first three pickles of the older layout: torch.serialization's MAGIC_NUMBER, PROTOCOL_VERSION and `sys_info`. To
# the byte, for they lie where a tar archive, which PyTorch looks for first, has its first header.
_LEGACY = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    b"\x80\x02M\xe9\x03."
    b"\x80\x02}q\x00(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\r\x00\x00\x00little_endianq\x02\x88"
    b"X\n\x00\x00\x00type_sizesq\x03}q\x04(X\x05\x00\x00\x00shortq\x05K\x02X\x03\x00\x00\x00intq\x06K\x04"
    b"X\x04\x00\x00\x00longq\x07K\x04uu."
)


def read_torch_archive(stream: BinaryIO, size: int) -> PickledTensors:
    """Judge an archive that `torch.save` wrote, reading its pickle but not its tensors.

    Raises:
        ModelError: It has members that torch.save does not write, tensors of other sizes than their storages, storages
            that no tensor uses, another byte order, or a pickle that is refused.
    """
    with open_archive(stream, size, methods=frozenset({zipfile.ZIP_STORED})) as archive:
        found: PickledTensors | None = None
        lengths: dict[str, int] = {}
        roots = set()
        for member in archive.infolist():
            part = _MEMBER.fullmatch(member.filename)
            if part is None:
                raise ModelError("the archive has a member that torch.save does not write for tensors")
            roots.add(part["root"])
            if part["storage"] is not None:
                lengths[part["storage"]] = member.file_size
            elif part["pickle"]:
                found = _read_whole(read_member(archive, member, MAX_PICKLE_BYTES))
            elif part["small"]:
                content = read_member(archive, member, MAX_SMALL_BYTES)
                if part["small"] == "byteorder" and content != b"little":
                    raise ModelError("the archive's tensors have another byte order")
        if found is None or len(roots) != 1:
            raise ModelError("the archive holds no pickle, or several archives in one")
        if lengths != {key: storage.size for key, storage in found.storages.items()}:
            raise ModelError("the archive's storages are not those that its tensors use")
        return found


def _read_whole(data: bytes) -> PickledTensors:
    found = read_pickle(data)
    if found.end != len(data):
        raise ModelError("bytes follow the end of the pickle")
    return found


def read_legacy_torch(stream: BinaryIO, size: int) -> PickledTensors:
    """Judge a file of the older layout: five pickles, of which the fourth holds the tensors, then the storages.

    Raises:
        ModelError: A pickle is refused, or the storages behind them are not those that the tensors use.
    """
    head = read_full(stream, min(size, MAX_PICKLE_BYTES))
    if not head.startswith(_LEGACY):
        raise ModelError("the file does not begin as torch.save begins it")
    found = read_pickle(head, len(_LEGACY))
    keys = read_pickle(head, found.end)
    if not isinstance(keys.value, tuple) or sorted(map(str, keys.value)) != sorted(found.storages):
        raise ModelError("the file's storages are not those that its tensors use")
    position = keys.end
    for key in keys.value:
        storage = found.storages[key]
        stream.seek(position)
        if read_full(stream, 8) != struct.pack("<q", storage.elements):
            raise ModelError("a storage of the file has another length than its tensors say")
        position += 8 + storage.size
    if position != size:
        raise ModelError("the file is longer or shorter than its tensors")
    return found
