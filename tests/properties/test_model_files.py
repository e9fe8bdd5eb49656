"""Laws of models at rest: descriptions and weights round-trip, and no altered byte goes unnoticed."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from portcullis.errors import ModelError
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, ModelSpec, build_module, load_model_files, model_files

SPEC = ModelSpec("digits-cnn", {"width": 1, "hidden": 2}, (1, 2, 2), 0, 16, ("no", "yes"))
FILES = model_files(build_module(SPEC), SPEC)

numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-(2.0**53) + 1, 2.0**53 - 1)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,10}", fullmatch=True).filter(lambda name: name not in ("class", "def"))
printable = st.text(min_size=1, max_size=10).filter(str.isprintable)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    low, high = sorted(
        draw(st.lists(numbers, min_size=2, max_size=2, unique_by=lambda value: float(np.float32(value))))
    )
    return ModelSpec(
        architecture=draw(st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)),
        options=draw(st.dictionaries(st.sampled_from(["width", "hidden", "p"]), st.booleans() | numbers | printable)),
        shape=tuple(draw(st.lists(st.integers(1, 64), min_size=1, max_size=4))),
        low=low,
        high=high,
        labels=tuple(draw(st.lists(printable, min_size=2, max_size=5, unique=True))),
    )


@given(specs())
def test_a_description_round_trips(spec: ModelSpec) -> None:
    again = ModelSpec.from_json(spec.to_json())
    assert again == spec
    assert again.to_json() == spec.to_json()
    assert {name: type(value) for name, value in again.options.items()} == {
        name: type(value) for name, value in spec.options.items()
    }


@given(st.integers(0, len(FILES[SPEC_FILE]) - 1), st.integers(1, 255))
def test_no_altered_byte_of_a_description_goes_unnoticed(position: int, flip: int) -> None:
    data = bytearray(FILES[SPEC_FILE])
    data[position] ^= flip
    try:
        altered = ModelSpec.from_json(bytes(data))
    except ModelError:
        return
    assert altered != SPEC


@given(st.integers(0, len(FILES[WEIGHTS_FILE]) - 1), st.integers(1, 255))
def test_an_altered_byte_of_the_weights_is_refused_or_loads_finite_weights(position: int, flip: int) -> None:
    data = bytearray(FILES[WEIGHTS_FILE])
    data[position] ^= flip
    try:
        model = load_model_files(FILES | {WEIGHTS_FILE: bytes(data)})
    except ModelError:
        return
    assert all(weights.isfinite().all() for weights in model.module.state_dict().values())


@given(st.integers(0, len(FILES[WEIGHTS_FILE]) - 1))
def test_truncated_weights_are_refused(length: int) -> None:
    with pytest.raises(ModelError):
        load_model_files(FILES | {WEIGHTS_FILE: FILES[WEIGHTS_FILE][:length]})


@given(st.sampled_from(sorted(FILES)), st.binary(max_size=200))
def test_any_bytes_are_refused_as_a_model_error(name: str, data: bytes) -> None:
    with pytest.raises(ModelError):
        load_model_files(FILES | {name: data})


@given(
    st.floats(-1e6, 1e6, width=32),
    st.floats(0.0009765625, 1e6, width=32),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
@settings(max_examples=200)
def test_scaled_features_lie_in_zero_to_one_and_keep_their_order(low: float, span: float, shares: list[float]) -> None:
    high = float(np.float32(low + span))
    assume(np.float32(low) < np.float32(high))
    spec = ModelSpec("digits-cnn", {}, (1,), low, high, ("no", "yes"))
    values = np.clip(low + (high - low) * np.sort(np.array(shares)), low, high)[:, None]
    scaled = spec.scale(values)
    assert ((scaled >= 0) & (scaled <= 1)).all()
    assert (np.diff(scaled[:, 0]) >= 0).all()
    assert scaled.dtype == np.float32
