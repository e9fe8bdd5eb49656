"""KFP component `deploy`."""

from typing import Any, Dict

from kfp.dsl import Artifact, Input, Metrics, Model, Output

from portcullis.container import component


@component
def deploy(
    sealed: Input[Model],
    admission: Input[Artifact],
    evidence: Input[Artifact],
    target: str,
    cluster: Dict[str, Any],
    deployment: Output[Artifact],
    manifests: Output[Artifact],
    metrics: Output[Metrics],
    step: str = "deploy",
):
    """Deploy an admitted model, ask it good, unauthenticated and malformed requests, and sign the answers.

    Verifies admission and chain again with its own trust store. Refuses an admission that is forged, expired, revoked
    or rolled back, and a server that answers otherwise than the policy demands; on a cluster it then rolls back.

    Args:
        sealed: The sealed model.
        admission: Its admission.
        evidence: The evidence that the admission was issued for.
        target: `local`: a server on the loopback interface, stopped when it has answered. `kubernetes`: a cluster.
        cluster: For `kubernetes`, how the model is served there; empty for `local`.
        step: Name of this step in the policy.
        deployment: The signed statement of this deployment.
        manifests: What was applied to the cluster, as YAML; empty for `local`.
        metrics: The HTTP status of each answer.
    """
    from pathlib import Path

    from portcullis.deploy.stage import deploy as run
    from portcullis.report import log_figures

    statement = run(
        step=step,
        sealed=Path(sealed.path),
        admission=Path(admission.path),
        evidence=Path(evidence.path),
        target=target,
        cluster=cluster,
        uris={"sealed": sealed.uri, "admission": admission.uri, "evidence": evidence.uri},
        deployment=Path(deployment.path),
        manifests=Path(manifests.path),
    )
    log_figures(metrics, statement)
