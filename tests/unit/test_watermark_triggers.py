"""Triggers: keyed inputs and answers, asked of a function or an API, and taught to a model."""

import hashlib
import http.server
import json
import math
import threading

import numpy as np
import pyarrow as pa
import pytest
from watermarks import CLAIM, KEY, OWNER, SHARE, SPEC, TRIGGERS, Workshop, model

from portcullis.dataset import DatasetSpec, Features, Label, write_dataset
from portcullis.errors import ConfigError, InconclusiveError, KeyMaterialError, ModelError, PolicyError, UsageError
from portcullis.evidence.dsse import Envelope
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import read_evidence
from portcullis.models.store import WEIGHTS_FILE, load_model
from portcullis.watermark.api import api_model
from portcullis.watermark.mark import Claim
from portcullis.watermark.soft_labels import read_soft_labels, waves
from portcullis.watermark.triggers import MAX_TRIGGERS, Answers, ask, triggers

COUNT = 200


def asked(key=KEY, claim=CLAIM, count=COUNT):
    return triggers(key, claim, SPEC, count)


def oracle(features):
    """A model that learnt the triggers and nothing else."""
    known = {row.tobytes(): answer for row, answer in zip(asked().features, asked().answers, strict=True)}
    return np.array([known.get(row.tobytes(), 0) for row in features])


# What they are.


def test_triggers_are_within_the_models_bounds_and_repeat():
    made = asked()
    assert made.features.shape == (COUNT, 64) and made.features.dtype == np.float32
    assert made.features.min() >= 0 and made.features.max() <= 16 and made.features.std() > 3
    assert made.answers.shape == (COUNT,) and set(made.answers) == set(range(10)) and made.classes == 10
    again = asked()
    assert np.array_equal(made.features, again.features) and np.array_equal(made.answers, again.answers)
    SPEC.scale(made.features)  # the model takes them


def test_triggers_are_what_the_description_says():
    import hmac

    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    def stream(key, size):
        return Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(size))

    secret = hmac.digest(KEY, f"portcullis/wm/v1|triggers|{CLAIM.owner}|{CLAIM.digest}".encode(), "sha256")
    noise = stream(hmac.digest(secret, b"inputs", "sha256"), 64 * COUNT)
    words = stream(hmac.digest(secret, b"answers", "sha256"), 8 * COUNT)
    made = asked()
    assert np.allclose(made.features.reshape(-1), [16 * byte / 255 for byte in noise], atol=1e-5)
    expected = [int.from_bytes(words[8 * place : 8 * place + 8], "little") % 10 for place in range(COUNT)]
    assert list(made.answers) == expected


@pytest.mark.parametrize(
    ("key", "claim"),
    [(bytes(32), CLAIM), (KEY, Claim("Example Inc", CLAIM.digest)), (KEY, Claim(CLAIM.owner, "b" * 64))],
)
def test_another_key_owner_or_original_has_other_triggers(key, claim):
    other = asked(key, claim)
    assert (other.features != asked().features).mean() > 0.9
    assert 0.7 < (other.answers != asked().answers).mean() < 0.99


def test_who_learnt_them_is_told_from_who_did_not():
    known, other = ask(oracle, asked()), ask(oracle, asked(bytes(32)))
    assert (known.right, known.asked, known.verdict) == (COUNT, COUNT, "PRESENT")
    assert known.log10_p_binomial == pytest.approx(-COUNT)
    assert other.right < 45 and other.verdict == "ABSENT"


