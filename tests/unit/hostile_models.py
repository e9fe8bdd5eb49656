"""Model files that a scanner must refuse, none of which does anything: nothing here ever calls what they would call.

Pickles are put together instruction by instruction (Python's `pickletools` documents them), archives with `zipfile`.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

CALLABLES = [
    *("os system", "posix system", "nt system", "os popen", "os execv", "os remove", "subprocess Popen"),
    *("subprocess check_output", "builtins eval", "builtins exec", "builtins compile", "builtins open"),
    *("builtins getattr", "builtins setattr", "builtins __import__", "builtins map", "__builtin__ eval"),
    *("importlib import_module", "runpy run_module", "runpy _run_code", "pty spawn", "webbrowser open"),
    *(
        "socket create_connection",
        "urllib.request urlopen",
        "http.client HTTPSConnection",
        "ssl get_server_certificate",
    ),
    *("ctypes CDLL", "shutil rmtree", "pathlib Path", "operator attrgetter", "operator methodcaller"),
    *("functools partial", "types FunctionType", "types CodeType", "marshal loads", "pickle loads", "_pickle loads"),
    *("torch load", "torch.hub load", "torch.jit load", "torch.ops load_library", "torch._utils _rebuild_tensor"),
    *("torch.serialization load", "torch._inductor.codecache compile_file", "torch.storage _load_from_bytes"),
    *("torch nn.Module", "torch FloatStorage.from_file", "torch _utils", "torch.nn.modules.linear Linear"),
    *(
        "numpy load",
        "numpy.core.multiarray _reconstruct",
        "numpy._core.multiarray scalar",
        "numpy.testing._private.utils runstring",
    ),
    *(
        "joblib load",
        "dill loads",
        "cloudpickle loads",
        "pip main",
        "bdb Bdb.run",
        "pdb run",
        "timeit timeit",
        "cProfile run",
    ),
    *("code InteractiveInterpreter", "asyncio.unix_events _UnixSubprocessTransport", "multiprocessing Process"),
    *("logging.config _resolve", "idlelib.autocomplete AutoComplete.get_entity", "lib2to3.pgen2.grammar Grammar.loads"),
    *("collections OrderedDict.__class__", "collections defaultdict", "collections Counter", "sklearn.svm SVC"),
    *("keras.models load_model", "uuid _popen", "commands getoutput", "tempfile mktemp", "linecache getlines"),
]
PROTO, STOP, MARK, TUPLE, REDUCE, EMPTY_TUPLE = b"\x80\x02", b".", b"(", b"t", b"R", b")"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(dotted: str) -> bytes:
    return b"c" + dotted.replace(" ", "\n").encode() + b"\n"


def storage(key: str = "0", elements: int = 12, kind: str = "torch FloatStorage") -> bytes:
    return (
        MARK
        + text("storage")
        + name(kind)
        + text(key)
        + text("cpu")
        + b"J"
        + struct.pack("<i", elements)
        + TUPLE
        + b"Q"
    )


HOOKS = name("collections OrderedDict") + EMPTY_TUPLE + REDUCE


def tensor(
    *,
    offset: bytes = b"K\x00",
    sizes: bytes = b"K\x03K\x04\x86",
    strides: bytes = b"K\x04K\x01\x86",
    hooks: bytes = HOOKS,
    of: bytes = b"",
    more: bytes = b"",
) -> bytes:
    function = name("torch._utils _rebuild_tensor_v2")
    return function + MARK + (of or storage()) + offset + sizes + strides + b"\x89" + hooks + more + TUPLE + REDUCE


def state(value: bytes = b"") -> bytes:
    """A state dictionary of one tensor, or of what is given in its place."""
    return PROTO + b"}" + text("weight") + (value or tensor()) + b"s" + STOP


def call(dotted: str, *, argument: bytes = b"") -> bytes:
    return PROTO + name(dotted) + (argument or text("true")) + b"\x85" + REDUCE + STOP


def pickles() -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of pickles that do something else than describe tensors."""
    for dotted in CALLABLES:
        yield f"calls {dotted}", call(dotted)
    for dotted in CALLABLES[:6]:
        module, attribute = dotted.split()
        yield f"names {dotted} by two texts", PROTO + text(module) + text(attribute) + b"\x93" + text("x") + b"\x85R."
        yield f"hides {dotted} in a state dictionary", state(name(dotted) + text("x") + b"\x85R")
        yield f"keeps {dotted} as a value", state(name(dotted))
        yield f"INST {dotted}", PROTO + b"(" + text("x") + b"i" + dotted.replace(" ", "\n").encode() + b"\n."
        yield f"OBJ {dotted}", PROTO + b"(" + name(dotted) + text("x") + b"o."
        yield f"NEWOBJ {dotted}", PROTO + name(dotted) + text("x") + b"\x85\x81."
        yield f"NEWOBJ_EX {dotted}", PROTO + name(dotted) + b")}\x92."
        yield f"BUILD {dotted}", PROTO + name(dotted) + b")R}b."
        yield (
            f"puts {dotted} into the memo, then a name there",
            (
                PROTO
                + name("collections OrderedDict")
                + b"q\x000"
                + name(dotted)
                + b"q\x00h\x00"
                + text("x")
                + b"\x85R."
            ),
        )
    yield "an extension code", PROTO + b"\x82\x01)R."
    yield "a wide extension code", PROTO + b"\x84\x01\x00\x00\x00)R."
    yield "a persistent name as text", PROTO + b"Pstorage\n."
    yield "another persistent name", state(MARK + text("module") + text("os") + TUPLE + b"Q")
    yield "a storage of another class", state(tensor(of=storage(kind="collections OrderedDict")))
    yield "a storage of negative size", state(tensor(of=storage(elements=-1)))
    yield "a storage as a value", state(storage())
    yield "two storages of one key", state(tensor() + b"0" + tensor(of=storage(elements=99)))
    yield "a tensor beyond its storage", state(tensor(offset=b"K\x01"))
    yield "a tensor of repeated elements", state(tensor(sizes=b"J\xff\xff\xff\x7f\x85", strides=b"K\x00\x85"))
    yield "a tensor of negative stride", state(tensor(strides=b"J\xff\xff\xff\xffK\x01\x86"))
    yield "a tensor of unequal axes", state(tensor(strides=b"K\x01\x85"))
    yield "a tensor of text", state(tensor(sizes=text("x") + b"K\x04\x86"))
    yield "a tensor with hooks", state(tensor(hooks=HOOKS + text("0") + text("x") + b"s"))
    yield "a tensor given hooks later", state(tensor(hooks=HOOKS + b"q\x00") + b"h\x00" + text("0") + text("x") + b"s0")
    yield "hooks given a state", state(tensor(hooks=HOOKS + b"q\x00") + b"h\x00}b0")
    yield "a tensor with metadata", state(tensor(more=b"}"))
    yield "the state of a tensor set", state(tensor() + b"}b")
    yield "a dictionary keyed by a tuple", PROTO + b"}" + EMPTY_TUPLE + b"N" + b"s."
    yield "a call of data", PROTO + text("x") + EMPTY_TUPLE + b"R."
    yield "a call with no tuple", PROTO + name("collections OrderedDict") + text("x") + b"R."
    yield "an ordered dictionary made of data", PROTO + name("collections OrderedDict") + b"](\x85R."
    yield "a bytearray", PROTO + b"\x96" + struct.pack("<Q", 1) + b"x."
    yield "a set", PROTO + b"\x8f."
    yield "a float as text", PROTO + b"F1.0\n."
    yield "a number as text", PROTO + b"I1\n."
    yield "protocol 0", b"(dp0\n."
    yield "protocol 1", b"\x80\x01}."
    yield "no end", PROTO + b"}"
    yield "an empty stack", PROTO + b"."
    yield "two values", PROTO + b"}}."
    yield "an underflow", PROTO + b"s."
    yield "a memo that was never filled", PROTO + b"h\x09."
    yield "a mark left over", PROTO + b"(}."
    yield "a value with a number beyond memory", PROTO + b"}r\xff\xff\xff\x7f."
    yield "an unknown instruction", PROTO + b"\xff."
    yield "a text longer than the file", PROTO + b"X\xff\xff\xff\x7fx."
    yield "a function left over", PROTO + name("collections OrderedDict") + b"."


