"""Every error that Portcullis raises, grouped by who must act.

The class decides the process's exit code, so a program reads the outcome without parsing text:
0 passed, 1 refused, 2 usage, 3 inconclusive, 4 internal error. All but 0 stop a pipeline.
"""

from typing import ClassVar


class PortcullisError(Exception):
    """Base of the tree; raised itself only for what should never happen (exit code 4)."""

    exit_code: ClassVar[int] = 4


# The caller must act: wrong arguments, missing files, missing packages.


class UsageError(PortcullisError):
    """The command or function was called with something it cannot work with."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration or data-set description is missing, malformed or contradicts itself."""


class KeyMaterialError(UsageError):
    """A key is missing, unreadable, too widely readable, or of the wrong kind."""


class KeyServiceError(KeyMaterialError):
    """A service that holds a key refused, did not answer, or answered something else; `code` is what it calls that."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class TrustStoreError(UsageError):
    """There is no trust store, or it is incomplete; without one nothing can be judged."""


class MissingDependencyError(UsageError):
    """An optional package is needed; the message carries the line that installs it."""


# Something was judged and found wanting: nothing moves on.


class RefusedError(PortcullisError):
    """The thing at hand was judged and refused."""

    exit_code = 1


class DataError(RefusedError):
    """The data's owner must act: malformed, unreadable, out of bounds, or overlapping rows."""


class ModelError(RefusedError):
    """The model's owner must act: unknown architecture, wrong weights, non-finite values."""


class EvidenceError(RefusedError):
    """Evidence is missing, altered, stale, contradictory, or signed by the wrong key."""


class PolicyError(RefusedError):
    """The policy is unsigned, expired, older than one already seen, or another one's."""


class PipelineError(RefusedError):
    """The pipeline's author must act: it could run past a gate, or it did not run to its end."""


class GateFailedError(RefusedError):
    """A gate judged its subject and the verdict is FAILED."""


class GateInconclusiveError(GateFailedError):
    """A gate could not judge its subject; the signed verdict is FAILED, for the reason `inconclusive`."""

    exit_code = 3


class BudgetError(RefusedError):
    """The privacy budget of a data set is spent, or would be."""


class SealError(RefusedError):
    """A sealed file was altered or truncated, or this key does not open it."""


class AdmissionError(RefusedError):
    """The admission is missing, expired, revoked, rolled back, or for something else."""


class DeploymentError(RefusedError):
    """The deployed server did not behave as the policy demands."""


# Nothing could be judged, which never counts as passed.


class InconclusiveError(PortcullisError):
    """A measurement could not be made; the verdict is neither PASSED nor a measured FAILED."""

    exit_code = 3
