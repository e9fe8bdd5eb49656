"""The verbs for a model found elsewhere: is it marked, and whose is it?"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portcullis.cli.show import SHORT, say
from portcullis.errors import MissingDependencyError, UsageError

try:
    from portcullis_pipelines import home as homes
except ImportError as error:  # pragma: no cover - the wheel always carries both packages
    raise MissingDependencyError("the package portcullis_pipelines is missing; reinstall kfp-portcullis") from error

if TYPE_CHECKING:
    from portcullis.models.store import ModelSpec
    from portcullis.watermark.examine import Examination
    from portcullis.watermark.mark import Claim
    from portcullis.watermark.soft_labels import Probabilities, SoftReading
    from portcullis.watermark.triggers import Answers

_CODES = {"PRESENT": 0, "ABSENT": 1, "INCONCLUSIVE": 3}
_EXISTING = click.Path(exists=True, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
_unmarked = click.option(
    "--unmarked", type=_FOLDER, required=True, help="Directory of the model that was marked, as it was before."
)
_key = click.option(
    "--key", "uri", help="The watermark key: file:/path or env:NAME (default: watermark.key of PORTCULLIS_KEYS)."
)
_trust = click.option(
    "--trust",
    type=click.Path(path_type=Path),
    help="Trust store that the evidence verifies by (default: PORTCULLIS_TRUST, or the only one below "
    "PORTCULLIS_HOME).",
)


_MAX_PEM_BYTES = 1 << 20


def _authorities(*, required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--authorities",
        type=_EXISTING,
        required=required,
        help="Certificates that time-stamp authorities are known by, PEM.",
    )


@click.group()
def watermark() -> None:
    """Look for an owner's mark in a model."""


@watermark.command("verify")
@click.argument("suspect", type=_EXISTING, required=False)
@_unmarked
@_key
@click.option("--owner", required=True, help="Whom the mark must name.")
@click.option("--url", help="Ask a served model its triggers: http(s)://HOST/v2/models/NAME/infer.")
@click.option("--token", help="URI of the bearer token for --url: file:/path or env:NAME.")
@click.option("--triggers", type=int, help="How many triggers the marked model was taught; --url needs it.")
@click.option("--rows", type=_FOLDER, help="Data set (files and description) to read soft labels at; the owner's own.")
@click.option(
    "--tried",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many suspects, keys and claims you try in all; every p-value is multiplied by it.",
)
@_json
def verify_mark(
    suspect: Path | None,
    unmarked: Path,
    uri: str | None,
    owner: str,
    url: str | None,
    token: str | None,
    triggers: int | None,
    rows: Path | None,
    tried: int,
    as_json: bool,  # noqa: FBT001
) -> int:
    """Look for an owner's mark in SUSPECT, a model's directory or its .safetensors file, or behind an API.

    Weights are read blind, and if that does not find the mark, aligned to the unmarked model: so reordered, rescaled,
    split, added and renamed neurons do not hide it. With --rows, soft labels are read as well, of the API or else of
    SUSPECT, a directory then: so a student is found that learnt from those of a model marked there. Prints what was
    read, and PRESENT (p <= 1e-9; exit code 0), ABSENT (p >= 1e-3; exit code 1) or INCONCLUSIVE (exit code 3). Reads
    safetensors only.
    """
    from portcullis.digest import content_digest
    from portcullis.keys import resolve
    from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, ModelSpec, load_model, read_model_files
    from portcullis.watermark.api import api_model, api_probabilities
    from portcullis.watermark.examine import WAYS, examine
    from portcullis.watermark.mark import Claim
    from portcullis.watermark.triggers import ask
    from portcullis.watermark.triggers import triggers as make_triggers
    from portcullis.watermark.weights import decode_weights

    if suspect is None and url is None:
        raise UsageError("name a suspect: a model's directory, its .safetensors file, or --url of a served one")
    if url is None and (triggers is not None or token is not None):
        raise UsageError("--triggers and --token need --url")
    if url is not None and triggers is None and rows is None:
        raise UsageError("--url needs --triggers or --rows: what is it to be asked?")
    if rows is not None and url is None and suspect is not None and not suspect.is_dir():
        raise UsageError("--rows needs a suspect's directory, or --url")
    key, files = _watermark_key(uri), read_model_files(unmarked)
    mark = Claim(owner, content_digest(files))
    in_all = tried * (WAYS * (suspect is not None) + (triggers is not None) + (rows is not None))
    found = answered = soft = None
    spec = ModelSpec.from_json(files[SPEC_FILE])
    secret = resolve(token).decode("ascii", "replace").strip() if token else ""
    if suspect is not None:
        tensors = decode_weights(_weights(suspect))
        found = examine(tensors, decode_weights(files[WEIGHTS_FILE]), key, mark, tried=in_all)
    if url is not None and triggers is not None:
        answered = ask(api_model(url, spec, token=secret), make_triggers(key, mark, spec, triggers), tried=in_all)
    if rows is not None and url is not None:
        soft = _soft_labels(api_probabilities(url, spec, token=secret), rows, spec, key, mark, in_all)
    elif rows is not None and suspect is not None:
        soft = _soft_labels(load_model(suspect).predict_probabilities, rows, spec, key, mark, in_all)
    verdict = _best([it.verdict for it in (found, answered, soft) if it is not None])
    if as_json:
        click.echo(json.dumps(_document(verdict, found, answered, soft), indent=2))
    else:
        if found:
            _say_weights(found)
        if answered:
            _say_answers(answered)
        if soft:
            _say_soft(soft)
        say(verdict)
    return _CODES[verdict]


