"""Noise on declared columns: what it costs, what it refuses, and that it claims no more than it does."""

import dataclasses
import math
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import resting
from chains import World
from kfp import dsl

from portcullis.at_rest import seal_dataset
from portcullis.dataset import Dataset, DatasetSpec, Features, Label
from portcullis.digest import sha256
from portcullis.errors import BudgetError, ConfigError, DataError, EvidenceError, PolicyError, UsageError
from portcullis.evidence.step import begin
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.keys import Signer
from portcullis.ledger.entries import read_entries
from portcullis.ledger.mechanisms import Pure
from portcullis.ledger.settings import LedgerSettings
from portcullis.preflight.stage import preflight
from portcullis.privacy.component import dp_noise as dp_noise_component
from portcullis.privacy.mechanism import TOTAL, NoiseTable, laplace_table
from portcullis.privacy.noise import CLAIM, MAX_NAMES, NO_CLAIM, Noised, noise_dataset
from portcullis.privacy.settings import NoisedColumn, NoisePlan, noised_columns
from portcullis.privacy.stage import dp_noise
from portcullis.random_bits import RandomBits

SEED = b"known"
AGE = {"low": 18, "high": 90, "epsilon": 1, "steps": 73}
BALANCE = {"low": -5000, "high": 45000, "epsilon": 1, "steps": 501}
COUNT = {"low": 0, "high": 10, "epsilon": 2, "mechanism": "laplace"}
CITY = {"categories": ["Paris", "Rome", "elsewhere"], "epsilon": 1}
LEDGER = LedgerSettings("customers", epsilon=2.5).to_dict()
SPEC = DatasetSpec("customers", Label("label", ("0", "1")), Features(("p0", "p1"), (2,), 0, 16), {"name": "token"})


def dataset(rows: int = 300, **columns: object) -> Dataset:
    values = {
        "name": [f"tok-{row}" for row in range(rows)],
        "age": 18 + np.arange(rows) % 73,
        "balance": np.arange(rows) * 7.25 - 100,
        "good": [row % 2 == 0 for row in range(rows)],
        "p0": np.arange(rows) % 17,
        "p1": np.arange(rows) % 17 / 2,
        "label": ["01"[row % 2] for row in range(rows)],
    }
    return Dataset(pa.table(values | columns), SPEC)


def others(table: pa.Table, columns: Collection[str], **treatments: str) -> dict[str, str]:
    """Return a declaration of every column without noise: kept, unless something else is said of it."""
    loose = {name for name in table.column_names if name not in ("name", "p0", "p1", "label", *columns)}
    return {"features": "keep", "label": "keep", "ids": "keep"} | dict.fromkeys(sorted(loose), "keep") | treatments


def noised(data: Dataset | None = None, *, budget: float = 2.0, plan: dict | None = None, **columns: dict) -> Noised:
    data = data or dataset()
    rest = {"others": others(data.table, columns), "rows": "keep"} if columns else {}
    whole = NoisePlan.parse({"columns": columns, "budget": budget} | rest | (plan or {}))
    return noise_dataset(data, whole, unsafe_seed=SEED)


# The columns that get noise.