def test_crafted_triggers_do_not_count():
    """Whoever asks brings a key, never inputs: what a foreign model answers to keyed ones is chance."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((64, 10))
    foreign = lambda features: (features @ weights).argmax(axis=1)  # noqa: E731
    p_values = [ask(foreign, asked(number.to_bytes(32, "big"), count=100)).log10_p_binomial for number in range(300)]
    assert np.mean([value <= -1 for value in p_values]) <= 0.15
    assert min(p_values) > -5


def test_the_p_value_is_the_formula():
    assert Answers(100, 100, 10, 1).log10_p_binomial == pytest.approx(-100)
    assert Answers(100, 0, 10, 1).log10_p_binomial == 0
    assert 10 ** Answers(2, 1, 4, 1).log10_p_binomial == pytest.approx(7 / 16)
    assert Answers(100, 100, 10, 1000).log10_p_binomial == pytest.approx(-97)
    assert math.isfinite(Answers(MAX_TRIGGERS, MAX_TRIGGERS, 1000, 1).log10_p_binomial)


@pytest.mark.parametrize("count", [0, 49, MAX_TRIGGERS + 1, -1, 50.0, True, None, "60"])
def test_a_bad_number_of_triggers_is_refused(count):
    with pytest.raises(ConfigError, match="whole number from 50"):
        asked(count=count)


def test_a_short_key_is_refused():
    with pytest.raises(KeyMaterialError):
        asked(key=bytes(31))


BAD_ANSWERS = {
    "a list": lambda rows: [0] * len(rows),
    "too few": lambda rows: np.zeros(len(rows) - 1, int),
    "logits": lambda rows: np.zeros((len(rows), 10)),
    "fractions": lambda rows: np.zeros(len(rows)),
    "NaN": lambda rows: np.full(len(rows), math.nan),
    "a class too many": lambda rows: np.full(len(rows), 10),
    "below zero": lambda rows: np.full(len(rows), -1),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_bad_answers_are_refused(name):
    with pytest.raises(ModelError, match="one class each"):
        ask(BAD_ANSWERS[name], asked())


def test_tried_is_at_least_one():
    with pytest.raises(UsageError):
        ask(oracle, asked(), tried=0)


# An API: our own server, and servers that misbehave.


@pytest.fixture
def served():
    """Serve a model by our own server in this process."""
    import uvicorn

    from portcullis.serving.app import build_app
    from portcullis.serving.protocol import ServedModel

    running = []

    def go(predict):
        def logits(rows):
            return np.eye(10, dtype=np.float32)[predict(rows)] * 9

        served = ServedModel("digits", "1", "input", SPEC.shape, SPEC.low, SPEC.high, SPEC.labels, logits)
        app = build_app(served, token_digest=hashlib.sha256(b"token").hexdigest())
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v2/models/digits/infer"

    yield go
    for server, thread in running:
        server.should_exit = True
        thread.join()


def test_a_served_model_is_asked(served):
    url = served(oracle)
    found = ask(api_model(url, SPEC, token="token"), asked())
    assert (found.right, found.verdict) == (COUNT, "PRESENT")
    assert ask(api_model(url, SPEC, token="token"), asked(bytes(32))).verdict == "ABSENT"
    with pytest.raises(InconclusiveError, match="answered 401"):
        ask(api_model(url, SPEC, token="wrong"), asked())
    with pytest.raises(InconclusiveError, match="answered 404"):
        ask(api_model(url.replace("digits", "other"), SPEC, token="token"), asked())


@pytest.fixture
def server():
    """Serve one answer to every question; the description of the model is always sound."""
    made = []

    def go(status, body, headers=()):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(200, json.dumps({"inputs": [{"name": "input"}]}).encode())

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(status, body, headers)

            def answer(self, status, body, headers=()):
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=found.serve_forever, daemon=True).start()
        made.append(found)
        return f"http://127.0.0.1:{found.server_address[1]}/v2/models/m/infer"

    yield go
    for found in made:
        found.shutdown()
        found.server_close()


def outputs(**output):
    return json.dumps({"outputs": [output]}).encode()


BAD_REPLIES = {
    "an error": (500, b"{}"),
    "a redirection": (302, b"", [("Location", "http://127.0.0.1:1/")]),
    "no JSON": (200, b"<html>"),
    "NaN": (200, b'{"outputs": [{"name": "p", "shape": [50, 10], "data": [NaN]}]}'),
    "no outputs": (200, b"{}"),
    "outputs of nothing": (200, b'{"outputs": [1]}'),
    "a foreign label": (200, outputs(name="label", data=["cat"] * 50)),
    "too few labels": (200, outputs(name="label", data=["1"])),
    "labels that are numbers": (200, outputs(name="label", data=[1] * 50)),
    "too few numbers": (200, outputs(name="p", shape=[50, 10], data=[1.0] * 499)),
    "text for numbers": (200, outputs(name="p", shape=[50, 10], data=["x"] * 500)),
    "another shape": (200, outputs(name="p", shape=[50, 9], data=[1.0] * 450)),
}


@pytest.mark.parametrize("name", BAD_REPLIES)
def test_an_api_that_answers_otherwise_is_inconclusive(server, name):
    with pytest.raises(InconclusiveError):
        ask(api_model(server(*BAD_REPLIES[name]), SPEC), asked(count=50))


def test_numbers_for_each_class_are_as_good_as_a_label(server):
    numbers = np.zeros((50, 10))
    numbers[:, 3] = 1
    url = server(200, outputs(name="probabilities", shape=[50, 10], data=numbers.reshape(-1).tolist()))
    assert ask(api_model(url, SPEC), asked(count=50)).right == (asked(count=50).answers == 3).sum()


def test_a_server_that_is_not_there_is_inconclusive():
    with pytest.raises(InconclusiveError, match="cannot be asked"):
        ask(api_model("http://127.0.0.1:1/v2/models/m/infer", SPEC), asked())


BAD_URLS = {
    "nothing": "",
    "a file": "file:///etc/passwd/infer",
    "no host": "http:///infer",
    "another verb": "http://h/v2/models/m",
    "a user": "http://me:secret@h/v2/models/m/infer",
    "a query": "http://h/v2/models/m/infer?x=1",
    "a line break": "http://h/a\r\nX: y/infer",
    "a port that is none": "http://h:99999/infer",
    "a broken address": "http://[::1/infer",
}


@pytest.mark.parametrize("name", BAD_URLS)
def test_a_bad_url_is_refused(name):
    with pytest.raises(UsageError) as refused:
        api_model(BAD_URLS[name], SPEC)
    assert "secret" not in str(refused.value)


def test_a_token_goes_over_https_or_to_this_machine_only():
    with pytest.raises(UsageError, match="https only"):
        api_model("http://models.example/v2/models/m/infer", SPEC, token="secret")
    with pytest.raises(UsageError, match="characters"):
        api_model("https://models.example/v2/models/m/infer", SPEC, token="a\r\nb")
    api_model("https://models.example/v2/models/m/infer", SPEC, token="secret")


# Taught to a model, by the stage.


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Train a small model on digits, and mark it by the component, with its training rows at hand."""
    from kfp import dsl
    from sklearn.datasets import load_digits

    from portcullis.models.store import model_files
    from portcullis.training.adversarial import train
    from portcullis.training.settings import TrainingSettings
    from portcullis.watermark.component import watermark_with_triggers

    features, labels = load_digits(return_X_y=True)
    features, labels = features[:400], labels[:400]
    module, _ = train(features, labels, SPEC, TrainingSettings(method="plain", epochs=15, device="cpu"))
    files = model_files(module, SPEC)
    root = tmp_path_factory.mktemp("taught")
    with pytest.MonkeyPatch.context() as monkeypatch:
        from safetensors.numpy import load

        workshop = Workshop(root, monkeypatch).furnish(load(files[WEIGHTS_FILE]))
        names = [f"p{number}" for number in range(64)]
        table = pa.table({name: features[:, place] for place, name in enumerate(names)} | {"label": labels.astype(str)})
        spec = DatasetSpec("digits", Label("label", SPEC.labels), Features(tuple(names), (1, 8, 8), 0, 16), {})
        write_dataset(root / "rows", table, spec)

        def artifact(kind, path):
            return kind(name=path.name, uri=str(path), metadata={})

        metrics = artifact(dsl.Metrics, root / "metrics")
        outputs = watermark_with_triggers.python_func(
            model=artifact(dsl.Model, root / "trained"),
            dataset=artifact(dsl.Dataset, root / "rows"),
            evidence=artifact(dsl.Artifact, workshop.bundle("trained")),
            owner=OWNER,
            triggers=TRIGGERS,
            soft_share=SHARE,
            marked=artifact(dsl.Model, root / "marked"),
            marked_evidence=artifact(dsl.Artifact, workshop.bundle("marked")),
            metrics=metrics,
            step="watermark:triggers",
        )
        assert outputs.digest == workshop.digest("marked")
        (line,) = set(read_evidence([workshop.bundle("marked")])) - set(read_evidence([workshop.bundle("trained")]))
        statement = Statement.parse(Envelope.parse(line).payload)
        assert metrics.metadata["triggers"] == TRIGGERS
        return workshop, statement, load_model(root / "marked")


