"""What runs in the locked child of `convert` on formats that say what a network does, not only what its weights are.

A reader takes an open file, its size and what is said of its rows, runs nothing of it, and returns a `ForeignModel` or
raises `ModelError`. What it returns is loaded and asked here, as every later stage will, before the parent hears of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from portcullis.errors import ModelError
from portcullis.files import write_all
from portcullis.models import locked
from portcullis.models.exported_graph import BLOCK_ROWS
from portcullis.models.pytorch import FOREIGN_ERRORS, torch
from portcullis.models.store import SPEC_FILE, WEIGHTS_FILE, LoadedModel, load_model_files
from portcullis.supply_chain.exported_program import read_exported_program
from portcullis.supply_chain.foreign import ForeignModel, Rows
from portcullis.supply_chain.onnx_trees import read_onnx_trees

# By what the scan calls the format; see `scan.PROGRAMS`.
READERS: Mapping[str, Callable[[BinaryIO, int, Rows], ForeignModel]] = {
    "exported program": lambda source, size, _: read_exported_program(source, size),
    "onnx": read_onnx_trees,
}
_TOLERANCE = 1e-4  # of a logit, against the largest: sums in another order


def prepare(**_: object) -> bool:
    """Do before the lock what imports or reads on first use.

    Returns:
        False: no device is opened.
    """
    locked.prepare()
    for model in locked.rehearsals():
        require_rows_apart(model)
    return False


def to_model(
    source: BinaryIO,
    target: BinaryIO,
    *,
    kind: str,
    size: int,
    low: float = 0,
    high: float = 1,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """Read a file of a format of `READERS`; write the weights to `target`.

    Args:
        source: The file.
        target: Where the weights go, as safetensors.
        kind: The format.
        size: Bytes of the file.
        low: As of `Rows`, as are `high` and `labels`.
        high: Greatest raw feature value.
        labels: The class names.

    Returns:
        The other fields of a `ForeignModel`.

    Raises:
        ModelError: The file holds anything that is not exactly understood, or a network that cannot be used as one of
            our models or whose logits depend on other rows.
    """
    found = READERS[kind](source, size, Rows(low, high, tuple(labels)))
    spec = found.spec(0, 1, [str(number) for number in range(found.classes)])
    require_rows_apart(load_model_files({SPEC_FILE: spec.to_json(), WEIGHTS_FILE: found.weights}))
    write_all(target, found.weights)
    return {
        "architecture": found.architecture,
        "options": dict(found.options),
        "shape": list(found.shape),
        "classes": found.classes,
    }


def require_rows_apart(model: LoadedModel) -> None:
    """Refuse unless each row's logits depend on that row alone, as far as a block of random rows can tell.

    A row must be answered alike wherever it stands in a block, and whatever the others are: copies of itself too.

    Raises:
        ModelError: Logits are not finite, change with the rest of the block or with the row's place in it, or have a
            gradient on another row.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand((BLOCK_ROWS, *model.spec.shape), generator=generator).requires_grad_()
    places = torch.arange(BLOCK_ROWS)
    orders = [places.roll(1), places.flip(0), torch.randperm(BLOCK_ROWS, generator=generator)]
    alone = [torch.full((BLOCK_ROWS,), place) for place in (0, BLOCK_ROWS - 1)]
    try:
        logits = model.module(inputs)
        foreign = any(_reaches_others(logits, inputs, generator, first) for first in (0, 1))
        with torch.no_grad():
            others = [(order, model.module(inputs[order])) for order in (*orders, *alone)]
    except FOREIGN_ERRORS as error:
        raise ModelError(f"the network fails on random rows: {type(error).__name__}: {str(error)[:200]}") from error
    shape = (BLOCK_ROWS, len(model.spec.labels))
    if not all(it.shape == shape and torch.isfinite(it).all() for it in (logits, *(found for _, found in others))):
        raise ModelError("the network's logits for random rows are not finite, or not as many as they should be")
    most = _TOLERANCE * (1 + logits.abs().max())
    if foreign or not all((logits[order] - found).abs().max() <= most for order, found in others):
        raise ModelError("a row's logits depend on the other rows of its batch; export the model in eval() mode")


def _reaches_others(logits: torch.Tensor, inputs: torch.Tensor, generator: torch.Generator, first: int) -> bool:
    """Tell whether logits of every second row have a gradient on the rows between them."""
    own = logits[first::2]
    weighed = (own * torch.rand(own.shape, generator=generator)).sum()
    if not weighed.requires_grad:
        return False  # trees have no gradient at all
    (gradient,) = torch.autograd.grad(weighed, inputs, allow_unused=True, retain_graph=True)
    return gradient is not None and bool(gradient[1 - first :: 2].any())
