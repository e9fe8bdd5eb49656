"""Whatever is done to evidence: it says the same thing, or it is refused with an error of ours and no other."""

import base64
import copy
import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
import yaml
from chains import NOW, World, digest_of
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from portcullis.digest import (
    FileEntry,
    canonical_json,
    manifest_digest,
    parse_canonical_json,
    parse_json,
    sha256,
    tree_digest,
    tree_files,
)
from portcullis.errors import (
    AdmissionError,
    DataError,
    EvidenceError,
    PolicyError,
    PortcullisError,
    TrustStoreError,
)
from portcullis.evidence.admission import Admission, admission_identity, verify_admission
from portcullis.evidence.chain import ChainVerifier, join_bundle, split_bundle, verify_chain
from portcullis.evidence.dsse import Envelope, pre_authentication_encoding, seal_payload
from portcullis.evidence.policy import parse_policy, verify_policy
from portcullis.evidence.statement import Check, Statement, judge
from portcullis.evidence.trust import REVOCATIONS_TYPE, Revocations, Seen, TrustStore, observe
from portcullis.keys import Signer
from portcullis.strict_yaml import load_yaml

# A busy machine is no reason to fail.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
few = settings(patient, max_examples=40)
many = settings(patient, max_examples=80)

WORLD = World()
OWNER = WORLD.owner.public_key
SIGNED_POLICY = WORLD.policy_bytes()
POLICY = verify_policy(SIGNED_POLICY, OWNER, now=NOW)
NEEDED = POLICY.ancestors("admit")
REVOCATIONS = Revocations(4, keys=frozenset({"a" * 64, "b" * 64}), admissions=frozenset({"c" * 64}))
STORE = TrustStore(Path("unused"), OWNER, POLICY, SIGNED_POLICY, REVOCATIONS)
LINES = WORLD.lines(POLICY)
BUNDLE = join_bundle(LINES)
ADMISSION = WORLD.admission(STORE, LINES)
ED25519 = Signer.generate("ed25519")

any_text = st.text(st.characters())  # lone surrogates, too
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
shown_text = plain_text.filter(str.isprintable)
exact_integers = st.integers(-(2**53) + 1, 2**53 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
plain_json = st.recursive(
    st.none() | st.booleans() | exact_integers | finite | plain_text,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(plain_text, children, max_size=3),
    max_leaves=8,
)
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | any_text
    | st.sampled_from(["0" * 64, "PASSED", 0, 1, ""]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(any_text, children, max_size=3),
    max_leaves=6,
)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
named_digests = st.dictionaries(plain_text, digests, max_size=3)


@st.composite
def statements(draw):
    gate = draw(st.booleans())
    started = draw(st.integers(0, 253_402_300_799_999))
    return Statement(
        step=draw(shown_text),
        stage=draw(shown_text),
        kind="gate" if gate else "transform",
        nonce=draw(st.binary(min_size=16, max_size=16)).hex(),
        started=started,
        finished=draw(st.integers(started, 253_402_300_799_999)),
        inputs=draw(named_digests),
        outputs=draw(st.dictionaries(plain_text, digests, min_size=1, max_size=3)),
        parameters=draw(st.dictionaries(plain_text, plain_json, max_size=3)),
        figures=draw(st.dictionaries(plain_text, exact_integers | finite | shown_text, max_size=3)),
        environment=draw(st.dictionaries(plain_text, shown_text, max_size=3)),
        verdict=draw(st.sampled_from(["PASSED", "FAILED"])) if gate else None,
        reason=draw(shown_text) if gate else "",
    )


@st.composite
def mutations(draw, document):
    """Return a copy of a JSON document with one value replaced, removed, or added to."""
    document = copy.deepcopy(document)
    holder, key = {"root": document}, "root"
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 5)):
        holder = holder[key]
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    action = draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "remove" and key != "root":
        del holder[key]
    elif action == "add" and isinstance(holder[key], dict):
        holder[key][draw(plain_text)] = draw(any_json)
    elif action == "add" and isinstance(holder[key], list):
        holder[key].append(draw(any_json))
    else:
        holder[key] = draw(any_json)
    return document if key != "root" else holder["root"]


