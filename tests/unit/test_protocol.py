import json

import numpy as np
import orjson
import pytest

from portcullis.errors import DataError, ModelError
from portcullis.serving.protocol import (
    OUTPUTS,
    InferRequest,
    ServedModel,
    infer_response,
    model_metadata,
    parse_infer_request,
    server_metadata,
)


def served(**changes):
    fields = {
        "name": "digits",
        "version": "1",
        "input_name": "image",
        "shape": (2, 3),
        "low": 0.0,
        "high": 16.0,
        "labels": ("zero", "one", "two"),
        "predict": lambda rows: rows[:, :3],
    }
    return ServedModel(**{**fields, **changes})


def tensor(**changes):
    return {"name": "image", "datatype": "FP32", "shape": [1, 6], "data": [0, 1, 2.5, 3, 4, 16], **changes}


def parse(document, model=None, max_bytes=4096, max_rows=4):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_infer_request(body, model or served(), max_bytes=max_bytes, max_rows=max_rows)


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        pytest.param([2, 6], list(range(12)), id="flat"),
        pytest.param([2, 2, 3], list(range(12)), id="flat-with-the-samples-shape"),
        pytest.param([2, 6], [list(range(6)), list(range(6, 12))], id="nested-rows"),
        pytest.param([2, 2, 3], [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11.0]]], id="nested-samples"),
    ],
)
def test_reads_every_spelling_of_the_same_rows(shape, data):
    request = parse({"inputs": [tensor(shape=shape, data=data)]})
    assert request.rows.dtype == np.float32
    np.testing.assert_array_equal(request.rows, np.arange(12, dtype=np.float32).reshape(2, 6))
    assert request.outputs == OUTPUTS
    assert request.id is None


def test_reads_id_and_outputs():
    request = parse({"id": "α-7", "outputs": [{"name": "probabilities"}], "inputs": [tensor()]})
    assert (request.id, request.outputs) == ("α-7", ("probabilities",))


def test_judges_a_value_as_the_model_will_see_it():
    model = served(shape=(1,), low=-0.1, high=0.1)
    bound = float(np.nextafter(0.1, 1))  # rounds to the same float32 as 0.1
    rows = parse({"inputs": [tensor(shape=[2, 1], data=[bound, -bound])]}, model).rows
    np.testing.assert_array_equal(rows, np.array([[0.1], [-0.1]], dtype=np.float32))
    above = float(np.nextafter(np.float32(0.1), np.float32(1)))
    with pytest.raises(DataError, match="within"):
        parse({"inputs": [tensor(shape=[1, 1], data=[above])]}, model)


def row(value):
    return json.dumps({"inputs": [tensor(data="DATA")]}).replace('"DATA"', f"[0,1,2,3,4,{value}]").encode()


