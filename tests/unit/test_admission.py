"""The admission and the deployment's statement: what follows from the chain and the policy, and nothing else."""

import base64
import dataclasses
import json

import pytest
from chains import CHAIN_STEPS, NONCE, NOW, World, digest_of
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from google.protobuf import json_format
from in_toto_attestation.predicates.vsa.v1.vsa_pb2 import VerificationSummary
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as PeerStatement

from portcullis.digest import canonical_json, sha256
from portcullis.errors import AdmissionError, EvidenceError, GateFailedError, PolicyError
from portcullis.evidence.admission import (
    Admission,
    admission_identity,
    content_source,
    issue_admission,
    verify_admission,
    verify_deployment,
)
from portcullis.evidence.chain import MAX_SKEW_MS, accept_statement
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.statement import Statement
from portcullis.evidence.trust import Revocations, Seen
from portcullis.keys import Signer

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
DAY_MS = 86_400_000
SEALED = digest_of("encrypt.sealed")
WORLD = World()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return WORLD.store(tmp_path_factory.mktemp("trust"))


@pytest.fixture(scope="module")
def lines(store):
    return WORLD.lines(store.policy)


@pytest.fixture(scope="module")
def admission(store, lines):
    return WORLD.admission(store, lines)


def verify(data, lines, store, *, sealed=SEALED, seen=Seen(), now=NOW):  # noqa: B008 - Seen is frozen
    return verify_admission(data, lines, store, sealed=sealed, seen=seen, now=now)


def twin(line):
    """Return the envelope with the other valid spelling of its ECDSA signature, which needs no key."""
    envelope = Envelope.parse(line)
    r, s = decode_dss_signature(envelope.signature)
    return dataclasses.replace(envelope, signature=encode_dss_signature(r, P256_ORDER - s)).encode()


def without_keyid(line):
    return dataclasses.replace(Envelope.parse(line), keyid="").encode()


def revoking(store, **lists):
    revocations = Revocations(2, **{name: frozenset(entries) for name, entries in lists.items()})
    return dataclasses.replace(store, revocations=revocations)


def test_an_honest_admission_opens(store, lines, admission):
    admitted, chain = verify(admission, lines, store)
    assert admitted == Admission(
        content=digest_of("train.model"),
        sealed=SEALED,
        policy=store.policy.digest,
        policy_name="demo",
        policy_version=3,
        environment="development",
        development=True,
        nonce=NONCE,
        issued=NOW,
        expires=NOW + DAY_MS,
        evidence=tuple(sorted(sha256(line) for line in lines)),
    )
    assert tuple(chain.statements) == CHAIN_STEPS
    assert Admission.parse(admitted.encode()) == admitted


def test_an_admission_expires_with_its_lifetime_or_its_policy(store, lines, admission):
    assert verify(admission, lines, store, now=NOW + DAY_MS - 1)[0].expires == NOW + DAY_MS
    for now in (NOW + DAY_MS, NOW + 2 * DAY_MS):
        with pytest.raises(AdmissionError, match="expired"):
            verify(admission, lines, store, now=now)


def test_an_admission_does_not_outlive_its_policy(tmp_path):
    store = WORLD.store(tmp_path, expires=NOW + 1000)
    lines = WORLD.lines(store.policy)
    assert verify(WORLD.admission(store, lines), lines, store)[0].expires == NOW + 1000


def test_an_admission_from_the_future_is_refused(store, lines, admission):
    assert verify(admission, lines, store, now=NOW - MAX_SKEW_MS)
    with pytest.raises(AdmissionError, match="future"):
        verify(admission, lines, store, now=NOW - MAX_SKEW_MS - 1)


# What the admission's own key may not decide, though it signs it.
FORGED = {
    "content": {"content": "0" * 64},
    "sealed": {"sealed": "0" * 64},
    "policy": {"policy": "0" * 64},
    "policy name": {"policy_name": "other"},
    "policy version": {"policy_version": 4},
    "environment": {"environment": "production"},
    "not for development": {"development": False},
    "run": {"nonce": "f" * 32},
    "nonce that is none": {"nonce": 5},
    "issued later": {"issued": NOW + 1},
    "issued before its evidence": {"issued": NOW - 2 * MAX_SKEW_MS, "expires": NOW - 2 * MAX_SKEW_MS + DAY_MS},
    "a longer life": {"expires": NOW + DAY_MS + 1},
    "a shorter life": {"expires": NOW + DAY_MS - 1},
    "no evidence": {"evidence": ()},
    "other evidence": {"evidence": ("0" * 64,) * 4},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED.keys())
