"""`chain`: what verifying a chain costs."""

from collections.abc import Sequence

from benchmarks import Record, command, compare
from portcullis.digest import sha256
from portcullis.evidence.chain import verify_chain
from portcullis.evidence.dsse import seal_payload
from portcullis.evidence.policy import Policy, policy_body, sign_policy, verify_policy
from portcullis.evidence.statement import Statement
from portcullis.evidence.step import environment
from portcullis.keys import Signer

STAGES = 12
NOW = 1_800_000_000_000


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
    return [_verification(200 if quick else 1000)]


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


if __name__ == "__main__":
    command("chain", measure)