@st.composite
def tampered(draw, data):
    """Return other bytes: flipped, cut, a run removed, repeated, inserted or moved."""
    at = draw(st.integers(0, len(data) - 1))
    length = draw(st.integers(1, 80))
    end = min(len(data), at + length)
    to = draw(st.integers(0, len(data)))
    kinds = {
        "flip": data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :],
        "bit": data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :],
        "cut": data[:at],
        "behead": data[at + 1 :],
        "remove": data[:at] + data[end:],
        "repeat": data[:end] + data[at:end] + data[end:],
        "insert": data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at:],
        "overwrite": data[:at] + data[to : to + length] + data[min(len(data), at + len(data[to : to + length])) :],
    }
    changed = kinds[draw(st.sampled_from(sorted(kinds)))]
    assume(changed != data)
    return changed


def canonical(document):
    """Return the document's canonical form; discard the example when JSON cannot say it."""
    try:
        return canonical_json(document)
    except DataError:
        assume(False)


# JSON and YAML


@many
@given(plain_json)
@example([1e20, 1e21, 2.0**53, -(2.0**60), 5e-324, -0.0])
@example({"\ufb33": 1, "\U0001f600": 2})
def test_canonical_json_reads_back_and_has_one_spelling(value):
    text = canonical_json(value)
    assert parse_canonical_json(text) == value
    assert canonical_json(parse_canonical_json(text)) == text


@many
@given(plain_json)
def test_a_json_text_in_another_spelling_is_refused(value):
    text = json.dumps(value, indent=1).encode()
    if text != canonical_json(value):
        with pytest.raises(DataError):
            parse_canonical_json(text)


@many
@given(any_json)
@example({1: 2, "a": 3})
@example(10**5000)
def test_canonical_json_says_it_or_refuses(value):
    try:
        text = canonical_json(value)
    except DataError:
        return
    assert parse_canonical_json(text) == value


@many
@given(st.binary(max_size=60) | any_json.map(lambda value: json.dumps(value).encode()))
@example(b"1e999")
@example(b'{"a":1,"a":1}')
def test_parsing_json_refuses_or_gives_finite_values(data):
    try:
        value = parse_json(data)
    except DataError:
        return
    assert json.loads(data) == value
    assert json.dumps(value, allow_nan=False)


@many
@given(st.text("ab01:.-_+x&*!<>|%@`#,?[]{}\"' \n\t~=eE", max_size=30) | any_text.map(lambda text: "a: " + text))
@example("a: !!int ''")
@example("a: 1" + ":1" * 400 + ".5")
@example("a: 2026-01-01T00:00:00+99:99")
def test_yaml_is_a_mapping_or_refused(text):
    try:
        document = load_yaml(text.encode("utf-8", "surrogatepass"))
    except DataError:
        return
    assert isinstance(document, dict) and all(isinstance(key, str) for key in document)


# Envelopes


@many
@given(payload=st.binary(max_size=60), kind=plain_text, signer=st.sampled_from([WORLD.owner, ED25519]))
def test_an_envelope_survives_its_line(payload, kind, signer):
    envelope = seal_payload(payload, signer, payload_type=kind)
    assert Envelope.parse(envelope.encode()) == envelope
    assert envelope.verify(signer.public_key, payload_type=kind) == payload


@many
@given(st.tuples(plain_text, st.binary(max_size=20)), st.tuples(plain_text, st.binary(max_size=20)))
@example(("a", b"1 b"), ("a 1", b"b"))
def test_pae_is_injective(one, other):
    assert (pre_authentication_encoding(*one) == pre_authentication_encoding(*other)) == (one == other)


@many
@given(mutations(json.loads(LINES[1])))
def test_a_mutated_envelope_is_refused_or_reads_as_what_it_is(document):
    line = canonical(document)
    try:
        envelope = Envelope.parse(line)
    except EvidenceError:
        return
    assert envelope.encode() == line


