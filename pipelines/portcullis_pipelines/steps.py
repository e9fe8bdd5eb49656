"""The ordered list of steps: the single source of the policy template, the pipeline, its picture and the tests.

A step's inputs name where they come from (`step.output`, `external`, or `policy`); its parameters and checks are
derived from one `ReferenceConfig`, which also fills the pipeline's arguments, so that the two cannot drift apart.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from portcullis.errors import ConfigError
from portcullis.evidence.policy import EXTERNAL, POLICY, StepKind
from portcullis.keys import PublicKey
from portcullis.pii.residual import BOUNDS as RESIDUAL_BOUNDS
from portcullis.privacy.trial import BOUNDS as TRIAL_BOUNDS
from portcullis_pipelines.config import ReferenceConfig

Bounds = Mapping[str, Mapping[Literal["min", "max"], float]]
# The two nested pipelines. What runs in `release` has keys and a trust store that training cannot mount.
Part = Literal["secure_training", "release"]
# Data sets rest sealed between steps: whoever makes one needs the public key, whoever takes one the private key.
READS, WRITES = "pipeline.pem", "pipeline.pub.pem"


def _none(_: ReferenceConfig) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class ReferenceStep:
    """One step of the reference pipeline.

    Attributes:
        name: Unique name; also names its key.
        stage: The component it is a use of.
        kind: `transform`, `gate` or `admission`.
        inputs: Input name to where it comes from.
        outputs: Output names; for a gate, what it judges.
        refuses: What it refuses, in a few words; so are the next two, for tables and pictures.
        threat: What it stands against.
        limits: What it does not defend against.
        requires: Gates that must have PASSED before.
        parameters: The parameters that the policy demands.
        checks: The bounds on its figures; a gate has some.
        keys: Further key files that it reads, beside its own signing key.
        part: The nested pipeline that it belongs to.
        sharded: Whether it is used once for each shard.
    """

    name: str
    stage: str
    kind: StepKind
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    refuses: str
    threat: str
    limits: str
    requires: tuple[str, ...] = ()
    parameters: Callable[[ReferenceConfig], Mapping[str, Any]] = field(default=_none)
    checks: Callable[[ReferenceConfig], Bounds] = field(default=_none)
    keys: tuple[str, ...] = ()
    part: Part = "secure_training"
    sharded: bool = False

    @property
    def key_file(self) -> str:
        """The file of its signing key; a Kubernetes Secret allows no colon in a key's name."""
        return f"{self.name.replace(':', '.')}.pem"


def _robustness_checks(config: ReferenceConfig) -> Bounds:
    return {
        "robust_accuracy": {"min": config.thresholds.robust_accuracy, "max": 1},
        "clean_accuracy": {"min": config.thresholds.clean_accuracy, "max": 1},
        "samples": {"min": config.thresholds.samples},
    }


def _budget_checks(config: ReferenceConfig) -> Bounds:
    charges = len(config.charging)
    found: Bounds = {"charges": {"min": charges, "max": charges}, "unmatched": {"min": 0, "max": 0}}
    if not charges:
        return found
    ledger = config.ledger_parameters()
    return {
        "epsilon_total": {"min": 0, "max": ledger["epsilon"]},
        "delta": {"min": ledger["delta"], "max": ledger["delta"]},
        **found,
    }


def _quarantine_checks(config: ReferenceConfig) -> Bounds:
    return {"quarantined": {"min": 0, "max": config.dataset.quarantine_at_most}}


def _quality_checks(config: ReferenceConfig) -> Bounds:
    least: dict[str, float] = {
        "class_balance": config.quality.class_balance,
        "reference_accuracy": config.quality.reference_accuracy,
        "reference_accuracy_network": config.quality.reference_accuracy,
    }
    most = {name: value for name, value in dataclasses.asdict(config.quality).items() if name not in least}
    bounds: dict[str, Mapping[Literal["min", "max"], float]] = {
        **{name: {"min": value, "max": 1} for name, value in least.items()},
        **{name: {"min": 0, "max": value} for name, value in most.items()},
    }
    return {**bounds, "smallest_class": {"min": config.screening.n_min}}