def test_the_admissions_key_decides_nothing_that_policy_and_evidence_decide(store, lines, admission, changes):
    honest, _ = verify(admission, lines, store)
    forged = dataclasses.replace(honest, **changes)
    with pytest.raises((AdmissionError, EvidenceError)):
        verify(seal_payload(forged.encode(), WORLD.keys["admit"]).encode(), lines, store)


def test_a_stale_run_is_not_admitted_by_dating_the_admission_later(store, lines, admission):
    honest, _ = verify(admission, lines, store)
    late = NOW + 3_600_000
    forged = dataclasses.replace(honest, issued=late, expires=late + DAY_MS)
    with pytest.raises(EvidenceError, match="stale"):
        verify(seal_payload(forged.encode(), WORLD.keys["admit"]).encode(), lines, store, now=late)


@pytest.mark.parametrize("signer", [*CHAIN_STEPS, "deploy", "owner", "rogue"])
def test_only_the_admissions_key_admits(store, lines, admission, signer):
    key = {**WORLD.keys, "owner": WORLD.owner, "rogue": Signer.generate()}[signer]
    claimed = dataclasses.replace(
        seal_payload(Envelope.parse(admission).payload, key), keyid=WORLD.keys["admit"].public_key.keyid
    )
    with pytest.raises(AdmissionError, match="signature is not by key"):
        verify(claimed.encode(), lines, store)


def signed(payload, **options):
    return seal_payload(payload, WORLD.keys["admit"], **options).encode()


NOT_ADMISSIONS = {
    "nothing": b"",
    "no envelope": b"{}",
    "empty payload": signed(b""),
    "no json": signed(b"x"),
    "a list": signed(b"[]"),
    "null": signed(b"null"),
    "empty object": signed(b"{}"),
    "a step's statement": signed(WORLD.statements(WORLD.policy())["train"].encode()),
    "a gate's statement": signed(WORLD.statements(WORLD.policy())["robustness:trained"].encode()),
}


@pytest.mark.parametrize("data", NOT_ADMISSIONS.values(), ids=NOT_ADMISSIONS.keys())
def test_what_is_no_admission_is_refused(store, lines, data):
    with pytest.raises(AdmissionError):
        verify(data, lines, store)


def test_an_admission_of_another_payload_type_is_refused(store, lines, admission):
    with pytest.raises(AdmissionError, match="text/plain"):
        verify(signed(Envelope.parse(admission).payload, payload_type="text/plain"), lines, store)


