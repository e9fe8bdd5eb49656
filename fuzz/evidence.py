"""Targets that read sealed files, evidence and policies.

The bytes are tried as they are, and as someone with a key would hand them in: in canonical form, and signed.
"""

import base64
import json
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from fuzz import Target
from portcullis.digest import canonical_json, sha256
from portcullis.errors import DataError, EvidenceError, KeyMaterialError, PolicyError, RefusedError, SealError
from portcullis.evidence.chain import join_bundle, split_bundle, verify_chain
from portcullis.evidence.dsse import Envelope, seal_payload
from portcullis.evidence.policy import parse_policy, verify_policy
from portcullis.evidence.statement import Statement
from portcullis.sealing.recipients import SealingPrivateKey, SealingPublicKey, claimed_recipients, unwrap_dek, wrap_dek
from portcullis.sealing.stream import HEADER_SIZE, MAGIC, open_sealed, seal

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from chains import NOW, World

_FOLDER = tempfile.TemporaryDirectory(prefix="portcullis-fuzz-")
_DEK = bytes(range(32))
_CONTEXT = {"model": "5f" * 32, "file": "weights"}
_SEGMENT = 64
_PLAIN = bytes(range(200))
_KEY = SealingPrivateKey.generate()


def _sealed(plain: bytes, segment: int = _SEGMENT) -> bytes:
    target = BytesIO()
    seal(BytesIO(plain), target, dek=_DEK, context=_CONTEXT, _segment_size=segment)
    return target.getvalue()


_SEALED = _sealed(_PLAIN)
_SIDECAR = wrap_dek(_DEK, [_KEY.public_key()], context=_CONTEXT)


def _opened(data: bytes) -> bytes | None:
    path = Path(_FOLDER.name) / "input.sealed"
    path.write_bytes(data)
    try:
        with open_sealed(path, dek=_DEK, context=_CONTEXT) as file:
            whole = file.read_all()
            assert b"".join(file.chunks()) == whole and len(whole) == file.size
            return whole
    except SealError:
        return None


def fuzz_sealed(data: bytes) -> None:
    """A sealed file opens to what was sealed or not at all, whatever is done to its header, segments and recipients.

    The first byte says what the rest is: a file, a header's fields, a list of recipients, a key, or the changes to a
    file that was sealed (at 2 bytes, 1 byte of another value).
    """
    kind, rest = data[:1], data[1:]
    if kind <= b"\x3f":
        assert _opened(rest) is None
        assert _opened((MAGIC + rest[: HEADER_SIZE - len(MAGIC)]).ljust(HEADER_SIZE, b"\0") + rest) is None
    elif kind <= b"\x7f":
        altered = bytearray(_SEALED)
        for start in range(0, len(rest) - 2, 3):
            altered[int.from_bytes(rest[start : start + 2], "big") % len(altered)] ^= rest[start + 2]
        assert _opened(bytes(altered)) == (_PLAIN if altered == _SEALED else None)
        assert _opened(_SEALED[: len(_SEALED) - 1 - len(rest) % len(_SEALED)]) is None
    elif kind <= b"\xbf":
        for sidecar in {rest, _canonical(rest)}:
            try:
                dek = unwrap_dek(sidecar, _KEY, context=_CONTEXT)
            except SealError:
                continue
            assert sidecar == _SIDECAR and dek == _DEK and claimed_recipients(sidecar) == [_KEY.key_id]
    elif kind <= b"\xdf":
        segment = 1 + len(rest) % 70
        assert _opened(_sealed(rest, segment)) == rest
    else:
        for form in (SealingPrivateKey, SealingPublicKey):
            try:
                key = form.from_pem(rest)
            except KeyMaterialError:
                continue
            assert key.to_pem() == rest


def _canonical(data: bytes) -> bytes:
    """Return JSON in the one form that is looked at further; what is no JSON as it is."""
    try:
        return canonical_json(json.loads(data))
    except (ValueError, RecursionError, DataError):
        return data


_WORLD = World()
_SIGNED_POLICY = _WORLD.policy_bytes()
_POLICY = verify_policy(_SIGNED_POLICY, _WORLD.owner.public_key, now=NOW)
_LINES = _WORLD.lines(_POLICY)
_HONEST = {name: statement.encode() for name, statement in _WORLD.statements(_POLICY).items()}
_NEEDED = frozenset(_HONEST)


def _edited(data: bytes) -> bytes:
    """Return an honest statement in which one value, or the whole of an object or list, was replaced.

    The first byte chooses the statement, the next ones the way down to the value, 0xff ends it; the rest is the new
    value, as JSON or, where it is none, as text.
    """
    step = list(_HONEST)[data[0] % len(_HONEST)] if data else "train"
    way, _, value = data[1:].partition(b"\xff")
    document = {"statement": json.loads(_HONEST[step])}
    holder: Any = document
    key: Any = "statement"
    for choice in way:
        if not isinstance(holder[key], dict | list) or not holder[key]:
            break
        holder = holder[key]
        keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[choice % len(keys)]
    try:
        holder[key] = json.loads(value)
    except (ValueError, RecursionError):
        holder[key] = value.decode(errors="replace")
    try:
        return canonical_json(document["statement"])
    except DataError:
        return value