STEPS: tuple[ReferenceStep, ...] = (
    ReferenceStep(
        name="preflight",
        stage="preflight",
        kind="transform",
        inputs={"policy": "policy"},
        outputs=("nonce",),
        refuses="a missing trust store; a policy that is unsigned, expired or not the pinned one",
        threat="evidence of another run put in; a run under no policy",
        limits="it checks the policy, not the pipeline or its image",
    ),
    ReferenceStep(
        name="ingest",
        stage="ingest",
        kind="transform",
        inputs={"nonce": "preflight.nonce", "raw": "external"},
        outputs=("dataset", "quarantine"),
        refuses="malformed rows, with their position; links; a schema that is not the declared one",
        threat="data altered on the way in, or other data than the evidence says",
        limits="any raw data under the declared schema is accepted; who chose them is not judged",
        keys=(WRITES,),
        parameters=lambda config: {"spec": config.dataset.to_dict()},
        checks=_quarantine_checks,
    ),
    ReferenceStep(
        name="mask_pii",
        stage="mask_pii",
        kind="transform",
        inputs={"dataset": "ingest.dataset"},
        outputs=("dataset",),
        refuses="columns of a type it cannot scan; an undeclared column of card numbers",
        threat="identifiers in training data, artifacts, logs and reports",
        limits="names and addresses in free text; numbers that are not declared",
        keys=("masking.key", READS, WRITES),
        parameters=lambda config: {"masking": config.masking.to_dict()},
    ),
    ReferenceStep(
        name="residual_pii",
        stage="residual_pii_gate",
        kind="gate",
        inputs={"dataset": "mask_pii.dataset"},
        outputs=("dataset",),
        refuses="any identifier left after masking",
        threat="identifiers that masking missed",
        limits="kinds of identifier that neither looks for",
        keys=(READS,),
        parameters=lambda config: {"masking": config.masking.to_dict()},
        checks=lambda _: RESIDUAL_BOUNDS,
    ),
    ReferenceStep(
        name="data_quality",
        stage="data_quality_gate",
        kind="gate",
        inputs={"dataset": "mask_pii.dataset"},
        outputs=("dataset",),
        requires=("residual_pii",),
        refuses="rows that repeat, contradict one another or lie far off; labels that their neighbours deny; backdoors",
        threat="poisoned training data: flipped labels, floods, outliers, triggers",
        limits="poison under correct labels, copies that differ a little, less poison than its measured rates",
        keys=(READS,),
        parameters=lambda config: dataclasses.asdict(config.screening),
        checks=_quality_checks,
    ),
    ReferenceStep(
        name="split",
        stage="split",
        kind="transform",
        inputs={"dataset": "mask_pii.dataset"},
        outputs=("train", "test"),
        requires=("residual_pii", "data_quality"),
        refuses="test rows that occur in training; a class missing on either side; too few test rows",
        threat="a test set chosen to flatter the model, or learned from",
        limits="near-duplicates that differ in one pixel",
        keys=("split.key", READS, WRITES),
        parameters=lambda config: {"test_fraction": config.test_fraction},
    ),
    ReferenceStep(
        name="dp_noise",
        stage="dp_noise",
        kind="transform",
        inputs={"dataset": "split.train"},
        outputs=("dataset",),
        refuses="an epsilon above the budget; bounds that are not declared; columns that nobody declared; noise whose "
        "samples or low bits are not what the epsilon speaks of",
        threat="reading a person's exact values of the noised columns out of what the training step is given",
        limits="columns without noise, among them all features here; a model trained on them is not private",
        keys=(READS, WRITES),
        parameters=lambda config: {**config.privacy.to_dict(), "ledger": config.ledger_parameters()},
        checks=lambda config: TRIAL_BOUNDS if config.privacy.columns else {},
    ),
    ReferenceStep(
        name="train",
        stage="train",
        kind="transform",
        inputs={"dataset": "dp_noise.dataset"},
        outputs=("model",),
        refuses="non-finite weights or figures; features out of their declared range",
        threat="adversarial examples at inference time",
        limits="whoever holds this step's key can attest another model",
        keys=(READS,),
        parameters=lambda config: {
            "architecture": config.architecture,
            "options": dict(config.options),
            **dataclasses.asdict(config.training),
        },
    ),
    ReferenceStep(
        name="membership",
        stage="membership_gate",
        kind="gate",
        inputs={"model": "train.model", "train": "dp_noise.dataset", "test": "split.test"},
        outputs=("model",),
        refuses="a model whose losses, or what can be made of its gradients, tell its training rows from others",
        threat="telling from the model whether a person's row was learnt from, or what was in it",
        limits="attackers with shadow models find more; what a class looks like is not hidden",
        keys=(READS,),
        parameters=lambda config: dataclasses.asdict(config.membership),
        checks=lambda config: {
            "auc_high": {"min": 0, "max": config.thresholds.membership_auc},
            "inversion_auc_high": {"min": 0, "max": config.thresholds.inversion_auc},
            "inversion_reached": {"min": 0.9, "max": 1},  # else gradients lead nowhere, and nothing was measured
        },
    ),
    ReferenceStep(
        name="budget",
        stage="budget_gate",
        kind="gate",
        inputs={"model": "train.model"},
        outputs=("model",),
        requires=("membership",),
        refuses="more privacy spent by all runs together than the policy allows; a release that was not charged",
        threat="the same people's data released again and again; a ledger altered, rolled back or left out",
        limits="whoever can roll back both the ledger and its last head; what the owner signs under another id",
        parameters=lambda config: {"ledger": config.ledger_parameters(), "charging": list(config.charging)},
        checks=_budget_checks,
    ),
    ReferenceStep(
        name="robustness:trained",
        stage="robustness_gate",
        kind="gate",
        inputs={"model": "train.model", "test": "split.test"},
        outputs=("model",),
        requires=("budget",),
        refuses="a model that FGSM, PGD, APGD, DeepFool, DDN or CW break too often; whatever cannot be judged soundly",
        threat="shipping a model that small perturbations break",
        limits="PASSED is what these attacks found within these budgets, not a proof",
        keys=(READS,),
        parameters=lambda config: dataclasses.asdict(config.robustness),
        checks=_robustness_checks,
    ),
    ReferenceStep(
        name="watermark",
        stage="watermark",
        kind="transform",
        inputs={"model": "train.model"},
        outputs=("model",),
        requires=("robustness:trained",),
        refuses="a model too small to carry a mark; a mark that pruning, rounding or noise removes",
        threat="a stolen model whose owner cannot show that it is theirs",
        limits="distillation removes it; the mean of several owners' copies weakens it",
        keys=("watermark.key",),
        parameters=lambda config: {"owner": config.owner or config.dataset.name},
    ),
    ReferenceStep(
        name="verify_watermark",
        stage="verify_watermark_gate",
        kind="gate",
        inputs={"model": "watermark.model", "unmarked": "train.model"},
        outputs=("model",),
        refuses="a model without this owner's mark",
        threat="shipping a model that is unmarked or carries another owner's mark",
        limits="it shows the mark to whoever has the key, not to the public",
        keys=("watermark.key",),
        parameters=lambda config: {"owner": config.owner or config.dataset.name},
        checks=lambda _: {"present": {"min": 1, "max": 1}, "log10_p_hoeffding": {"max": -9}},
    ),
    ReferenceStep(
        name="robustness:watermarked",
        stage="robustness_gate",
        kind="gate",
        inputs={"model": "watermark.model", "test": "split.test"},
        outputs=("model",),
        requires=("verify_watermark",),
        refuses="a marked model that the same attacks break too often",
        threat="a change after the judgement",
        limits="as robustness:trained",
        keys=(READS,),
        parameters=lambda config: dataclasses.asdict(config.robustness),
        checks=_robustness_checks,
    ),
    ReferenceStep(
        name="equivalence",
        stage="equivalence_gate",
        kind="gate",
        inputs={"model": "watermark.model", "judged": "train.model", "test": "split.test"},
        outputs=("model",),
        requires=("robustness:watermarked",),
        refuses="a shipped model that decides otherwise than the judged one, or worse",
        threat="another model shipped than the one that was judged",
        limits="inputs unlike the test rows",
        keys=(READS,),
        checks=lambda config: {
            "agreement": {"min": config.thresholds.agreement, "max": 1},
            "accuracy_drop": {"min": -1, "max": config.thresholds.accuracy_drop},
            "samples": {"min": config.thresholds.samples},
        },
    ),
    ReferenceStep(
        name="encrypt",
        stage="encrypt",
        kind="transform",
        inputs={"model": "watermark.model"},
        outputs=("sealed",),
        requires=("verify_watermark", "robustness:watermarked", "equivalence"),
        refuses="a model that no gate passed; a recipient that the policy does not name",
        threat="model theft from storage; a shipped model that was not judged",
        limits="whoever holds the serving key reads the model",
        keys=("serving.pub.pem",),
        parameters=lambda config: {"recipients": list(config.recipients)},
    ),
    ReferenceStep(
        name="sign",
        stage="sign",
        kind="transform",
        inputs={"sealed": "encrypt.sealed"},
        outputs=("signature",),
        refuses="a sealed model that is not the one that the evidence is about",
        threat="a sealed model altered in storage, for those who check OpenSSF model signatures only",
        limits="a signature says who signed, not what was judged; that is the admission's",
    ),
    ReferenceStep(
        name="admit",
        stage="admit",
        kind="admission",
        inputs={"sealed": "encrypt.sealed", "signature": "sign.signature"},
        outputs=("admission",),
        refuses="evidence that does not form one unbroken chain to this sealed model",
        threat="a gate left out, skipped, cached, replayed or forged; anything swapped",
        limits="whoever holds a step's key can lie about that step",
        part="release",
    ),
    ReferenceStep(
        name="deploy",
        stage="deploy",
        kind="gate",
        inputs={"sealed": "encrypt.sealed", "admission": "admit.admission"},
        outputs=("sealed",),
        refuses="an admission that is forged, expired, revoked or rolled back; a server that answers wrongly",
        threat="serving an unjudged or outdated model, or to anyone",
        limits="a cluster's administrators; on the local target, one server's answers on loopback are all that is seen",
        keys=("serving.pem", "serving.token"),
        part="release",
        parameters=lambda config: {"target": config.deployment.target, "cluster": dict(config.deployment.cluster)},
        checks=lambda _: {
            "good": {"min": 200, "max": 200},
            "unauthenticated": {"min": 401, "max": 401},
            "wrong_token": {"min": 401, "max": 401},
            "malformed": {"min": 400, "max": 400},
            "failed_checks": {"min": 0, "max": 0},
        },
    ),
)