def put(*path, value):
    def edit(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return edit


OWN = ("predicate", "portcullis")
EDITS = {
    "failed": put("predicate", "verificationResult", value="FAILED"),
    "other level": put("predicate", "verifiedLevels", value=["SLSA_BUILD_LEVEL_3"]),
    "other verifier": put("predicate", "verifier", "id", value="urn:other"),
    "other predicate type": put("predicateType", value="https://slsa.dev/provenance/v1"),
    "other statement type": put("_type", value="https://in-toto.io/Statement/v0.1"),
    "third subject": lambda d: d["subject"].append(d["subject"][0]),
    "one subject": lambda d: d["subject"].pop(),
    "subjects swapped": lambda d: d["subject"].reverse(),
    "upper-case digest": put("subject", 0, "digest", "sha256", value="A" * 64),
    "digest is a number": put("subject", 0, "digest", "sha256", value=1),
    "evidence is a number": put("predicate", "inputAttestations", value=[{"digest": {"sha256": 1}}]),
    "policy uri": put("predicate", "policy", "uri", value="urn:other"),
    "resource": put("predicate", "resourceUri", value="urn:other"),
    "development is text": put(*OWN, "development", value="false"),
    "development is one": put(*OWN, "development", value=1),
    "time without milliseconds": put("predicate", "timeVerified", value="2027-01-15T08:00:00Z"),
    "expiry is null": put(*OWN, "expiresOn", value=None),
    "unknown field": put("more", value=1),
    "unknown field of ours": put(*OWN, "more", value=1),
    "predicate is text": put("predicate", value="x"),
    "verifier is text": put("predicate", "verifier", value="x"),
    "ours is a list": put(*OWN, value=[]),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_what_admit_does_not_write_is_refused(store, lines, admission, edit):
    document = json.loads(Envelope.parse(admission).payload)
    edit(document)
    with pytest.raises(AdmissionError):
        verify(signed(canonical_json(document)), lines, store)


def test_an_admission_by_another_release_of_the_verifier_opens(store, lines, admission):
    document = json.loads(Envelope.parse(admission).payload)
    document["predicate"]["verifier"]["version"] = {"portcullis": "99.0"}
    assert verify(signed(canonical_json(document)), lines, store)[0] == verify(admission, lines, store)[0]


OTHER_EVIDENCE = {
    "none": lambda lines: [],
    "one line less": lambda lines: lines[1:],
    "one line twice": lambda lines: [*lines, lines[0]],
    "another keyid": lambda lines: [without_keyid(lines[0]), *lines[1:]],
    "another spelling of a signature": lambda lines: [twin(lines[0]), *lines[1:]],
    "signed again": lambda lines: [*lines[:-1], WORLD.line(Statement.parse(Envelope.parse(lines[-1]).payload))],
}


@pytest.mark.parametrize("change", OTHER_EVIDENCE.values(), ids=OTHER_EVIDENCE.keys())
def test_the_evidence_is_to_the_byte_what_was_judged(store, lines, admission, change):
    with pytest.raises(AdmissionError, match="to the byte"):
        verify(admission, change(lines), store)


def test_the_order_of_the_evidence_means_nothing(store, lines, admission):
    assert verify(admission, lines[::-1], store)[0] == verify(admission, lines, store)[0]


def test_another_sealed_model_is_refused(store, lines, admission):
    with pytest.raises(AdmissionError, match="another sealed model"):
        verify(admission, lines, store, sealed="0" * 64)


OTHER_POLICIES = {
    "next version": {"version": 4},
    "earlier version": {"version": 2},
    "another environment": {"environment": "production"},
    "another expiry": {"expires": NOW + 2 * 10**9},
    "signed again": {},
}


@pytest.mark.parametrize("changes", OTHER_POLICIES.values(), ids=OTHER_POLICIES.keys())
def test_an_admission_counts_under_its_own_policy_only(store, lines, admission, changes):
    other = dataclasses.replace(store, policy=WORLD.policy(**changes))
    with pytest.raises(AdmissionError, match=r"admitted under demo \(development\) version 3"):
        verify(admission, lines, other)


def test_a_revoked_admission_is_refused_in_every_spelling(store, lines, admission):
    revoked = revoking(store, admissions={admission_identity(admission)})
    for spelling in (admission, twin(admission), without_keyid(admission), without_keyid(twin(admission))):
        assert verify(spelling, lines, store)
        with pytest.raises(AdmissionError, match="revoked"):
            verify(spelling, lines, revoked)


@pytest.mark.parametrize("step", ["admit", *CHAIN_STEPS])
def test_a_revoked_key_closes_what_it_opened(store, lines, admission, step):
    revoked = revoking(store, keys={WORLD.keys[step].public_key.keyid})
    with pytest.raises((AdmissionError, EvidenceError), match="revoked"):
        verify(admission, lines, revoked)


def test_what_the_revocation_list_does_not_name_still_opens(store, lines, admission):
    other = revoking(store, keys={"0" * 64}, admissions={"0" * 64}, rollbacks={"0" * 64})
    assert verify(admission, lines, other)


def test_an_older_admission_needs_a_signed_rollback(store, lines, admission):
    newer = Seen(admission=NOW + 1)
    assert verify(admission, lines, store, seen=Seen(admission=NOW))
    with pytest.raises(AdmissionError, match="newer admission"):
        verify(admission, lines, store, seen=newer)
    with pytest.raises(AdmissionError, match="newer admission"):
        verify(admission, lines, revoking(store, rollbacks={"0" * 64}), seen=newer)
    allowed = revoking(store, rollbacks={admission_identity(admission)})
    assert verify(admission, lines, allowed, seen=newer)


def test_a_rollback_does_not_undo_a_revocation_or_an_expiry(store, lines, admission):
    identity = admission_identity(admission)
    with pytest.raises(AdmissionError, match="revoked"):
        verify(admission, lines, revoking(store, rollbacks={identity}, admissions={identity}))
    with pytest.raises(AdmissionError, match="expired"):
        verify(admission, lines, revoking(store, rollbacks={identity}), now=NOW + DAY_MS)


def issue(lines, store, *, sealed=SEALED, signer="admit", now=NOW):
    return issue_admission(lines, store, sealed=sealed, signer=WORLD.keys[signer], now=now)


def test_admit_needs_its_own_key(store, lines):
    with pytest.raises(AdmissionError, match="not the one that the policy gives to step 'admit'"):
        issue(lines, store, signer="encrypt")


def test_admit_refuses_another_sealed_model(store, lines):
    with pytest.raises(AdmissionError, match="not the one that the evidence is about"):
        issue(lines, store, sealed="0" * 64)


@pytest.mark.parametrize("missing", range(len(CHAIN_STEPS)), ids=CHAIN_STEPS)
def test_admit_refuses_an_incomplete_chain(store, lines, missing):
    with pytest.raises(EvidenceError, match=CHAIN_STEPS[missing]):
        issue([line for index, line in enumerate(lines) if index != missing], store)


def test_admit_refuses_nothing_at_all(store):
    with pytest.raises(EvidenceError):
        issue([], store)


def test_admit_refuses_a_failed_gate(store):
    weak = {"robust_accuracy": 0.5, "samples": 359}
    edits = {"robustness__trained": lambda s: s.replace(verdict="FAILED", reason="too weak", figures=weak)}
    with pytest.raises(GateFailedError, match="too weak"):
        issue(WORLD.lines(store.policy, **edits), store)


def test_admit_refuses_what_could_not_be_judged_although_its_figures_pass(store):
    edits = {"robustness__trained": lambda s: s.replace(verdict="FAILED", reason="inconclusive: no gradient")}
    with pytest.raises(GateFailedError, match="inconclusive: no gradient"):
        issue(WORLD.lines(store.policy, **edits), store)


def test_admit_refuses_stale_evidence(store, lines):
    assert issue(lines, store, now=NOW - 1000 + 3_600_000)
    with pytest.raises(EvidenceError, match="stale"):
        issue(lines, store, now=NOW - 1000 + 3_600_001)


def test_an_admission_is_no_evidence(store, lines, admission):
    with pytest.raises(EvidenceError, match="a step does not state"):
        issue([*lines, admission], store)


def test_admit_cannot_state_a_step_in_its_own_name(store, lines):
    policy = store.policy
    posing = WORLD.statements(policy)["encrypt"].replace(
        step="admit", stage="admit", inputs={"sealed": SEALED}, outputs={"admission": "0" * 64}, parameters={}
    )
    with pytest.raises(EvidenceError, match="not a admit"):
        issue([*lines, WORLD.line(posing)], store)


def test_one_is_not_true_among_parameters(store):
    policy, honest = store.policy, WORLD.statements(store.policy)["train"]
    for demanded, stated in (({"shuffle": True}, {"shuffle": 1}), ({"shuffle": 0}, {"shuffle": False})):
        rule = dataclasses.replace(policy.step("train"), parameters=demanded)
        other = dataclasses.replace(policy, steps={**policy.steps, "train": rule})
        assert accept_statement(WORLD.line(honest.replace(parameters=demanded)), other, ())
        with pytest.raises(EvidenceError, match="parameters differ from the policy's: shuffle is"):
            accept_statement(WORLD.line(honest.replace(parameters=stated)), other, ())


def test_a_policy_must_say_which_model_is_sealed(store):
    policy = store.policy
    assert content_source(policy) == "train.model"
    rule = dataclasses.replace(policy.admission_step(), inputs={"model": "train.model"})
    with pytest.raises(AdmissionError, match="which model"):
        content_source(dataclasses.replace(policy, steps={**policy.steps, "admit": rule}))


def test_an_admissions_identity_is_what_was_signed(admission):
    assert admission_identity(admission) == sha256(base64.b64decode(json.loads(admission)["payload"]))
    with pytest.raises(AdmissionError):
        admission_identity(b"x")


def test_in_toto_reads_the_admission_as_a_verification_summary(admission):
    payload = Envelope.parse(admission).payload
    PeerStatement.copy_from_pb(json_format.Parse(payload, statement_pb2.Statement())).validate()
    predicate = json.loads(payload)["predicate"]
    assert predicate.pop("portcullis")["policyName"] == "demo"
    # VSA v1 gives the verifier a version and lists the levels; the peer's protobuf knows no version and one level.
    assert predicate["verifier"].pop("version").keys() == {"portcullis"}
    (predicate["verifiedLevels"],) = predicate["verifiedLevels"]
    summary = json_format.ParseDict(predicate, VerificationSummary())
    assert summary.verification_result == "PASSED"
    assert summary.time_verified.ToMilliseconds() == NOW
    assert len(summary.input_attestations) == len(CHAIN_STEPS)


@pytest.fixture
def deployment(store, admission):
    return Statement(
        step="deploy",
        stage="deploy",
        kind="gate",
        nonce=NONCE,
        started=NOW,
        finished=NOW + 1000,
        inputs={"sealed": SEALED, "admission": sha256(admission)},
        outputs={"sealed": SEALED},
        parameters={},
        figures={"good": 200},
        environment={},
        verdict="PASSED",
    )


def verify_deployed(statement, store, lines, admission, *, signer=None, now=NOW + 2000):
    admitted, _ = verify(admission, lines, store)
    line = WORLD.line(statement, signer)
    return verify_deployment(line, store, admitted, admission_digest=sha256(admission), now=now)


def test_an_honest_deployment_holds(store, lines, admission, deployment):
    assert verify_deployed(deployment, store, lines, admission) == deployment


DEPLOYMENTS = {
    "another admission": ({"inputs": {"sealed": SEALED, "admission": "0" * 64}}, "did not deploy this admission"),
    "another sealed model": (
        {"inputs": {"sealed": "0" * 64, "admission": "1" * 64}, "outputs": {"sealed": "0" * 64}},
        "did not deploy",
    ),
    "no admission": ({"inputs": {"sealed": SEALED}}, "inputs or outputs"),
    "another run": ({"nonce": "f" * 32}, "another run"),
    "before the admission": ({"started": NOW - 400_000, "finished": NOW - 300_001}, "outside what can be"),
    "in the future": ({"finished": NOW + 302_001}, "outside what can be"),
    "other parameters": ({"parameters": {"target": "none"}}, "parameters differ"),
    "passed with a wrong answer": ({"figures": {"good": 500}}, "states PASSED, but"),
    "passed without an answer": ({"figures": {}}, "states PASSED, but"),
    "another step": ({"step": "encrypt"}, "signature is not by key"),
    "another stage": ({"stage": "serve"}, "not a deploy"),
}


@pytest.mark.parametrize(("changes", "match"), DEPLOYMENTS.values(), ids=DEPLOYMENTS.keys())
def test_a_deployment_of_something_else_is_refused(store, lines, admission, deployment, changes, match):
    with pytest.raises(EvidenceError, match=match):
        verify_deployed(deployment.replace(**changes), store, lines, admission, signer=WORLD.keys["deploy"])


def test_a_deployment_that_failed_is_a_failed_gate(store, lines, admission, deployment):
    failed = deployment.replace(figures={"good": 500}, verdict="FAILED", reason="server error")
    with pytest.raises(GateFailedError, match="server error"):
        verify_deployed(failed, store, lines, admission)


def test_another_gate_of_the_chain_is_no_deployment(store, lines, admission):
    with pytest.raises(EvidenceError, match="did not deploy this admission"):
        verify_deployed(WORLD.statements(store.policy)["robustness:trained"], store, lines, admission)


def test_a_step_that_is_given_any_admission_is_no_deployment(store, lines, admission, deployment):
    policy = store.policy
    rule = dataclasses.replace(policy.step("deploy"), inputs={"sealed": "encrypt.sealed", "admission": "external"})
    careless = dataclasses.replace(store, policy=dataclasses.replace(policy, steps={**policy.steps, "deploy": rule}))
    with pytest.raises(EvidenceError, match="did not deploy this admission"):
        verify_deployed(deployment, careless, lines, admission)


def test_a_step_that_the_policy_does_not_know_is_no_deployment(store, lines, admission, deployment):
    with pytest.raises(PolicyError, match="knows no step"):
        verify_deployed(deployment.replace(step="deploy:twice"), store, lines, admission, signer=WORLD.keys["deploy"])


def test_a_deployment_by_a_revoked_key_is_refused(store, lines, admission, deployment):
    revoked = revoking(store, keys={WORLD.keys["deploy"].public_key.keyid})
    with pytest.raises(EvidenceError, match="revoked"):
        verify_deployed(deployment, revoked, lines, admission)
