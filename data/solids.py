"""Solids, made of tapered capsules: their shapes and colours, and how to draw and light them.

Coordinates: x right, y down, z towards the viewer. Lengths are in palm lengths (wrist to middle knuckle);
:func:`projected` converts them to pixels.
"""

import colorsys
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter

FOCAL_LENGTH = 7.0  # distance of the camera, in palm lengths: a little perspective
FAR = -1e6  # the depth of a pixel where nothing is

Rng = np.random.Generator
Array = np.ndarray


# Shapes.


class Cone(NamedTuple):
    """A tapered capsule: all balls whose centre and radius lie between those of two end balls.

    With ``stain`` > 0 it is not drawn itself: it colours, with this strength, the surfaces of earlier cones of the list
    that lie inside it (nails, creases, lips, the pale inner side of a hand).
    """

    start: Array
    end: Array
    start_radius: float
    end_radius: float
    colour: Array
    is_hand: bool = False
    stain: float = 0.0


Solid = list[Cone]


def chain(points: list[Array], radii: list[float], colour: Array, is_hand: bool = False) -> Solid:
    """Cones from each point to the next."""
    return [Cone(*ends, *sizes, colour, is_hand) for ends, sizes in zip(pairwise(points), pairwise(radii), strict=True)]


def stain(points: list[Array], radius: float, colour: Array, strength: float) -> Solid:
    """A stain along the line through ``points``, from its full strength half way out to none at ``radius``."""
    return [Cone(start, end, radius, radius, colour, stain=strength) for start, end in pairwise(points)]


def end_balls(solid: Solid) -> tuple[Array, Array]:
    """The centres (2N, 2; x, y) and radii (2N, 1) of the balls at the ends of N cones, which bound the outline."""
    centres = np.array([end[:2] for cone in solid for end in (cone.start, cone.end)])
    return centres, np.array([[radius] for cone in solid for radius in (cone.start_radius, cone.end_radius)])


def turned(solid: Solid, matrix: Array) -> Solid:
    """Rotate (or mirror) a solid by a 3x3 matrix."""
    return [cone._replace(start=matrix @ cone.start, end=matrix @ cone.end) for cone in solid]


def projected(solid: Solid, scale: float, place: Array) -> Solid:
    """Convert palm lengths to pixels: perspective, then ``scale`` pixels per palm length, the origin at ``place``."""

    def zoom(point: Array) -> float:
        return scale * float(np.clip(FOCAL_LENGTH / (FOCAL_LENGTH - point[2]), 0.6, 1.7))

    offset, pixels = np.array([*place, 0.0]), []
    for start, end, start_radius, end_radius, *look in solid:
        near, far = zoom(start), zoom(end)
        pixels.append(Cone(start * near + offset, end * far + offset, start_radius * near, end_radius * far, *look))
    return pixels


def rotation(x: float, y: float, z: float) -> Array:
    """The 3x3 matrix that rotates by ``x`` radians around the x axis, then ``y`` around y, then ``z`` around z."""
    (cx, sx), (cy, sy), (cz, sz) = [(np.cos(angle), np.sin(angle)) for angle in (x, y, z)]
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


# Colours.

SKIN_TONES = np.array(
    [(250, 218, 196), (238, 194, 162), (222, 172, 132), (196, 142, 104), (160, 108, 76), (118, 76, 52), (78, 50, 36)]
)


def skin_tone(rng: Rng) -> Array:
    """A random tone between two neighbouring SKIN_TONES, RGB in [0, 1]."""
    place = rng.uniform(0, len(SKIN_TONES) - 1.001)
    lighter, darker = SKIN_TONES[int(place) : int(place) + 2] / 255
    return np.clip(lighter + (darker - lighter) * (place % 1) + rng.normal(0, 0.015, 3), 0.05, 1)


def any_colour(rng: Rng, saturation: float = 0.5) -> Array:
    """A random RGB colour in [0, 1], not more saturated than ``saturation``, more often warm or blue than green."""
    hue = rng.choice([rng.normal(0.07, 0.05), rng.normal(0.6, 0.06), rng.random()]) % 1
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0, saturation), rng.uniform(0.12, 0.98)))


# Images of solids.

Window = tuple[slice, slice]  # rows, columns


@dataclass
class Layer:
    """A solid seen from the front, in a window of the canvas with its upper left corner at (left, top)."""

    left: int
    top: int
    depth: Array  # (H, W) pixels towards the viewer; far away where there is nothing
    normal: Array  # (H, W, 3)
    colour: Array  # (H, W, 3)
    is_hand: Array  # (H, W)

    @property
    def mask(self) -> Array:
        """(H, W), true where the solid is."""
        return self.depth > FAR

    @property
    def window(self) -> Window:
        """Its window on the canvas."""
        height, width = self.depth.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def cropped(self, side: int) -> "Layer":
        """The part of it that lies on a canvas of ``side`` pixels."""
        part = tuple(slice(max(-start, 0), max(side - start, 0)) for start in (self.top, self.left))
        images = (image[part] for image in (self.depth, self.normal, self.colour, self.is_hand))
        return Layer(max(self.left, 0), max(self.top, 0), *images)


