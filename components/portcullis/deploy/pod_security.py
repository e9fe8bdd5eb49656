"""The Pod Security Standards, judged before a cluster is asked: which rules of a level a pod breaks.

Levels `baseline` and `restricted` as of Kubernetes 1.36 (kubernetes.io/docs/concepts/security/pod-security-standards).
An API server that refuses a Deployment's pods says so only when its controller tries to create them; here the same is
known before anything is sent. Feature gates that are off by default are off here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

Level = Literal["baseline", "restricted"]

_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HOOKS = ("postStart", "preStop")
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"

_CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"),
    *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"),
}
_PROFILES = ("RuntimeDefault", "Localhost")


def violations(template: Mapping[str, Any], level: Level = "restricted") -> list[str]:
    """Return what a pod does that its level forbids, one line each; nothing for a pod that may run.

    Args:
        template: A pod, or a workload's pod template: `metadata` and `spec`, as plain JSON.
        level: `baseline` or `restricted`, which holds all of `baseline`.
    """
    spec = _mapping(template.get("spec"))
    if not _list(spec.get("containers")):
        return ["the pod has no containers"]
    if level == "baseline":
        return [*_baseline(_mapping(template.get("metadata")), spec, user_namespace=spec.get("hostUsers") is False)]
    return [*_baseline(_mapping(template.get("metadata")), spec, user_namespace=False), *_restricted(spec)]


def _baseline(metadata: Mapping[str, Any], spec: Mapping[str, Any], *, user_namespace: bool) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"{name} is set"
    for volume in _list(spec.get("volumes")):
        if "hostPath" in volume:
            yield f"volume {volume.get('name')!r} is a hostPath"
    for annotation, value in _mapping(metadata.get("annotations")).items():
        allowed = value in ("", "runtime/default") or str(value).startswith("localhost/")
        if annotation.startswith(_APPARMOR) and not allowed:
            yield f"annotation {annotation} is {value!r}"
    for sysctl in _list(_context(spec).get("sysctls")):
        if sysctl.get("name") not in _SYSCTLS:
            yield f"sysctl {sysctl.get('name')!r} is set"
    for where, context in _contexts(spec):
        yield from _shared_settings(where, context)
    for where, container in _containers(spec):
        yield from _container_settings(where, container, user_namespace=user_namespace)


def _shared_settings(where: str, context: Mapping[str, Any]) -> Iterator[str]:
    """What both a pod's and a container's security context may say."""
    if _mapping(context.get("windowsOptions")).get("hostProcess"):
        yield f"{where} is a Windows host process"
    selinux = _mapping(context.get("seLinuxOptions"))
    if selinux.get("type", "") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield f"{where} sets SELinux options beyond a container's type and level"
    for name in ("appArmorProfile", "seccompProfile"):
        if name in context and _mapping(context[name]).get("type") not in _PROFILES:
            yield f"{where} sets {name} to something else than RuntimeDefault or Localhost"


def _container_settings(where: str, container: Mapping[str, Any], *, user_namespace: bool) -> Iterator[str]:
    context = _context(container)
    if context.get("privileged"):
        yield f"{where} is privileged"
    added = {str(name) for name in _list(_mapping(context.get("capabilities")).get("add"))}
    if added - _CAPABILITIES:
        yield f"{where} adds the capabilities {', '.join(sorted(added - _CAPABILITIES))}"
    if any(port.get("hostPort") for port in _list(container.get("ports"))):
        yield f"{where} takes a port of the host"
    if context.get("procMount", "Default") != "Default" and not user_namespace:
        yield f"{where} unmasks /proc"
    handlers = [_mapping(container.get(name)) for name in _PROBES]
    handlers += [_mapping(_mapping(container.get("lifecycle")).get(name)) for name in _HOOKS]
    if any(_mapping(it.get(action)).get("host") for it in handlers for action in ("httpGet", "tcpSocket")):
        yield f"{where} has a probe or hook that names a host"


def _restricted(spec: Mapping[str, Any]) -> Iterator[str]:
    for volume in _list(spec.get("volumes")):
        if not set(volume) - {"name"} <= _VOLUMES:
            yield f"volume {volume.get('name')!r} is none of {', '.join(sorted(_VOLUMES))}"
    for where, context in _contexts(spec):
        if context.get("runAsUser") == 0:
            yield f"{where} runs as user 0"
        if context.get("runAsNonRoot") is False:
            yield f"{where} allows root"
    yield from _everywhere(spec, "runAsNonRoot", lambda value: value is True)
    linux = _mapping(spec.get("os")).get("name") != "windows"
    if linux:
        yield from _everywhere(spec, "seccompProfile", lambda value: _mapping(value).get("type") in _PROFILES)
    for where, container in _containers(spec):
        context = _context(container)
        if not linux:
            continue
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{where} does not set allowPrivilegeEscalation to false"
        capabilities = _mapping(context.get("capabilities"))
        if "ALL" not in _list(capabilities.get("drop")):
            yield f"{where} does not drop ALL capabilities"
        if not set(_list(capabilities.get("add"))) <= {"NET_BIND_SERVICE"}:
            yield f"{where} adds a capability other than NET_BIND_SERVICE"


def _everywhere(spec: Mapping[str, Any], field: str, holds: Callable[[Any], bool]) -> Iterator[str]:
    """A field that the pod must set, or else each of its containers; a container's own value wins."""
    default = _context(spec).get(field)
    for where, container in _containers(spec):
        if not holds(_context(container).get(field, default)):
            yield f"{where} runs without a sound {field}"


def _contexts(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "the pod", _context(spec)
    for where, container in _containers(spec):
        yield where, _context(container)


def _containers(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in _CONTAINERS:
        for container in _list(spec.get(kind)):
            yield f"container {container.get('name')!r}", container


def _context(part: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(part.get("securityContext"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