def archive(pickle: bytes, *, data: bytes = bytes(48), method: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """An archive as `torch.save` lays it out; `more` members by name, with `__` for `/`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        made.writestr("model/data.pkl", pickle)
        made.writestr("model/byteorder", "little")
        made.writestr("model/data/0", data)
        made.writestr("model/version", "3\n")
        for member, content in more.items():
            made.writestr(member.replace("__", "/"), content)
    return stream.getvalue()


BENIGN = archive(state())


def _edited(old: bytes, new: bytes, *, last: bool = False) -> bytes:
    at = BENIGN.rindex(old) if last else BENIGN.index(old)
    return BENIGN[:at] + new + BENIGN[at + len(old) :]


def archives() -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of archives that are not plainly what `torch.save` writes of tensors."""
    yield "a hostile pickle inside", archive(call("os system"))
    yield "bytes behind the pickle", archive(state() + call("os system"))
    yield "a script beside the tensors", archive(state(), model__code__run=b"import os")
    yield "constants of TorchScript", archive(state(), **{"model__constants.pkl": call("os system")})
    yield "a second pickle", archive(state(), **{"other__data.pkl": state()})
    yield "a member that leaves the folder", archive(state(), **{"..__data.pkl": state()})
    yield "two members of one name", archive(state(), **{"model/data.pkx": state()}).replace(b"data.pkx", b"data.pkl")
    yield "no pickle", archive(state()).replace(b"data.pkl", b"data.pkx")
    yield "no storage", archive(state()).replace(b"model/data/0", b"model/data/1")
    yield "a storage that no tensor uses", archive(state(), model__data__1=bytes(48))
    yield "a storage that is too short", archive(state(), data=bytes(44))
    yield "big-endian tensors", archive(state()).replace(b"little", b"bigger")
    yield "compressed", archive(state(), method=zipfile.ZIP_DEFLATED)
    yield "bytes in front", b"#!/bin/sh\n" + BENIGN
    yield "bytes behind", BENIGN + b"x"
    yield "a comment", BENIGN[:-2] + b"\x04\x00abcd"
    yield "cut off", BENIGN[:-10]
    yield "another name in the header", _edited(b"model/data.pkl", b"model/evil.pkl")
    yield "another name in the directory", _edited(b"model/version", b"model/evilion", last=True)
    yield "encrypted", BENIGN.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")
    yield "a pickle that was altered", _edited(text("weight"), text("weighs"))
    yield "a gap between members", _edited(b"PK\x01\x02", b"????PK\x01\x02")
    yield "no members", b"PK\x05\x06" + bytes(18)
    yield "an end of zip64 that only some readers see", two_ends()
    yield "the same, in a field that zip64 has", two_ends(number=1)
    yield "extra fields in the directory", _with_extra(struct.pack("<HH4s", 0xCAFE, 4, b"more"), directory=True)
    yield "extra fields in a header", _with_extra(struct.pack("<HH4s", 0xCAFE, 4, b"more"), directory=False)
    yield "padding with something in it", _with_extra(struct.pack("<HH4s", 0x4246, 4, b"ZZ!Z"), directory=False)
    yield "an extra field longer than it is", _with_extra(struct.pack("<HH4s", 0x4246, 9, b"ZZZZ"), directory=False)
    yield (
        "a name cut off by a null byte",
        BENIGN.replace(b"model/version", b"model/version").replace(b"model/byteorder", b"model/byteorde\0"),
    )
    for what, place, value in (
        ("another disk", 4, b"\x01\x00"),
        ("a directory on another disk", 6, b"\x01\x00"),
        ("fewer members on this disk", 8, b"\x01\x00"),
        ("more members", 10, b"\x09\x00"),
    ):
        at = len(BENIGN) - 22 + place
        yield f"an end that tells of {what}", BENIGN[:at] + value + BENIGN[at + 2 :]


def _with_extra(extra: bytes, *, directory: bool) -> bytes:
    """`BENIGN`, but the last member of it has extra fields, in the directory or in its header."""
    stream = io.BytesIO(BENIGN)
    with zipfile.ZipFile(stream) as made:
        entry, start = made.infolist()[-1], made.start_dir
    end = len(BENIGN) - 22
    place = entry.header_offset + 30 + len(entry.filename)
    header, between = BENIGN[entry.header_offset : place], BENIGN[place:start]
    listed = BENIGN[start:end]
    if directory:
        at = len(listed) - 46 - len(entry.filename)
        listed = listed[: at + 30] + struct.pack("<H", len(extra)) + listed[at + 32 :] + extra
    else:
        header = header[:28] + struct.pack("<H", len(extra)) + header[30:] + extra
    start += 0 if directory else len(extra)
    told = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 4, 4, len(listed), start, 0)
    return BENIGN[: entry.header_offset] + header + between + listed + told