_DP_TRAIN = ReferenceStep(
    name="train",
    stage="dp_train",
    kind="transform",
    inputs={"dataset": "dp_noise.dataset"},
    outputs=("model",),
    refuses="a network that mixes the rows of a batch; an epsilon on which two accountants do not agree",
    threat="telling from the model whether a person's row was learnt from, or what it said",
    limits="the low bits of floating-point noise; several rows of one person; what gates measure on training rows",
    keys=(READS,),
    parameters=lambda config: {**_private_training(config), "ledger": config.ledger_parameters()},
)


def _private_training(config: ReferenceConfig) -> dict[str, Any]:
    if config.dp_training is None:
        raise ConfigError("this configuration does not say in dp_training how to train privately")
    return {
        "architecture": config.architecture,
        "options": dict(config.options),
        **dataclasses.asdict(config.dp_training),
    }


# How unlikely an honest trainer's sampling, clipping or noise may be; each is looked at in every run.
_HONEST = 1e-5


def _audit_checks(config: ReferenceConfig) -> Bounds:
    target = _private_training(config)["target_epsilon"]
    return {
        "epsilon_claimed": {"min": 0, "max": target},
        "epsilon_lower": {"min": 0, "max": target},
        "certificate_differs": {"min": 0, "max": 0},
        "sampling_p_value": {"min": _HONEST, "max": 1},
        "clipping_p_value": {"min": _HONEST, "max": 1},
        "noise_p_value": {"min": _HONEST, "max": 1},
        "noise_ratio": {"min": 0.9, "max": 1.1},
        "steps_missing": {"min": 0, "max": 0},
    }