@click.group()
def claim() -> None:
    """Make or judge a claim that a model is one's own."""


@claim.command("stamp")
@click.argument("evidence", type=_EXISTING)
@_unmarked
@click.option("--url", required=True, help="A time-stamp authority (RFC 3161), http(s)://HOST/…")
@_authorities(required=True)
@_trust
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Time stamp to write.")
def stamp(evidence: Path, unmarked: Path, url: str, authorities: Path, trust: Path | None, output: Path) -> None:
    """Have a third party stamp the commitment in EVIDENCE, so that its time is not only the signer's word.

    Do it as soon as the model is marked, and keep the file for `claim make --stamp`. The authority sees a hash.
    """
    from portcullis.evidence.step import read_evidence
    from portcullis.evidence.trust import TrustStore
    from portcullis.files import read_bytes, write_bytes
    from portcullis.models.store import read_model_files
    from portcullis.timestamps import request_stamp, verify_stamp
    from portcullis.watermark.claims import commitment_of

    store, roots = TrustStore.load(trust or homes.default_trust()), read_bytes(authorities, limit=_MAX_PEM_BYTES)
    document = commitment_of(read_evidence([evidence]), store, read_model_files(unmarked)).encode()
    data = request_stamp(url, document, roots)
    write_bytes(output, data)
    say(f"stamped by {_time(verify_stamp(data, document, roots).latest)}: {output}")


@claim.command("make")
@click.argument("suspect", type=_EXISTING)
@_unmarked
@click.option("--marked", type=_FOLDER, required=True, help="Directory of the marked model, as the step wrote it.")
@click.option("--evidence", type=_EXISTING, required=True, help="Evidence of the run that marked it, .intoto.jsonl.")
@_key
@_trust
@click.option("--stamp", type=_EXISTING, help="Time stamp of the commitment, from `claim stamp`.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Dispute file to write.")
def make(
    suspect: Path,
    unmarked: Path,
    marked: Path,
    evidence: Path,
    uri: str | None,
    trust: Path | None,
    stamp: Path | None,
    output: Path,
) -> None:
    """Write a dispute file: that SUSPECT bears the mark, and what was committed to when it was made.

    It opens the commitment and holds no key. Whoever judges it needs the key, SUSPECT and the unmarked model besides.
    """
    from portcullis.evidence.step import read_evidence
    from portcullis.evidence.trust import TrustStore
    from portcullis.files import read_bytes, write_bytes
    from portcullis.models.store import read_model_files
    from portcullis.timestamps import MAX_STAMP_BYTES
    from portcullis.watermark.claims import make_claim

    data = make_claim(
        read_evidence([evidence]),
        TrustStore.load(trust or homes.default_trust()),
        _watermark_key(uri),
        unmarked=read_model_files(unmarked),
        marked=read_model_files(marked),
        suspect=_weights(suspect),
        stamp=read_bytes(stamp, limit=MAX_STAMP_BYTES) if stamp else None,
    )
    write_bytes(output, data)
    say(f"claim in {output}; hand key, suspect and unmarked model to the judge by another way")


