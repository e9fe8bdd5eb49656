"""`portcullis.pii.entities.canonical` of many values at once."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.pii.encoded import decoded
from portcullis.pii.entities import BY_COLUMN, Entity, canonical
from portcullis.pii.folding import composed, fold
from portcullis.pii.operators import VALUE
from portcullis.pii.reading import Bytes, Ints, buffers, looked_up

_CODES = np.arange(256)
_PRINTABLE = (ord(" ") <= _CODES) & (ord("~") >= _CODES)
_DIGIT = (ord("0") <= _CODES) & (ord("9") >= _CODES)
_WORD = np.array([chr(code).isalnum() and code < 0x80 for code in _CODES])
_UPPER = np.array([ord(chr(code).upper()) if code < 0x80 else code for code in _CODES], np.uint8)
_IN_IPV4 = _DIGIT | (ord(".") == _CODES)
_IN_IPV6 = np.array([chr(code) in "0123456789abcdef:" for code in range(256)])
_NANP_BODY = range(10, 17)

_IN_CAPITALS = frozenset(
    {
        *(Entity.IBAN, Entity.MAC_ADDRESS, Entity.US_PASSPORT, Entity.US_DRIVER_LICENSE, Entity.UK_NINO),
        *(Entity.FR_NIR, Entity.ES_DNI, Entity.ES_NIE, Entity.EU_VAT),
    }
)


def canonical_values(entity: str, values: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return the canonical spelling of each value.

    VALUE is as it is written, an entity of the user's own in NFC and folded. An encoded one is spelled as the one
    that it stands for. Plain ASCII of the common entities is spelled all at once, the others one by one.

    Args:
        entity: An `Entity`, VALUE, or an entity of the user's own.
        values: A large_string array without nulls.
    """
    if entity == VALUE:
        return values
    if entity not in list(Entity):
        return pa.array([fold(composed(text)).strip() for text in values.to_pylist()], pa.large_string())
    kind = Entity(entity)
    values = decoded(kind, values)
    offsets, data = buffers(values)
    plain = _whole(_PRINTABLE, offsets, data)
    if kind is Entity.IP_ADDRESS:
        plain &= _is_plain_ipv4(offsets, data) | _is_plain_ipv6(offsets, data)
    elif kind in BY_COLUMN:
        plain[:] = False
    if plain.all():
        return _spelled(kind, offsets, data)
    others = np.flatnonzero(~plain)
    spelled = [canonical(kind, text) for text in values.take(pa.array(others)).to_pylist()]
    simple = values.filter(pa.array(plain))
    parts = [pa.array(spelled, pa.large_string()), _spelled(kind, *buffers(simple))]
    order = np.argsort(np.concatenate([others, np.flatnonzero(plain)]))
    return pa.concat_arrays(parts).take(pa.array(order))


def _spelled(kind: Entity, offsets: Ints, data: Bytes) -> pa.LargeStringArray:
    """Spell printable ASCII; an address is one that is spelled so already."""
    if kind is Entity.IP_ADDRESS:
        return _strings(offsets, data)
    if kind is Entity.EMAIL:
        return pc.ascii_lower(pc.ascii_trim(_strings(offsets, data), characters=" "))
    if kind in _IN_CAPITALS:
        return _strings(*_kept(offsets, looked_up(_UPPER, data), _there(_WORD, data)))
    offsets, data = _kept(offsets, data, _there(_DIGIT, data))
    if kind is Entity.PHONE:
        offsets, data = _without_nanp_prefix(offsets, data)
    return _strings(offsets, data)


def _strings(offsets: Ints, data: Bytes) -> pa.LargeStringArray:
    offsets = np.ascontiguousarray(offsets, np.int64)
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def _kept(offsets: Ints, data: Bytes, keep: npt.NDArray[np.bool_]) -> tuple[Ints, Bytes]:
    """Leave out the bytes of the values that are not to be kept."""
    left = np.flatnonzero(keep)
    return np.searchsorted(left, offsets), data[left]


def _there(table: npt.NDArray[np.bool_], data: Bytes) -> npt.NDArray[np.bool_]:
    return looked_up(table, data).view(np.bool_)


def _whole(allowed: npt.NDArray[np.bool_], offsets: Ints, data: Bytes) -> npt.NDArray[np.bool_]:
    """Return which values have nothing but bytes that a table allows."""
    result = np.ones(len(offsets) - 1, np.bool_)
    result[_value_of(offsets, np.flatnonzero(looked_up(~allowed, data)))] = False
    return result


def _is_plain_ipv4(offsets: Ints, data: Bytes) -> npt.NDArray[np.bool_]:
    """Return which values are dotted quads, if addresses, without zeros in front."""
    zero = _group_starts(offsets, data, ord(".")) & (data == ord("0"))
    zero[offsets[1:][np.diff(offsets) > 0] - 1] = False  # nothing stands behind it
    zeros = np.flatnonzero(zero)
    padded = zeros[_DIGIT[data[zeros + 1]]]
    plain = _whole(_IN_IPV4, offsets, data)
    plain[_value_of(offsets, padded)] = False
    return plain


def _is_plain_ipv6(offsets: Ints, data: Bytes) -> npt.NDArray[np.bool_]:
    """Return which values are eight groups in small letters, if addresses, none of them zero or with zeros in front."""
    begins = _group_starts(offsets, data, ord(":"))
    plain = _whole(_IN_IPV6, offsets, data)
    plain &= np.diff(np.searchsorted(np.flatnonzero(begins), offsets)) == 8
    odd = np.flatnonzero(begins & ((data == ord("0")) | (data == ord(":"))))
    plain[_value_of(offsets, odd)] = False
    some = np.flatnonzero(np.diff(offsets))
    plain[some[data[offsets[some + 1] - 1] == ord(":")]] = False
    return plain


def _group_starts(offsets: Ints, data: Bytes, mark: int) -> npt.NDArray[np.bool_]:
    """Return which bytes are the first of a value, or stand behind a mark in it."""
    begins = np.append(False, data == mark)
    begins[offsets] = True
    return begins[:-1]


def _value_of(offsets: Ints, places: Ints) -> Ints:
    return np.searchsorted(offsets, places, "right") - 1


def _without_nanp_prefix(offsets: Ints, data: Bytes) -> tuple[Ints, Bytes]:
    """Take the 1, or 001, off what goes on as a number of the North American Numbering Plan."""
    starts, lengths = offsets[:-1], np.diff(offsets)
    keep = np.ones(len(data), np.bool_)
    for prefix in (b"1", b"001"):
        body = lengths - len(prefix)
        which = np.flatnonzero((body >= _NANP_BODY.start) & (body < _NANP_BODY.stop))
        at = starts[which]
        fits = np.all([data[at + place] == code for place, code in enumerate(prefix)], axis=0)
        for place in (0, 3):  # area code and exchange begin with 2 to 9
            fits &= data[at + len(prefix) + place] >= ord("2")
        for place in range(len(prefix)):
            keep[at[fits] + place] = False
    return _kept(offsets, data, keep)