@pytest.mark.parametrize("signer", [WORLD.keys["train"], ED25519], ids=["ecdsa-p256", "ed25519"])
@pytest.mark.parametrize("bit", [1, 0x20, 0x80])
def test_no_byte_of_an_envelope_can_change_unseen(signer, bit):
    line = seal_payload(WORLD.statements(POLICY)["train"].encode(), signer).encode()
    for at in range(len(line)):
        changed = line[:at] + bytes([line[at] ^ bit]) + line[at + 1 :]
        with pytest.raises(EvidenceError):
            Envelope.parse(changed).verify(signer.public_key)


@many
@given(tampered(LINES[1]))
def test_a_tampered_line_is_no_evidence(line):
    with pytest.raises(PortcullisError):
        ChainVerifier(POLICY, NOW).add(line)


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@many
@given(
    data=st.binary(min_size=1, max_size=20),
    low=st.integers(1, 15),
    edit=st.sampled_from(["bits", "pad", "unpad", "\n", " "]),
)
def test_base64_in_another_spelling_is_refused(data, low, edit):
    text = base64.b64encode(data).decode()
    if edit == "bits":
        assume(text.endswith("="))
        spare = 15 if text.endswith("==") else 3
        last = len(text.rstrip("=")) - 1
        character = ALPHABET[ALPHABET.index(text[last]) ^ (low & spare or 1)]
        other = text[:last] + character + text[last + 1 :]
    else:
        other = {"pad": text + "=", "unpad": text.rstrip("=")}.get(edit, text[:2] + edit + text[2:])
        assume(other != text)
    document = {"payload": other, "payloadType": "t", "signatures": [{"keyid": "", "sig": ""}]}
    with pytest.raises(EvidenceError):
        Envelope.parse(canonical_json(document))
    document = {"payload": "", "payloadType": "t", "signatures": [{"keyid": "", "sig": other}]}
    with pytest.raises(EvidenceError):
        Envelope.parse(canonical_json(document))


# Statements


@many
@given(statements())
def test_parse_inverts_encode(statement):
    assert Statement.parse(statement.encode()) == statement


@many
@given(statements(), st.data())
def test_a_mutated_statement_is_refused_or_reads_as_what_it_says(statement, data):
    payload = canonical(data.draw(mutations(statement.to_in_toto())))
    try:
        parsed = Statement.parse(payload)
    except EvidenceError:
        return
    assert parsed.encode() == payload