def two_ends(number: int = 0xCAFE) -> bytes:
    """An archive of tensors, in whose directory a locator of zip64 leads to a second archive inside a tensor.

    Python's `zipfile` does not follow it, for the wide end is not right in front of it; PyTorch's reader does.
    """
    hidden, listed = b"", b""
    inside = b"model/data/0"
    for member, content in {"model/data.pkl": call("os system"), "model/version": b"3\n"}.items():
        header, entry = _member(member.encode(), content, 30 + len(inside) + len(hidden))
        hidden, listed = hidden + header, listed + entry
    wide_at = 30 + len(inside) + len(hidden)
    wide = bytes(56)
    for _ in range(2):  # the second time it is known where the hidden directory lies
        members = {
            inside: (hidden + wide).ljust(4096, b"\0"),
            b"model/data.pkl": state(tensor(of=storage(elements=1024))),
        }
        members |= {b"model/byteorder": b"little", b"model/version": b"3\n"}
        extra = listed + bytes(56) + struct.pack("<4sIQI", b"PK\x06\x07", 0, wide_at, 1)
        body, directory = b"", b""
        for name_, content in members.items():
            last = name_ == b"model/version"
            field = struct.pack("<HH", number, len(extra)) + extra if last else b""
            header, entry = _member(name_, content, len(body), field)
            body, directory = body + header, directory + entry
        end = len(body) + len(directory)
        at = end - 76 - len(listed)
        wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, len(listed), at)
    told = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 4, 4, len(directory), len(body), 0)
    return body + directory + told


