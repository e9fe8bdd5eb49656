"""`watermark`: what marking and reading cost, beside Uchida 2017; false positives; and what a mark survives. No GPU."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from benchmarks import Record, command, compare
from benchmarks.networks import NETWORKS, fit, module_of
from benchmarks.survival import digits, figure, survival, trained
from portcullis.digest import sha256
from portcullis.models.pytorch import reproducible
from portcullis.watermark.align import align
from portcullis.watermark.mark import Claim, embed, read

KEY = bytes(range(32))
CLAIM = Claim("benchmark", sha256(b"unmarked"))
BITS = 64
ONE_PER_CENT = 2.3263  # of a standard normal variable


def weights(millions: int) -> dict[str, NDArray[np.float32]]:
    """Return a model of so many million weights, in ten square-like tensors."""
    generator = np.random.default_rng(0)
    shape = (2000, millions * 50)
    return {f"layer{index}": generator.standard_normal(shape, dtype=np.float32) for index in range(10)}


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    records = [*_costs(25, rounds=3 if quick else 7, target=1.5)]
    if not quick:
        records += _costs(100, rounds=3, target=6)
    records += [_against_uchida(3 if quick else 5), *_decoys(500 if quick else 10_000), *survival(quick)]
    return records


def _costs(millions: int, *, rounds: int, target: float) -> list[Record]:
    tensors = weights(millions)
    marked = embed(tensors, KEY, CLAIM).tensors
    works = {
        f"embed {millions}M": (lambda: embed(tensors, KEY, CLAIM), target),
        f"detect {millions}M": (lambda: read(marked, KEY, CLAIM), target / 3),
        f"align {millions}M, neurons in order": (lambda: align(marked, tensors), None),
    }
    return [
        compare(name, work, None, rounds=rounds, target=aim, unit="CPU s", clock=time.process_time)
        for name, (work, aim) in works.items()
    ]


def _against_uchida(rounds: int) -> Record:
    """Mark one trained CNN with 64 bits: ours in the weights at hand, theirs by training on."""
    it, (inputs, targets) = trained(NETWORKS[0], 0), digits()[0]

    def theirs() -> None:
        with reproducible(0, torch.device("cpu")):
            uchida(module_of(NETWORKS[0], it.unmarked), "features.2.weight", inputs, targets)

    return compare(
        "embed cost vs uchida",
        lambda: embed(it.unmarked, KEY, it.claim),
        theirs,
        peer_name="Uchida 2017",
        rounds=rounds,
        target=100,
        unit="CPU s",
        clock=time.process_time,
    )


def uchida(module: nn.Module, layer: str, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Embed 64 bits as published, from the paper: Uchida et al. 2017 (arXiv:1701.04082), section 3 and 4.1.

    The mean of a convolution's filters is multiplied by a matrix of normal variables; the sigmoid of each product is
    pulled to its bit by a binary cross-entropy of weight 0.01 that is added to the loss, for ten epochs of training.
    """
    carrier = dict(module.named_parameters())[layer]
    projection = torch.randn(BITS, carrier[0].numel())
    bits = torch.randint(2, (BITS,)).float()

    def products() -> torch.Tensor:
        return projection @ carrier.mean(dim=0).reshape(-1)

    fit(
        module,
        inputs,
        targets,
        epochs=10,
        rate=1e-3,
        extra=lambda _: 0.01 * functional.binary_cross_entropy_with_logits(products(), bits, reduction="sum"),
    )
    assert ((products() > 0).float() == bits).all(), "the peer did not embed its bits; the comparison would be unfair"


def _decoys(keys: int) -> list[Record]:
    """Read a marked and an unmarked model with keys that have nothing to do with them."""
    it = trained(NETWORKS[0], 0)
    readings = [
        read(tensors, b"decoy" + number.to_bytes(27, "big"), it.claim)
        for tensors in (it.tensors, it.unmarked)
        for number in range(keys // 2)
    ]
    share = float(np.mean([reading.z >= ONE_PER_CENT for reading in readings]))
    present = sum(reading.verdict == "PRESENT" for reading in readings)
    return [
        figure(f"{keys} decoy keys: share with z of p < .01", share, 0.015, unit="of 1"),
        figure(f"{keys} decoy keys: PRESENT", present, 0, unit="keys"),
        figure(f"{keys} decoy keys: largest z", max(reading.z for reading in readings), None, unit="z"),
    ]


if __name__ == "__main__":
    command("watermark", measure)