_PRIVACY_AUDIT = ReferenceStep(
    name="privacy_audit",
    stage="privacy_audit_gate",
    kind="gate",
    inputs={"model": "train.model"},
    outputs=("model",),
    refuses="a trainer whose noise, clipping or sampling is not what the certificate says",
    threat="a certificate of privacy that the code does not keep",
    limits="it audits the installed code by a copy on made-up rows, not the process that trained the model",
    keys=("audit.key",),
    parameters=lambda config: {
        **{name: it for name, it in _private_training(config).items() if name not in ("architecture", "options")},
        "ledger": config.ledger_parameters(),
        **dataclasses.asdict(config.audit),
    },
    checks=_audit_checks,
)


def _private(step: ReferenceStep) -> tuple[ReferenceStep, ...]:
    if step.name == "train":
        return (_DP_TRAIN, _PRIVACY_AUDIT)
    if step.name == "membership":
        return (dataclasses.replace(step, requires=(_PRIVACY_AUDIT.name,)),)
    return (step,)


# The private variant: the same steps, but for how the model is trained, and a gate on that.
PRIVATE_STEPS: tuple[ReferenceStep, ...] = tuple(it for step in STEPS for it in _private(step))


# Those that only a run over shards has.
SHARD_STEPS: tuple[ReferenceStep, ...] = (
    ReferenceStep(
        name="survey_shard",
        stage="survey_shard",
        kind="transform",
        inputs={"nonce": "preflight.nonce", "raw": "external"},
        outputs=("raw", "survey", "head"),
        refuses="malformed rows, with their position; links",
        threat="a part that is read otherwise than it was looked at",
        limits="as ingest",
        keys=(WRITES,),
        parameters=lambda config: {"spec": config.dataset.to_dict()},
        checks=_quarantine_checks,
        sharded=True,
    ),
    ReferenceStep(
        name="plan_shards",
        stage="plan_shards",
        kind="transform",
        inputs={"survey": "survey_shard.survey", "head": "survey_shard.head"},
        outputs=("plan", "head"),
        refuses="shards that saw different files, or cut them otherwise; more malformed rows in all than allowed",
        threat="a part of the source left out, read twice, or typed or masked otherwise than the rest",
        limits="as ingest",
        keys=(READS, WRITES),
        parameters=lambda config: {"spec": config.dataset.to_dict()},
        checks=_quarantine_checks,
    ),
    ReferenceStep(
        name="merge_shards",
        stage="merge_shards",
        kind="transform",
        inputs={"dataset": "mask_pii.dataset"},
        outputs=("dataset",),
        requires=("residual_pii",),
        refuses="a shard that is missing, repeated, of another run, or that its gate did not pass",
        threat="rows put in or left out between the shards and what is learned from",
        limits="whoever holds a sharded step's key can lie about any of its shards",
        keys=(READS, WRITES),
        checks=_quarantine_checks,
    ),
)


