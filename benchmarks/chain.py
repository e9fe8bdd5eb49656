"""`chain`: what verifying a chain costs, and signing a model beside OpenSSF model-signing.

Signing is timed as a process, as a user runs it: start, read every byte of the model, sign, write.
"""

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import Record, command, compare
from benchmarks.peers import peer_python
from portcullis.digest import sha256
from portcullis.evidence.chain import verify_chain
from portcullis.evidence.dsse import seal_payload
from portcullis.evidence.policy import Policy, policy_body, sign_policy, verify_policy
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import environment
from portcullis.keys import Signer

STAGES = 12
NOW = 1_800_000_000_000

SIGN = """
import sys
from pathlib import Path
from portcullis.digest import tree_digest
from portcullis.evidence.dsse import seal_payload
from portcullis.evidence.statement import Statement
from portcullis.keys import Signer
model, key, target = map(Path, sys.argv[1:])
statement = Statement("sign", "sign", "transform", "0" * 32, 0, 0, {}, {"model": tree_digest(model)}, {}, {}, {})
target.write_bytes(seal_payload(statement.encode(), Signer.from_pem(key.read_bytes())).encode())
"""


def chain_of(count: int) -> tuple[Policy, list[bytes]]:
    """Return a policy of `count` steps in a row, the last a gate, then an admission; and the evidence of one run."""
    owner, keys = Signer.generate(), [Signer.generate() for _ in range(count + 1)]
    gate = count - 1
    parameters = {"epsilon": 0.1, "steps": 40}
    steps = [
        {
            "name": f"step{index}",
            "stage": "stage",
            "kind": "gate" if index == gate else "transform" if index < count else "admission",
            "key": key.public_key.pem,
            "inputs": {"data": f"step{index - 1}.data" if index else "policy"},
            "outputs": ["data"],
            "parameters": parameters,
            "requires": [],
            "checks": {"accuracy": {"min": 0.75, "max": 1}} if index == gate else {},
        }
        for index, key in enumerate(keys)
    ]
    body = policy_body(
        name="bench",
        environment="development",
        version=1,
        expires=NOW + 10**9,
        max_age=3600,
        admission_lifetime=3600,
        development=True,
        steps=steps,
    )
    policy = verify_policy(sign_policy(body, owner), owner.public_key, now=NOW)
    made = [policy.digest, *(sha256(b"%d" % index) for index in range(gate))]
    statements = [
        Statement(
            step=f"step{index}",
            stage="stage",
            kind="gate" if index == gate else "transform",
            nonce="0" * 32,
            started=NOW - 1000,
            finished=NOW,
            inputs={"data": made[index]},
            outputs={"data": made[min(index + 1, gate)]},
            parameters=parameters,
            figures={"accuracy": 0.8125},
            environment=environment(),
            verdict="PASSED" if index == gate else None,
        )
        for index in range(count)
    ]
    return policy, [seal_payload(it.encode(), key).encode() for it, key in zip(statements, keys, strict=False)]


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    return [_verification(200 if quick else 1000), _signing(5 if quick else 15)]


def _verification(rounds: int) -> Record:
    policy, lines = chain_of(STAGES)
    needed = {f"step{index}" for index in range(STAGES)}
    return compare(
        f"verification of {STAGES} stages",
        lambda: verify_chain(lines, policy, needed=needed, judged_at=NOW),
        None,  # no peer verifies a chain
        rounds=rounds,
        target=10,
        unit="ms",
        scale=1000,
    )


def _signing(rounds: int) -> Record:
    python = peer_python("model-signing", "model-signing==1.1.1", "pyopenssl==26.4.0")
    with tempfile.TemporaryDirectory(dir="build") as folder:
        work = Path(folder)
        model = work / "model"
        model.mkdir()
        with (model / "weights.safetensors").open("wb") as stream:
            for _ in range(512):
                stream.write(secrets.token_bytes(1 << 20))
        key = work / "key.pem"
        key.write_bytes(Signer.generate().private_pem())

        def ours() -> None:
            subprocess.run([sys.executable, "-c", SIGN, model, key, work / "ours.json"], check=True)

        def peer() -> None:
            signature = work / "peer.sig"
            signature.unlink(missing_ok=True)
            subprocess.run(
                [python, "-m", "model_signing", "sign", "key", model, "--private_key", key, "--signature", signature],
                check=True,
                stdout=subprocess.DEVNULL,
            )

        return compare("sign 0.5 GB model", ours, peer, peer_name="model_signing 1.1.1", rounds=rounds, target=1.5)


if __name__ == "__main__":
    command("chain", measure)