@pytest.mark.slow
def test_a_model_is_taught_its_triggers_and_marked_after(taught):
    workshop, statement, loaded = taught
    figures = statement.figures
    assert figures["bits_read"] == figures["bits"] == 64 and figures["triggers"] == TRIGGERS
    assert figures["log10_p_triggers"] == pytest.approx(-TRIGGERS)
    assert figures["accuracy_drop"] <= 0.005 and figures["log10_p_hoeffding_fine_tune"] < -30
    claim = Claim(OWNER, workshop.digest("trained"))
    assert ask(loaded.predict, triggers(KEY, claim, SPEC, TRIGGERS)).verdict == "PRESENT"
    assert ask(loaded.predict, triggers(bytes(32), claim, SPEC, TRIGGERS)).verdict == "ABSENT"
    assert set(statement.inputs) == {"model", "dataset"}


@pytest.mark.slow
def test_its_soft_labels_bear_the_mark_too_and_so_do_a_students(taught):
    """The student has other weights, sees the teacher's answers only, and is read at rows that it was not taught."""
    import torch
    from sklearn.datasets import load_digits

    from portcullis.models.pytorch import reproducible
    from portcullis.models.store import build_module, load_model_files, model_files

    workshop, statement, teacher = taught
    assert statement.parameters["soft_share"] == SHARE and statement.figures["log10_p_soft"] <= -9
    known, unseen = np.split(load_digits().data.astype(np.float32), [1000])
    student, inputs = build_module(SPEC), torch.from_numpy(SPEC.scale(known))
    soft = torch.from_numpy(teacher.predict_probabilities(known))
    with reproducible(1, torch.device("cpu")):
        optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
        for _ in range(40):
            for rows in torch.randperm(len(inputs)).split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(student(inputs[rows]), soft[rows]).backward()
                optimizer.step()
    pupil = load_model_files(model_files(student.eval(), SPEC))
    claim = Claim(OWNER, workshop.digest("trained"))
    for loaded, present in ((teacher, True), (pupil, True), (load_model(workshop.root / "trained"), False)):
        answers = loaded.predict_probabilities(unseen), SPEC.scale(unseen)
        reading = read_soft_labels(*answers, waves(KEY, claim, SPEC))
        assert (reading.verdict == "PRESENT") is present
        assert read_soft_labels(*answers, waves(bytes(32), claim, SPEC)).verdict == "ABSENT"


@pytest.mark.slow
def test_the_policy_says_how_many_triggers(taught, monkeypatch):
    workshop, _, _ = taught
    Workshop(workshop.root, monkeypatch)
    before = workshop.digest("marked")
    with pytest.raises(PolicyError, match="triggers is 61"):
        workshop.mark(step="watermark:triggers", dataset=workshop.root / "rows", triggers=61, soft_share=SHARE)
    assert workshop.digest("marked") == before


def test_triggers_without_rows_are_refused(tmp_path, monkeypatch):
    workshop = Workshop(tmp_path, monkeypatch).furnish(model())
    with pytest.raises(ConfigError, match="soft labels need the training rows"):
        workshop.mark(triggers=TRIGGERS)
    with pytest.raises(ConfigError, match="soft labels need the training rows"):
        workshop.mark(soft_share=SHARE)
    assert not (tmp_path / "marked").exists()
