import json
import math

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from portcullis.digest import parse_json
from portcullis.errors import DataError
from portcullis.serving.protocol import InferRequest, ServedModel, infer_response, parse_infer_request

SHAPE = (2, 2)
MODEL = ServedModel("m", "1", "x", SHAPE, -8.0, 8.0, ("a", "b", "c"), lambda rows: rows[:, :3])
LIMITS = {"max_bytes": 1 << 14, "max_rows": 8}

rows_of_any_size = st.integers(1, 8).flatmap(
    lambda n: arrays.arrays(np.float32, (n, 4), elements=st.floats(-8, 8, width=32))
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def body_of(rows, nested):
    shape = [len(rows), *SHAPE] if nested else [len(rows), 4]
    data = rows.reshape(shape).tolist() if nested else rows.ravel().tolist()
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": data}]}


def parse_or_refuse(body):
    """The law for any bytes: a DataError, or rows that the model may see."""
    try:
        request = parse_infer_request(body, MODEL, **LIMITS)
    except DataError:
        return None
    assert request.rows.dtype == np.float32
    assert request.rows.shape[1:] == (4,)
    assert 1 <= len(request.rows) <= 8
    assert (np.abs(request.rows) <= 8).all()
    return request


@given(rows_of_any_size, st.booleans())
def test_rows_survive_the_journey_exactly(rows, nested):
    request = parse_infer_request(json.dumps(body_of(rows, nested)).encode(), MODEL, **LIMITS)
    np.testing.assert_array_equal(request.rows, rows)


@given(st.binary(max_size=200))
def test_any_bytes(body):
    assert parse_or_refuse(body) is None


@given(json_values)
def test_any_json(value):
    assert parse_or_refuse(json.dumps(value).encode()) is None


@given(st.data())
def test_any_value_in_any_place(data):
    document = body_of(np.ones((2, 4), dtype=np.float32), nested=data.draw(st.booleans()))
    document.update({"id": "7", "outputs": [{"name": "label"}]})
    holder, key = document, data.draw(st.sampled_from(sorted(document)))
    while isinstance(holder[key], dict | list) and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = data.draw(json_values)
    parse_or_refuse(json.dumps(document).encode())


@given(st.data())
def test_any_byte_altered(data):
    body = bytearray(json.dumps(body_of(np.ones((1, 4), dtype=np.float32), nested=True)).encode())
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    parse_or_refuse(bytes(body))


@given(
    st.integers(1, 4).flatmap(
        lambda n: arrays.arrays(
            st.sampled_from([np.float16, np.float32, np.float64]).map(np.dtype),
            (n, 3),
            elements={"allow_nan": False, "allow_infinity": False},
        )
    )
)
def test_answers_are_strict_json_and_distributions(logits):
    request = InferRequest(np.zeros((len(logits), 4), dtype=np.float32))
    answer = orjson.dumps(infer_response(MODEL, request, logits), option=orjson.OPT_SERIALIZE_NUMPY)
    label, probabilities = parse_json(answer)["outputs"]
    assert len(label["data"]) == len(logits)
    for index, name in enumerate(label["data"]):
        of_row = probabilities["data"][3 * index : 3 * index + 3]
        assert math.isclose(math.fsum(of_row), 1, abs_tol=1e-6)
        assert of_row[MODEL.labels.index(name)] == max(of_row)
