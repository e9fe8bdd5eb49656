"""Which names Kubernetes allows, and what an image by its digest looks like: one spelling of each rule."""

import re

from portcullis.errors import UsageError

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
# A registry's host and a tag beside the digest may hold capitals.
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}@sha256:[0-9a-f]{64}")
# An extended resource: a domain, a slash, a name.
RESOURCE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def require_namespace(name: str) -> None:
    """Refuse what no namespace can be called.

    Raises:
        UsageError: It is not 1 to 63 of a-z, 0-9 and hyphen.
    """
    if not LABEL.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no name of a Kubernetes namespace")


def require_object_name(name: str, what: str) -> None:
    """Refuse what no Secret, ConfigMap, claim or service account can be called.

    Args:
        name: The name.
        what: Whose it is, for the message.

    Raises:
        UsageError: It is no DNS name of at most 253 characters.
    """
    if not SUBDOMAIN.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no name of a {what}")


def require_image(image: str) -> None:
    """Refuse an image that is not named by its digest: a tag can be moved to another image.

    Raises:
        UsageError: It is not.
    """
    if not IMAGE.fullmatch(image):
        raise UsageError(f"{image[:200]!r} is no image by digest; write REFERENCE@sha256:… as its registry shows it")


def require_gpu_resource(name: str) -> None:
    """Refuse what is no extended resource, or is shared: time-slicing keeps no tenant's memory from another.

    Args:
        name: What Kubernetes calls the GPUs, such as `nvidia.com/gpu` or `nvidia.com/mig-1g.10gb`.

    Raises:
        UsageError: It is not, or it is.
    """
    if not RESOURCE.fullmatch(name) or name.endswith(".shared"):
        raise UsageError(
            f"{name[:80]!r} is no resource of GPUs that one pod has for itself; name nvidia.com/gpu, a MIG slice, or "
            "alike"
        )
