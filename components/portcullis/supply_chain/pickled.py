"""Read a pickle without running it, and refuse it unless all that it can do is to describe tensors.

A pickle is a program for a small stack machine that may call anything it can import. Here the program is followed step
by step over stand-ins for its values: nothing is imported, nothing is called, no tensor is read. What is allowed is a
list, of instructions, of names, and of what each name may be applied to; it is what `torch.save` writes for state
dictionaries and training checkpoints. Everything else is refused, whether anybody knows how to abuse it or not.

Only the instructions of that list are parsed, as Python's own `pickle` parses them; tests compare with it, and with
`pickletools`.
"""

import math
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from portcullis.errors import ModelError

PROTOCOL = 2
MAX_INSTRUCTIONS = 4_000_000
MAX_TEXT = 1 << 16
MAX_INT_BITS = 256

# Bytes of one element of a storage, by the name of its class in `torch`.
_STORAGES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}
# Bytes of one element, by dtype; tensors of newer dtypes lie in untyped storages.
_DTYPES = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"), 1),
    "complex128": 16,
}
_CALLS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
}
_UNTYPED = ("torch.storage", "UntypedStorage")


@dataclass(frozen=True)
class _Name:
    module: str
    name: str


@dataclass(frozen=True)
class _Thing:
    """A stand-in for a value that is none of the others: `dict`, `tensor`, `size`, `dtype …`."""

    kind: str


@dataclass(eq=False)
class _List:
    items: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class _OrderedDict:
    """A stand-in that remembers whether it is still empty, as a tensor's hooks must be and stay."""

    empty: bool = True
    is_hooks: bool = False


@dataclass(frozen=True)
class Storage:
    """Where a tensor's elements lie.

    Attributes:
        key: Names it in the file.
        elements: How many elements it has; of an untyped one, bytes.
        element_bytes: Bytes of one.
    """

    key: str
    elements: int
    element_bytes: int

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return self.elements * self.element_bytes


class _Mark:
    pass


_MARK = _Mark()


@dataclass(slots=True)
class _Machine:
    stack: list[Any] = field(default_factory=list)
    memo: list[Any] = field(default_factory=list)
    storages: dict[str, Storage] = field(default_factory=dict)
    tensors: int = 0
    elements: int = 0


@dataclass(frozen=True)
class PickledTensors:
    """What a pickle describes.

    Attributes:
        value: What it leaves: a constant, a tuple (also for a list), or None for anything else.
        kind: Its kind: `dict`, `list`, `tensor`, `constant`, …
        storages: Key to storage.
        tensors: Number of tensors, a shared one counted each time.
        elements: Of all of them.
        end: The byte after the pickle's last.
    """

    value: Any
    kind: str
    storages: Mapping[str, Storage]
    tensors: int
    elements: int
    end: int


def read_pickle(data: bytes, start: int = 0) -> PickledTensors:
    """Follow a pickle up to its end.

    Args:
        data: The bytes.
        start: Where among them it begins.

    Raises:
        ModelError: The pickle does anything but describe tensors and plain data, is malformed, or is too long.
    """
    machine = _Machine()
    count, position, following = 0, start, start
    try:
        while (code := data[following]) != _STOP:
            position = following
            count += 1
            if count > MAX_INSTRUCTIONS:
                _too_long()
            perform, read = _INSTRUCTIONS.get(code) or _refused(code)
            if read is None:
                argument, following = None, position + 1
            else:
                argument, following = read(data, position + 1)
            perform(machine, argument)
    except ModelError as error:
        raise ModelError(f"{error}, at byte {position - start} of the pickle") from error
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeError, struct.error) as error:
        raise ModelError("the pickle is malformed") from error
    if len(machine.stack) != 1:
        raise ModelError("the pickle is malformed: it does not leave one value")
    value = machine.stack[0]
    return PickledTensors(
        value=tuple(value.items) if isinstance(value, _List) else None if _is_stand_in(value) else value,
        kind=_kind(value),
        storages=machine.storages,
        tensors=machine.tensors,
        elements=machine.elements,
        end=following + 1,
    )


