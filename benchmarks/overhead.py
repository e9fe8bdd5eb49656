"""`overhead`: what evidence and sealing add to the demo.

The steps of the demo run twice in one process: as signed steps, and as the bare functions that they call, with no
evidence, no sealing and no verification. Training, attacks and the search for poison cost the same in both and dwarf
the rest, so they run once, their result is used in every pair, and the difference of each pair is set against the
whole demo's time without evidence. KFP's own cost per task, the server's start, and that of the processes in which the
gates lock the model in are in neither.
"""

import os
import pkgutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from benchmarks import Record, command
from portcullis.admission.stage import admit
from portcullis.at_rest import subject_digest
from portcullis.budget.stage import evaluate_budget
from portcullis.dataset import features_and_labels, read_dataset, write_dataset
from portcullis.digest import content_digest, tree_digest
from portcullis.encryption.stage import encrypt
from portcullis.equivalence.compare import compare as compare_answers
from portcullis.equivalence.stage import evaluate_equivalence
from portcullis.evidence.step import enforce
from portcullis.ingest.readers import read_source
from portcullis.ingest.stage import ingest
from portcullis.isolation import run_isolated
from portcullis.keys import symmetric_key
from portcullis.ledger.mechanisms import MAX_EPSILON
from portcullis.ledger.settings import LedgerSettings
from portcullis.membership.stage import evaluate_membership
from portcullis.models.store import WEIGHTS_FILE, ModelSpec, load_model, read_model_files, save_model
from portcullis.pii.mask import mask_table
from portcullis.pii.residual import residual_figures
from portcullis.pii.stage import mask_pii, residual_pii
from portcullis.preflight.stage import preflight
from portcullis.privacy.noise import noise_dataset
from portcullis.privacy.stage import dp_noise
from portcullis.privacy.trial import trial
from portcullis.quality.screen import screen
from portcullis.quality.stage import evaluate_quality
from portcullis.robustness.stage import evaluate_robustness
from portcullis.serving.admitted import open_admitted
from portcullis.signing.stage import sign
from portcullis.split.split import split
from portcullis.split.stage import split_dataset
from portcullis.training.stage import train_model
from portcullis.watermark.battery import BATTERY, attack
from portcullis.watermark.mark import Claim, decoy_null, embed, read
from portcullis.watermark.stage import verify_watermark, watermark_model
from portcullis.watermark.weights import decode_weights, replace_weights
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home, ensure_trust, generate_keys, sealing_key

URI = "builtin:cheque-digits"
LONG = (
    "portcullis.training.adversarial.train",
    "portcullis.robustness.evaluate.evaluate",
    "portcullis.quality.network.activations",
    "portcullis.membership.inversion.invert",
)
# Where gates open the model in a process of its own.
LOCKED = ("membership.stage", "robustness.isolated", "equivalence.stage")