def _member(name_: bytes, content: bytes, offset: int, extra: bytes = b"") -> tuple[bytes, bytes]:
    """A stored member's header with its content, and its entry in the directory."""
    sizes = (zlib.crc32(content), len(content), len(content), len(name_))
    header = struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0, 0, 0, 0, *sizes, 0) + name_ + content
    places = (len(extra), 0, 0, 0, 0, offset)
    return header, struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 0, 0, 0, 0, 0, 0, *sizes, *places) + name_ + extra


def _safetensors(header: bytes, body: bytes = bytes(24)) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


ENTRY = b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
SAFETENSORS = _safetensors(ENTRY)


def polyglots() -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of files of tensors that readers of another format take for one of their own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("config.json", "{}")
    inner = stream.getvalue()
    entry = b'{"a":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
    yield "safetensors that are a zip archive", _safetensors(entry % (len(inner), len(inner)), inner)
    yield "an array that is a zip archive", _array(np.frombuffer(inner, np.uint8))
    hdf5 = b"\x89HDF\r\n\x1a\n"
    data = bytes(512 - 8 - len(entry % (600, 600))) + hdf5
    yield "safetensors that are an HDF5 file", _safetensors(entry % (600, 600), data.ljust(600, b"\0"))
    yield "an array that is an HDF5 file", _array(np.frombuffer(bytes(1024 - 128) + hdf5, np.uint8))
    yield "safetensors that are a tar archive", _safetensors_and_tar()
    yield "safetensors that are a pickle", _safetensors_and_pickle(call("os system"))
    legacy = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    facts = PROTO + b"}" + text("protocol_version") + b"M\xe9\x03s" + text("x" * 300) + b"K\x01s."
    keys = PROTO + b"]" + text("0") + b"a."
    body = struct.pack("<q", 12) + bytes(48)
    yield "the older layout with facts of its own", legacy + facts + state() + keys + body