@many
@given(st.binary(max_size=100) | any_json.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_no_statement_no_envelope_and_no_admission(data):
    with pytest.raises(EvidenceError):
        Statement.parse(data)
    with pytest.raises(EvidenceError):
        Envelope.parse(data)
    with pytest.raises(AdmissionError):
        Admission.parse(data)
    with pytest.raises(AdmissionError):
        admission_identity(data)
    with pytest.raises(PolicyError):
        verify_policy(data, OWNER, now=NOW)
    with pytest.raises(PolicyError):
        Revocations.verify(data, OWNER)


@many
@given(
    st.dictionaries(st.sampled_from("abc"), st.floats() | st.integers() | plain_text | st.booleans() | st.none()),
    st.dictionaries(
        st.sampled_from("abc"), st.tuples(finite, finite).map(lambda bounds: Check(*sorted(bounds))), min_size=1
    ),
)
def test_a_verdict_passes_only_on_finite_numbers_within_all_bounds(figures, checks):
    passes = all(
        type(figures.get(name)) in (int, float) and check.low <= figures[name] <= check.high
        for name, check in checks.items()
    )
    verdict, reason = judge(figures, checks)
    assert (verdict, bool(reason)) == (("PASSED", False) if passes else ("FAILED", True))


# The chain


@many
@given(tampered(BUNDLE))
def test_a_tampered_bundle_is_refused_or_holds_the_same_lines(data):
    try:
        chain = verify_chain(split_bundle(data), POLICY, needed=NEEDED, judged_at=NOW)
    except PortcullisError:
        return
    # Only whole lines can have been repeated, which means nothing.
    assert set(split_bundle(data)) == set(LINES)
    assert list(chain.lines.values()) == LINES


@few
@given(st.permutations(LINES), st.lists(st.sampled_from(LINES), max_size=3))
def test_order_and_repetition_of_lines_mean_nothing(lines, repeated):
    chain = verify_chain([*lines, *repeated], POLICY, needed=NEEDED, judged_at=NOW)
    assert list(chain.lines.values()) == LINES


@few
@given(st.sets(st.sampled_from(LINES)))
def test_a_chain_holds_only_whole(lines):
    steps = {Statement.parse(Envelope.parse(line).payload).step for line in lines}
    for needed, holds in (
        (NEEDED, steps == NEEDED),
        ((), all(POLICY.step(step).parents <= steps for step in steps)),
    ):
        if holds:
            assert set(verify_chain(lines, POLICY, needed=needed, judged_at=NOW).statements) == steps
        else:
            with pytest.raises(EvidenceError):
                verify_chain(lines, POLICY, needed=needed, judged_at=NOW)


@many
@given(st.sampled_from(sorted(NEEDED)), st.data())
def test_a_steps_own_key_can_state_only_what_fits_the_chain(step, data):
    honest = WORLD.statements(POLICY)
    payload = canonical(data.draw(mutations(honest[step].to_in_toto())))
    line = seal_payload(payload, WORLD.keys[step]).encode()
    lines = [line if name == step else WORLD.line(statement) for name, statement in honest.items()]
    try:
        chain = verify_chain(lines, POLICY, needed=NEEDED, judged_at=NOW)
    except PortcullisError:
        return
    stated, said = chain.statements[step], honest[step]
    assert canonical_json(stated.parameters) == canonical_json(said.parameters)
    assert (stated.stage, stated.kind, stated.nonce, stated.verdict) == (
        said.stage,
        said.kind,
        said.nonce,
        said.verdict,
    )
    consumed = {source for name in NEEDED for source in POLICY.step(name).inputs.values()}
    for name, digest in stated.outputs.items():
        assert digest == said.outputs[name] or f"{step}.{name}" not in consumed


# The policy, the revocation list, the trust store


@pytest.mark.parametrize("bit", [1, 0x20])
def test_no_byte_of_a_signed_policy_can_change_unseen(bit):
    for at in range(len(SIGNED_POLICY)):
        changed = SIGNED_POLICY[:at] + bytes([SIGNED_POLICY[at] ^ bit]) + SIGNED_POLICY[at + 1 :]
        with pytest.raises(PolicyError):
            verify_policy(changed, OWNER, now=NOW)


@many
@given(tampered(SIGNED_POLICY))
def test_a_tampered_policy_is_refused(signed):
    with pytest.raises(PolicyError):
        verify_policy(signed, OWNER, now=NOW)


@many
@given(mutations(yaml.safe_load(SIGNED_POLICY)))
def test_a_mutated_policy_is_refused_or_sound(document):
    try:
        text = yaml.safe_dump(document, sort_keys=False).encode()
        policy = parse_policy(text, digest="x")
    except (PolicyError, UnicodeEncodeError):  # YAML's own refusal of lone surrogates
        return
    assert all(policy.ancestors(name) <= set(policy.steps) for name in policy.steps)
    assert 0 < policy.version < 2**53 and policy.max_age > 0
    assert all((rule.checks or rule.kind != "gate") and rule.outputs for rule in policy.steps.values())
    assert not any(rule.checks for rule in policy.steps.values() if rule.kind == "admission")
    for rule in policy.steps.values():
        canonical_json(dict(rule.parameters))
        if rule.checks:
            judge({}, rule.checks)


SIGNED_REVOCATIONS = REVOCATIONS.sign(WORLD.owner)


@many
@given(tampered(SIGNED_REVOCATIONS))
def test_a_tampered_revocation_list_is_refused(data):
    with pytest.raises(PolicyError):
        Revocations.verify(data, OWNER)


@many
@given(mutations(json.loads(REVOCATIONS.encode())))
def test_a_mutated_revocation_list_is_refused_or_reads_as_what_it_says(document):
    payload = canonical(document)
    try:
        revocations = Revocations.verify(
            seal_payload(payload, WORLD.owner, payload_type=REVOCATIONS_TYPE).encode(), OWNER
        )
    except PolicyError:
        return
    assert revocations.encode() == payload
    assert type(revocations.version) is int and revocations.version > 0


@few
@given(st.integers(1, 9), st.sets(digests, max_size=3), st.sets(digests, max_size=3), st.sets(digests, max_size=3))
def test_revocations_survive_their_signature(version, keys, admissions, rollbacks):
    revocations = Revocations(version, frozenset(keys), frozenset(admissions), frozenset(rollbacks))
    assert Revocations.verify(revocations.sign(WORLD.owner), OWNER) == revocations


@few
@given(st.binary(max_size=40) | any_json.map(lambda value: json.dumps(value).encode()))
def test_a_memory_of_other_bytes_is_refused(data):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "state").mkdir()
        (Path(folder) / "state" / "seen.json").write_bytes(data)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.delenv("PORTCULLIS_STATE", raising=False)
            with pytest.raises(TrustStoreError):
                observe(dataclasses.replace(STORE, path=Path(folder) / "trust"))