def may_import(data: bytes, size: int) -> bool:
    """Tell whether Python's machine, if it took a file for a pickle, may get as far as to an import.

    One that stops sooner can do no harm. Stack and types are not followed, so it is told rather too often.

    Args:
        data: The file's first bytes, or all of them.
        size: How many it has.
    """
    at = 0
    while at < len(data):
        known, at = _OPCODES.get(data[at]), at + 1
        if known is None or known.name in ("STOP", "PERSID"):  # a persistent name is never text
            return False
        if known.name == "STACK_GLOBAL" or known.name.startswith("EXT"):
            return True
        if known.name in ("GLOBAL", "INST"):
            names = _DOTTED.match(data, at)
            end = names.end() if names else at
            return data[end : end + 1] == b"\n" or end == len(data) < size
        length = known.arg.n if known.arg else 0
        if length == pickletools.UP_TO_NEWLINE:
            end = data.find(b"\n", at)
            end = len(data) if end < 0 else end
            if known.name in _NUMBERS and not _NUMERIC.fullmatch(data, at, end):
                return False
            length = end + 1 - at
        elif length < 0:
            of_length = _LENGTHS[length]
            length = of_length + int.from_bytes(data[at : at + of_length], "little")
        at += length
    return at < size


def _too_long() -> NoReturn:
    raise ModelError(f"the pickle has more than {MAX_INSTRUCTIONS} instructions")


def _is_stand_in(value: Any) -> bool:
    return isinstance(value, _Thing | _OrderedDict)


def _kind(value: Any) -> str:
    if isinstance(value, _List):
        return "list"
    if isinstance(value, _Thing):
        return value.kind
    if isinstance(value, _OrderedDict):
        return "dict"
    if isinstance(value, _Name | Storage | _Mark):
        raise ModelError("the pickle is malformed: it leaves no data")
    return "tuple" if isinstance(value, tuple) else "constant"


def _proto(_: _Machine, argument: Any) -> None:
    if argument != PROTOCOL:
        raise ModelError(f"a pickle of protocol {argument} is not what torch.save writes")