def fuzz_envelope(data: bytes) -> None:
    """An envelope or statement that is accepted is spelled in one way, and is what Python's json and base64 read."""
    edited = _edited(data)
    sealed = json.dumps({"payload": base64.b64encode(edited).decode(), "payloadType": "x", "signatures": [{}]}).encode()
    for line in {data, _canonical(data), edited, _canonical(sealed.replace(b"{}", data or b"{}"))}:
        try:
            envelope = Envelope.parse(line)
        except EvidenceError:
            envelope = None
        if envelope is not None:
            document = json.loads(line)
            assert envelope.encode() == line
            assert base64.b64decode(document["payload"]) == envelope.payload
            assert document["payloadType"] == envelope.payload_type
        try:
            statement = Statement.parse(line)
        except EvidenceError:
            continue
        assert statement.encode() == line
        subjects = {it["name"]: it["digest"]["sha256"] for it in json.loads(line)["subject"]}
        assert subjects == dict(statement.outputs)
        assert statement.kind == "transform" or statement.verdict in ("PASSED", "FAILED")


def fuzz_bundle(data: bytes) -> None:
    """A bundle that verifies holds the honest statements, unless the very key of a step signed another.

    The first byte says what the rest is: a whole bundle; a line beside the honest ones; or, for `_edited`, a statement
    that the key of its step signs in the place of the honest one. That may differ in what nothing judges only.
    """
    kind, rest = data[:1], data[1:]
    signed = kind > b"\xaa"
    try:
        if kind <= b"\x55":
            lines = split_bundle(rest)
            assert split_bundle(join_bundle(lines)) == list(dict.fromkeys(lines))
        elif not signed:
            lines = [*_LINES, rest]
        else:
            statement = Statement.parse(_edited(rest))
            if statement.step not in _HONEST:
                return
            line = seal_payload(statement.encode(), _WORLD.keys[statement.step]).encode()
            lines = [line if step == statement.step else honest for step, honest in zip(_HONEST, _LINES, strict=True)]
        chain = verify_chain(lines, _POLICY, needed=_NEEDED, judged_at=NOW)
    except RefusedError:
        return
    if not signed:
        assert {name: it.encode() for name, it in chain.statements.items()} == _HONEST
        return
    for name, it in chain.statements.items():
        honest = Statement.parse(_HONEST[name])
        assert (it.stage, it.kind, it.nonce, it.verdict) == (honest.stage, honest.kind, honest.nonce, honest.verdict)
        assert canonical_json(it.parameters) == canonical_json(honest.parameters)
        assert set(it.outputs) == set(honest.outputs) and set(it.inputs) == set(honest.inputs)
        if it.kind == "gate":
            assert it.outputs == honest.outputs
            robust, samples = (it.figures[figure] for figure in ("robust_accuracy", "samples"))
            assert isinstance(robust, int | float) and 0.75 <= robust <= 1
            assert isinstance(samples, int | float) and samples >= 100


def fuzz_policy(data: bytes) -> None:
    """A policy that is accepted says what PyYAML's safe loader reads; only its owner's signature makes it verify."""
    try:
        policy = verify_policy(data, _WORLD.owner.public_key, now=NOW)
        assert policy == _POLICY, "another policy verifies"
    except PolicyError:
        pass
    try:
        policy = parse_policy(data, digest=sha256(data))
    except PolicyError:
        return
    document = yaml.safe_load(data.decode())
    assert (policy.name, policy.version) == (document["name"], document["version"])
    assert [rule.name for rule in policy.steps.values()] == [step["name"] for step in document["steps"]]
    for rule, step in zip(policy.steps.values(), document["steps"], strict=True):
        assert canonical_json(dict(rule.parameters)) == canonical_json(step["parameters"])
        assert bool(rule.checks) == (rule.kind == "gate")
        for name, check in rule.checks.items():
            assert (check.low, check.high) == (step["checks"][name].get("min"), step["checks"][name].get("max"))
            assert not check.holds(float("nan")) and not check.holds("1") and not check.holds(None)
        policy.ancestors(rule.name)


def _sealed_seeds() -> list[bytes]:
    fields = {"algorithm": "AES-256-GCM-STREAM", "context": _CONTEXT, "salt": "0" * 64, "segment_size": 64}
    return [
        b"\0" + json.dumps(fields).encode(),
        b"\0" + MAGIC + json.dumps(fields).encode(),
        b"\x40" + b"\x10\0\1",
        b"\x40",
        b"\x80" + _SIDECAR,
        b"\xc0" + _PLAIN,
        b"\xe0" + _KEY.public_key().to_pem(),
    ]


def _edits() -> list[bytes]:
    return [b"\0\1\xff[]", b"\1\2\0\0\xff1e400", b"\2\1\3\xff0.5", b'\3\3\0\0\xff"x"', b"\2\1\2\xffnull", b"\1"]


def _bundle_seeds() -> list[bytes]:
    return [b"\0" + join_bundle(_LINES), b"\x60" + _LINES[0], *(b"\xff" + edit for edit in _edits())]


def _policy_body() -> bytes:
    return _SIGNED_POLICY.rpartition(b"# portcullis-signature: ")[0]


_JSON = (b'"signatures":', b'"keyid":""', b'"payloadType":', b"null", b"1e400", b"-0", b"true", b'"verdict"', b"NaN")

TARGETS = (
    Target("sealed", fuzz_sealed, _sealed_seeds, (MAGIC, b'"segment_size":', b'"recipients":', b"-----BEGIN"), 8192),
    Target("envelope", fuzz_envelope, lambda: [*_LINES, *_HONEST.values(), *_edits()], _JSON, 4096),
    Target("bundle", fuzz_bundle, _bundle_seeds, _JSON, 16384),
    Target(
        "policy",
        fuzz_policy,
        lambda: [_SIGNED_POLICY, _policy_body()],
        (
            b"kind: gate",
            b"parameters: {}",
            b"requires: []",
            b"min: ",
            b"max: .nan",
            b"external",
            b"policy",
            b"- ",
            b"&a ",
        ),
        8192,
    ),
)