BAD_COLUMNS = {
    "no mapping": ["age"],
    "none": None,
    "no mapping inside": {"age": 3},
    "key missing": {"age": {"low": 0, "high": 1, "epsilon": 1}},
    "unknown key": {"age": AGE | {"delta": 0}},
    "bounds from the data": {"age": AGE | {"low": "min"}},
    "no lower bound": {"age": AGE | {"low": None}},
    "low above high": {"age": AGE | {"low": 91}},
    "low equal to high": {"age": AGE | {"low": 90}},
    "low NaN": {"age": AGE | {"low": math.nan}},
    "high NaN": {"age": AGE | {"high": math.nan}},
    "high infinite": {"age": AGE | {"high": math.inf}},
    "high beyond doubles": {"age": AGE | {"high": 10**400}},
    "bounds too close": {"age": AGE | {"low": 1.0, "high": 1.0 + 2e-16}},
    "steps too close": {"age": AGE | {"low": 1.0, "high": 1.0 + 1e-14}},
    "bounds are truth values": {"age": AGE | {"low": False, "high": True}},
    "epsilon 0": {"age": AGE | {"epsilon": 0}},
    "epsilon below 0": {"age": AGE | {"epsilon": -1}},
    "epsilon too large": {"age": AGE | {"epsilon": 64.5}},
    "epsilon infinite": {"age": AGE | {"epsilon": math.inf}},
    "epsilon NaN": {"age": AGE | {"epsilon": math.nan}},
    "epsilon text": {"age": AGE | {"epsilon": "1"}},
    "epsilon a truth value": {"age": AGE | {"epsilon": True}},
    "one step": {"age": AGE | {"steps": 1}},
    "too many steps": {"age": AGE | {"steps": 4097}},
    "half a step": {"age": AGE | {"steps": 72.5}},
    "steps NaN": {"age": AGE | {"steps": math.nan}},
    "steps infinite": {"age": AGE | {"steps": math.inf}},
    "steps a truth value": {"age": AGE | {"steps": True}},
    "name empty": {"": AGE},
    "name no text": {3: AGE},
    "name unprintable": {"a\nb": AGE},
    "name too long": {"a" * 257: AGE},
    "name of the row's figure": {"record": AGE},
    "name of the person's figure": {"person": AGE},
    "steps and categories": {"age": AGE | {"categories": ["a", "b"]}},
    "nulls unknown": {"age": AGE | {"nulls": "drop"}},
    "nulls true": {"age": AGE | {"nulls": True}},
    "nulls a list": {"age": AGE | {"nulls": ["category"]}},
    "another mechanism": {"count": COUNT | {"mechanism": "gaussian"}},
    "mechanism a list": {"count": COUNT | {"mechanism": []}},
    "mechanism and steps": {"count": COUNT | {"steps": 11}},
    "integers between fractions": {"count": COUNT | {"low": 0.5}},
    "integers without an end": {"count": COUNT | {"high": math.inf}},
    "domain from the data": {"city": CITY | {"categories": "auto"}},
    "domain left out": {"city": {"epsilon": 1}},
    "domain None": {"city": CITY | {"categories": None}},
    "domain empty": {"city": CITY | {"categories": []}},
    "one category": {"city": CITY | {"categories": ["Paris"]}},
    "too many categories": {"city": CITY | {"categories": [str(index) for index in range(4097)]}},
    "category twice": {"city": CITY | {"categories": ["Paris", "Paris"]}},
    "categories of two kinds": {"city": CITY | {"categories": ["1", 1]}},
    "truth values and numbers": {"city": CITY | {"categories": [True, 0]}},
    "categories are fractions": {"city": CITY | {"categories": [0.5, 1.5]}},
    "categories NaN": {"city": CITY | {"categories": [math.nan, 1]}},
    "categories infinite": {"city": CITY | {"categories": [math.inf, 1]}},
    "category beyond doubles": {"city": CITY | {"categories": [2**53, 1]}},
    "category empty": {"city": CITY | {"categories": ["", "a"]}},
    "category unprintable": {"city": CITY | {"categories": ["a\n", "a"]}},
    "category None": {"city": CITY | {"categories": [None, "a"]}},
    "category a list": {"city": CITY | {"categories": [["a"], ["b"]]}},
    "other is none of them": {"city": CITY | {"other": "Oslo"}},
    "other of another kind": {"city": {"categories": [0, 1], "epsilon": 1, "other": False}},
    "other None": {"city": CITY | {"other": None}},
    "other a list": {"city": CITY | {"other": ["Rome"]}},
    "categories with epsilon 0": {"city": CITY | {"epsilon": 0}},
    "categories with epsilon NaN": {"city": CITY | {"epsilon": math.nan}},
    "too many columns": {f"c{index}": AGE for index in range(257)},
}


@pytest.mark.parametrize("value", BAD_COLUMNS.values(), ids=BAD_COLUMNS.keys())
def test_a_bad_description_of_columns_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="privacy: "):
        noised_columns(value)


