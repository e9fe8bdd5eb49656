"""What a plan of noise says beside the noise of numbers: categories, empty cells, other columns, rows and persons."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from portcullis.dataset import Dataset, DatasetSpec, Features, Label
from portcullis.digest import canonical_json
from portcullis.errors import ConfigError, DataError
from portcullis.privacy.handling import permutation
from portcullis.privacy.noise import CLAIM, WHOLE_CLAIM, Noised, noise_dataset
from portcullis.privacy.settings import NoisePlan
from portcullis.random_bits import RandomBits

SEED = b"known"
CITIES = ("Paris", "Rome", "elsewhere")
CITY = {"categories": list(CITIES), "epsilon": 2}
LABEL = {"categories": ["no", "yes"], "epsilon": 1}
AGE = {"low": 18, "high": 90, "epsilon": 2, "steps": 73}
COUNT = {"low": 0, "high": 10, "epsilon": 2, "mechanism": "laplace"}
PIXEL = {"low": 0, "high": 1, "epsilon": 1, "steps": 2}
KEPT = {"features": "keep", "label": "keep", "ids": "keep", "text": "keep"}
SPEC = DatasetSpec(
    "visits",
    Label("label", ("no", "yes")),
    Features(("p",), (1,), 0, 1),
    {"person": "token", "note": "scan"},
    synthetic=("person", "age"),
)
ROWS = 600


def dataset(rows: int = ROWS, **columns: object) -> Dataset:
    index = np.arange(rows)
    values = {
        "person": [f"tok-{row % 100}" for row in index],
        "note": [f"free text {row}" for row in index],
        "p": index % 2 / 1.0,
        "label": [("no", "yes")[row % 2] for row in index],
        "city": [CITIES[row % 3] for row in index],
        "age": 18 + index % 73,
    }
    return Dataset(pa.table(values | columns), SPEC)


def noised(data: Dataset | None = None, *, budget: float = 64, rows: str = "keep", **plan: object) -> Noised:
    return noise_dataset(data or dataset(), NoisePlan.parse({"budget": budget, "rows": rows} | plan), unsafe_seed=SEED)


def kept(**treatments: str) -> dict[str, str]:
    return KEPT | treatments


# The plan.

BAD_PLANS = {
    "unknown key": ({"seed": 1}, "knows only"),
    "rows left out": ({"rows": ""}, "declare whether to keep the order"),
    "rows unknown": ({"rows": "sorted"}, "declare whether to keep the order"),
    "rows no text": ({"rows": True}, "rows must be keep or shuffle"),
    "others no mapping": ({"others": ["features"]}, "others must map"),
    "others no text": ({"others": {"city": 1}}, "others must map"),
    "others unknown": ({"others": {"city": "pass"}}, "others.city must be keep or drop"),
    "others without a name": ({"others": {"": "keep"}}, "1 to 256 printable"),
    "features dropped": ({"others": {"features": "drop"}}, "others.features can only be keep"),
    "label dropped": ({"others": {"label": "drop"}}, "others.label can only be keep"),
    "declared without noise": ({"columns": {}, "rows": "", "others": KEPT}, "no column gets noise"),
    "shuffled without noise": ({"columns": {}, "rows": "shuffle", "others": {}}, "no column gets noise"),
    "contribution no mapping": ({"contribution": 3}, "exactly column and at_most"),
    "contribution without a column": ({"contribution": {"at_most": 3}}, "exactly column and at_most"),
    "contribution with more": (
        {"contribution": {"column": "a", "at_most": 3, "keep": 1}},
        "exactly column and at_most",
    ),
    "contribution of none": ({"contribution": {"column": "person", "at_most": 0}}, "from 1 to 1000"),
    "contribution without end": ({"contribution": {"column": "person", "at_most": math.inf}}, "from 1 to 1000"),
    "contribution of too many": ({"contribution": {"column": "person", "at_most": 1001}}, "from 1 to 1000"),
    "contribution of halves": ({"contribution": {"column": "person", "at_most": 1.5}}, "from 1 to 1000"),
    "contribution of true": ({"contribution": {"column": "person", "at_most": True}}, "from 1 to 1000"),
    "contribution by no name": ({"contribution": {"column": 3, "at_most": 1}}, "1 to 256 printable"),
    "contribution by a noised column": ({"contribution": {"column": "age", "at_most": 1}}, "cannot get noise"),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_a_bad_plan_is_refused(name: str) -> None:
    change, message = BAD_PLANS[name]
    plan = {"columns": {"age": AGE}, "budget": 2, "rows": "keep", "others": KEPT}
    NoisePlan.parse(plan)
    with pytest.raises(ConfigError, match=message):
        NoisePlan.parse(plan | change)


def test_a_plan_survives_the_way_through_a_policy_and_through_kfp() -> None:
    """KFP has one kind of number, and a policy is canonical JSON."""
    plan = NoisePlan.parse(
        {
            "columns": {
                "age": {**AGE, "steps": 73.0, "nulls": "category"},
                "visits": {"categories": [0.0, 1.0, 2.0], "epsilon": 1, "other": 2.0},
                "good": {"categories": [False, True], "epsilon": 1, "nulls": "category"},
                "city": CITY,
                "count": COUNT | {"low": 0.0, "high": 10.0},
            },
            "budget": 10,
            "others": KEPT,
            "rows": "shuffle",
            "contribution": {"column": "person", "at_most": 1.0},
        }
    )
    assert NoisePlan.parse(plan.to_dict()) == plan
    assert plan.columns["visits"].categories == (0, 1, 2) and type(plan.columns["visits"].other) is int
    assert (plan.columns["good"].kind, plan.columns["visits"].kind, plan.columns["city"].kind) == (
        *("bool", "int64", "string"),
    )
    assert b'"other":2}' in canonical_json(plan.to_dict())


# Categories.


def test_categories_come_out_of_the_declared_domain_alone() -> None:
    result = noised(columns={"city": CITY}, others=kept(age="keep"))
    assert set(result.table["city"].to_pylist()) == set(CITIES)
    assert result.table.schema.field("city").type == pa.string()
    same = pc.mean(pc.equal(result.table["city"], dataset().table["city"])).as_py()
    figures = result.figures
    assert 2 - 1e-9 < figures["epsilon_city"] == figures["epsilon_record"] == result.epsilon <= 2
    assert 1 - same == pytest.approx(figures["expected_error_city"], abs=0.06)
    assert figures["blind_error_city"] == pytest.approx(2 / 3)
    assert (figures["mechanism"], figures["drowned"]) == ("k-ary randomised response", "")


@pytest.mark.parametrize(("epsilon", "drowned"), [(0.6, "city"), (0.8, "")])
def test_categories_are_drowned_where_they_are_more_often_wrong_than_right(epsilon: float, drowned: str) -> None:
    figures = noised(columns={"city": CITY | {"epsilon": epsilon}}, others=kept(age="keep")).figures
    assert (figures["drowned"], figures["low_epsilon"]) == (drowned, "city")


def test_a_value_out_of_the_domain_is_refused_or_counts_as_the_other() -> None:
    data = dataset(city=["Oslo"] * ROWS)
    with pytest.raises(DataError, match="row 1: not one of the 3 categories; add it, or other") as refused:
        noised(data, columns={"city": CITY}, others=kept(age="keep"))
    assert "Oslo" not in str(refused.value)
    sure = CITY | {"epsilon": 40, "other": "elsewhere"}
    assert set(noised(data, columns={"city": sure}, others=kept(age="keep")).table["city"].to_pylist()) == {"elsewhere"}


def test_an_empty_cell_is_one_category_more_where_it_is_declared() -> None:
    data = dataset(city=pa.array([None, "Rome"] * (ROWS // 2)))
    with pytest.raises(DataError, match="300 empty cells; fill them, or declare"):
        noised(data, columns={"city": CITY}, others=kept(age="keep"))
    result = noised(data, columns={"city": CITY | {"nulls": "category"}}, others=kept(age="keep"))
    counts = Counter(result.table["city"].to_pylist())
    assert set(counts) == {*CITIES, None} and 100 < counts[None] < 400
    assert result.figures["blind_error_city"] == 0.75


@pytest.mark.parametrize(
    ("categories", "values", "kind"),
    [([0, 1, 2], [0, 1, 2], pa.int64()), ([False, True], [True, False, True], pa.bool_())],
)
def test_whole_numbers_and_truth_values_are_categories_too(categories: list, values: list, kind: pa.DataType) -> None:
    data = dataset(city=values * (ROWS // 3))
    result = noised(data, columns={"city": {"categories": categories, "epsilon": 40}}, others=kept(age="keep"))
    assert result.table["city"].to_pylist() == data.table["city"].to_pylist()
    assert result.table.schema.field("city").type == kind


@pytest.mark.parametrize("values", [[0] * ROWS, [0.5] * ROWS, [True] * ROWS])
def test_a_column_of_another_type_than_its_categories_is_refused(values: list) -> None:
    with pytest.raises(DataError, match="but its categories are string"):
        noised(dataset(city=values), columns={"city": CITY}, others=kept(age="keep"))


def test_the_label_gets_noise_and_counts() -> None:
    others = {"features": "keep", "ids": "drop", "text": "drop", "city": "drop"}
    result = noised(columns={"label": LABEL, "age": AGE}, others=others)
    assert set(result.table["label"].to_pylist()) == {"no", "yes"}
    assert result.figures["epsilon_record"] == pytest.approx(3, abs=1e-9)
    assert not result.table["label"].equals(dataset().table["label"])


BAD_NOISE = {
    "label with another class": ({"label": LABEL | {"categories": ["no", "yes", "maybe"]}}, "only its classes"),
    "label that may be empty": ({"label": LABEL | {"nulls": "category"}}, "may make no empty cells"),
    "label on a grid": ({"label": AGE}, "needs categories"),
    "label as an integer": ({"label": COUNT}, "needs categories"),
    "feature that may be empty": ({"p": PIXEL | {"nulls": "category"}}, "may make no empty cells"),
    "feature out of bounds": ({"p": PIXEL | {"high": 2}}, "beyond the bounds"),
    "feature with noise without bounds": ({"p": COUNT | {"high": 1}}, "beyond the bounds"),
    "feature of text": ({"p": CITY}, "beyond the bounds"),
    "feature of categories out of bounds": ({"p": {"categories": [0, 2], "epsilon": 1}}, "beyond the bounds"),
    "identifier": ({"note": CITY}, "is sensitive text"),
    "column that is not there": ({"country": CITY}, "no column 'country'"),
    "integers of text": ({"city": COUNT}, "is string"),
}


@pytest.mark.parametrize("name", BAD_NOISE)
def test_noise_that_does_not_fit_the_data_is_refused(name: str) -> None:
    columns, message = BAD_NOISE[name]
    with pytest.raises(DataError, match=message):
        noised(columns=columns, others=kept(age="keep") | ({} if "city" in columns else {"city": "keep"}))


# Numbers that may be missing, and integers without bounds.


def test_an_empty_cell_of_numbers_is_made_and_filled() -> None:
    ages = pa.array([None, 50] * (ROWS // 2))
    result = noised(dataset(age=ages), columns={"age": AGE | {"nulls": "category"}}, others=kept(city="keep"))
    before, after = ages.is_null().to_numpy(zero_copy_only=False), result.table["age"].is_null().to_numpy()
    assert result.table.schema.field("age").type == pa.int64()
    figures = result.figures
    assert 2 - 1e-9 < figures["epsilon_age"] <= 2
    made, went = ~before & after, before & ~after
    assert made.any() and made.sum() / 300 == pytest.approx(figures["nulls_made_age"], abs=0.06)
    assert went.sum() / 300 == pytest.approx(figures["nulls_filled_age"], abs=0.08)
    filled = result.table["age"].drop_null().to_numpy()
    assert filled.min() >= 18 and filled.max() <= 90


@pytest.mark.parametrize("values", [[None, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_numbers_without_room_for_them_are_refused(values: list) -> None:
    for column in (AGE, COUNT):
        with pytest.raises(DataError, match=r"300 empty cells|row 1: not a finite number"):
            noised(dataset(age=values * (ROWS // 2)), columns={"age": column}, others=kept(city="keep"))
    if values[0] is not None:
        with pytest.raises(DataError, match="row 1: not a finite number"):
            noised(
                dataset(age=values * (ROWS // 2)),
                columns={"age": AGE | {"nulls": "category"}},
                others=kept(city="keep"),
            )


def test_integers_without_bounds_are_rounded_clipped_and_unbiased() -> None:
    data = dataset(30_000, age=np.tile([-5.0, 2.5, 7.5, 99.0], 7500))
    result = noised(data, columns={"age": COUNT}, others=kept(city="keep"))
    noisy = result.table["age"].to_numpy().reshape(-1, 4)
    assert noisy.dtype == np.int64 and noisy.min() < -20 and noisy.max() > 30
    assert noisy.mean(axis=0) == pytest.approx([0, 2, 8, 10], abs=0.5)
    assert result.figures["epsilon_age"] == 2 and result.figures["mechanism"] == "discrete Laplace without bounds"
    assert result.figures["drowned"] == "age"


# The other columns.


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({}, "'person' gets no noise; declare in privacy.others whether to keep or drop ids, or this column"),
        (KEPT, "'city' gets no noise; declare in privacy.others whether to keep or drop it"),
        (kept(city="keep", country="drop"), "names 'country', which is no column without noise"),
        (kept(city="keep", age="keep"), "names 'age', which is no column without noise"),
        (kept(city="keep", label="keep", p="drop"), "'p' cannot be dropped"),
        ({**KEPT, "features": "keep", "city": "keep", "text": ""}, "must be keep or drop"),
    ],
)
def test_no_column_without_noise_passes_in_silence(others: dict, message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        noised(columns={"age": AGE}, others=others)


def test_columns_are_dropped_by_role_and_by_name() -> None:
    result = noised(columns={"age": AGE}, others=kept(ids="drop", text="drop", city="keep"))
    assert result.table.column_names == ["p", "label", "city", "age"]
    assert result.spec.sensitive == {"person": "drop", "note": "drop"} and result.spec.synthetic == ("age",)
    assert (result.figures["unnoised"], result.figures["dropped"]) == ("p, label, city", "person, note")
    by_name = noised(columns={"age": AGE}, others=kept(ids="drop", text="drop", city="drop", person="keep"))
    assert by_name.table.column_names == ["person", "p", "label", "age"]


def test_a_column_called_like_a_role_is_not_taken_for_it() -> None:
    table = dataset().table.append_column("ids", [list(range(ROWS))])
    with pytest.raises(DataError, match="'ids' gets no noise, and is called like a role; rename it"):
        noised(Dataset(table, SPEC), columns={"age": AGE}, others=kept(city="keep"))


def test_whole_rows_are_private_only_when_nothing_is_kept_and_the_order_is_gone() -> None:
    columns = {"p": PIXEL, "label": LABEL, "age": AGE}
    others = {"ids": "drop", "text": "drop", "city": "drop"}
    assert noised(columns=columns, others=others, rows="shuffle").figures["claim"] == WHOLE_CLAIM.format(unit="row")
    assert noised(columns=columns, others=others).figures["claim"] == CLAIM.format(unit="row")
    some = noised(columns=columns, others=others | {"city": "keep"}, rows="shuffle")
    assert some.figures["claim"] == CLAIM.format(unit="row")


# The rows.


def test_rows_are_shuffled_whole() -> None:
    data = dataset(row=np.arange(ROWS))
    result = noised(data, columns={"age": AGE}, others=kept(city="keep", row="keep"), rows="shuffle")
    order = result.table["row"].to_numpy()
    assert sorted(order) == list(range(ROWS)) and (order != np.arange(ROWS)).sum() > ROWS / 2
    assert result.table["note"].to_pylist() == [f"free text {row}" for row in order]
    assert result.figures["row_order"] == "shuffled"


def test_every_permutation_is_equally_likely() -> None:
    """With 5 degrees of freedom, 35 is exceeded by chance once in half a million times; here the seed is fixed."""
    bits = RandomBits.unsafe_fixed_seed(SEED)
    counts = Counter(tuple(permutation(3, bits).tolist()) for _ in range(6000))
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 35


def test_a_person_keeps_at_most_so_many_rows_chosen_at_random() -> None:
    persons = ["many"] * 300 + ["few"] * 2 + [f"one-{row}" for row in range(298)]
    data = dataset(person=persons, row=np.arange(ROWS))
    plan = {
        "columns": {"age": AGE},
        "others": kept(city="keep", row="keep"),
        "contribution": {"column": "person", "at_most": 3},
    }
    result = noised(data, **plan)
    counts = Counter(result.table["person"].to_pylist())
    assert counts.pop("many") == 3 and counts.pop("few") == 2 and set(counts.values()) == {1}
    rows = result.table["row"].to_pylist()
    assert rows == sorted(rows) and rows[3:] == list(range(300, ROWS)) and rows[:3] != [0, 1, 2]
    figures = result.figures
    assert (figures["rows"], figures["rows_left_out"]) == (303, 297)
    assert result.epsilon == figures["epsilon_person"] == pytest.approx(6, abs=1e-9)
    assert figures["epsilon_person"] <= 6 and figures["epsilon_record"] <= 2
    assert figures["unit"] == "one person, of at most 3 rows with one person"
    assert figures["claim"] == CLAIM.format(unit="person")
    with pytest.raises(DataError, match=r"a person an epsilon of 6, above the budget of 5\.9"):
        noised(data, budget=5.9, **plan)


def test_a_shuffled_person_keeps_at_most_so_many_rows_too() -> None:
    result = noised(
        columns={"age": AGE},
        others=kept(city="keep", ids="drop"),
        rows="shuffle",
        contribution={"column": "person", "at_most": 2},
    )
    assert result.table.num_rows == 200 and "person" not in result.table.column_names
    persons = Counter(int(note.split()[-1]) % 100 for note in result.table["note"].to_pylist())
    assert set(persons.values()) == {2}


def test_which_rows_stay_does_not_depend_on_the_values_that_get_noise() -> None:
    """Or the choice itself would tell of them, and the epsilon of a person would be wrong."""
    plan = {
        "columns": {"age": AGE},
        "others": kept(city="keep"),
        "contribution": {"column": "person", "at_most": 2},
    }
    one, other = (noised(dataset(age=[age] * ROWS), **plan).table["note"] for age in (18, 90))
    assert one.equals(other)


@pytest.mark.parametrize(
    ("persons", "message"),
    [
        ([None, *["a"] * (ROWS - 1)], "1 empty cells; nobody's row"),
        ([0.5] * ROWS, "is double; text or integers"),
        ([True] * ROWS, "is bool; text or integers"),
    ],
)
def test_rows_of_nobody_are_refused(persons: list, message: str) -> None:
    data = dataset(owner=pa.array(persons))
    with pytest.raises(DataError, match=message):
        noised(
            data,
            columns={"age": AGE},
            others=kept(city="keep", owner="keep"),
            contribution={"column": "owner", "at_most": 2},
        )
    with pytest.raises(DataError, match="no column 'customer' that could say whose row it is"):
        noised(
            data,
            columns={"age": AGE},
            others=kept(city="keep", owner="keep"),
            contribution={"column": "customer", "at_most": 2},
        )