def bounds(solid: Solid, low: float, high: float | tuple[int, ...]) -> Window:
    """The window around a solid, no further out than ``low`` and ``high`` (one limit, or one for x and one for y)."""
    centres, radii = end_balls(solid)
    x0, y0 = np.clip(np.floor((centres - radii).min(0)), low, high).astype(int)
    x1, y1 = np.clip(np.ceil((centres + radii).max(0)) + 1, low, high).astype(int)
    return slice(y0, y1), slice(x0, x1)


def rasterise(solid: Solid, side: int) -> Layer:
    """Rasterise a solid, in pixels, on a canvas of ``side`` pixels and a quarter of that beyond its edges."""
    rows, columns = bounds(solid, -side // 4, side * 5 // 4)
    shape = rows.stop - rows.start, columns.stop - columns.start
    depth = np.full(shape, FAR, np.float32)
    normal, colour = np.zeros((2, *shape, 3), np.float32)
    layer = Layer(columns.start, rows.start, depth, normal, colour, np.zeros(shape, bool))
    corner = np.array([columns.start, rows.start, 0])
    for cone in solid:
        draw = draw_stain if cone.stain else draw_cone
        draw(layer, cone._replace(start=cone.start - corner, end=cone.end - corner))
    return layer


def draw_cone(layer: Layer, cone: Cone) -> None:
    """Draw the visible side of a cone on the layer, where nothing is in front of it.

    A pixel shows the ball whose centre lies at the share ``t`` of the axis: the foot of the perpendicular, shifted by
    the slope of the axis towards the viewer.
    """
    rows, columns = window = bounds([cone], 0, layer.depth.shape[::-1])
    y, x = np.ogrid[rows, columns]
    x, y = (x - cone.start[0]).astype(np.float32), (y - cone.start[1]).astype(np.float32)
    ax, ay, az = (float(v) for v in cone.end - cone.start)
    flat = max(np.hypot(ax, ay), 1e-3)
    slope = az / np.hypot(flat, az)
    grow = cone.end_radius - cone.start_radius
    foot = (x * ax + y * ay) / flat**2
    radius = cone.start_radius + grow * np.clip(foot, 0, 1)
    half_height = np.sqrt(np.maximum(radius**2 - ((x * ay - y * ax) / flat) ** 2, 0))
    t = np.clip(foot + half_height * slope / flat, 0, 1)
    radius = cone.start_radius + grow * t
    dx, dy = x - t * ax, y - t * ay
    height = np.sqrt(np.maximum(radius**2 - dx**2 - dy**2, 0))
    depth = cone.start[2] + t * az + height
    seen = (height > 0) & (depth > layer.depth[window])
    layer.depth[window][seen] = depth[seen]
    layer.normal[window][seen] = np.stack([dx[seen], dy[seen], height[seen]], axis=1) / radius[seen][:, None]
    layer.colour[window][seen] = cone.colour
    layer.is_hand[window][seen] = cone.is_hand


def draw_stain(layer: Layer, cone: Cone) -> None:
    """Blend a stain's colour into the surface near its line, softly towards its radius."""
    rows, columns = window = bounds([cone], 0, layer.depth.shape[::-1])
    y, x = np.ogrid[rows, columns]
    axis = cone.end - cone.start
    offsets = x - cone.start[0], y - cone.start[1], layer.depth[window] - cone.start[2]
    t = np.clip(sum(o * a for o, a in zip(offsets, axis, strict=True)) / max(axis @ axis, 1e-6), 0, 1)
    distance = np.sqrt(sum((o - t * a) ** 2 for o, a in zip(offsets, axis, strict=True)))
    weight = cone.stain * np.clip(2 * (1 - distance / cone.start_radius), 0, 1)[..., None]
    layer.colour[window] += weight * (cone.colour - layer.colour[window])


@dataclass
class Light:
    """The direction of the light (unit vector), the share of ambient light, and the strength of highlights."""

    towards: Array
    ambient: float
    gloss: float


def blurred(image: Array, size: float) -> Array:
    """Two box filters, ``size`` pixels wide, over the first two axes; wide filters use every second pixel."""
    step = 2 if size >= 4 else 1
    width = (max(int(size / step), 1),) * 2 + (1,) * (image.ndim - 2)
    small = uniform_filter(uniform_filter(image[::step, ::step], width, mode="nearest"), width, mode="nearest")
    return small.repeat(step, 0).repeat(step, 1)[: image.shape[0], : image.shape[1]]


def lit(layer: Layer, light: Light, unit: float) -> Array:
    """The lit colours (H, W, 3) of the layer, with soft joints, dark hollows and a red tint in the shade.

    ``unit`` is a palm length in pixels, the scale of the softness and of the hollows.
    """
    mask = layer.mask.astype(np.float32)
    around = blurred(np.dstack([layer.normal, layer.depth * mask, mask]), 0.15 * unit)
    around /= around[..., 4:] + 1e-6
    normal = 0.75 * around[..., :3] + 0.25 * layer.normal
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-6
    hollow = np.clip((around[..., 3] - layer.depth) / (0.1 * unit), 0, 1)
    facing = np.clip(normal @ light.towards, 0, 1)
    shade = (light.ambient + (1 - light.ambient) * facing) * (1 - 0.6 * hollow) * (0.7 + 0.3 * normal[..., 2])
    halfway = light.towards + np.array([0, 0, 1], np.float32)
    glint = light.gloss * np.clip(normal @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 24
    warm = np.power(np.maximum(shade, 1e-3)[..., None], np.array([0.85, 1.0, 1.08], np.float32))
    return layer.colour * warm * 1.15 + glint[..., None]