@claim.command("check")
@click.argument("file", type=_EXISTING)
@click.option("--suspect", type=_EXISTING, required=True, help="The suspect: directory or .safetensors file.")
@_unmarked
@_key
@_trust
@_authorities(required=False)
@click.option("--against", type=_EXISTING, help="Another's dispute file; refuse unless FILE was committed to first.")
@click.option("--against-trust", type=_FOLDER, help="Trust store of the other (default: --trust).")
@click.option("--against-unmarked", type=_FOLDER, help="The other's unmarked model: is this mark in it too?")
@_json
def check(
    file: Path,
    suspect: Path,
    unmarked: Path,
    uri: str | None,
    trust: Path | None,
    authorities: Path | None,
    against: Path | None,
    against_trust: Path | None,
    against_unmarked: Path | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Judge a dispute file: evidence, commitment, key and models fit, and the mark is PRESENT when it is read again.

    With --against, the earlier of two commitments wins: by the signers' clocks, or with --authorities by time stamps,
    which a claim then must have. Exit code 0 when the claim holds, 1 when it does not.
    """
    from portcullis.evidence.trust import TrustStore
    from portcullis.files import read_bytes
    from portcullis.models.store import read_model_files
    from portcullis.watermark import claims

    if against is None and (against_trust or against_unmarked):
        raise UsageError("--against-trust and --against-unmarked need --against")
    store, key, files = TrustStore.load(trust or homes.default_trust()), _watermark_key(uri), read_model_files(unmarked)
    data = read_bytes(file, limit=claims.MAX_CLAIM_BYTES)
    known = read_bytes(authorities, limit=_MAX_PEM_BYTES) if authorities else None
    checked = claims.check_claim(data, store, key, unmarked=files, suspect=_weights(suspect), authorities=known)
    document: dict[str, Any] = {"holds": True, **claims.claim_figures(checked)}
    if against is not None:
        other = read_bytes(against, limit=claims.MAX_CLAIM_BYTES)
        theirs = TrustStore.load(against_trust) if against_trust else store
        document["other_committed"] = _time(claims.require_earlier(checked, other, theirs, authorities=known))
        if against_unmarked is not None:
            original = read_model_files(against_unmarked)
            found = claims.read_in_their_original(data, theirs, key, other, unmarked=files, theirs=original)
            document["in_their_unmarked"] = found.verdict
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    _say_weights(checked.examination)
    say(f"suspect {checked.suspect[:SHORT]} bears the mark of {checked.owner}")
    say(f"committed to by its signer's clock at {document['committed']}")
    if "stamped" in document:
        say(f"a time-stamp authority saw the commitment by {document['stamped']}")
    if against is not None:
        say(f"the other committed later; by its signer's clock {document['other_committed']}")
    if "in_their_unmarked" in document:
        say(f"this mark in the other's unmarked model: {document['in_their_unmarked']}")


def _time(instant: int) -> str:
    from portcullis.evidence.statement import format_time

    return format_time(instant)


def _watermark_key(uri: str | None) -> bytes:
    from portcullis.evidence.step import keys_base
    from portcullis.keys import role_uri, symmetric_key

    return symmetric_key(uri or role_uri(keys_base(), "watermark.key"))


def _weights(suspect: Path) -> bytes:
    """Read the weights of a suspect: a model's directory or a safetensors file, whatever it is called."""
    from portcullis.files import read_bytes
    from portcullis.models.store import MAX_WEIGHTS_BYTES, WEIGHTS_FILE

    return read_bytes(suspect / WEIGHTS_FILE if suspect.is_dir() else suspect, limit=MAX_WEIGHTS_BYTES)


def _soft_labels(
    predict: "Probabilities", rows: Path, spec: "ModelSpec", key: bytes, mark: "Claim", tried: int
) -> "SoftReading":
    from portcullis.dataset import features_and_labels, read_dataset
    from portcullis.watermark.soft_labels import MAX_ROWS, read_soft_labels, waves

    parsed = read_dataset(rows)
    spec.require_fit(parsed.spec)
    features = features_and_labels(parsed)[0][:MAX_ROWS]
    return read_soft_labels(predict(features), spec.scale(features), waves(key, mark, spec), tried=tried)


def _best(verdicts: list[str]) -> str:
    return min(verdicts, key=["PRESENT", "INCONCLUSIVE", "ABSENT"].index)


def _say_weights(found: "Examination") -> None:
    reading, null = found.reading, found.null
    say(f"weights, read {found.way}: {reading.bits_read} of {reading.bits} bits, z = {reading.z:.2f}")
    say(
        f"  p <= 1e{reading.log10_p_hoeffding:.1f} (Hoeffding, Bonferroni for {reading.tried} readings): "
        f"{found.verdict}"
    )
    say(f"  p  = 1e{reading.log10_p_binomial:.1f} (exact binomial of the bits, so corrected too)")
    say(
        f"  {null.decoys} decoy keys: z of mean {null.mean:.2f}, standard deviation {null.sd:.2f}, "
        f"largest {null.maximum:.2f}"
    )
    if found.likeness is not None:
        say(f"  likeness to the unmarked model, aligned: {found.likeness:.3f}")


def _say_answers(answered: "Answers") -> None:
    say(f"API: {answered.right} of {answered.asked} triggers; by chance {answered.asked / answered.classes:.1f}")
    say(
        f"  p  = 1e{answered.log10_p_binomial:.1f} (exact binomial, Bonferroni for {answered.tried} readings): "
        f"{answered.verdict}"
    )


def _say_soft(soft: "SoftReading") -> None:
    said = f"p <= 1e{soft.log10_p_hoeffding:.1f} (Hoeffding, Bonferroni for {soft.tried} readings): {soft.verdict}"
    say(f"soft labels at {soft.rows} rows: z = {soft.z:.2f}")
    say(f"  {said}")


def _document(
    verdict: str, found: "Examination | None", answered: "Answers | None", soft: "SoftReading | None"
) -> dict[str, Any]:
    document: dict[str, Any] = {"verdict": verdict}
    if found:
        document["weights"] = found.figures()
    if answered:
        document["api"] = {
            "asked": answered.asked,
            "right": answered.right,
            "classes": answered.classes,
            "tried": answered.tried,
            "log10_p_binomial": answered.log10_p_binomial,
            "verdict": answered.verdict,
        }
    if soft:
        document["soft_labels"] = {
            "rows": soft.rows,
            "z": soft.z,
            "tried": soft.tried,
            "log10_p_hoeffding": soft.log10_p_hoeffding,
            "verdict": soft.verdict,
        }
    return document