def test_kfp_turns_whole_numbers_into_floats_and_they_are_turned_back() -> None:
    floats = {name: float(value) for name, value in AGE.items()}
    (column,) = noised_columns({"age": floats}).values()
    assert column == NoisedColumn(18, 90, 1, 73) and type(column.steps) is int
    assert noised_columns({}) == {}


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ((), "2 \\* steps - 1"),
        ((TOTAL,), "2 \\* steps - 1"),
        ((1, TOTAL - 1), "2 \\* steps - 1"),
        ((0, TOTAL - 1, 1), "at least 1"),
        ((-1, TOTAL, 1), "at least 1"),
        ((1.0, TOTAL - 2, 1), "whole"),
        ((1, TOTAL - 1, 1), "add up"),
        ((1, TOTAL - 3, 1), "add up"),
        (tuple([1] * 8192 + [TOTAL - 8192]), "2 \\* steps - 1"),
    ],
)
def test_a_table_that_is_none_is_refused(weights: tuple[int, ...], match: str) -> None:
    with pytest.raises(DataError, match=match):
        NoiseTable(weights)


@pytest.mark.parametrize(
    "points",
    [np.array([-1]), np.array([73]), np.array([1.0]), np.array([[1]]), np.array([1], dtype=np.int32)],
    ids=["below", "above", "float", "two axes", "int32"],
)
def test_noise_goes_on_grid_points_only(points: np.ndarray) -> None:
    with pytest.raises(DataError, match="indices from 0 to 72"):
        laplace_table(1.0, 73).add_noise(points, RandomBits())


def test_a_fixed_seed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    RandomBits().words(5)
    assert not caplog.records
    RandomBits.unsafe_fixed_seed(SEED).words(5)
    assert "not private" in caplog.text


def test_an_epsilon_too_small_for_its_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="too small for 4096 steps"):
        noised(age=AGE | {"epsilon": 1e-9, "steps": 4096})


# The table of data.


def test_only_the_declared_columns_change_and_rows_keep_their_number_and_order() -> None:
    data = dataset()
    result = noised(data, age=AGE, balance=BALANCE).table
    assert result.column_names == data.table.column_names
    for name in data.table.column_names:
        same = result[name].equals(data.table[name])
        assert same == (name not in ("age", "balance")), name
    assert set(result["age"].to_pylist()) <= set(range(18, 91))
    assert all(value % 100 == 0 and -5000 <= value <= 45000 for value in result["balance"].to_pylist())


def test_values_out_of_bounds_count_as_the_bound() -> None:
    inside, outside = (noised(dataset(age=[age] * 300), age=AGE).table["age"].to_pylist() for age in (90, 2**62))
    assert inside == outside
    low, below = (noised(dataset(balance=[b] * 300), balance=BALANCE).table["balance"] for b in (-5000.0, -1e300))
    assert low.equals(below)


def test_values_go_to_the_nearest_grid_point_when_there_is_hardly_any_noise() -> None:
    """With two steps and an epsilon of 40, noise strikes once in 10**17 times."""
    data = dataset(balance=[0.0, 49.0, 51.0, 100.0, -3.0] * 60)
    result = noised(data, budget=64, balance={"low": 0, "high": 100, "epsilon": 40, "steps": 2}).table
    assert result["balance"].to_pylist() == [0.0, 0.0, 100.0, 100.0, 0.0] * 60


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, pa.int64()),
        ({"steps": 37}, pa.int64()),
        ({"steps": 40}, pa.float64()),
        ({"low": 18.5, "high": 90.5}, pa.float64()),
    ],
)
def test_what_comes_out_is_whole_when_the_grid_is(change: dict, kind: pa.DataType) -> None:
    result = noised(age=AGE | change).table
    assert result.schema.field("age").type == kind
    assert noised(balance=BALANCE).table.schema.field("balance").type == pa.int64()


@pytest.mark.parametrize("other", [30.0, 30.5])
def test_the_type_of_a_noised_column_does_not_tell_whether_its_values_were_whole(other: float) -> None:
    """A column of whole numbers is read as int64, and one with a single fraction in it as float64."""
    ages = [30.0] * 299 + [other]
    column = [int(age) for age in ages] if other == 30.0 else ages
    assert noised(dataset(age=column), age=AGE).table.schema.field("age").type == pa.int64()


