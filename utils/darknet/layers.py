"""The layers of a network: the sources that each reads, its options, and the shape of its output.

:func:`utils.darknet.spec.parse_network` makes them from a cfg. The model, the coupling of channels, the pruning and the
counting of MACs all use these layers, so that each key of a cfg is interpreted in one place only. Layer numbers are
Darknet's: the section after ``[net]`` is layer 0. ``IMAGE`` (-1) is the input image as a source.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IMAGE = -1


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What every layer has.

    Attributes:
        index: its number.
        where: file, line and section, for messages.
        sources: the numbers of the layers that it reads.
        channels, height, width: the shape of its output for one image.
    """

    index: int
    where: str
    sources: tuple[int, ...]
    channels: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Convolution(Layer):
    """A convolution with BatchNorm or bias; ``channels`` are Darknet's ``filters``, ``stride`` is (y, x)."""

    inputs: int
    size: int
    stride: tuple[int, int]
    padding: int
    dilation: int
    groups: int
    batch_normalize: bool
    activation: str

    @property
    def depthwise(self) -> bool:
        """Whether it has one filter per input channel, so that output channel k depends on input channel k alone."""
        return self.groups == self.inputs == self.channels and self.groups > 1

    @property
    def kernel_weights(self) -> int:
        """How many weights its kernel has."""
        return self.channels * (self.inputs // self.groups) * self.size**2

    @property
    def values_per_channel(self) -> int:
        """How many parameters it has for each output channel besides the kernel: gamma and beta, or a bias."""
        return 2 if self.batch_normalize else 1

    @property
    def macs(self) -> int:
        """MACs (multiply-accumulate operations) for one image."""
        return self.height * self.width * self.kernel_weights

    @property
    def keeps_constants(self) -> bool:
        """Whether it turns constant channels into constant ones; zero padding cuts them off at the border."""
        return not self.padding

    @property
    def mean_gain(self) -> float:
        """How often each kernel weight counts per output position, on average, away from the border."""
        return 1.0

    def kernel(self, weight: "Tensor") -> "Tensor":
        """PyTorch's weight tensor of this layer as a view (O, I / groups, k, k): outputs first."""
        return weight


@dataclass(frozen=True, kw_only=True)
class Deconvolution(Convolution):
    """A transposed convolution, ``[deconvolutional]``, with BatchNorm or bias.

    Each input position adds its value times the kernel to the output, ``stride`` pixels from the next one's;
    ``padding`` pixels of the sum are cut off at each border.

    Attributes:
        positions: height times width of its input.
    """

    positions: int

    @property
    def macs(self) -> int:
        """MACs for one image: the whole kernel at each input position."""
        return self.positions * self.kernel_weights

    @property
    def keeps_constants(self) -> bool:
        """Whether it turns constant channels into constant ones; otherwise other weights reach each position."""
        return self.size == 1 and self.stride == (1, 1) and not self.padding

    @property
    def mean_gain(self) -> float:
        """How often each kernel weight counts per output position, on average: at stride 2 in one of four."""
        return 1 / (self.stride[0] * self.stride[1])

    def kernel(self, weight: "Tensor") -> "Tensor":
        """PyTorch's weight tensor (I, O, k, k) as a view (O, I, k, k)."""
        return weight.transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class MaxPool(Layer):
    """Maximum over windows. ``padding`` pixels of minus infinity per axis in all, the larger half right and below."""

    size: int
    stride: tuple[int, int]
    padding: int

    @property
    def sides(self) -> tuple[int, int]:
        """The pixels of padding before and after the feature map, on either axis."""
        return self.padding // 2, self.padding - self.padding // 2


@dataclass(frozen=True, kw_only=True)
class LocalAvgPool(MaxPool):
    """The mean over the same windows as those of :class:`MaxPool`, of the pixels inside of the feature map alone."""


@dataclass(frozen=True, kw_only=True)
class AvgPool(Layer):
    """The mean of each channel over the whole feature map."""


@dataclass(frozen=True, kw_only=True)
class Upsample(Layer):
    """Nearest-neighbour upsampling by ``stride``, then multiplication by ``scale``."""

    stride: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Route(Layer):
    """Concatenation of the sources' channels; of each source only slice ``group_id`` of ``groups`` equal ones."""

    groups: int
    group_id: int


@dataclass(frozen=True, kw_only=True)
class Shortcut(Layer):
    """The first source plus the others, over the channels that both have; then the activation."""

    activation: str


@dataclass(frozen=True, kw_only=True)
class ScaleChannels(Layer):
    """Source 1 times source 0, a gate with one value per channel (squeeze and excitation); then the activation."""

    activation: str


@dataclass(frozen=True, kw_only=True)
class Sam(Layer):
    """Source 1 times source 0, element by element (spatial attention); then the activation."""

    activation: str


@dataclass(frozen=True, kw_only=True)
class Activation(Layer):
    """An activation in a section of its own."""

    activation: str


@dataclass(frozen=True, kw_only=True)
class Dropout(Layer):
    """Dropout in training mode, the identity in eval mode."""

    probability: float


@dataclass(frozen=True, kw_only=True)
class Reorg(Layer):
    """YOLOv2's space to depth, see :class:`models.Reorg`."""

    stride: int


@dataclass(frozen=True, kw_only=True)
class Reorg3d(Layer):
    """Space to depth: output channel ``k`` is input channel ``k % C`` at offset ``k // C`` within each cell."""

    stride: int


@dataclass(frozen=True, kw_only=True)
class Empty(Layer):
    """The identity."""


@dataclass(frozen=True, kw_only=True)
class Yolo(Layer):
    """A detection head. It reads A * (5 + classes) channels; its A ``anchors`` are (width, height) in input pixels."""

    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale_x_y: float
    new_coords: bool
