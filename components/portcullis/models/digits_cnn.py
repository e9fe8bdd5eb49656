"""A small convolutional network for images of digits."""

from portcullis.errors import ModelError
from portcullis.models.pytorch import torch

MAX_SIDE = 256
MAX_WIDTH = 512
MAX_HIDDEN = 4096
MAX_CLASSES = 1000


class DigitsCNN(torch.nn.Module):
    """Two 3x3 convolutions, a 2x2 maximum pool and two linear layers, without normalisation layers.

    With the default options an 8x8 image and ten classes make 60,522 parameters.

    Args:
        input_shape: (channels, height, width); the sides from 2 to 256 pixels.
        classes: Number of logits, from 2.
        width: Channels of the first convolution; the second has twice as many.
        hidden: Units of the hidden linear layer.
        tanh: 1 for tanh in place of ReLU. Bounded activations keep gradients small, which learns better under DP-SGD
            (Papernot et al. 2021, arXiv:2007.14191).

    Raises:
        ModelError: A size is not a whole number in its range.
    """

    def __init__(
        self, input_shape: tuple[int, ...], classes: int, *, width: int = 24, hidden: int = 64, tanh: int = 0
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ModelError("digits-cnn needs an input shape (channels, height, width)")
        channels, height, wide = input_shape
        for name, size, low, high in (
            ("channels", channels, 1, MAX_WIDTH),
            ("height", height, 2, MAX_SIDE),
            ("width of the input", wide, 2, MAX_SIDE),
            ("classes", classes, 2, MAX_CLASSES),
            ("width", width, 1, MAX_WIDTH),
            ("hidden", hidden, 1, MAX_HIDDEN),
            ("tanh", tanh, 0, 1),
        ):
            if type(size) is not int or not low <= size <= high:
                raise ModelError(f"digits-cnn: {name} must be a whole number from {low} to {high}, not {size!r}")
        activation = torch.nn.Tanh if tanh else torch.nn.ReLU
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(channels, width, 3, padding=1),
            activation(),
            torch.nn.Conv2d(width, 2 * width, 3, padding=1),
            activation(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
        )
        self.classifier = torch.nn.Sequential(
            torch.nn.Linear(2 * width * (height // 2) * (wide // 2), hidden),
            activation(),
            torch.nn.Linear(hidden, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (N, channels, height, width) float32 in [0, 1] to logits (N, classes) float32."""
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits
