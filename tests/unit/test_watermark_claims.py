"""Claims: a commitment is opened and judged, the earlier one wins, and what a forger can do does not help."""

import base64
import datetime as dt
import json
import shutil
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save
from timestamp_authority import NOW, Authority, serving
from watermarks import KEY, OWNER, Workshop, model, obfuscated

from portcullis.cli.main import _guarded, cli
from portcullis.digest import canonical_json, content_digest, sha256
from portcullis.errors import EvidenceError, KeyMaterialError, ModelError, PolicyError
from portcullis.evidence.step import read_evidence
from portcullis.evidence.trust import TrustStore
from portcullis.files import write_bytes
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, read_model_files
from portcullis.timestamps import request_stamp
from portcullis.watermark.claims import (
    check_claim,
    commitment_of,
    make_claim,
    open_commitment,
    read_in_their_original,
    require_earlier,
)
from portcullis.watermark.mark import Claim, embed, read

THIEF = bytes(range(32, 64))


@pytest.fixture(scope="module")
def parties(tmp_path_factory):
    """Make an owner who marked a model, and a thief with keys and policy of their own who marked it again."""
    owner, thief = (tmp_path_factory.mktemp(name) for name in ("owner", "thief"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        first = Workshop(owner, monkeypatch).furnish(model())
        first.mark()
        second = Workshop(thief, monkeypatch).furnish(first.tensors("marked"))
        second.watermark_key(THIEF)
        second.mark()
    return first, second


@pytest.fixture
def owner(parties, monkeypatch):
    return Party(parties[0].root, KEY, monkeypatch)


@pytest.fixture
def thief(parties, monkeypatch):
    return Party(parties[1].root, THIEF, monkeypatch)


class Party:
    """One party's model, key and evidence."""

    def __init__(self, root, key, monkeypatch):
        self.root, self.key = root, key
        monkeypatch.setenv("PORTCULLIS_STATE", str(root / "state"))
        self.store = TrustStore.load(root / "trust")
        self.unmarked, self.marked = read_model_files(root / "trained"), read_model_files(root / "marked")
        self.lines = read_evidence([root / "marked.intoto.jsonl"])

    def claim(self, suspect, **changes):
        given = {"lines": self.lines, "store": self.store, "key": self.key, "unmarked": self.unmarked}
        values = {**given, "marked": self.marked, **changes}
        return make_claim(values.pop("lines"), values.pop("store"), values.pop("key"), suspect=suspect, **values)

    def check(self, data, suspect, **changes):
        values = {"store": self.store, "key": self.key, "unmarked": self.unmarked, **changes}
        return check_claim(data, values.pop("store"), values.pop("key"), suspect=suspect, **values)


@pytest.fixture
def suspect(thief):
    return thief.marked[WEIGHTS_FILE]


def altered(data, **changes):
    return canonical_json({**json.loads(data), **changes})


def reopened(data, **changes):
    return altered(data, commitment={**json.loads(data)["commitment"], **changes})


def test_a_claim_is_made_and_holds(owner, suspect):
    data = owner.claim(suspect)
    found = owner.check(data, suspect)
    assert (found.owner, found.suspect, found.examination.verdict) == (OWNER, sha256(suspect), "PRESENT")
    assert found.examination.reading.log10_p_hoeffding < -40
    for spelling in (KEY, KEY.hex().encode(), base64.b64encode(KEY)):
        assert spelling not in data


def test_a_claim_to_a_permuted_model_holds(owner):
    names = {"one": "features.0", "two": "features.2", "three": "classifier.0", "four": "classifier.2"}
    tensors = owner_tensors(owner)
    hidden = obfuscated({name: tensors[f"{old}.weight"] for name, old in names.items()}, 1, scale=1.0)
    suspect = save(hidden)
    assert owner.check(owner.claim(suspect), suspect).examination.way == "aligned"


def owner_tensors(party):
    from portcullis.watermark.weights import decode_weights

    return decode_weights(party.marked[WEIGHTS_FILE])


# Two claims to one model.


def test_the_earlier_commitment_wins_an_overwrite_dispute(owner, thief, suspect):
    ours, theirs = owner.claim(suspect), thief.claim(suspect)  # both marks are there
    first, second = owner.check(ours, suspect), thief.check(theirs, suspect)
    assert require_earlier(first, theirs, thief.store) == second.committed > first.committed
    with pytest.raises(EvidenceError, match="the other claim was committed to first"):
        require_earlier(second, ours, owner.store)


def test_a_claim_is_not_earlier_than_itself(owner, suspect):
    data = owner.claim(suspect)
    with pytest.raises(EvidenceError, match="committed to first"):
        require_earlier(owner.check(data, suspect), data, owner.store)


def test_the_first_mark_is_in_the_second_ones_original_and_not_the_other_way_round(owner, thief, suspect):
    """It needs no clock: a thief who dates back cannot have the owner's mark out of what they say they marked."""
    ours, theirs = owner.claim(suspect), thief.claim(suspect)
    found = read_in_their_original(ours, thief.store, KEY, theirs, unmarked=owner.unmarked, theirs=thief.unmarked)
    assert found.verdict == "PRESENT"
    turned = read_in_their_original(theirs, owner.store, THIEF, ours, unmarked=thief.unmarked, theirs=owner.unmarked)
    assert turned.verdict == "ABSENT"
    with pytest.raises(EvidenceError, match="another unmarked model"):
        read_in_their_original(ours, thief.store, KEY, theirs, unmarked=owner.unmarked, theirs=owner.unmarked)


# Time stamps.


@pytest.fixture(scope="module")
def authority():
    return Authority()


def stamped(party, authority, hours):
    """Have a party's commitment stamped so many hours after `NOW`."""
    document = commitment_of(party.lines, party.store, party.unmarked).encode()
    with serving(partial(authority.answer, when=NOW + dt.timedelta(hours=hours))) as url:
        return request_stamp(url, document, authority.pem)


def test_the_earlier_stamp_wins_whatever_the_signers_clocks_say(owner, thief, suspect, authority):
    """By the signers' clocks the owner was first; here the thief's stamp is the earlier one."""
    ours, theirs = (
        party.claim(suspect, stamp=stamped(party, authority, hours)) for party, hours in ((owner, 2), (thief, 1))
    )
    known = {"authorities": authority.pem}
    first, second = owner.check(ours, suspect, **known), thief.check(theirs, suspect, **known)
    assert require_earlier(second, ours, owner.store, **known) == first.committed < second.committed
    with pytest.raises(EvidenceError, match="time stamp is not later"):
        require_earlier(first, theirs, thief.store, **known)


def test_stamps_that_are_a_second_apart_do_not_decide(owner, thief, suspect, authority):
    ours, theirs = (
        party.claim(suspect, stamp=stamped(party, authority, hours)) for party, hours in ((owner, 0), (thief, 1 / 3600))
    )
    first = owner.check(ours, suspect, authorities=authority.pem)
    with pytest.raises(EvidenceError, match="time stamp is not later"):
        require_earlier(first, theirs, thief.store, authorities=authority.pem)


def test_a_stamped_claim_beats_one_that_is_not(owner, thief, suspect, authority):
    ours, theirs = owner.claim(suspect, stamp=stamped(owner, authority, 0)), thief.claim(suspect)
    known = {"authorities": authority.pem}
    require_earlier(owner.check(ours, suspect, **known), theirs, thief.store, **known)
    with pytest.raises(EvidenceError, match="no time stamp"):
        thief.check(theirs, suspect, **known)
    with pytest.raises(EvidenceError, match="not later"):  # it was checked without asking for a stamp
        require_earlier(thief.check(theirs, suspect), ours, owner.store, **known)


def test_a_stamp_of_another_commitment_or_authority_does_not_count(owner, thief, suspect, authority):
    borrowed = owner.claim(suspect, stamp=stamped(thief, authority, 0))
    unknown = owner.claim(suspect, stamp=stamped(owner, Authority(), 0))
    own = owner.check(owner.claim(suspect, stamp=stamped(owner, authority, 0)), suspect, authorities=authority.pem)
    for data in (borrowed, unknown, altered(borrowed, stamp="?"), altered(borrowed, stamp="")):
        owner.check(data, suspect)  # nobody asks for the stamp
        with pytest.raises(EvidenceError, match="time stamp"):
            owner.check(data, suspect, authorities=authority.pem)
        with pytest.raises(EvidenceError, match="time stamp"):
            require_earlier(own, data, owner.store, authorities=authority.pem)


def test_a_later_commitment_under_another_policy_is_not_evidence_under_this(owner, thief, suspect):
    with pytest.raises((EvidenceError, PolicyError)):
        require_earlier(owner.check(owner.claim(suspect), suspect), thief.claim(suspect), owner.store)


# Forging.


def test_forging_by_choosing_bits_fails(owner):
    """The bits that a forger reads out of a foreign model are not those that any key of theirs spells."""
    target = owner_tensors(owner)
    forger = read(target, THIEF, Claim("forger", content_digest(owner.unmarked)))
    assert forger.verdict == "ABSENT"
    best = max(
        read(target, number.to_bytes(32, "big"), Claim("forger", "0" * 64)).log10_p_hoeffding * -1
        for number in range(300)
    )
    assert best < 6  # three hundred keys tried reach a few hundredths, not a thousand-millionth
    with pytest.raises(EvidenceError, match="not to this key"):
        owner.claim(owner.marked[WEIGHTS_FILE], key=THIEF)
    chosen = reopened(owner.claim(owner.marked[WEIGHTS_FILE]), bits=32)
    with pytest.raises(EvidenceError, match="not what was committed to"):
        owner.check(chosen, owner.marked[WEIGHTS_FILE])


def test_forging_by_publishing_a_fake_original_fails(owner):
    """Subtracting one's own mark makes an original of another digest, and no reading looks at its values."""
    target = owner_tensors(owner)
    assumed = Claim("forger", content_digest(owner.unmarked))
    shifted = embed(target, THIEF, assumed).tensors
    fake = {name: (2 * target[name] - shifted[name]).astype(np.float32) for name in target}
    files = {SPEC_FILE: owner.unmarked[SPEC_FILE], WEIGHTS_FILE: save(fake)}
    named = Claim("forger", content_digest(files))
    assert read(target, THIEF, named).verdict == "ABSENT"
    assert read(target, THIEF, assumed).verdict == "ABSENT"
    suspect = owner.marked[WEIGHTS_FILE]
    with pytest.raises(EvidenceError, match="another unmarked model"):
        owner.check(owner.claim(suspect), suspect, unmarked=files)


def test_forging_by_crafted_triggers_fails(owner):
    """A dispute file has no place for triggers: they follow from the key that was committed to."""
    suspect = owner.marked[WEIGHTS_FILE]
    data = owner.claim(suspect)
    with pytest.raises(EvidenceError, match=r"not a dispute file"):
        owner.check(altered(data, triggers=[[0.0] * 64]), suspect)
    with pytest.raises(EvidenceError, match="not what was committed to"):
        owner.check(reopened(data, triggers=100), suspect)


FORGED = {
    "another owner": lambda data: reopened(data, owner="thief"),
    "another marked model": lambda data: reopened(data, marked="d" * 64),
    "another key's hash": lambda data: reopened(data, key="d" * 64),
    "another unmarked model": lambda data: reopened(data, unmarked="d" * 64),
    "another salt": lambda data: altered(data, salt="d" * 64),
    "another suspect": lambda data: altered(data, suspect="d" * 64),
    "another reading": lambda data: altered(data, reading={}),
    "no evidence": lambda data: altered(data, evidence=[]),
    "less evidence": lambda data: altered(data, evidence=json.loads(data)["evidence"][1:]),
    "the marking's evidence twice": lambda data: altered(data, evidence=json.loads(data)["evidence"] * 2),
    "evidence that is none": lambda data: altered(data, evidence=["{}"]),
    "evidence of numbers": lambda data: altered(data, evidence=[1]),
    "another format": lambda data: altered(data, format="portcullis-claim/v9"),
    "a stamp of numbers": lambda data: altered(data, stamp=1),
    "a field more": lambda data: altered(data, note="x"),
    "a commitment of nothing": lambda data: altered(data, commitment={}),
    "a commitment of text": lambda data: altered(data, commitment="x"),
    "an owner that is no text": lambda data: reopened(data, owner=7),
    "spelt otherwise": lambda data: data + b"\n",
    "nothing": lambda data: b"",
    "a list": lambda data: b"[]",
}


@pytest.mark.parametrize("name", [name for name in FORGED if name != "the marking's evidence twice"])
def test_a_forged_claim_does_not_hold(owner, suspect, name):
    with pytest.raises(EvidenceError):
        owner.check(FORGED[name](owner.claim(suspect)), suspect)


def test_evidence_given_twice_is_one(owner, suspect):
    owner.check(FORGED["the marking's evidence twice"](owner.claim(suspect)), suspect)


def test_a_claim_to_what_is_not_marked_is_refused(owner):
    for other in (save(model(1)), owner.unmarked[WEIGHTS_FILE]):
        with pytest.raises(ModelError, match="does not bear the mark"):
            owner.claim(other)
    with pytest.raises(ModelError, match="not a safetensors file"):
        owner.claim(b"weights")


def test_another_key_does_not_open_the_commitment(owner, suspect):
    data = owner.claim(suspect)
    with pytest.raises(EvidenceError, match="another key"):
        owner.check(data, suspect, key=THIEF)
    for work in (lambda: owner.check(data, suspect, key=b""), lambda: owner.claim(suspect, key=b"")):
        with pytest.raises(KeyMaterialError):
            work()


def test_evidence_of_another_policy_does_not_hold(owner, thief, suspect):
    with pytest.raises((EvidenceError, PolicyError)):
        owner.check(owner.claim(suspect), suspect, store=thief.store)


def test_a_commitment_opens_in_one_way_only(owner):
    claim = Claim(OWNER, content_digest(owner.unmarked))
    made = [open_commitment(key, claim, marked="c" * 64, tensors={}, bits=64) for key in (KEY, KEY, THIEF)]
    assert made[0] == made[1] and made[0].digest != made[2].digest and made[0].salt != made[2].salt


# The commands.


@pytest.fixture
def call(capsys, tmp_path, monkeypatch, parties):
    monkeypatch.chdir(tmp_path)
    for name, party in zip(("owner", "thief"), parties, strict=True):
        shutil.copytree(party.root, tmp_path / name)
    monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{tmp_path / 'owner' / 'keys'}")
    monkeypatch.setenv("PORTCULLIS_STATE", str(tmp_path / "state"))

    def run(*arguments):
        capsys.readouterr()
        code = _guarded(partial(cli, list(arguments), prog_name="portcullis"))
        return code, *capsys.readouterr()

    return run


VERIFY = ("watermark", "verify")
NAMED = ("--unmarked", "owner/trained", "--owner", OWNER)


def test_verify_says_present_absent_or_inconclusive(call):
    code, out, err = call(*VERIFY, "owner/marked", *NAMED)
    assert (code, err) == (0, "") and out.splitlines()[-1] == "PRESENT"
    assert "64 of 64 bits" in out and "Bonferroni for 2 readings" in out and "1000 decoy keys" in out
    code, out, _ = call(*VERIFY, "thief/marked/weights.safetensors", *NAMED)
    assert code == 0 and out.splitlines()[-1] == "PRESENT"
    code, out, _ = call(*VERIFY, "owner/trained", *NAMED)
    assert code == 1 and out.splitlines()[-1] == "ABSENT" and "likeness to the unmarked model" in out
    code, out, _ = call(*VERIFY, "owner/marked", *NAMED, "--tried", "1" + "0" * 90)
    assert code == 1 or code == 3


def test_verify_as_json(call):
    code, out, _ = call(*VERIFY, "owner/marked", *NAMED, "--json", "--tried", "5")
    document = json.loads(out)
    assert code == 0 and document["verdict"] == "PRESENT" and document["weights"]["tried"] == 10
    assert document["weights"]["way"] == "blind" and document["weights"]["log10_p_binomial"] < -17


def test_verify_takes_the_key_by_uri(call, tmp_path):
    key = tmp_path / "thief" / "keys" / "watermark.key"
    code, out, _ = call(*VERIFY, "owner/marked", *NAMED, "--key", f"file:{key}")
    assert code == 1 and out.splitlines()[-1] == "ABSENT"


BAD_CALLS = {
    "no suspect": ((), 2, "name a suspect"),
    "a pickle": (("weights.bin",), 1, "not a safetensors file"),
    "a URL without a number": (("--url", "http://h/v2/models/m/infer"), 2, "needs --triggers or --rows"),
    "a number without a URL": (("owner/marked", "--triggers", "60"), 2, "need --url"),
    "a token without a URL": (("owner/marked", "--token", "env:X"), 2, "need --url"),
    "rows for a file of weights": (("owner/marked/weights.safetensors", "--rows", "owner"), 2, "directory, or --url"),
    "rows that are none": (("owner/marked", "--rows", "owner"), 1, "must hold exactly"),
    "a key that is none": (("owner/marked", "--key", "secret"), 2, "key URI"),
    "a bad owner": (("owner/marked", "--owner", "a\nb"), 2, "printable"),
    "a directory without a model": (("owner",), 2, "weights.safetensors"),
    "a server that is not there": (
        ("--url", "http://127.0.0.1:1/v2/models/m/infer", "--triggers", "60"),
        3,
        "cannot be asked",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_of_verify(call, tmp_path, name):
    (tmp_path / "weights.bin").write_bytes(b"\x80\x04K\x01.")
    arguments, expected, message = BAD_CALLS[name]
    code, out, err = call(*VERIFY, *NAMED, *arguments)
    assert (code, out) == (expected, "") and message in err and len(err.splitlines()) == 1


MODELS = ("--unmarked", "owner/trained", "--trust", "owner/trust")


def test_a_claim_by_command(call, tmp_path):
    make = ("claim", "make", "thief/marked", *MODELS, "--marked", "owner/marked", "--output", "claim.json")
    code, out, err = call(*make, "--evidence", "owner/marked.intoto.jsonl")
    assert (code, err) == (0, "") and "claim.json" in out
    check = ("claim", "check", "claim.json", "--suspect", "thief/marked", *MODELS)
    code, out, err = call(*check)
    assert (code, err) == (0, "") and f"bears the mark of {OWNER}" in out
    key = ("--key", f"file:{tmp_path / 'thief' / 'keys' / 'watermark.key'}")
    theirs = ("--unmarked", "thief/trained", "--marked", "thief/marked", "--trust", "thief/trust", *key)
    code, _, err = call(
        *("claim", "make", "thief/marked", *theirs, "--evidence", "thief/marked.intoto.jsonl"),
        *("--output", "theirs.json"),
    )
    assert (code, err) == (0, "")
    against = ("--against", "theirs.json", "--against-trust", "thief/trust", "--against-unmarked", "thief/trained")
    code, out, err = call(*check, *against, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "") and document["in_their_unmarked"] == "PRESENT"
    assert document["committed"] < document["other_committed"]
    code, out, err = call(
        *("claim", "check", "theirs.json", "--suspect", "thief/marked", "--unmarked", "thief/trained", *key),
        *("--trust", "thief/trust", "--against", "claim.json", "--against-trust", "owner/trust"),
    )
    assert (code, out) == (1, "") and "the other claim was committed to first" in err
    write_bytes(tmp_path / "claim.json", b"{}")
    code, out, err = call(*check)
    assert (code, out) == (1, "") and "not a dispute file" in err
    code, _, err = call(*check, "--against-unmarked", "thief/trained")
    assert code == 2 and "need --against" in err


def test_a_stamp_by_command(call, tmp_path):
    authority = Authority()
    write_bytes(tmp_path / "authorities.pem", authority.pem)
    known = ("--authorities", "authorities.pem")
    stamp = ("claim", "stamp", "owner/marked.intoto.jsonl", *MODELS, *known)
    with serving(authority.answer) as url:
        code, out, err = call(*stamp, "--url", url, "--output", "stamp.tsr")
        assert (code, err) == (0, "") and "stamped by 2026-11-29T12:00:01" in out
        code, out, err = call(*stamp, "--url", "nowhere", "--output", "none.tsr")
        assert (code, out) == (2, "") and "http(s)://" in err
        write_bytes(tmp_path / "authorities.pem", Authority().pem)
        code, out, err = call(*stamp, "--url", url, "--output", "none.tsr")
        assert (code, out) == (1, "") and "does not verify" in err
    assert not (tmp_path / "none.tsr").exists()
    write_bytes(tmp_path / "authorities.pem", authority.pem)
    make = ("claim", "make", "thief/marked", *MODELS, "--marked", "owner/marked")
    evidence = ("--evidence", "owner/marked.intoto.jsonl")
    assert call(*make, *evidence, "--stamp", "stamp.tsr", "--output", "claim.json")[0] == 0
    assert call(*make, *evidence, "--output", "bare.json")[0] == 0
    check = ("--suspect", "thief/marked", *MODELS, *known)
    code, out, err = call("claim", "check", "claim.json", *check)
    assert (code, err) == (0, "") and "a time-stamp authority saw the commitment by 2026-11-29T12:00:01" in out
    code, out, err = call("claim", "check", "claim.json", *check, "--json")
    assert json.loads(out)["stamped"].startswith("2026-11-29T12:00:01")
    code, out, err = call("claim", "check", "bare.json", *check)
    assert (code, out) == (1, "") and "portcullis claim stamp" in err