def signed(config: ReferenceConfig, home: Home, out: Path) -> None:
    """Run the steps as the pipeline does."""
    nonce = preflight(step="preflight", bundle=out / "e0")
    spec = str(config.arguments(URI)["dataset_spec"])
    ingest(
        step="ingest",
        nonce=nonce,
        evidence=out / "e0",
        uri=URI,
        spec=spec,
        dataset=out / "raw",
        quarantine=out / "quarantine",
        bundle=out / "e1",
    )
    masking = config.masking.to_dict()
    mask_pii(
        step="mask_pii",
        dataset=out / "raw",
        evidence=out / "e1",
        masking=masking,
        masked=out / "m",
        bundle=out / "e2",
    )
    residual_pii(
        step="residual_pii",
        dataset=out / "m",
        evidence=out / "e2",
        masking=masking,
        report=out / "r",
        details=out / "r.json",
        bundle=out / "e3",
    )
    enforce("residual_pii", subject=subject_digest("residual_pii", out / "m"), evidence=out / "e3", passed=out / "e4")
    evaluate_quality(
        step="data_quality",
        dataset=out / "m",
        evidence=out / "e4",
        settings=config.screening,
        report=out / "r2",
        bundle=out / "e4-verdict",
    )
    enforce(
        "data_quality",
        subject=subject_digest("data_quality", out / "m"),
        evidence=out / "e4-verdict",
        passed=out / "e4-q",
    )
    split_dataset(
        step="split",
        dataset=out / "m",
        evidence=out / "e4-q",
        test_fraction=config.test_fraction,
        train=out / "train",
        test=out / "test",
        bundle=out / "e5",
    )
    dp_noise(
        step="dp_noise",
        dataset=out / "train",
        evidence=out / "e5",
        plan=config.privacy.to_dict(),
        ledger=config.ledger_parameters(),
        noised=out / "noised",
        report=out / "r4",
        bundle=out / "e6",
    )
    train_model(
        step="train",
        dataset=out / "noised",
        evidence=out / "e6",
        architecture=config.architecture,
        options=config.options,
        settings=config.training,
        model=out / "model",
        report=out / "r7",
        bundle=out / "e7",
    )
    evaluate_membership(
        step="membership",
        model=out / "model",
        train=out / "noised",
        test=out / "test",
        evidence=out / "e7",
        settings=config.membership,
        report=out / "r6",
        bundle=out / "e7-attacked",
    )
    enforce("membership", subject=tree_digest(out / "model"), evidence=out / "e7-attacked", passed=out / "e7-passed")
    evaluate_budget(
        step="budget",
        model=out / "model",
        evidence=out / "e7-passed",
        ledger=config.ledger_parameters(),
        charging=config.charging,
        report=out / "r2",
        bundle=out / "e7-verdict",
    )
    enforce("budget", subject=tree_digest(out / "model"), evidence=out / "e7-verdict", passed=out / "e8")
    judge(config, "robustness:trained", out / "model", out, evidence=out / "e8", passed=out / "e9")
    owner = config.dataset.name
    marked, original = out / "marked", out / "model"
    watermark_model(
        step="watermark", model=original, evidence=out / "e9", owner=owner, marked=marked, bundle=out / "e10"
    )
    verify_watermark(
        step="verify_watermark",
        model=marked,
        unmarked=original,
        evidence=out / "e10",
        owner=owner,
        report=out / "r3",
        bundle=out / "e11",
    )
    enforce("verify_watermark", subject=tree_digest(marked), evidence=out / "e11", passed=out / "e12")
    judge(config, "robustness:watermarked", marked, out, evidence=out / "e12", passed=out / "e14")
    evaluate_equivalence(
        step="equivalence",
        model=marked,
        judged=original,
        test=out / "test",
        evidence=out / "e14",
        report=out / "r5",
        bundle=out / "e15",
    )
    enforce("equivalence", subject=tree_digest(marked), evidence=out / "e15", passed=out / "e16")
    encrypt(
        step="encrypt",
        model=marked,
        evidence=out / "e16",
        recipients=config.recipients,
        sealed=out / "sealed",
        bundle=out / "e17",
    )
    sign(step="sign", sealed=out / "sealed", evidence=out / "e17", signature=out / "sig", bundle=out / "e18")
    admit(sealed=out / "sealed", signature=out / "sig", evidence=out / "e18", admission=out / "admission")
    open_admitted(
        sealed=out / "sealed",
        admission=out / "admission",
        evidence=out / "e18",
        trust=None,
        key=sealing_key(home),
    )


def judge(config: ReferenceConfig, gate: str, model: Path, out: Path, *, evidence: Path, passed: Path) -> None:
    """Let a robustness gate judge a model."""
    verdict = passed.with_name(f"{passed.name}-verdict")
    evaluate_robustness(
        step=gate,
        model=model,
        test=out / "test",
        evidence=evidence,
        settings=config.robustness,
        report=out / "report",
        bundle=verdict,
    )
    enforce(gate, subject=tree_digest(model), evidence=verdict, passed=passed)


def bare(config: ReferenceConfig, home: Home, out: Path) -> None:
    """Run the functions that the steps call, on the same data, without evidence and sealing."""
    from portcullis.membership.attack import attack as infer
    from portcullis.membership.inversion import invert
    from portcullis.membership.losses import losses
    from portcullis.robustness.evaluate import evaluate
    from portcullis.training.adversarial import train

    source = read_source(URI, config.dataset)
    write_dataset(out / "raw", source.table, source.spec)
    raw = read_dataset(out / "raw")
    plan = config.masking
    table, _ = mask_table(raw.table, plan, key=symmetric_key(f"file:{home.keys / 'masking.key'}"))
    write_dataset(out / "m", table, raw.spec)
    residual_figures(read_dataset(out / "m").table, plan)
    masked = read_dataset(out / "m")
    list(screen(masked, config.screening))
    sides = split(masked, key=symmetric_key(f"file:{home.keys / 'split.key'}"), test_fraction=config.test_fraction)
    write_dataset(out / "train", sides.train, masked.spec)
    write_dataset(out / "test", sides.test, masked.spec)
    trained_on = read_dataset(out / "train")
    noised = noise_dataset(trained_on, config.privacy)
    trial(noised.mechanisms, noised.table)
    write_dataset(out / "noised", noised.table, noised.spec)
    rows = read_dataset(out / "noised")
    described = rows.spec.features
    spec = ModelSpec(
        config.architecture, config.options, described.shape, described.low, described.high, rows.spec.label.classes
    )
    module, _ = train(*features_and_labels(rows), spec, config.training)
    save_model(out / "model", module, spec)
    held, model = read_dataset(out / "test"), load_model(out / "model")
    features, labels = features_and_labels(held)
    infer(losses(model, *features_and_labels(rows)), losses(model, features, labels), config.membership)
    invert(model, rows, held, config.membership)
    evaluate(model, features, labels, config.robustness)
    mark(out / "model", out / "marked", symmetric_key(f"file:{home.keys / 'watermark.key'}"), config.dataset.name)
    evaluate(load_model(out / "marked"), features, labels, config.robustness)
    before, after = (load_model(out / name).predict_logits(features) for name in ("model", "marked"))
    compare_answers(before, after, labels)
    load_model(out / "marked")