# The admission


def verify(data, lines=LINES, store=STORE, seen=Seen(), now=NOW):  # noqa: B008 - Seen is frozen
    return verify_admission(data, lines, store, sealed=digest_of("encrypt.sealed"), seen=seen, now=now)


@pytest.mark.parametrize("bit", [1, 0x20])
def test_no_byte_of_an_admission_can_change_unseen(bit):
    assert verify(ADMISSION)
    for at in range(len(ADMISSION)):
        with pytest.raises(AdmissionError):
            verify(ADMISSION[:at] + bytes([ADMISSION[at] ^ bit]) + ADMISSION[at + 1 :])


@many
@given(tampered(ADMISSION))
def test_a_tampered_admission_is_refused(data):
    with pytest.raises(AdmissionError):
        verify(data)


@many
@given(mutations(json.loads(Envelope.parse(ADMISSION).payload)))
def test_the_admissions_own_key_can_state_only_what_follows(document):
    data = seal_payload(canonical(document), WORLD.keys["admit"]).encode()
    honest, _ = verify(ADMISSION)
    try:
        stated, _ = verify(data)
    except PortcullisError:
        return
    assert stated == honest


@many
@given(tampered(BUNDLE))
def test_an_admission_stands_on_its_evidence_to_the_byte(data):
    with pytest.raises(PortcullisError):
        verify(ADMISSION, split_bundle(data))


# Trees

names = st.text("abcA.é-_ ", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
trees = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map("/".join), st.binary(max_size=8), min_size=1, max_size=5
).filter(lambda tree: not any(other.startswith(path + "/") for path in tree for other in tree))


def in_memory(tree):
    return manifest_digest(FileEntry(path, sha256(data), len(data)) for path, data in tree.items())


def written(tree, root):
    for path, data in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


@few
@given(trees)
def test_a_tree_on_disk_digests_as_in_memory_whatever_the_order(tree):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        written(dict(reversed(tree.items())), root)
        assert tree_digest(root) == in_memory(tree)
        assert [entry.path for entry in tree_files(root)] == sorted(tree)


@many
@given(trees, trees)
def test_two_trees_share_a_digest_only_when_they_are_one(one, other):
    assert (in_memory(one) == in_memory(other)) == (one == other)


@few
@given(trees, st.data())
def test_every_change_of_a_tree_shows(tree, data):
    path = data.draw(st.sampled_from(sorted(tree)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        written(tree, root)
        before, target = tree_digest(root), root / path
        change = data.draw(st.sampled_from(["byte", "append", "rename", "add", "remove", "link", "hard link"]))
        if change == "byte" and tree[path]:
            target.write_bytes(data.draw(tampered(tree[path])))
        elif change == "rename":
            target.rename(target.with_name(target.name + "~"))
        elif change == "add":
            target.with_name(target.name + "~").write_bytes(b"")
        elif change == "hard link":
            target.with_name(target.name + "~").hardlink_to(target)
        elif change == "remove":
            target.unlink()
        elif change == "link":
            target.rename(Path(folder) / "outside")
            target.symlink_to(Path(folder) / "outside")
        else:
            target.write_bytes(tree[path] + b"x")
        if change == "link" or (change == "remove" and len(tree) == 1):
            with pytest.raises(DataError):
                tree_digest(root)
        else:
            assert tree_digest(root) != before
