"""What a task gets on Kubernetes, as far as KFP 2.17 can say it: `harden` for one task, `secure_pipeline` for all.

A hardened task runs as a numbered user that is not root, is never cached, ends after a time limit, has requests and
limits, asks for GPUs where it is told to, writes temporary files to memory only, and reads its keys and its trust store
from volumes without which its pod does not start. Keys never come as parameters: KFP logs and stores those.

What KFP cannot say, a cluster's administrator must: a read-only root file system, a service account per task, a runtime
class, network policies. KFP's own back end drops capabilities, forbids privilege escalation and sets seccomp.

These settings hang on the tasks of a pipeline and not on a component, so whoever loads a bare `component.yaml` calls
`harden` on its task; `pipeline.yaml` beside it carries them inside. The local runner ignores all of them.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from portcullis.errors import MissingDependencyError, UsageError
from portcullis.evidence.step import KEYS_MOUNT
from portcullis.evidence.trust import TRUST_MOUNT
from portcullis.kubernetes_names import require_gpu_resource

try:
    from kfp import dsl, kubernetes
except ImportError as error:
    raise MissingDependencyError("pipelines need KFP; run: pip install 'kfp-portcullis[kfp]'") from error

# The image expects keys and trust store where they are mounted (images/Containerfile).
SCRATCH_MOUNT = "/tmp"  # noqa: S108 - a volume of the pod's own, in memory

TRUST_CONFIG_MAP = "portcullis-trust"
USER = 10001
GPU_RESOURCE = "nvidia.com/gpu"
COMPONENT_LABEL = "portcullis.dev/component"

_LABEL = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True)
class Resources:
    """What a task may use, as Kubernetes quantities, and for how many seconds its pod may live."""

    cpu: str = "1"
    memory: str = "2Gi"
    scratch: str = "1Gi"
    timeout: int = 3600


SMALL = Resources()
LONG = Resources(timeout=24 * 3600)  # a day, for what streams any amount of data
LARGE = Resources(cpu="4", memory="8Gi", scratch="4Gi", timeout=6 * 3600)


def secret_name(step: str) -> str:
    """Return the name of the Kubernetes Secret that holds the keys of one step.

    >>> secret_name("robustness:trained")
    'portcullis-robustness-trained'
    """
    return "portcullis-" + re.sub(r"[^a-z0-9]", "-", step)


def harden(
    task: Any,
    *,
    secret: Any = None,
    trust: Any = None,
    resources: Resources = SMALL,
    gpus: Any = "0",
    gpu_resource: Any = GPU_RESOURCE,
    user: int = USER,
) -> Any:
    """Give one task its Kubernetes settings and return it.

    Args:
        task: A task of a pipeline that is being defined; not a gate or another nested pipeline.
        secret: Name of the Secret with this step's keys, text or a pipeline parameter; mounted at `KEYS_MOUNT`, and the
            pod does not start without it. None for a task without keys.
        trust: Name of the ConfigMap with the trust store, likewise, at `TRUST_MOUNT`; with a secret, by default
            `TRUST_CONFIG_MAP`.
        resources: Requests, which are the limits too, and the time limit.
        gpus: How many GPUs: a number, its spelling, or a pipeline parameter of type `str`.
        gpu_resource: The extended resource that they are, such as `nvidia.com/mig-1g.10gb`, or a `str` parameter.
        user: User and group id that the container runs as; above 0.

    Raises:
        UsageError: The task is a nested pipeline or hardened already, or a value cannot be.
    """
    if task.container_spec is None:
        raise UsageError(
            f"task {task.name!r} is a nested pipeline and cannot be hardened from outside: a gate hardens itself, so "
            "pass it secret=… (and gpus=…, gpu_resource=… where it takes them); decorate others with secure_pipeline"
        )
    if is_hardened(task):
        raise UsageError(f"task {task.name!r} is hardened already; name all its settings in one call of harden")
    if type(user) is not int or not 0 < user < 1 << 31:
        raise UsageError("a hardened task does not run as root; name a user id above 0")
    task.set_caching_options(False)
    task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu)
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if str(gpus) != "0":
        _set_gpus(task, gpus, gpu_resource)
    kubernetes.set_security_context(task, run_as_user=user, run_as_group=user, run_as_non_root=True)
    kubernetes.set_timeout(task, resources.timeout)
    kubernetes.empty_dir_mount(task, "portcullis-scratch", SCRATCH_MOUNT, medium="Memory", size_limit=resources.scratch)
    kubernetes.add_pod_label(task, "app.kubernetes.io/part-of", "portcullis")
    kubernetes.add_pod_label(task, COMPONENT_LABEL, _LABEL.sub("-", task.component_spec.name)[:63].strip("-_."))
    if secret is not None:
        kubernetes.use_secret_as_volume(task, secret, mount_path=KEYS_MOUNT, optional=False)
        trust = TRUST_CONFIG_MAP if trust is None else trust
    if trust is not None:
        kubernetes.use_config_map_as_volume(task, trust, mount_path=TRUST_MOUNT, optional=False)
    return task


def _set_gpus(task: Any, gpus: Any, gpu_resource: Any) -> None:
    given = isinstance(gpus, dsl.pipeline_channel.PipelineChannel)
    if given and gpus.channel_type != "String":
        raise UsageError("a pipeline parameter that counts GPUs must be a str, as a pod's specification has it")
    if not given and not (type(gpus) in (int, str) and re.fullmatch(r"[0-9]{1,3}", str(gpus))):
        raise UsageError(f"{gpus!r} is no number of GPUs")
    if isinstance(gpu_resource, str):  # a parameter is checked by whoever gives it its value
        require_gpu_resource(gpu_resource)
    task.set_accelerator_type(gpu_resource).set_accelerator_limit(gpus if given else str(gpus))


def is_hardened(task: Any) -> bool:
    """Tell whether `harden` has been called on the task."""
    return "securityContext" in task.platform_config.get("kubernetes", {})


def secure_pipeline(function: Callable[..., Any] | None = None, **settings: Any) -> Any:
    """Decorate a pipeline: as `dsl.pipeline`, and every task of it that the body has not hardened is hardened.

    The tasks inside loops, conditions and exit handlers are meant too; a nested pipeline hardens its own. Tasks that
    run components of Portcullis need keys: harden them in the body, with their secret.

        @secure_pipeline(name="mine")
        def mine(rows: str):
            harden(mask_pii(…), secret="portcullis-mask-pii")
            my_own_training(…)  # hardened without keys

    Args:
        function: The pipeline's function.
        settings: As of `dsl.pipeline`: `name`, `description`, …
    """
    if function is None:
        return functools.partial(secure_pipeline, **settings)
    define = function

    @functools.wraps(define)
    def body(*args: Any, **kwargs: Any) -> Any:
        outputs = define(*args, **kwargs)
        # Not public, but the only place that knows them all; a test shows that every container executor is covered.
        for task in dsl.pipeline_context.Pipeline.get_default_pipeline().tasks.values():
            if task.container_spec is None:
                task.set_caching_options(False)
            elif not is_hardened(task):
                harden(task)
        return outputs

    return dsl.pipeline(body, **settings)