def mark(model: Path, marked: Path, key: bytes, owner: str) -> None:
    """Mark a model, try what the mark survives, and read it again, as the two steps do."""
    files = read_model_files(model)
    claim = Claim(owner, content_digest(files))
    tensors = embed(decode_weights(files[WEIGHTS_FILE]), key, claim).tensors
    marked.mkdir(exist_ok=True)
    for name, data in {**files, WEIGHTS_FILE: replace_weights(files[WEIGHTS_FILE], tensors)}.items():
        (marked / name).write_bytes(data)
    for change in BATTERY.values():
        read(attack(tensors, change), key, claim)
    read(tensors, key, claim)
    decoy_null(tensors, key)


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the record of this benchmark."""
    with tempfile.TemporaryDirectory(prefix="portcullis-bench-") as folder, _home(Path(folder)) as (config, home):
        with ExitStack() as recorded:
            results = {name: recorded.enter_context(_recorded(name)) for name in LONG}
            whole = _timed(bare, config, home, Path(folder))
        added = []
        with ExitStack() as replayed:
            for name, found in results.items():
                replayed.enter_context(mock.patch(name, return_value=found[0]))
            children = _Children()
            for gate in LOCKED:
                replayed.enter_context(mock.patch(f"portcullis.{gate}.run_isolated", children))
            _timed(signed, config, home, Path(folder))
            for _ in range(5 if quick else 20):
                without = _timed(bare, config, home, Path(folder))
                added.append(_timed(signed, config, home, Path(folder)) - without)
    shares = [100 * seconds / whole for seconds in added]
    low, _, high = statistics.quantiles(shares, n=4)
    middle = statistics.median(shares)
    return [
        Record(
            name=f"evidence and sealing, of the demo's {whole:.1f} s without them",
            unit="%",
            ours=middle,
            peer=None,
            peer_name="",
            ratio=None,
            spread=(high - low) / middle,
            target=10,
            better="lower",
        )
    ]


class _Children:
    """Runs each gate's locked process once; from then on what it answered, and left in its files, is given again."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, int], tuple[Any, list[bytes]]] = {}
        self.calls: Counter[str] = Counter()

    def __call__(self, function: str, files: Sequence[BinaryIO], arguments: Mapping[str, Any], **limits: Any) -> Any:
        turn = (function, self.calls[function] % (2 if "robustness" in function else 1))  # which of the run's gates
        self.calls[function] += 1
        if turn not in self.known:
            self.known[turn] = run_isolated(function, files, arguments, **limits), [_content(it) for it in files]
            return self.known[turn][0]
        answer, contents = self.known[turn]
        for file, content in zip(files, contents, strict=True):
            if _content(file) != content:  # the rows and the model are handed over, not left behind
                file.seek(0)
                file.write(content)
        return answer


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


@contextmanager
def _recorded(name: str) -> Iterator[list[object]]:
    """Call the function through, and keep what it returns."""
    results: list[object] = []
    function = pkgutil.resolve_name(name)

    def call(*arguments: object, **named: object) -> object:
        results.append(function(*arguments, **named))
        return results[-1]

    with mock.patch(name, call):
        yield results


@contextmanager
def _home(folder: Path) -> Iterator[tuple[ReferenceConfig, Home]]:
    home = Home(folder / "home")
    generate_keys(home)
    config = ReferenceConfig.load(None)
    config = replace(config, ledger=LedgerSettings(config.dataset.name, MAX_EPSILON))  # for the many runs of this
    _, config = ensure_trust(home, config)
    with mock.patch.dict(os.environ, home.environment):
        yield config, home


def _timed(
    work: Callable[[ReferenceConfig, Home, Path], None], config: ReferenceConfig, home: Home, folder: Path
) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        start = time.perf_counter()
        work(config, home, Path(out))
        return time.perf_counter() - start


if __name__ == "__main__":
    command("overhead", measure)