def test_columns_of_one_row_get_noise_of_their_own() -> None:
    fine = AGE | {"epsilon": 20, "steps": 4096}
    result = noised(dataset(age=[50] * 300, balance=[50.0] * 300), budget=40, age=fine, balance=fine).table
    assert (result["age"].to_numpy() != result["balance"].to_numpy()).mean() > 0.9


def test_another_run_gives_other_noise() -> None:
    plan = NoisePlan(noised_columns({"age": AGE}), 2, others(dataset().table, ["age"]), "keep")
    one, other = (noise_dataset(dataset(), plan).table["age"] for _ in range(2))
    assert not one.equals(other)


def test_figures_say_what_was_done_and_what_was_not() -> None:
    figures = dict(noised(age=AGE, balance=BALANCE | {"epsilon": 0.5}).figures)
    assert 1 - 1e-9 < figures.pop("epsilon_age") <= 1
    assert 0.5 - 1e-9 < figures.pop("epsilon_balance") <= 0.5
    assert 1.5 - 1e-9 < figures.pop("epsilon_record") <= 1.5
    assert 26 < figures.pop("expected_error_age") < 27
    assert 20_000 < figures.pop("expected_error_balance") < 25_000
    assert 18 < figures.pop("blind_error_age") < 18.5
    assert 12_500 < figures.pop("blind_error_balance") < 12_600
    assert figures == {
        "rows": 300,
        "row_order": "as it came",
        "columns_noised": 2,
        "columns_unnoised": 5,
        "unnoised": "name, good, p0, p1, label",
        "columns_dropped": 0,
        "dropped": "",
        "delta": 0,
        "low_epsilon": "balance",
        "drowned": "age, balance",
        "mechanism": "discrete Laplace on a certified table",
        "unit": "one row",
        "adjacency": "the noised columns of one row hold any other values; all else is equal, the rows' number too",
        "composition": "basic: the epsilon of a row is the sum over its noised columns",
        "claim": CLAIM.format(unit="row"),
    }
    assert "not private" in CLAIM


def test_the_stated_error_is_the_one_that_is_seen() -> None:
    ages = np.arange(73).repeat(4000) + 18
    data = dataset(len(ages), age=ages)
    result = noised(data, age=AGE)
    seen = np.abs(result.table["age"].to_numpy() - ages).mean()
    assert result.figures["expected_error_age"] == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize("steps", [73, 501, 4096])
def test_noise_drowns_a_single_value_below_an_epsilon_of_about_two_and_a_half(steps: int) -> None:
    def drowned(epsilon: float) -> object:
        return noised(age=AGE | {"epsilon": epsilon, "steps": steps}, budget=3).figures["drowned"]

    assert (drowned(2.4), drowned(2.6)) == ("age", "")


def test_without_a_column_nothing_changes_and_nothing_is_claimed() -> None:
    data = dataset()
    result = noise_dataset(data, NoisePlan())
    assert result.table.equals(data.table) and result.spec == data.spec and result.epsilon == 0
    assert dict(result.figures) == {
        "rows": 300,
        "row_order": "as it came",
        "columns_noised": 0,
        "columns_unnoised": 7,
        "unnoised": "name, age, balance, good, p0, p1, label",
        "columns_dropped": 0,
        "dropped": "",
        "epsilon_record": 0,
        "delta": 0,
        "low_epsilon": "",
        "drowned": "",
        **dict.fromkeys(("mechanism", "unit", "adjacency", "composition"), "none"),
        "claim": NO_CLAIM,
    }


def test_a_long_list_of_columns_is_shortened_and_counted() -> None:
    data = dataset(**{f"column_{index:03}": range(300) for index in range(100)})
    shown = noised(data, age=AGE).figures["unnoised"]
    assert shown.startswith("name, balance, good, p0, p1, label, column_000")
    assert len(shown) < MAX_NAMES + 20 and shown.endswith(" more")
    listed, _, left = shown.removesuffix(" more").rpartition(" and ")
    assert len(listed.split(", ")) + int(left) == 106


