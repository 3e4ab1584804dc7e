"""The layers of a network: what each reads, what it does, and the shape it gives.

:func:`utils.darknet.spec.parse_network` makes them from a cfg. The network, the coupling of channels, the pruning and
the counting of MACs all read these, so an option of a cfg is interpreted in one place. Layer numbers are Darknet's:
the block behind ``[net]`` is layer 0, and source ``IMAGE`` (-1) is the image.
"""

from dataclasses import dataclass

IMAGE = -1


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What every layer has: its number, the layers it reads (absolute numbers), and the shape of its output."""

    index: int
    where: str
    sources: tuple[int, ...]
    channels: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Convolution(Layer):
    """A convolution with BatchNorm or bias; ``channels`` is Darknet's ``filters``, ``stride`` is (y, x)."""

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
        """One filter for each input channel, so that outputs and inputs correspond one to one."""
        return self.groups == self.inputs == self.channels and self.groups > 1

    @property
    def parameters(self) -> int:
        """The numbers of the kernel."""
        return self.channels * (self.inputs // self.groups) * self.size**2

    @property
    def macs(self) -> int:
        """Multiply-adds for one image, one multiply-add counted as one."""
        return self.height * self.width * self.parameters


@dataclass(frozen=True, kw_only=True)
class MaxPool(Layer):
    """Maximum over windows; ``padding`` pixels of minus infinity in all, the larger half behind."""

    size: int
    stride: tuple[int, int]
    padding: int


@dataclass(frozen=True, kw_only=True)
class AvgPool(Layer):
    """The mean of each channel over the whole image."""


@dataclass(frozen=True, kw_only=True)
class Upsample(Layer):
    """Nearest neighbour upsampling, the values multiplied by ``scale``."""

    stride: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Route(Layer):
    """Concatenation of the sources, of each the slice ``group_id`` of ``groups``."""

    groups: int
    group_id: int


@dataclass(frozen=True, kw_only=True)
class Shortcut(Layer):
    """The first source, plus the others over the channels that both have; then the activation."""

    activation: str


@dataclass(frozen=True, kw_only=True)
class ScaleChannels(Layer):
    """Source 1 times source 0, a gate with one value a channel (squeeze and excitation)."""

    activation: str


@dataclass(frozen=True, kw_only=True)
class Sam(Layer):
    """Source 1 times source 0 element by element (spatial attention)."""

    activation: str


@dataclass(frozen=True, kw_only=True)
class Activation(Layer):
    """An activation that stands alone."""

    activation: str


@dataclass(frozen=True, kw_only=True)
class Dropout(Layer):
    """Dropout while training, the identity otherwise."""

    probability: float


@dataclass(frozen=True, kw_only=True)
class Reorg(Layer):
    """YOLOv2's space to depth as Darknet first had it, which mixes positions into channels."""

    stride: int


@dataclass(frozen=True, kw_only=True)
class Reorg3d(Layer):
    """Space to depth: output channel ``k`` is input channel ``k % C`` at offset ``k // C`` of each cell."""

    stride: int


@dataclass(frozen=True, kw_only=True)
class Empty(Layer):
    """The identity."""


@dataclass(frozen=True, kw_only=True)
class Yolo(Layer):
    """A detection head: reads A * (5 + classes) channels; ``anchors`` are (width, height) in input pixels."""

    anchors: tuple[tuple[float, float], ...]
    classes: int
    scale_x_y: float
    new_coords: bool
