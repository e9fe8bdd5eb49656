"""A workshop with one trained model in it: keys, trust store and evidence, to mark, verify and claim it in."""

import base64
import math
from itertools import pairwise

import numpy as np
from chains import STEPS, World
from safetensors.numpy import save

from portcullis.digest import file_digest, path_digest, sha256, tree_digest
from portcullis.evidence.step import begin, enforce
from portcullis.evidence.trust import Revocations, now_ms, write_trust_store
from portcullis.files import write_bytes
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, ModelSpec
from portcullis.watermark.mark import Claim
from portcullis.watermark.stage import verify_watermark, watermark_model
from portcullis.watermark.weights import decode_weights

KEY = bytes(range(32))
CLAIM = Claim("Example Ltd", "a" * 64)
# The default architecture's tensors, and with them the default model's marks.
SHAPES = {
    "classifier.0.bias": (64,),
    "classifier.0.weight": (64, 768),
    "classifier.2.bias": (10,),
    "classifier.2.weight": (10, 64),
    "features.0.bias": (24,),
    "features.0.weight": (24, 1, 3, 3),
    "features.2.bias": (48,),
    "features.2.weight": (48, 24, 3, 3),
}


def model(seed=0, dtype=np.float32):
    """Return tensors as training leaves them: zero mean, each tensor with a spread of its own, rows that differ."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in SHAPES.items():
        fan_in = math.prod(shape[1:])
        rows = np.exp(generator.normal(0, 0.3, (shape[0], *[1] * (len(shape) - 1))))
        tensors[name] = (generator.standard_normal(shape) * rows / math.sqrt(fan_in)).astype(dtype)
    return tensors


# A small convolutional network: each layer, its neurons, and the shape of what one of them takes.
CHAIN = (("one", 24, (1, 3, 3)), ("two", 48, (24, 3, 3)), ("three", 64, (768,)), ("four", 10, (64,)))


def obfuscated(tensors, seed, *, scale=0.0, split=0.0, dummies=0, lost=0):
    """Change neurons so that the network's function does not: order, size, split in two, pairs that add up to nothing.

    Args:
        scale: Standard deviation of the logarithm of each neuron's factor, undone in the next layer.
        split: Share of neurons that become two, 30 % and 70 % of the one.
        dummies: Pairs of new neurons in each layer that cancel each other.
        lost: Neurons of each layer that are taken out; this does change the function.
    """
    generator = np.random.default_rng(seed)
    changed = {name: weights.copy() for name, weights in tensors.items()}
    for (name, _, _), (after, _, _) in pairwise(CHAIN):
        own, its = changed[name], changed[after]
        shape = (its.shape[0], len(own), -1)
        columns = its.reshape(shape)
        twice = generator.choice(len(own), int(split * len(own)), replace=False)
        columns = np.concatenate([columns, columns[:, twice] * np.float32(0.3)], axis=1)
        columns[:, twice] *= np.float32(0.7)
        new = generator.standard_normal((dummies, *own.shape[1:]), dtype=np.float32)
        out = 3 * generator.standard_normal((len(its), dummies, columns.shape[2]), dtype=np.float32)
        own = np.concatenate([own, own[twice], new, new])
        columns = np.concatenate([columns, out, -out], axis=1)
        order = generator.permutation(len(own))[: len(own) - lost]
        size = np.exp(generator.normal(0, scale, len(own)))[order].astype(np.float32)
        changed[name] = own[order] * size.reshape(-1, *[1] * (own.ndim - 1))
        columns = columns[:, order] / size[None, :, None]
        changed[after] = (
            columns.reshape(len(its), -1, *its.shape[2:]) if its.ndim > 2 else columns.reshape(len(its), -1)
        )
    return changed


SPEC = ModelSpec("digits-cnn", {"width": 24, "hidden": 64}, (1, 8, 8), 0, 16, tuple(str(digit) for digit in range(10)))

OWNER = "Example Ltd"
TRIGGERS = 60
SHARE = 0.3
MAKES_A_MODEL = {"kind": "transform", "outputs": ["model"]}
GATE = {"stage": "verify_watermark_gate", "kind": "gate", "outputs": ["model"]}
CHECKS = {"present": {"min": 1, "max": 1}, "log10_p_hoeffding": {"max": -9}}
OWN_STEPS = [
    STEPS[0],
    {
        "name": "train",
        "stage": "train",
        "kind": "transform",
        "inputs": {"nonce": "preflight.nonce"},
        "outputs": ["model"],
    },
    {
        "name": "watermark",
        "stage": "watermark",
        "inputs": {"model": "train.model"},
        "parameters": {"owner": OWNER},
        **MAKES_A_MODEL,
    },
    {
        "name": "verify_watermark",
        "inputs": {"model": "watermark.model", "unmarked": "train.model"},
        "parameters": {"owner": OWNER},
        "checks": CHECKS,
        **GATE,
    },
    {
        "name": "verify_watermark:other_owner",
        "inputs": {"model": "watermark.model", "unmarked": "train.model"},
        "parameters": {"owner": "Example Inc"},
        "checks": CHECKS,
        **GATE,
    },
    {
        "name": "watermark:triggers",
        "stage": "watermark",
        "inputs": {"model": "train.model", "dataset": "external"},
        "parameters": {"owner": OWNER, "triggers": TRIGGERS, "soft_share": SHARE},
        **MAKES_A_MODEL,
    },
    # Whatever was done to the marked model since.
    {
        "name": "alter",
        "stage": "alter",
        "kind": "transform",
        "inputs": {"model": "watermark.model"},
        "outputs": ["model"],
    },
    {
        "name": "verify_watermark:altered",
        "inputs": {"model": "alter.model", "unmarked": "train.model"},
        "parameters": {"owner": OWNER},
        "checks": CHECKS,
        **GATE,
    },
    {
        "name": "admit",
        "stage": "admit",
        "kind": "admission",
        "inputs": {"sealed": "watermark.model"},
        "outputs": ["admission"],
        "requires": ["verify_watermark"],
    },
]
NONCE = "0123456789abcdef" * 2


class Workshop:
    """A trained model, its evidence, keys and trust store in a folder."""

    def __init__(self, root, monkeypatch):
        self.root = root
        monkeypatch.setenv("PORTCULLIS_TRUST", str(root / "trust"))
        monkeypatch.setenv("PORTCULLIS_STATE", str(root / "state"))
        monkeypatch.setenv("PORTCULLIS_KEYS", f"file:{root / 'keys'}")

    def furnish(self, tensors):
        world = World()
        world.keys |= {step["name"]: type(world.owner).generate() for step in OWN_STEPS}
        blank = {"parameters": {}, "requires": [], "checks": {}}
        steps = [{**blank, **step, "key": world.keys[step["name"]].public_key.pem} for step in OWN_STEPS]
        write_trust_store(
            self.root / "trust",
            owner=world.owner.public_key,
            name="demo",
            environment="development",
            policy=world.policy_bytes(steps=steps, expires=now_ms() + 10**8),
            revocations=Revocations(1).sign(world.owner),
        )
        for name in (step["name"] for step in OWN_STEPS):
            write_bytes(
                self.root / "keys" / f"{name.replace(':', '.')}.pem", world.keys[name].private_pem(), mode=0o600
            )
        self.watermark_key(KEY)
        self.model("trained", save(tensors))
        policy = file_digest(self.root / "trust" / "policy.yaml")
        begun = begin("preflight", stage="preflight", inputs={"policy": policy}, parameters={}, nonce=NONCE)
        begun.finish(bundle=self.bundle("preflight"), outputs={"nonce": sha256(NONCE.encode())}, figures={})
        begun = begin(
            "train",
            stage="train",
            inputs={"nonce": sha256(NONCE.encode())},
            parameters={},
            evidence=[self.bundle("preflight")],
        )
        begun.finish(bundle=self.bundle("trained"), outputs={"model": self.digest("trained")}, figures={})
        return self

    def watermark_key(self, key):
        write_bytes(self.root / "keys" / "watermark.key", base64.b64encode(key) + b"\n", mode=0o600)

    def model(self, name, weights):
        (self.root / name).mkdir(exist_ok=True)
        (self.root / name / SPEC_FILE).write_bytes(SPEC.to_json())
        (self.root / name / WEIGHTS_FILE).write_bytes(weights)

    def digest(self, name):
        return tree_digest(self.root / name)

    def bundle(self, name):
        return self.root / f"{name}.intoto.jsonl"

    def tensors(self, name):
        return decode_weights((self.root / name / WEIGHTS_FILE).read_bytes())

    def mark(self, **changes):
        settings = {
            "step": "watermark",
            "model": self.root / "trained",
            "evidence": self.bundle("trained"),
            "owner": OWNER,
            "marked": self.root / "marked",
            "bundle": self.bundle("marked"),
        }
        return watermark_model(**{**settings, **changes})

    def alter(self, weights):
        """Sign an alteration of the marked model, so that only the gate stands against it."""
        self.model("altered", weights)
        begun = begin(
            "alter",
            stage="alter",
            inputs={"model": self.digest("marked")},
            parameters={},
            evidence=[self.bundle("marked")],
        )
        begun.finish(bundle=self.bundle("altered"), outputs={"model": self.digest("altered")}, figures={})
        return self.verify(
            step="verify_watermark:altered", model=self.root / "altered", evidence=self.bundle("altered")
        )

    def verify(self, **changes):
        settings = {
            "step": "verify_watermark",
            "model": self.root / "marked",
            "unmarked": self.root / "trained",
            "evidence": self.bundle("marked"),
            "owner": OWNER,
            "report": self.root / "report.html",
            "bundle": self.bundle("judged"),
        }
        return verify_watermark(**{**settings, **changes})

    def enforce(self, gate="verify_watermark", model="marked"):
        return enforce(
            gate,
            subject=path_digest(self.root / model),
            evidence=self.bundle("judged"),
            passed=self.bundle("passed"),
        )