BAD_REQUESTS = {
    "empty": b"",
    "not-json": b'{"inputs": [',
    "not-utf8": b'{"inputs": "\xff"}',
    "bom": b"\xef\xbb\xbf" + json.dumps({"inputs": [tensor()]}).encode(),
    "utf16": json.dumps({"inputs": [tensor()]}).encode("utf-16"),
    "trailing-bytes": json.dumps({"inputs": [tensor()]}).encode() + b"{}",
    "too-long": json.dumps({"inputs": [tensor()]}).encode().ljust(5000),
    "deep-lists": b"[" * 2000,
    "deep-objects": b'{"inputs":' * 400 + b"0" + b"}" * 400,
    "deep-data": b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,6],"data":%s%s}]}'
    % (b"[" * 300, b"]" * 300),
    "repeated-key": b'{"inputs": [], ' + json.dumps({"inputs": [tensor()]}).encode()[1:],
    "repeated-key-in-tensor": json.dumps({"inputs": [tensor()]}).replace("{", '{"data":[9],', 2).encode(),
    "nan": row("NaN"),
    "infinity": row("Infinity"),
    "minus-infinity": row("-Infinity"),
    "1e999": row("1e999"),
    "beyond-float32": row("1e39"),
    "huge-integer": row("9" * 400),
    "huger-integer": row("1" + "0" * 3900),
    "hexadecimal": row("0x1"),
    "leading-zero": row("01"),
    "below-low": row("-0.5"),
    "above-high": row("16.001"),
    "string-element": row('"1"'),
    "boolean-element": row("true"),
    "null-element": row("null"),
    "object-element": row("{}"),
    "list-element": row("[1]"),
    "list": [tensor()],
    "null": b"null",
    "number": b"1",
    "string": b'"inputs"',
    "no-inputs": {"id": "1"},
    "unknown-field": {"inputs": [tensor()], "model_name": "digits"},
    "parameters": {"inputs": [tensor()], "parameters": {}},
    "inputs-empty": {"inputs": []},
    "inputs-object": {"inputs": tensor()},
    "inputs-null": {"inputs": None},
    "two-tensors": {"inputs": [tensor(), tensor()]},
    "tensor-list": {"inputs": [[tensor()]]},
    "tensor-null": {"inputs": [None]},
    "tensor-without-data": {"inputs": [{key: value for key, value in tensor().items() if key != "data"}]},
    "tensor-without-shape": {"inputs": [{key: value for key, value in tensor().items() if key != "shape"}]},
    "tensor-with-parameters": {"inputs": [tensor(parameters={"binary_data_size": 24})]},
    "wrong-name": {"inputs": [tensor(name="input")]},
    "name-list": {"inputs": [tensor(name=["image"])]},
    "fp64": {"inputs": [tensor(datatype="FP64")]},
    "bytes": {"inputs": [tensor(datatype="BYTES")]},
    "datatype-null": {"inputs": [tensor(datatype=None)]},
    "shape-empty": {"inputs": [tensor(shape=[])]},
    "shape-without-batch": {"inputs": [tensor(shape=[6])]},
    "shape-other": {"inputs": [tensor(shape=[1, 3, 2])]},
    "shape-null": {"inputs": [tensor(shape=None)]},
    "shape-string": {"inputs": [tensor(shape="16")]},
    "shape-floats": {"inputs": [tensor(shape=[1.0, 6.0])]},
    "shape-boolean": {"inputs": [tensor(shape=[True, 6])]},
    "shape-nested": {"inputs": [tensor(shape=[1, [6]])]},
    "no-rows": {"inputs": [tensor(shape=[0, 6], data=[])]},
    "negative-rows": {"inputs": [tensor(shape=[-1, 6])]},
    "too-many-rows": {"inputs": [tensor(shape=[5, 6], data=[0] * 30)]},
    "a-huge-batch-announced": {"inputs": [tensor(shape=[10**30, 6])]},
    "data-null": {"inputs": [tensor(data=None)]},
    "data-empty": {"inputs": [tensor(data=[])]},
    "data-string": {"inputs": [tensor(data="012345")]},
    "data-object": {"inputs": [tensor(data={"0": 1})]},
    "data-short": {"inputs": [tensor(data=[0] * 5)]},
    "data-long": {"inputs": [tensor(data=[0] * 7)]},
    "data-ragged": {"inputs": [tensor(shape=[2, 6], data=[[0] * 5, [0] * 7])]},
    "data-half-nested": {"inputs": [tensor(shape=[2, 6], data=[[0] * 6, 0])]},
    "data-nested-otherwise": {"inputs": [tensor(shape=[1, 2, 3], data=[[0] * 6])]},
    "data-nested-too-deep": {"inputs": [tensor(data=[[[0]] * 6])]},
    "data-transposed": {"inputs": [tensor(shape=[1, 2, 3], data=[[[0, 0]] * 3])]},
    "id-null": {"inputs": [tensor()], "id": None},
    "id-number": {"inputs": [tensor()], "id": 7},
    "id-long": {"inputs": [tensor()], "id": "x" * 129},
    "id-newline": {"inputs": [tensor()], "id": "a\nb"},
    "id-lone-surrogate": {"inputs": [tensor()], "id": "\ud800"},
    "outputs-null": {"inputs": [tensor()], "outputs": None},
    "outputs-empty": {"inputs": [tensor()], "outputs": []},
    "outputs-strings": {"inputs": [tensor()], "outputs": ["label"]},
    "outputs-unknown": {"inputs": [tensor()], "outputs": [{"name": "logits"}]},
    "outputs-twice": {"inputs": [tensor()], "outputs": [{"name": "label"}, {"name": "label"}]},
    "outputs-with-parameters": {"inputs": [tensor()], "outputs": [{"name": "label", "parameters": {}}]},
    "outputs-name-list": {"inputs": [tensor()], "outputs": [{"name": ["label"]}]},
}