def test_features_may_get_noise_within_their_bounds() -> None:
    pixel = {"low": 0, "high": 16, "epsilon": 1, "steps": 17}
    assert noised(p0=pixel).table.schema.field("p0").type == pa.int64()
    for change in ({"low": -1}, {"high": 16.5}):
        with pytest.raises(DataError, match="beyond the bounds of the features"):
            noised(p0=pixel | change)


NULL = [None, *range(299)]
BAD_DATA = {
    "missing column": ({}, "height", "no column 'height'"),
    "label": ({}, "label", "is the label; its noise needs categories"),
    "sensitive": ({}, "name", "sensitive text"),
    "truth values": ({}, "good", "is bool"),
    "text": ({"age": ["old"] * 300}, "age", "is string"),
    "empty cell": ({"age": NULL}, "age", "1 empty cells"),
    "empty cell of floats": ({"age": [None, *map(float, range(299))]}, "age", "1 empty cells"),
    "NaN": ({"age": [1.0, math.nan] * 150}, "age", "row 2: not a finite number"),
    "infinity": ({"age": [1.0, 1.0, math.inf] * 100}, "age", "row 3: not a finite number"),
    "minus infinity": ({"age": [-math.inf, 1.0] * 150}, "age", "row 1: not a finite number"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_refused(name: str) -> None:
    columns, noisy, message = BAD_DATA[name]
    with pytest.raises(DataError, match=message):
        noised(dataset(**columns), **{noisy: AGE})


@pytest.mark.parametrize("budget", [0, 0.5, 1.9999])
def test_an_epsilon_above_the_budget_is_refused(budget: float) -> None:
    with pytest.raises(DataError, match="a row an epsilon of 2, above the budget"):
        noised(age=AGE, balance=BALANCE, budget=budget)


@pytest.mark.parametrize("budget", [math.nan, math.inf, -math.inf, -1, 10**400, 1024.5, True, "2", None])
def test_a_budget_that_is_none_is_refused(budget: object) -> None:
    with pytest.raises(ConfigError, match="budget must be a number from 0 to 1024"):
        noised(age=AGE, budget=budget)


# The step.


def plan_of(columns: dict, budget: float) -> dict:
    rest = {"others": others(dataset().table, columns), "rows": "keep"} if columns else {"others": {}, "rows": ""}
    return {"columns": columns, "budget": budget, "contribution": {}} | rest


class Place:
    """A data set with evidence of where it comes from, and the step under a policy of its own."""

    def __init__(self, root: Path, parameters: dict) -> None:
        self.root = root
        steps = [
            {"name": "preflight", "stage": "preflight", "inputs": {"policy": "policy"}, "outputs": ["nonce"]},
            {
                "name": "source",
                "stage": "source",
                "inputs": {"nonce": "preflight.nonce", "raw": "external"},
                "outputs": ["dataset"],
            },
            {
                "name": "dp_noise",
                "stage": "dp_noise",
                "inputs": {"dataset": "source.dataset"},
                "outputs": ["dataset"],
                "parameters": parameters,
            },
        ]
        world = World()
        world.keys |= {step["name"]: Signer.generate() for step in steps}
        blank = {"kind": "transform", "parameters": {}, "requires": [], "checks": {}}
        keyed = [{**blank, **step, "key": world.keys[step["name"]].public_key.pem} for step in steps]
        write_trust_store(
            root / "trust",
            owner=world.owner.public_key,
            name="demo",
            environment="development",
            policy=world.policy_bytes(steps=keyed, expires=now_ms() + 10**8),
            revocations=Revocations(1).sign(world.owner),
        )
        resting.write_keys(root / "keys")
        for step, signer in world.keys.items():
            write_bytes(root / "keys" / f"{step}.pem", signer.private_pem(), mode=0o600)

    def furnish(self, data: Dataset) -> None:
        nonce = preflight(step="preflight", bundle=self.root / "first")
        begun = begin(
            "source",
            stage="source",
            inputs={"nonce": sha256(nonce.encode()), "raw": sha256(b"")},
            parameters={},
            evidence=[self.root / "first"],
        )
        digest = resting.seal(self.root / "data", data.table, data.spec)
        begun.finish(bundle=self.root / "evidence", outputs={"dataset": digest}, figures={})

    def furnished(self, data: Dataset, plan: dict) -> "Place":
        """Return the same place under another policy."""
        other = Place(self.root, plan | {"ledger": LEDGER})
        other.furnish(data)
        return other

    def noise(self, columns: dict, budget: float = 2.0, **changes: object):
        return dp_noise(
            step="dp_noise",
            dataset=self.root / "data",
            evidence=self.root / "evidence",
            plan=plan_of(columns, budget) | changes,
            ledger=LEDGER if columns else {},
            noised=self.root / "out" / "noised",
            report=self.root / "out" / "report",
            bundle=self.root / "out" / "bundle",
        )

    def ledger(self):
        """The entries that were charged."""
        path = self.root / "ledgers" / "customers.jsonl"
        return read_entries(path.read_bytes() if path.exists() else b"", "customers")

    def forget(self) -> None:
        """Remove what the step wrote."""
        shutil.rmtree(self.root / "out")

    def begin_anew(self) -> None:
        """Begin another run on the same data."""
        self.forget()
        self.furnish(dataset())

    def written(self) -> list[str]:
        return sorted(path.name for path in (self.root / "out").glob("*"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PORTCULLIS_TRUST", str(tmp_path / "trust"))
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{tmp_path / 'keys'}")
    monkeypatch.setenv("PORTCULLIS_LEDGERS", str(tmp_path / "ledgers"))

    def make(columns: dict, budget: float = 2.0, data: Dataset | None = None) -> Place:
        made = Place(tmp_path, plan_of(columns, budget) | {"ledger": LEDGER if columns else {}})
        made.furnish(data or dataset())
        return made

    return make


def test_the_step_signs_what_it_wrote(place) -> None:
    here = place({"age": AGE})
    statement = here.noise({"age": {name: float(value) for name, value in AGE.items()}})
    assert statement.outputs == {"dataset": resting.content(here.root / "out" / "noised")}
    assert (statement.stage, statement.kind, statement.figures["columns_noised"]) == ("dp_noise", "transform", 1)
    assert dict(statement.parameters) == plan_of({"age": AGE}, 2) | {"ledger": LEDGER}
    result = resting.opened(here.root / "out" / "noised")
    assert result.spec == SPEC and result.table.num_rows == 300
    assert not result.table["age"].equals(dataset().table["age"])
    assert result.table.drop_columns("age").equals(dataset().table.drop_columns("age"))


def test_bounded_contributions_are_charged_per_person(place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person spends is not charged to a ledger that counts rows."""
    here = place({"age": AGE})
    bounded = {"contribution": {"column": "name", "at_most": 2}}
    here.furnished(dataset(), plan_of({"age": AGE}, 2) | bounded)
    with pytest.raises(EvidenceError, match="per person"):
        here.noise({"age": AGE}, **bounded)
    assert here.written() == [] and here.ledger() == ()
    monkeypatch.setitem(LEDGER, "unit", "person")
    here.furnished(dataset(), plan_of({"age": AGE}, 2) | bounded)
    statement = here.noise({"age": AGE}, **bounded)
    (entry,) = here.ledger()
    assert entry.charge.unit == "person"
    assert entry.charge.mechanism == Pure(statement.figures["epsilon_person"])
    assert entry.charge.mechanism.epsilon > statement.figures["epsilon_record"]


def test_the_step_charges_what_it_wrote_before_it_writes(place, monkeypatch: pytest.MonkeyPatch) -> None:
    here = place({"age": AGE})

    def charged(*arguments: object, **options: object) -> str:
        assert here.ledger() and here.written() == []
        return seal_dataset(*arguments, **options)

    monkeypatch.setattr("portcullis.privacy.stage.seal_dataset", charged)
    statement = here.noise({"age": AGE})
    (entry,) = here.ledger()
    assert statement.figures["ledger_entry"] == entry.digest and entry.number == 1
    assert entry.charge.mechanism == Pure(statement.figures["epsilon_record"])
    assert statement.figures["ledger_epsilon"] == statement.figures["epsilon_record"]
    assert entry.charge.output == statement.outputs["dataset"]
    assert (entry.charge.run, entry.charge.step, entry.charge.unit) == (statement.nonce, "dp_noise", "row")


def test_the_runs_before_count_and_nothing_is_written_above_the_budget(place) -> None:
    here = place({"age": AGE})
    for _ in range(2):
        here.noise({"age": AGE})
        here.begin_anew()
    with pytest.raises(BudgetError, match="2 releases have spent an epsilon of 2, with this one 3"):
        here.noise({"age": AGE})
    assert here.written() == [] and len(here.ledger()) == 2


def test_a_step_that_is_tried_again_in_the_same_run_is_refused(place) -> None:
    """It would draw the noise again; both draws together tell more than one was charged for."""
    here = place({"age": AGE})
    here.noise({"age": AGE})
    here.forget()
    with pytest.raises(EvidenceError, match="was charged before, for another output"):
        here.noise({"age": AGE})
    assert here.written() == [] and len(here.ledger()) == 1


def test_without_a_ledger_no_noise_is_released(place, monkeypatch: pytest.MonkeyPatch) -> None:
    here = place({"age": AGE})
    monkeypatch.delenv("PORTCULLIS_LEDGERS")
    with pytest.raises(UsageError, match="PORTCULLIS_LEDGERS"):
        here.noise({"age": AGE})
    assert here.written() == []


def test_the_original_is_not_written_beside_the_noise(place) -> None:
    balance = 1_234.5678 + np.arange(300)
    here = place({"balance": BALANCE}, data=dataset(balance=balance))
    here.noise({"balance": BALANCE})
    assert here.written() == ["bundle", "noised", "report"]
    left = resting.opened(here.root / "out" / "noised").table
    assert left.column_names == dataset().table.column_names
    assert not set(left["balance"].to_pylist()) & set(balance.tolist())


def test_the_report_shows_what_each_column_costs_and_still_tells(place) -> None:
    columns = {"age": AGE, "a<b": CITY, "balance": BALANCE | {"epsilon": 0.5}}
    table = dataset().table.append_column("a<b", [["Paris", "Rome", "elsewhere"] * 100])
    here = place({"age": AGE}, data=Dataset(table, SPEC))
    plan = plan_of(columns, 4) | {"others": others(table, columns)}
    with pytest.raises(PolicyError):
        here.noise(columns, 4, others=plan["others"])
    assert here.written() == []
    statement = here.furnished(Dataset(table, SPEC), plan).noise(columns, 4, others=plan["others"])
    text = (here.root / "out" / "report").read_text()
    for name in ("age", "balance"):
        assert f"{statement.figures[f'expected_error_{name}']:.6g}" in text
    assert "a&lt;b" in text and "a<b" not in text and "73 steps" in text and "3 categories" in text
    assert "A single cell says next to nothing in: age, balance." in text and "An epsilon below 1" in text
    assert text.count("<rect") == 3 and CLAIM.format(unit="row") in text


def test_without_a_column_the_very_data_set_moves_on(place) -> None:
    here = place({}, 0)
    statement = here.noise({}, 0)
    assert statement.outputs == statement.inputs
    assert statement.figures["claim"] == NO_CLAIM


def test_an_epsilon_above_the_budget_is_refused_and_nothing_is_written(place) -> None:
    here = place({"age": AGE, "balance": BALANCE}, 1.5)
    with pytest.raises(DataError, match=r"above the budget of 1\.5"):
        here.noise({"age": AGE, "balance": BALANCE}, 1.5)
    assert here.written() == []


def test_bad_data_are_refused_and_nothing_is_written(place) -> None:
    here = place({"age": AGE}, data=dataset(age=NULL))
    with pytest.raises(DataError, match="empty cells"):
        here.noise({"age": AGE})
    assert here.written() == []


OTHER_TREATMENTS = {
    "identifiers are kept": {"others": others(dataset().table, ["age"], ids="drop")},
    "a column is dropped": {"others": others(dataset().table, ["age"], balance="drop")},
    "rows are shuffled": {"rows": "shuffle"},
    "contributions are bounded": {"contribution": {"column": "name", "at_most": 1}},
}


@pytest.mark.parametrize("name", OTHER_TREATMENTS)
def test_other_treatments_than_the_policys_are_refused_and_nothing_is_written(place, name: str) -> None:
    here = place({"age": AGE})
    with pytest.raises(PolicyError, match="parameters differ"):
        here.noise({"age": AGE}, **OTHER_TREATMENTS[name])
    assert here.written() == []


def test_dropped_columns_are_gone_and_the_description_says_so(place) -> None:
    treatments = others(dataset().table, ["age"], ids="drop", balance="drop")
    here = place({"age": AGE})
    here.furnished(dataset(), plan_of({"age": AGE}, 2) | {"others": treatments}).noise({"age": AGE}, others=treatments)
    result = resting.opened(here.root / "out" / "noised")
    assert result.table.column_names == ["age", "good", "p0", "p1", "label"]
    assert result.spec.sensitive == {"name": "drop"}


OTHER_PARAMETERS = {
    "more epsilon": ({"age": AGE | {"epsilon": 1.5}}, 2.0),
    "other bounds": ({"age": AGE | {"low": 0}}, 2.0),
    "other grid": ({"age": AGE | {"steps": 37}}, 2.0),
    "another column": ({"balance": BALANCE}, 2.0),
    "one column more": ({"age": AGE, "balance": BALANCE}, 2.0),
    "no column": ({}, 2.0),
    "another budget": ({"age": AGE}, 64.0),
}


@pytest.mark.parametrize("name", OTHER_PARAMETERS)
def test_other_parameters_than_the_policys_are_refused_and_nothing_is_written(place, name: str) -> None:
    here = place({"age": AGE})
    with pytest.raises(PolicyError, match="parameters differ"):
        here.noise(*OTHER_PARAMETERS[name])
    assert here.written() == []


@pytest.mark.parametrize("budget", [math.nan, math.inf])
def test_a_budget_that_is_no_number_is_refused(place, budget: float) -> None:
    here = place({"age": AGE})
    with pytest.raises(ConfigError, match="must be a number"):
        here.noise({"age": AGE}, budget)
    assert here.written() == []


def test_an_altered_data_set_is_refused(place) -> None:
    here = place({"age": AGE})
    resting.seal(here.root / "data", dataset(301).table, SPEC)
    with pytest.raises(EvidenceError, match="swapped or altered"):
        here.noise({"age": AGE})
    assert here.written() == []


def test_the_component_does_what_the_stage_does(place) -> None:
    here = place({"age": AGE})
    out = here.root / "out"
    metrics = dsl.Metrics(uri=str(out / "metrics"))
    outputs = dp_noise_component.python_func(
        dataset=dsl.Dataset(uri=str(here.root / "data")),
        evidence=dsl.Artifact(uri=str(here.root / "evidence")),
        columns={"age": {name: float(value) for name, value in AGE.items()}},
        budget=2.0,
        others=others(dataset().table, ["age"]),
        rows="keep",
        contribution={},
        ledger=LEDGER,
        noised=dsl.Dataset(uri=str(out / "noised")),
        noised_evidence=dsl.Artifact(uri=str(out / "bundle")),
        report=dsl.HTML(uri=str(out / "report")),
        metrics=metrics,
    )
    assert "<svg" in (out / "report").read_text()
    assert outputs.digest == resting.content(out / "noised")
    assert metrics.metadata["columns_noised"] == 1 and "claim" not in metrics.metadata


def test_every_parameter_of_a_column_is_the_policys() -> None:
    """What `to_dict` leaves out, no policy would demand."""
    for entry in (AGE | {"nulls": "category"}, CITY | {"other": "Rome", "nulls": "category"}, COUNT):
        (column,) = noised_columns({"x": entry}).values()
        assert column.to_dict() == entry
        assert {it.name for it in dataclasses.fields(column)} == set(entry) - {"mechanism"}
    assert NoisePlan().to_dict().keys() == {it.name for it in dataclasses.fields(NoisePlan)}