def steps_of(config: ReferenceConfig) -> tuple[ReferenceStep, ...]:
    """Return the steps of a configuration's variant, in order: private or not, over shards or not."""
    whole = STEPS if config.dp_training is None else PRIVATE_STEPS
    return whole if config.shards == 1 else _over_shards(whole)


def _over_shards(whole: tuple[ReferenceStep, ...]) -> tuple[ReferenceStep, ...]:
    survey, plan, merge = SHARD_STEPS
    steps: list[ReferenceStep] = []
    for step in whole:
        if step.name == "ingest":
            inputs = {**step.inputs, "raw": "survey_shard.raw", "plan": "plan_shards.plan"}
            steps += [survey, plan, dataclasses.replace(step, inputs=inputs, sharded=True)]
        elif step.name == "mask_pii":
            inputs = {**step.inputs, "head": "plan_shards.head"}
            steps.append(dataclasses.replace(step, inputs=inputs, sharded=True))
        elif step.name == "residual_pii":
            steps += [dataclasses.replace(step, sharded=True), merge]
        else:
            # What comes after takes the joined data set, which no gate judged as such: those of the shards did.
            joined = {name: source.replace("mask_pii.", "merge_shards.") for name, source in step.inputs.items()}
            requires = tuple(gate for gate in step.requires if gate != "residual_pii")
            steps.append(dataclasses.replace(step, inputs=joined, requires=requires))
    return tuple(steps)


def policy_steps(config: ReferenceConfig, keys: Mapping[str, PublicKey]) -> list[Mapping[str, Any]]:
    """Return the policy's `steps` for a configuration and one public key per step."""
    return [{**_without_key(step, config), "key": keys[step.name].pem} for step in steps_of(config)]


def chosen_steps(config: ReferenceConfig, names: Collection[str]) -> list[Mapping[str, Any]]:
    """Return some of the steps for a policy of one's own, without their keys: what none of them makes is external.

    A required gate that is not among them is not required.
    """
    chosen = [step for step in steps_of(config) if step.name in names]
    made = {f"{step.name}.{output}" for step in chosen for output in step.outputs} | {POLICY}
    return [
        {
            **_without_key(step, config),
            "inputs": {name: source if source in made else EXTERNAL for name, source in step.inputs.items()},
            "requires": [gate for gate in step.requires if gate in names],
        }
        for step in chosen
    ]


def _without_key(step: ReferenceStep, config: ReferenceConfig) -> dict[str, Any]:
    return {
        "name": step.name,
        "stage": step.stage,
        "kind": step.kind,
        "inputs": dict(step.inputs),
        "outputs": list(step.outputs),
        "requires": list(step.requires),
        "parameters": dict(step.parameters(config)),
        "checks": {figure: dict(bounds) for figure, bounds in step.checks(config).items()},
        **({"shards": config.shards} if step.sharded else {}),
    }