@pytest.mark.parametrize("document", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_refuses(document):
    with pytest.raises(DataError) as refusal:
        parse(document)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


def test_limits_are_inclusive():
    body = json.dumps({"inputs": [tensor(shape=[4, 6], data=[0] * 24)]}).encode()
    assert parse(body, max_bytes=len(body), max_rows=4).rows.shape == (4, 6)
    with pytest.raises(DataError, match="bytes"):
        parse(body, max_bytes=len(body) - 1)


def test_answers_with_labels_and_probabilities():
    logits = np.log(np.array([[1, 1, 2], [8, 1, 1]], dtype=np.float32))
    request = InferRequest(np.zeros((2, 6), dtype=np.float32), id="7")
    answer = orjson.loads(orjson.dumps(infer_response(served(), request, logits), option=orjson.OPT_SERIALIZE_NUMPY))
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1", "7")
    label, probabilities = answer["outputs"]
    assert label == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["two", "zero"]}
    assert (probabilities["datatype"], probabilities["shape"]) == ("FP32", [2, 3])
    assert probabilities["data"] == pytest.approx([0.25, 0.25, 0.5, 0.8, 0.1, 0.1])


def test_answers_only_what_was_asked_for():
    request = InferRequest(np.zeros((1, 6), dtype=np.float32), outputs=("label",))
    answer = infer_response(served(), request, np.zeros((1, 3), dtype=np.float32))
    assert [output["name"] for output in answer["outputs"]] == ["label"]
    assert "id" not in answer


def test_softmax_survives_the_largest_logits():
    logits = np.array([[1.7e308, -1.7e308, 0.0], [-1e4, 0.0, 1e4]])
    request = InferRequest(np.zeros((2, 6), dtype=np.float32))
    data = infer_response(served(), request, logits)["outputs"][1]["data"]
    np.testing.assert_array_equal(data, [1, 0, 0, 0, 0, 1])


def test_metadata():
    assert model_metadata(served())["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 2, 3]}]
    assert model_metadata(served())["outputs"][1]["shape"] == [-1, 3]
    assert model_metadata(served())["versions"] == ["1"]
    assert server_metadata()["name"] == "portcullis"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"name": ""}, id="no-name"),
        pytest.param({"name": "a/b"}, id="slash"),
        pytest.param({"name": ".."}, id="dots"),
        pytest.param({"name": "x\n"}, id="newline"),
        pytest.param({"version": "1/infer"}, id="version"),
        pytest.param({"input_name": ""}, id="no-input-name"),
        pytest.param({"input_name": "\ud800"}, id="unprintable-input-name"),
        pytest.param({"shape": ()}, id="scalar"),
        pytest.param({"shape": (2, 0)}, id="empty-axis"),
        pytest.param({"shape": (-1, 3)}, id="negative-axis"),
        pytest.param({"shape": (2.0,)}, id="float-axis"),
        pytest.param({"low": 16.0}, id="no-range"),
        pytest.param({"low": 17.0}, id="inverted-range"),
        pytest.param({"high": float("nan")}, id="nan-bound"),
        pytest.param({"high": float("inf")}, id="infinite-bound"),
        pytest.param({"low": -1e39}, id="bound-beyond-float32"),
        pytest.param({"labels": ("one",)}, id="one-label"),
        pytest.param({"labels": ("a", "a")}, id="repeated-label"),
        pytest.param({"labels": ("a", "")}, id="empty-label"),
        pytest.param({"labels": ("a", "\ud800")}, id="unprintable-label"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(changes):
    with pytest.raises(ModelError):
        served(**changes)


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(np.array([[0, np.nan, 0]]), id="nan"),
        pytest.param(np.array([[0, np.inf, 0]]), id="infinity"),
        pytest.param(np.array([[0.0, 0.0]]), id="too-few-classes"),
        pytest.param(np.zeros((2, 3)), id="too-many-rows"),
        pytest.param(np.zeros(3), id="flat"),
        pytest.param(np.zeros((1, 3), dtype=np.int64), id="integers"),
        pytest.param(np.zeros((1, 3), dtype=object), id="objects"),
        pytest.param([[0.0, 0.0, 0.0]], id="list"),
        pytest.param(None, id="none"),
    ],
)
def test_refuses_what_are_not_logits(logits):
    with pytest.raises(ModelError, match="logits"):
        served(predict=lambda rows: logits).logits(np.zeros((1, 6), dtype=np.float32))
