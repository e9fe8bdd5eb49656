"""The two documents that KFP compiles a pipeline to."""

from google.protobuf import json_format
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig

from portcullis.strict_yaml import load_yaml


def documents(compiled_bytes: bytes):
    """Return the executors, and the Kubernetes settings of each."""
    spec, _, platform = compiled_bytes.partition(b"\n---\n")
    executors = load_yaml(spec)["deploymentSpec"]["executors"]
    settings = load_yaml(platform)["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platform else {}
    parsed = {
        name: json_format.ParseDict(config, KubernetesExecutorConfig()) for name, config in settings.items()
    }  # KFP's own proto: an unknown field would be refused
    return executors, parsed