def _array(values: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def _safetensors_and_tar() -> bytes:
    """Safetensors whose first 512 bytes are the header of an empty member of a tar archive, by its checksum."""
    header = b'{"__metadata__":{"m":"' + b" " * 512 + b'"},' + ENTRY[1:]
    data = bytearray(struct.pack("<Q", len(header)) + header)
    for place, field in {100: b"0000644 ", 108: b"0000000 ", 116: b"0000000 ", 124: b"00000000000 "}.items():
        data[place : place + len(field)] = field
    data[136:148], data[156:157] = b"00000000000 ", b"0"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o  " % sum(data[:512])
    return bytes(data) + bytes(24)


def _safetensors_and_pickle(pickle: bytes) -> bytes:
    """Safetensors whose length is a pickle's instruction that takes text, from where more text leads to `pickle`."""
    end = b'"},"w":{"dtype":"U8","shape":[1024],"data_offsets":[0,1024]}}'
    length = (40 << 8) | ord("X")
    header = b'{"__metadata__":{"j":"'.ljust(5 + 40 - 8, b"x")
    while len(header) + 128 <= length - len(end):
        header += b"U~" + b"x" * 126
    while length - len(header) > 128:
        header += b"U " + b"x" * 32
    lands = 8 + len(header) + 128
    header = (header + b"U~").ljust(length - len(end), b"x") + end
    return struct.pack("<Q", length) + header + (bytes(lands - 8 - length) + pickle).ljust(1024, b"\0")


def headers() -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of malformed safetensors, NumPy and GGUF files, and of what is none of them."""
    yield "a tensor named twice", _safetensors(ENTRY[:-1] + b"," + ENTRY[1:])
    yield "an unknown type", _safetensors(ENTRY.replace(b"F32", b"F99"))
    yield "another length", _safetensors(ENTRY.replace(b"[2,3]", b"[2,4]"))
    yield "an offset beyond the end", _safetensors(ENTRY.replace(b"[0,24]", b"[4,28]"))
    yield "a gap", _safetensors(ENTRY.replace(b"[0,24]", b"[8,32]"), bytes(32))
    yield "an overlap", _safetensors(ENTRY[:-1] + b"," + ENTRY[1:].replace(b'"a"', b'"b"'))
    yield "bytes behind the tensors", SAFETENSORS + b"x"
    yield "tensors cut off", SAFETENSORS[:-1]
    yield "no tensors", _safetensors(b"{}", b"")
    yield "a header beyond the end", struct.pack("<Q", 1 << 40) + ENTRY
    yield "a header of another kind", _safetensors(b'{"a":[1]}')
    yield "metadata that are no text", _safetensors(b'{"__metadata__":{"x":{"y":1}},' + ENTRY[1:])
    yield "a negative size", _safetensors(ENTRY.replace(b"[2,3]", b"[-2,-3]"))
    yield "a size that is no number", _safetensors(ENTRY.replace(b"[2,3]", b"[true,6]"))
    yield "NaN in the header", _safetensors(ENTRY.replace(b"[2,3]", b"[NaN]"))
    yield "a header nested deeply", _safetensors(b'{"a":' * 50_000)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([{}], dtype=object), allow_pickle=True)
    yield "an array of objects", stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    yield "an array cut off", stream.getvalue()[:-1]
    yield "bytes behind an array", stream.getvalue() + b"x"
    yield "an array with an expression for a header", stream.getvalue().replace(b"(3,)", b"f() ")
    stream = io.BytesIO()
    np.savez(stream, x=np.array([{}], dtype=object))
    yield "an archive of objects", stream.getvalue()
    yield "a NumPy header that never ends", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"
    for what, edit in {
        "a GGUF chat template": lambda it: it.replace(b"general.name", b"tokenizer.chat_template").replace(
            struct.pack("<Q", 12), struct.pack("<Q", 23), 1
        ),
        "a GGUF tensor beyond the end": lambda it: it[:-1],
        "a GGUF tensor of an unknown type": lambda it: it.replace(
            struct.pack("<QIQ", 8, 0, 0), struct.pack("<QIQ", 8, 99, 0)
        ),
        "a GGUF file of billions of tensors": lambda it: it[:8] + struct.pack("<Q", 1 << 40) + it[16:],
        "a GGUF text of billions of bytes": lambda it: it.replace(
            struct.pack("<Q", 3) + b"ab!", struct.pack("<Q", 1 << 60) + b"ab!"
        ),
        "a GGUF file of another version": lambda it: it[:4] + struct.pack("<I", 9) + it[8:],
    }.items():
        yield what, edit(GGUF)
    yield "an empty file", b""
    yield "a script", b"#!/usr/bin/env python\nprint('model')\n"
    yield "a Keras HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(100)
    yield "a tar archive", b"model/" + bytes(94) + b"0000644\x00" + bytes(411)
    yield "a gzip stream", b"\x1f\x8b\x08\x00" + bytes(20)
    yield "an ELF library", b"\x7fELF\x02\x01\x01" + bytes(60)
    yield "JSON without its name", b'{"a": 1}'
    yield "HTML", b"<html></html>"
    yield "an ONNX file", b"\x08\x07\x12\x07pytorch" + bytes(30)


def _gguf() -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    pair = struct.pack("<Q", 12) + b"general.name" + struct.pack("<I", 8) + struct.pack("<Q", 3) + b"ab!"
    described = struct.pack("<Q", 1) + b"w" + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = header + pair + described
    return head + bytes(-len(head) % 32) + bytes(32)


GGUF = _gguf()
