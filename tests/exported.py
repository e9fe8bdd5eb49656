"""Networks that tests export as programs (`.pt2`), and archives of programs with parts exchanged."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

ROW = (1, 8, 8)
CLASSES = 10


def perceptron() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.Tanh(), torch.nn.Linear(12, CLASSES)
    )


def convolutional() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding="same"),
        torch.nn.ReLU(inplace=True),
        torch.nn.MaxPool2d(2),
        torch.nn.Dropout2d(0.2),
        torch.nn.Conv2d(4, 8, 3),
        torch.nn.GELU(approximate="tanh"),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(32, CLASSES),
    )


class Block(torch.nn.Module):
    def __init__(self, channels: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(channels, wide, 3, stride, 1, bias=False)
        self.norm = torch.nn.BatchNorm2d(wide)
        self.second = torch.nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.last_norm = torch.nn.BatchNorm2d(wide)
        self.skip = torch.nn.Conv2d(channels, wide, 1, stride) if stride > 1 else torch.nn.Identity()
        self.relu = torch.nn.ReLU(inplace=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.last_norm(self.second(self.relu(self.norm(self.first(inputs)))))
        outputs += self.skip(inputs)
        return self.relu(outputs)


class Residual(torch.nn.Module):
    """Normalises its input by a buffer, a tensor that is no buffer, and a constant; pools and views at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4]))
        self.register_buffer("deviation", torch.tensor(0.3), persistent=False)
        self.stem = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.layers = torch.nn.Sequential(Block(4, 4, 1), Block(4, 8, 2))
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.head = torch.nn.Linear(8, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = (inputs.float() - self.mean) / self.deviation * torch.tensor(2.0)
        outputs = self.pool(self.layers(self.stem(outputs)))
        return self.head(outputs.view(outputs.shape[0], -1))


class Attention(torch.nn.Module):
    """A transformer over the rows of an image; it merges and splits the batch axis on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(8, 16)
        self.places = torch.nn.Parameter(torch.randn(1, 9, 16))
        self.answer = torch.nn.Parameter(torch.randn(1, 1, 16))
        layer = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu")
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(16, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(inputs.reshape(-1, 8, 8))
        tokens = torch.cat([self.answer.expand(tokens.shape[0], -1, -1), tokens], 1) + self.places
        return self.head(self.encoder(tokens)[:, 0])


class Everything(torch.nn.Module):
    """Every operator that is allowed, or one that becomes it when it is decomposed; one number of each.

    Args:
        decomposable: Leave out those whose decompositions are not allowed.
    """

    def __init__(self, *, decomposable: bool = False) -> None:
        super().__init__()
        self.decomposable = decomposable
        self.line = torch.nn.Conv1d(4, 3, 2)
        self.same = torch.nn.Conv1d(4, 3, 3, padding="same")
        self.plane = torch.nn.Conv2d(4, 3, 2)
        self.kept = torch.nn.Conv2d(4, 3, 3, padding="same")
        self.space = torch.nn.Conv3d(1, 2, 2)
        self.up = torch.nn.ConvTranspose2d(4, 2, 2)
        self.batch = torch.nn.BatchNorm2d(4)
        self.group = torch.nn.GroupNorm(2, 4)
        self.layer = torch.nn.LayerNorm(4)
        self.root = torch.nn.RMSNorm(4)
        self.slope = torch.nn.PReLU(4)
        self.square = torch.nn.Parameter(torch.randn(4, 4))
        self.bias = torch.nn.Parameter(torch.randn(4))
        self.head = torch.nn.LazyLinear(CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(x.shape[0], 4, 4, 4)
        made = self.first(x) if self.decomposable else [*self.first(x), *self.second(x)]
        return self.head(torch.cat([it.reshape(it.shape[0], -1)[:, :3] for it in made], 1))

    def first(self, x: torch.Tensor) -> list[torch.Tensor]:
        y, z, flat = x[:, :, 0], x.select(2, 0), x[:, :, 0, 0]
        return [
            *(x.abs(), x + 1, x / 3, x.erf(), x.exp(), (x + 1).log(), torch.maximum(x, -x), torch.minimum(x, 1 - x)),
            *(x * x, x**2, (x + 1).reciprocal(), (x + 1).rsqrt(), (x + 1).sqrt(), x - 1),
            *(torch.addmm(self.bias, flat, self.square), torch.bmm(y, z), y @ self.square),
            *(torch.mm(flat, self.square.t()), F.linear(y, self.square, self.bias)),
            *(self.line(y), self.same(y), self.plane(x), self.kept(x), self.space(x.unsqueeze(1)), self.up(x)),
            *(x.clamp(0.2, 0.7), x.clamp_max(0.5), x.clamp_min(0.5), F.gelu(x), F.hardtanh(x), F.leaky_relu(x)),
            *(F.relu(x), x.sigmoid(), F.silu(x), x.tanh(), x.log_softmax(1), x.softmax(1)),
            *(self.batch(x), self.group(x), self.layer(x), F.adaptive_avg_pool2d(x, 2), F.adaptive_avg_pool1d(y, 2)),
            *(F.avg_pool1d(y, 2), F.avg_pool2d(x, 2), F.avg_pool3d(x.unsqueeze(1), 2), F.max_pool2d(x, 2)),
            *(x.amax(1), x.amin(1), x.max(1).values, x.mean(1), x.sum(1), torch.var(x, 1, correction=0)),
            *(x.clone(), F.pad(x, (1, 1)), x.permute(0, 3, 1, 2).contiguous(), self.bias.expand(x.shape[0], 4)),
            *(x.flatten(2), x.repeat(1, 2, 1, 1), x.split(2, 1)[0], x.split([1, 3], 1)[1], x.chunk(2, 1)[1]),
            *(x[:, :1].squeeze(1), x[:, :1, :1].squeeze((1, 2)), torch.stack([x, x], 2), x.transpose(1, 2)),
            *(x.unbind(1)[2], flat.unflatten(1, (2, 2))),
        ]

    def second(self, x: torch.Tensor) -> list[torch.Tensor]:
        y, z = x[:, :, 0], x.select(2, 0)
        return [
            *(torch.rsub(x, x), torch.baddbmm(y, y, z), F.celu(x), F.elu(x), F.hardsigmoid(x), F.hardswish(x)),
            *(F.logsigmoid(x), F.mish(x), self.slope(x), F.relu6(x), F.selu(x), F.softplus(x), self.root(x)),
            *(F.glu(x, 1), F.normalize(y), torch.linalg.vector_norm(x, 2, 1), x.var(1), F.max_pool1d(y, 2)),
            *(F.scaled_dot_product_attention(x, x, x), F.adaptive_avg_pool3d(x.unsqueeze(1), 2)),
            *(F.adaptive_max_pool1d(y, 2), F.adaptive_max_pool2d(x, 2), F.max_pool3d(x.unsqueeze(1), 2)),
            *(F.interpolate(x, scale_factor=2, mode="bilinear"), F.interpolate(x, size=8)),
            F.pad(x, (1, 1, 1, 1), "reflect"),
        ]


NETWORKS: Mapping[str, Callable[[], torch.nn.Module]] = {
    "perceptron": perceptron,
    "convolutional": convolutional,
    "residual": Residual,
    "attention": Attention,
    "everything": Everything,
    "decomposable": lambda: Everything(decomposable=True),
}


# Each network in the forms that a program may have; what PyTorch breaks attention up into is not allowed. The two of
# many operators take long to export, so each comes in one form.
PROGRAMS = [
    *((name, form) for name in ("perceptron", "convolutional", "residual", "attention") for form in ("", "functional")),
    *((name, "decomposed") for name in ("perceptron", "convolutional", "residual", "decomposable")),
    ("everything", ""),
]


@cache
def network(name: str) -> torch.nn.Module:
    """Return a network that answers only, with running statistics that are not those of its start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = NETWORKS[name]()
        for _ in range(3):
            module(torch.rand(16, *ROW))
    return module.eval().requires_grad_(requires_grad=False)


def exported(module: torch.nn.Module, row: tuple[int, ...] = ROW, **options: Any) -> torch.export.ExportedProgram:
    options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own
        return torch.export.export(module, (torch.rand(3, *row),), **options)


def decomposed(program: torch.export.ExportedProgram, table: dict | None) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program.run_decompositions(table)


def saved(program: torch.export.ExportedProgram) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, stream)
    return stream.getvalue()


@cache
def program(name: str, form: str = "") -> tuple[torch.export.ExportedProgram, bytes]:
    """Return a network of NETWORKS as an exported program, and what is saved of it.

    Args:
        name: Which.
        form: "functional" or "decomposed" by `run_decompositions`.
    """
    made = exported(network(name))
    if form:
        made = decomposed(made, {} if form == "functional" else None)
    return made, saved(made)


def members(data: bytes) -> dict[str, bytes]:
    """Return the archive's members, without the name of their folder."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def archive(parts: Mapping[str, bytes], root: str = "program", method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as target:
        for name, content in parts.items():
            target.writestr(f"{root}/{name}", content)
    return stream.getvalue()


def with_json(data: bytes, member: str, change: Callable[[Any], object]) -> bytes:
    """Return the archive with one of its JSON documents changed in place."""
    parts = members(data)
    document = json.loads(parts[member])
    change(document)
    return archive(parts | {member: json.dumps(document).encode()})


MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