def _push(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


def _push_new(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _push_small(machine: _Machine, argument: int) -> None:
    machine.stack.append(argument)


def _push_literal(machine: _Machine, argument: Any) -> None:
    machine.stack.append(_literal(argument))


def _put(machine: _Machine, argument: Any) -> None:
    # In the order in which a pickler numbers them; Python's own machine makes room for as many as the number says.
    if argument != len(machine.memo):
        raise ModelError("the pickle numbers its values out of order")
    machine.memo.append(_top(machine.stack))


def _get(machine: _Machine, argument: Any) -> None:
    if argument >= len(machine.memo):
        raise ModelError("the pickle uses a value that it has not made")
    machine.stack.append(machine.memo[argument])


def _tuple_of(length: int) -> Callable[[_Machine, Any], None]:
    def push(machine: _Machine, _: Any) -> None:
        machine.stack.append(tuple(_pop_last(machine.stack, length)))

    return push


def _tuple(machine: _Machine, _: Any) -> None:
    machine.stack.append(tuple(_pop_to_mark(machine.stack)))


def _append(machine: _Machine, _: Any) -> None:
    items = [_pop(machine.stack)]
    _require_list(_top(machine.stack), items)


def _appends(machine: _Machine, _: Any) -> None:
    items = _pop_to_mark(machine.stack)
    _require_list(_top(machine.stack), items)


def _set_item(machine: _Machine, _: Any) -> None:
    items = _pop_last(machine.stack, 2)
    _require_dict(_top(machine.stack), items)


def _set_items(machine: _Machine, _: Any) -> None:
    items = _pop_to_mark(machine.stack)
    _require_dict(_top(machine.stack), items)


def _global(machine: _Machine, argument: Any) -> None:
    machine.stack.append(_named(*argument))


def _persistent(machine: _Machine, _: Any) -> None:
    machine.stack.append(_storage(machine, _pop(machine.stack)))


def _reduce(machine: _Machine, _: Any) -> None:
    function, arguments = _pop_last(machine.stack, 2)
    machine.stack.append(_call(machine, function, arguments))


def _build(machine: _Machine, _: Any) -> None:
    state, target = _pop(machine.stack), _top(machine.stack)
    # The one state that torch.save attaches: `_metadata`, to a state dictionary.
    if not isinstance(target, _OrderedDict) or target.is_hooks or state != _Thing("dict"):
        raise ModelError("the pickle sets the state of an object")


# How arguments are read: from where in the bytes, to the argument and what follows it.
_Perform = Callable[[_Machine, Any], None]
_Read = Callable[[bytes, int], tuple[Any, int]]


def _byte(data: bytes, at: int) -> tuple[int, int]:
    return data[at], at + 1


def _number(layout: str) -> _Read:
    packed = struct.Struct(layout)
    return lambda data, at: (packed.unpack_from(data, at)[0], at + packed.size)


def _counted(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    if at + length > len(data):
        raise ValueError("the pickle ends within an argument")
    return data[at : at + length], at + length


def _text(data: bytes, at: int) -> tuple[str, int]:
    text, following = _counted(data, at + 4, int.from_bytes(_counted(data, at, 4)[0], "little"))
    return str(text, "utf-8", "surrogatepass"), following


def _long(data: bytes, at: int) -> tuple[int, int]:
    number, following = _counted(data, at + 1, data[at])
    return int.from_bytes(number, "little", signed=True), following


def _two_lines(data: bytes, at: int) -> tuple[tuple[str, str], int]:
    middle = data.index(b"\n", at)
    end = data.index(b"\n", middle + 1)
    return (data[at:middle].decode("ascii"), data[middle + 1 : end].decode("ascii")), end + 1


_STOP = ord(".")
# Every instruction that describes tensors: what it does to the stand-ins, and how its argument is read.
_INSTRUCTIONS: Mapping[int, tuple[_Perform, _Read | None]] = {
    ord(code): (perform, read)
    for code, perform, read in (
        ("\x80", _proto, _byte),
        ("N", _push(None), None),
        ("\x88", _push(True), None),  # noqa: FBT003
        ("\x89", _push(False), None),  # noqa: FBT003
        ("J", _push_small, _number("<i")),
        ("K", _push_small, _byte),
        ("M", _push_small, _number("<H")),
        ("\x8a", _push_literal, _long),
        ("G", _push_literal, _number(">d")),
        ("X", _push_literal, _text),
        ("(", _push(_MARK), None),
        ("q", _put, _byte),
        ("r", _put, _number("<I")),
        ("h", _get, _byte),
        ("j", _get, _number("<I")),
        (")", _push(()), None),
        ("\x85", _tuple_of(1), None),
        ("\x86", _tuple_of(2), None),
        ("\x87", _tuple_of(3), None),
        ("t", _tuple, None),
        ("]", _push_new(_List), None),
        ("}", _push(_Thing("dict")), None),
        ("a", _append, None),
        ("e", _appends, None),
        ("s", _set_item, None),
        ("u", _set_items, None),
        ("c", _global, _two_lines),
        ("Q", _persistent, None),
        ("R", _reduce, None),
        ("b", _build, None),
    )
}


_OPCODES = {ord(known.code): known for known in pickletools.opcodes}
# How many bytes tell the length of an argument.
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
# What no number has in it, in any spelling, is none; a module and a name, each on a line.
_NUMBERS, _NUMERIC = ("INT", "LONG", "FLOAT", "GET", "PUT"), re.compile(rb"[\s\w.+-]*")
_DOTTED = re.compile(rb"[\w.<>]*\n?[\w.<>]*")


def _refused(code: int) -> NoReturn:
    if code not in _OPCODES:
        raise ValueError("no instruction of a pickle")
    raise ModelError(f"the pickle's instruction {_OPCODES[code].name} is not one that describes tensors")


def _literal(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ModelError("the pickle holds an overlong text")
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise ModelError("the pickle holds an overlong number")
    return value


def _top(stack: list[Any]) -> Any:
    if not stack or stack[-1] is _MARK:
        raise ModelError("the pickle takes a value from an empty stack")
    return stack[-1]


def _pop(stack: list[Any]) -> Any:
    value = _top(stack)
    stack.pop()
    return value


def _pop_last(stack: list[Any], count: int) -> list[Any]:
    items = stack[-count:]
    if len(items) < count or any(item is _MARK for item in items):
        raise ModelError("the pickle takes a value from an empty stack")
    del stack[-count:]
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    for index in range(len(stack) - 1, -1, -1):
        if stack[index] is _MARK:
            items = stack[index + 1 :]
            del stack[index:]
            return items
    raise ModelError("the pickle takes a value from an empty stack")


def _is_data(value: Any) -> bool:
    return not isinstance(value, _Name | Storage)


def _require_list(target: Any, items: list[Any]) -> None:
    if not isinstance(target, _List) or not all(map(_is_data, items)):
        raise ModelError("the pickle appends to something that is no list of data")
    target.items += items


def _require_dict(target: Any, items: list[Any]) -> None:
    # Keys that are tuples could be made to hash for ever; torch.save writes text and numbers.
    keys, values = items[::2], items[1::2]
    if (
        not (target == _Thing("dict") or isinstance(target, _OrderedDict))
        or len(keys) != len(values)
        or not all(isinstance(key, str | int) for key in keys)
        or not all(map(_is_data, values))
    ):
        raise ModelError("the pickle fills something that is no dictionary of data")
    if isinstance(target, _OrderedDict) and items:
        if target.is_hooks:
            raise ModelError("the pickle gives a tensor hooks")
        target.empty = False


def _named(module: str, name: str = "") -> Any:
    if module == "torch" and name in _DTYPES:
        return _Thing(f"dtype {name}")
    if (module, name) in _CALLS or (module == "torch" and name in _STORAGES) or (module, name) == _UNTYPED:
        return _Name(module, name)
    shown = "".join(it if it.isprintable() else "?" for it in f"{module}.{name}")[:120]
    raise ModelError(f"the pickle imports {shown}, which no tensor needs")


def _storage(machine: _Machine, identity: Any) -> Storage:
    # ("storage", class, key, device, elements), and in the older format a view of another storage, which is None.
    match identity:
        case ("storage", _Name() as kind, str() as key, str(), int() as elements) | (
            "storage",
            _Name() as kind,
            str() as key,
            str(),
            int() as elements,
            None,
        ):
            pass
        case _:
            raise ModelError("the pickle refers to something that is no storage of a tensor")
    untyped = (kind.module, kind.name) == _UNTYPED
    if not untyped and not (kind.module == "torch" and kind.name in _STORAGES):
        raise ModelError("the pickle refers to something that is no storage of a tensor")
    if isinstance(elements, bool) or elements < 0:
        raise ModelError("the pickle refers to a storage of no size")
    storage = Storage(key, elements, 1 if untyped else _STORAGES[kind.name])
    if machine.storages.setdefault(key, storage) != storage:
        raise ModelError("the pickle refers to one storage as two")
    return storage


def _call(machine: _Machine, function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise ModelError("the pickle calls something that is no function by name")
    match function.name, arguments:
        case "OrderedDict", ():
            return _OrderedDict()
        case "Size", (tuple() as sizes,) if all(map(_is_size, sizes)):
            return _Thing("size")
        case "_rebuild_parameter", (_Thing("tensor"), bool(), _OrderedDict(empty=True) as hooks):
            hooks.is_hooks = True
            return _Thing("tensor")
        case "_rebuild_tensor_v2", (Storage() as storage, int() as start, tuple() as sizes, tuple() as strides, *rest):
            element_bytes = storage.element_bytes
        case "_rebuild_tensor_v3", (
            Storage() as storage,
            int() as start,
            tuple() as sizes,
            tuple() as strides,
            *rest,
            _Thing(kind=str() as dtype),
        ) if dtype.startswith("dtype "):
            element_bytes = _DTYPES[dtype.removeprefix("dtype ")]
        case _:
            raise ModelError(f"the pickle calls {function.name} with what it does not take")
    match rest:
        case [bool(), _OrderedDict(empty=True) as hooks]:
            hooks.is_hooks = True
        case _:
            raise ModelError("the pickle makes a tensor with hooks or metadata")
    elements = _require_within(storage, element_bytes, start, sizes, strides)
    machine.tensors += 1
    machine.elements += elements
    return _Thing("tensor")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require_within(
    storage: Storage, element_bytes: int, start: int, sizes: tuple[Any, ...], strides: tuple[Any, ...]
) -> int:
    """Refuse unless every element of the tensor lies in its storage; return how many there are."""
    if not (_is_size(start) and len(sizes) == len(strides) and all(map(_is_size, (*sizes, *strides)))):
        raise ModelError("the pickle makes a tensor of no sound shape")
    elements: int = math.prod(sizes)
    last = start + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) if elements else 0
    # A stride of 0 makes of one element as many as one likes.
    if elements and max(last + 1, elements) * element_bytes > storage.size:
        raise ModelError("the pickle makes a tensor that reaches beyond its storage")
    return elements
