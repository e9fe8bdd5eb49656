"""Claims to a model: what was committed to when it was marked, opened when it is found elsewhere.

The `watermark` step signs a *commitment*, the hash of a document that names the key by a salted hash, and owner,
models, tensors and parameters in the clear. It tells nothing before it is opened, and cannot be opened in two ways. A
*dispute file* opens it: it holds the document, the salt, the signed evidence, and what was read in the suspect.

Whoever judges it needs the key as well, the unmarked model and the suspect, and a trust store that the owner's keys are
known by. They find for themselves that the commitment was signed, for this key, owner and original; and read the mark
again. So a forger cannot choose bits, for they follow from the key; nor publish another original, for code and chips
follow from its digest; nor craft triggers, for they follow from both; nor, having found a key, date it back.

When two claims hold for one model, one was marked over the other. **The earlier commitment wins.** Its time is that of
the clock of whoever signed it; or, to a judge who names authorities of RFC 3161, that of its time stamp. What needs no
clock: the first one's mark is in the second one's unmarked model too.
"""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portcullis.digest import canonical_json, content_digest, is_digest, parse_canonical_json, sha256
from portcullis.errors import DataError, EvidenceError, ModelError
from portcullis.evidence.chain import verify_chain
from portcullis.evidence.dsse import Envelope
from portcullis.evidence.statement import Figure, Statement, format_time
from portcullis.evidence.trust import TrustStore
from portcullis.models.store import WEIGHTS_FILE
from portcullis.timestamps import Stamped, verify_stamp
from portcullis.watermark.examine import Examination, examine
from portcullis.watermark.mark import Claim, Tensors, mac, require_key
from portcullis.watermark.weights import decode_weights

COMMITMENT_FORMAT = "portcullis-watermark/v3"
CLAIM_FORMAT = "portcullis-claim/v2"
STAGE = "watermark"
MAX_CLAIM_BYTES = 64 << 20

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Opening:
    """What a commitment commits to.

    Attributes:
        document: The document, whose hash is in the evidence.
        salt: 32 bytes in hexadecimal; with the key they give the document's hash of it.
    """

    document: Mapping[str, Any]
    salt: str

    @property
    def digest(self) -> str:
        """The commitment: SHA-256 of the document."""
        return sha256(canonical_json(dict(self.document)))


@dataclass(frozen=True)
class Checked:
    """A claim that holds.

    Attributes:
        owner: Whoever committed.
        committed: When, milliseconds since the epoch, by the signer's clock.
        stamped: When by its time stamp, where the judge asks for one.
        suspect: SHA-256 of the suspect's weights file.
        examination: What was read in it now.
    """

    owner: str
    committed: int
    stamped: Stamped | None
    suspect: str
    examination: Examination


def open_commitment(
    key: bytes, claim: Claim, *, marked: str, tensors: Tensors, bits: int, triggers: int = 0, soft_share: float = 0.0
) -> Opening:
    """Return a commitment, opened. The same key, claim and model always give the same.

    Args:
        key: The watermark key; it enters through a hash, salted by a value that is derived from it.
        claim: Owner and unmarked model.
        marked: Content digest of the marked model.
        tensors: Its tensors, of which names and shapes count.
        bits: Length of the code.
        triggers: How many triggers the model was taught.
        soft_share: How much of its probability carries a mark in its soft labels.

    Raises:
        KeyMaterialError: The key does not have 32 bytes.
    """
    require_key(key)
    salt = mac(key, f"salt|{claim.digest}")
    document = {
        "format": COMMITMENT_FORMAT,
        "key": sha256(salt + key),
        "owner": claim.owner,
        "unmarked": claim.digest,
        "marked": marked,
        "tensors": [[name, list(tensors[name].shape)] for name in sorted(tensors)],
        "bits": bits,
        "triggers": triggers,
        "soft_share": soft_share,
    }
    return Opening(document, salt.hex())


def commitment_of(lines: Sequence[bytes], store: TrustStore, unmarked: Files) -> str:
    """Return the commitment, 64 hexadecimal digits, that was signed when a model was marked.

    Args:
        lines: The evidence of the run that marked the model.
        store: The trust store that it verifies by.
        unmarked: The two files of the unmarked model.

    Raises:
        EvidenceError: The evidence does not hold or holds no commitment.
    """
    commitment = _marking(lines, store, content_digest(unmarked)).figures.get("commitment")
    if not is_digest(commitment):
        raise EvidenceError("the evidence holds no commitment")
    return str(commitment)


def make_claim(
    lines: Sequence[bytes],
    store: TrustStore,
    key: bytes,
    *,
    unmarked: Files,
    marked: Files,
    suspect: bytes,
    stamp: bytes | None = None,
) -> bytes:
    """Make a dispute file.

    Args:
        lines: The evidence of the run that marked the model.
        store: The trust store that it verifies by.
        key: The watermark key.
        unmarked: The two files of the unmarked model.
        marked: Those of the marked model.
        suspect: The suspect's weights, a safetensors file.
        stamp: A time stamp of the commitment (`timestamps.request_stamp`). It is not looked at: the judge does.

    Raises:
        EvidenceError: The evidence does not hold, or its commitment is not to this key and these models.
        ModelError: A model is malformed, or the suspect does not bear the mark.
        KeyMaterialError: The key does not have 32 bytes.
    """
    statement = _marking(lines, store, content_digest(unmarked))
    claim = Claim(_owner(statement), content_digest(unmarked))
    triggers, share = (statement.parameters.get(name, 0) for name in ("triggers", "soft_share"))
    tensors, bits = decode_weights(marked[WEIGHTS_FILE]), int(statement.figures.get("bits", 0))
    opening = open_commitment(
        *(key, claim),
        marked=content_digest(marked),
        tensors=tensors,
        bits=bits,
        triggers=int(triggers),
        soft_share=float(share),
    )
    if statement.figures.get("commitment") != opening.digest:
        raise EvidenceError("the commitment in the evidence is not to this key and these two models")
    found = _require_present(suspect, unmarked, key, claim)
    return canonical_json(
        {
            "format": CLAIM_FORMAT,
            "commitment": dict(opening.document),
            "salt": opening.salt,
            "suspect": sha256(suspect),
            "reading": found.figures(),
            "evidence": [line.decode() for line in lines],
            "stamp": None if stamp is None else base64.b64encode(stamp).decode(),
        }
    )


def check_claim(
    data: bytes,
    store: TrustStore,
    key: bytes,
    *,
    unmarked: Files,
    suspect: bytes,
    authorities: bytes | None = None,
) -> Checked:
    """Judge a dispute file.

    Args:
        data: The file; it is not trusted.
        store: The judge's own trust store of the claimant.
        key: The key that the claimant hands over.
        unmarked: The two files of the model that they say they marked.
        suspect: The suspect's weights, a safetensors file.
        authorities: Certificates of the time-stamp authorities that the judge knows, PEM. With them, a claim without a
            time stamp by one of them does not hold.

    Raises:
        EvidenceError: The file is malformed; its evidence does not hold; or what it says was committed to was not, or
            is another key, owner, original or suspect; or was not stamped, where that is asked for.
        ModelError: A model is malformed, or the suspect does not bear the mark.
        KeyMaterialError: The key does not have 32 bytes.
    """
    require_key(key)
    opening, lines, stated = _parse(data)
    document = opening.document
    statement = _committed(opening, lines, store)
    stamped = None
    if authorities is not None:
        stamped = _stamped(opening, stated, authorities)
        if stamped is None:
            raise EvidenceError("the claim has no time stamp; `portcullis claim stamp` asks for one")
    if not hmac.compare_digest(opening.salt, mac(key, f"salt|{document['unmarked']}").hex()) or not (
        hmac.compare_digest(document["key"], sha256(bytes.fromhex(opening.salt) + key))
    ):
        raise EvidenceError("the commitment is to another key than this")
    if document["unmarked"] != content_digest(unmarked):
        raise EvidenceError("the commitment is to another unmarked model than this")
    if stated["suspect"] != sha256(suspect):
        raise EvidenceError("the claim is to another suspect than this")
    found = _require_present(suspect, unmarked, key, Claim(document["owner"], document["unmarked"]))
    # The judge's own figures count; of the stated ones, another processor may round the last digits otherwise.
    if stated["reading"].get("verdict") != found.verdict:
        raise EvidenceError("the claim does not say that the mark is PRESENT")
    return Checked(document["owner"], statement.finished, stamped, stated["suspect"], found)


def require_earlier(checked: Checked, other: bytes, store: TrustStore, *, authorities: bytes | None = None) -> int:
    """Refuse unless a claim was committed to before another claim to the same suspect.

    Args:
        checked: The claim that holds.
        other: The other dispute file. Its mark is not read: whether it is there does not matter here.
        store: The judge's own trust store of the other claimant.
        authorities: As of `check_claim`, which then was given them as well. Time stamps decide in place of the
            signers' clocks, and one that is stamped is earlier than one that is not.

    Returns:
        When the other was committed to by its signer's clock, milliseconds since the epoch.

    Raises:
        EvidenceError: The other is malformed or its evidence does not hold; it is to another suspect; or it was
            committed to first, or at the same instant as far as the clocks can tell.
    """
    opening, lines, stated = _parse(other)
    statement = _committed(opening, lines, store)
    if stated["suspect"] != checked.suspect:
        raise EvidenceError("the other claim is to another suspect")
    if authorities is not None:
        theirs = _stamped(opening, stated, authorities)
        if checked.stamped is None or (theirs is not None and not checked.stamped.before(theirs)):
            raise EvidenceError("the other claim's time stamp is not later than this one's")
    elif not checked.committed < statement.finished:
        raise EvidenceError(
            f"the other claim was committed to first: at {format_time(statement.finished)}, "
            f"this one at {format_time(checked.committed)}"
        )
    return statement.finished


def read_in_their_original(
    data: bytes, store: TrustStore, key: bytes, other: bytes, *, unmarked: Files, theirs: Files
) -> Examination:
    """Read a claim's mark in the model that another claimant says they marked: it is there if theirs came from ours.

    Args:
        data: Our dispute file, which holds (`check_claim`).
        store: The judge's own trust store of the other claimant.
        key: Our key.
        other: The other dispute file.
        unmarked: The two files of our unmarked model.
        theirs: Those of the model that the other says they marked.

    Raises:
        EvidenceError: The other is malformed, its evidence does not hold, or it is to another unmarked model.
        ModelError: A model is malformed.
    """
    ours, _, _ = _parse(data)
    opening, lines, _ = _parse(other)
    _committed(opening, lines, store)
    if opening.document["unmarked"] != content_digest(theirs):
        raise EvidenceError("the other claim is to another unmarked model than this")
    claim = Claim(ours.document["owner"], ours.document["unmarked"])
    return examine(decode_weights(theirs[WEIGHTS_FILE]), decode_weights(unmarked[WEIGHTS_FILE]), key, claim)


def _parse(data: bytes) -> tuple[Opening, list[bytes], Mapping[str, Any]]:
    try:
        value = parse_canonical_json(data, limit=MAX_CLAIM_BYTES)
    except DataError as error:
        raise EvidenceError(f"not a dispute file: {error}") from error
    names = {"format", "commitment", "salt", "suspect", "reading", "evidence", "stamp"}
    if not isinstance(value, dict) or value.keys() != names or value["format"] != CLAIM_FORMAT:
        raise EvidenceError(f"not a dispute file of the format {CLAIM_FORMAT}")
    document, lines = value["commitment"], value["evidence"]
    fields = {"format", "key", "owner", "unmarked", "marked", "tensors", "bits", "triggers", "soft_share"}
    sound = (
        isinstance(document, dict)
        and document.keys() == fields
        and document["format"] == COMMITMENT_FORMAT
        and isinstance(document["owner"], str)
        and all(is_digest(document[name]) for name in ("key", "unmarked", "marked"))
        and is_digest(value["salt"])
        and is_digest(value["suspect"])
        and isinstance(value["reading"], dict)
        and isinstance(lines, list)
        and all(isinstance(line, str) for line in lines)
        and (value["stamp"] is None or isinstance(value["stamp"], str))
    )
    if not sound:
        raise EvidenceError("the dispute file is incomplete or holds values of the wrong kind")
    return Opening(document, value["salt"]), [line.encode() for line in lines], value


def _stamped(opening: Opening, stated: Mapping[str, Any], authorities: bytes) -> Stamped | None:
    if stated["stamp"] is None:
        return None
    try:
        stamp = base64.b64decode(stated["stamp"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise EvidenceError("the claim's time stamp is malformed") from error
    return verify_stamp(stamp, opening.digest.encode(), authorities)


def _committed(opening: Opening, lines: Sequence[bytes], store: TrustStore) -> Statement:
    """Return the signed statement that a commitment was made in."""
    document = opening.document
    statement = _marking(lines, store, document["unmarked"])
    if statement.figures.get("commitment") != opening.digest:
        raise EvidenceError("what the claim opens is not what was committed to in the evidence")
    if (_owner(statement), statement.outputs["model"]) != (document["owner"], document["marked"]):
        raise EvidenceError("the evidence is of another owner or another marked model than the commitment")
    return statement


def _marking(lines: Sequence[bytes], store: TrustStore, unmarked: str) -> Statement:
    """Verify the evidence up to the step that marked a model, as of the instant that it ended."""
    policy = store.policy
    stated = {line: Statement.parse(Envelope.parse(line).payload) for line in lines}
    marking = [it for it in stated.values() if it.stage == STAGE and it.inputs.get("model") == unmarked]
    if len(marking) != 1:
        raise EvidenceError(f"the evidence holds {len(marking)} statements of marking this model; it needs one")
    step = marking[0].step
    needed = policy.ancestors(step) | {step}
    chain = verify_chain(
        [line for line, it in stated.items() if it.step in needed],
        policy,
        needed=needed,
        judged_at=marking[0].finished,
        revoked_keys=store.revocations.keys,
    )
    return chain.statements[step]


def _owner(statement: Statement) -> str:
    owner = statement.parameters.get("owner")
    if not isinstance(owner, str):
        raise EvidenceError("the evidence names no owner")
    return owner


def _require_present(suspect: bytes, unmarked: Files, key: bytes, claim: Claim) -> Examination:
    found = examine(decode_weights(suspect), decode_weights(unmarked[WEIGHTS_FILE]), key, claim)
    if found.verdict != "PRESENT":
        raise ModelError(
            f"the suspect does not bear the mark: {found.reading.bits_read} of {found.reading.bits} bits, "
            f"p <= 1e{found.reading.log10_p_hoeffding:.1f}, {found.verdict}"
        )
    return found


def claim_figures(checked: Checked) -> dict[str, Figure]:
    """Return a claim that holds, as figures."""
    stamped = {"stamped": format_time(checked.stamped.latest)} if checked.stamped else {}
    return {
        "owner": checked.owner,
        "committed": format_time(checked.committed),
        **stamped,
        "suspect": checked.suspect,
        **checked.examination.figures(),
    }
