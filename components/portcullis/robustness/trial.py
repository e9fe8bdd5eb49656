"""Running an attack on rows, chunk by chunk, and keeping what it verifiably broke and what that cost."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.utils.checkpoint import checkpoint

from portcullis.errors import InconclusiveError
from portcullis.models.pytorch import FOREIGN_ERRORS, torch
from portcullis.robustness.proposal import Attack
from portcullis.robustness.soundness import CHUNK
from portcullis.robustness.verify import adversarial

SHOWN = 6


class Counted(torch.nn.Module):
    """A network that counts its forward-equivalents: 1 for a row's forward pass, 2 for its backward pass.

    It answers for no rows itself: `x.reshape(len(x), -1)` and much else that networks do fails on none.

    Args:
        module: The network.
        classes: How many classes it tells apart.
        at_once: For how many rows there is memory (`affordable_rows`). More are computed in turn, and once more when
            their gradient is asked for, so that only so many are held at a time (Chen et al. 2016, arXiv:1604.06174).
    """

    def __init__(self, module: torch.nn.Module, classes: int, at_once: int = CHUNK) -> None:
        super().__init__()
        # torchattacks takes a network's first parameter for where it is, and the network may have none.
        self.anchor = torch.nn.Parameter(torch.zeros(0), requires_grad=False)
        self.module = module
        self.classes = classes
        self.at_once = at_once
        self.cost = 0
        self.eval()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs to the network's logits."""
        if not len(inputs):
            return inputs.flatten(1).sum(dim=1, keepdim=True).expand(0, self.classes)
        logits = self._logits(inputs)
        self.cost += len(inputs)
        if logits.requires_grad:
            again = 0 if self._fits(inputs) else len(inputs)  # computed once more on the way back
            logits.register_hook(lambda _: self._add(2 * len(inputs) + again))  # type: ignore[no-untyped-call]
        return logits

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        if self._fits(inputs):
            whole: torch.Tensor = self.module(inputs)
            return whole
        # The random state is not kept: a network in eval() mode that draws at random is refused anyway.
        parts = [
            checkpoint(self.module, rows, use_reentrant=False, preserve_rng_state=False)
            for rows in torch.split(inputs, self.at_once)
        ]
        return torch.cat(parts)

    def _fits(self, inputs: torch.Tensor) -> bool:
        return self.at_once >= CHUNK or len(inputs) <= self.at_once

    def _add(self, cost: int) -> None:
        self.cost += cost


def affordable_rows(module: torch.nn.Module, inputs: torch.Tensor) -> int:
    """Return for how many rows there is memory in a forward and a backward pass: CHUNK, or halved until it is enough.

    Raises:
        InconclusiveError: There is not enough for one.
    """
    rows = CHUNK
    while True:
        watched = inputs[:rows].detach().clone().requires_grad_()
        try:
            torch.autograd.grad(module(watched).sum(), watched)
        except FOREIGN_ERRORS as error:
            if not _is_out_of_memory(error):
                return rows  # whatever else is wrong is found, and told, by the checks of soundness
            if rows == 1:
                raise InconclusiveError("there is not enough memory for the network and one row") from error
        else:
            return rows
        rows //= 2
        del watched
        if inputs.device.type == "cuda":
            torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


@dataclass(frozen=True)
class Rows:
    """The rows that a network classifies correctly: inputs (n, ...) in [0, 1] and labels (n,)."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def places(self) -> torch.Tensor:
        """Return the places of all rows (n,)."""
        return torch.arange(len(self), device=self.targets.device)


@dataclass
class Trial:
    """What one attack did so far.

    Attributes:
        attack: The attack.
        ran: On which rows it ran, (n,) bool.
        broken: Which of these it broke, (n,) bool.
        cost: In forward-equivalents.
        shown: Candidates that broke a row, by its place; a few.
    """

    attack: Attack
    ran: torch.Tensor
    broken: torch.Tensor
    cost: int = 0
    shown: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, attack: Attack, rows: Rows) -> "Trial":
        """Return the trial of an attack that has not run yet."""
        return cls(
            attack, torch.zeros_like(rows.targets, dtype=torch.bool), torch.zeros_like(rows.targets, dtype=torch.bool)
        )

    def run(self, module: Counted, rows: Rows, places: torch.Tensor) -> Iterator[None]:
        """Run on the rows at some places (m,); yields after each chunk, where one may stop.

        Raises:
            InconclusiveError: The attack proposes values that are not finite, or not one input for each row.
        """
        for chunk in torch.split(places, CHUNK) if len(places) else ():
            clean, labels = rows.inputs[chunk], rows.targets[chunk]
            before = module.cost
            candidates = self.attack.propose(clean, labels).detach()
            if candidates.shape != clean.shape or candidates.dtype != clean.dtype:
                raise InconclusiveError("an attack did not propose one float32 input for each sample")
            if not candidates.isfinite().all():
                raise InconclusiveError("an attack lost its way in values that are not finite")
            broken = adversarial(module, clean, candidates, labels, self.attack.ball)
            self.ran[chunk], self.broken[chunk] = True, broken
            self.cost += module.cost - before
            for place in broken.nonzero()[: max(SHOWN - len(self.shown), 0), 0].tolist():
                self.shown[int(chunk[place])] = candidates[place]
            yield

    def run_all(self, module: Counted, rows: Rows, places: torch.Tensor) -> None:
        """Run on the rows at some places (m,); raises as `run`."""
        for _ in self.run(module, rows, places):
            pass
