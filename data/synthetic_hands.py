"""Draws photographs of hands that nobody took, in the folder layout and annotation format of the Oxford hand data set.

The repository's own data set: it needs no download and no licence, and ``data/converter.py`` runs on it for real. A
hand is a skeleton in three dimensions, posed and clothed in tapered capsules; the picture is what a light, a lens
and a sensor make of it::

    python data/synthetic_hands.py --output data --train 400 --valid 40 --test 100

Picture ``k`` of a split depends on the seed, the split and ``k`` alone, so a larger set begins with the smaller one.
"""

import argparse
import colorsys
import io
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as `python data/synthetic_hands.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import loadmat, savemat
from scipy.ndimage import shift, uniform_filter
from tqdm import tqdm

from utils.cli import ArgumentParser, number, run
from utils.errors import InputError
from utils.files import atomic_writer

SPLITS = {"training": "train", "validation": "valid", "test": "test"}  # Oxford's folder names: our options
SUPERSAMPLING = 2  # a picture is drawn this many times larger, which smooths every edge
FOCAL_LENGTH = 7.0  # distance of the camera, in palm lengths: a little perspective
FAR = -1e6  # the depth of a pixel where nothing is
MAT_HEADER = b"MATLAB 5.0 MAT-file, drawn by data/synthetic_hands.py".ljust(116)  # savemat's own has the time in it

Rng = np.random.Generator
Array = np.ndarray


def pick(rng: Rng, options: tuple[Callable, ...]) -> Callable:
    """One of the functions."""
    return options[rng.integers(len(options))]


# Shapes. Everything with a body is a solid: a list of cones. Coordinates: x right, y down, z towards the viewer.


class Cone(NamedTuple):
    """A tapered capsule: all balls whose centre and radius lie between those of two end balls.

    With ``stain`` it is no body: it colours, that strongly, the surfaces inside it of the cones before it in the list
    (nails, creases, lips, the pale inner side of a hand).
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
    """Palm lengths to pixels: perspective, then ``scale`` pixels a palm length, the origin at ``place``."""

    def zoom(point: Array) -> float:
        return scale * float(np.clip(FOCAL_LENGTH / (FOCAL_LENGTH - point[2]), 0.6, 1.7))

    offset, pixels = np.array([*place, 0.0]), []
    for start, end, start_radius, end_radius, *look in solid:
        near, far = zoom(start), zoom(end)
        pixels.append(Cone(start * near + offset, end * far + offset, start_radius * near, end_radius * far, *look))
    return pixels


def rotation(x: float, y: float, z: float) -> Array:
    """The 3x3 matrix that turns by ``x`` radians about the x axis, then by ``y`` about y, then by ``z`` about z."""
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
    """A tone between two neighbours of the scale from light to dark, RGB in [0, 1]."""
    place = rng.uniform(0, len(SKIN_TONES) - 1.001)
    lighter, darker = SKIN_TONES[int(place) : int(place) + 2] / 255
    return np.clip(lighter + (darker - lighter) * (place % 1) + rng.normal(0, 0.015, 3), 0.05, 1)


def any_colour(rng: Rng, saturation: float = 0.5) -> Array:
    """A random RGB colour in [0, 1], not more saturated than ``saturation``, more often warm or blue than green."""
    hue = rng.choice([rng.normal(0.07, 0.05), rng.normal(0.6, 0.06), rng.random()]) % 1
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0, saturation), rng.uniform(0.12, 0.98)))


# The hand. Seen from its back, fingers up (y is down, so they point to negative y), the thumb to the left, z out of
# its back; lengths are in palm lengths (wrist to middle knuckle).


class Finger(NamedTuple):
    """A finger at rest: where it starts, how far it leans outwards (degrees), its bones, its radius there."""

    knuckle: tuple[float, float, float]
    lean: float
    bones: tuple[float, float, float]
    radius: float


THUMB = Finger((-0.20, -0.16, -0.06), -48, (0.46, 0.36, 0.29), 0.165)
FINGERS = (
    Finger((-0.30, -0.96, 0.00), -5, (0.47, 0.28, 0.22), 0.124),
    Finger((-0.09, -1.00, 0.02), -1, (0.52, 0.33, 0.23), 0.127),
    Finger((0.12, -0.96, 0.01), 3, (0.48, 0.31, 0.23), 0.121),
    Finger((0.31, -0.86, -0.02), 8, (0.38, 0.22, 0.20), 0.106),
)
FULL_CURL = np.radians([78, 98, 62])  # how far a finger's three joints bend in a fist
FULL_THUMB_CURL = np.radians([38, 42, 62])
CURLS = {  # thumb, index, middle, ring and little finger: 0 is straight, 1 is bent as in a fist
    "open": (0, 0, 0, 0, 0),
    "relaxed": (0.2, 0.2, 0.28, 0.32, 0.35),
    "fist": (0.95, 1, 1, 1, 1),
    "point": (0.9, 0, 0.95, 1, 1),
    "victory": (0.95, 0, 0, 1, 1),
    "three": (0.95, 0, 0, 0, 1),
    "thumb up": (-0.1, 1, 1, 1, 1),
    "horns": (0.9, 0, 1, 1, 0),
    "call": (0, 0.95, 1, 1, 0),
    "pinch": (0.55, 0.58, 0.25, 0.15, 0.1),
    "grip": (0.6, 0.62, 0.64, 0.66, 0.68),
}


@dataclass
class Pose:
    """What the joints do: curl of the five fingers, their spread, the bend of the wrist (radians), what is held."""

    curls: Array
    spread: float
    wrist: float
    holds: bool


def random_pose(rng: Rng) -> Pose:
    """One of the named poses with some slack, or now and then fingers as chance bends them."""
    name = rng.choice(["open", "open", "random", *CURLS])
    curls = rng.uniform(0, 1, 5) if name == "random" else CURLS[name] + rng.normal(0, 0.06, 5)
    spread = rng.uniform(0.3, 2.4) if curls[1:].max() < 0.5 else rng.uniform(0, 1.2)
    return Pose(np.clip(curls, -0.1, 1.02), spread, rng.normal(0, 0.3), name == "grip" and rng.random() < 0.6)


def bend(finger: Finger, outwards: Array, inwards: Array, angles: Array) -> tuple[list[Array], list[Array]]:
    """The four joints of a finger, and for each of its three bones the direction of its back."""
    joints, backs, total = [np.array(finger.knuckle)], [], 0.0
    for length, angle in zip(finger.bones, angles, strict=True):
        total += angle
        joints.append(joints[-1] + length * (np.cos(total) * outwards + np.sin(total) * inwards))
        backs.append(np.sin(total) * outwards - np.cos(total) * inwards)
    return joints, backs


def skeleton(pose: Pose) -> Iterator[tuple[Finger, list[Array], list[Array]]]:
    """Each finger with its joints and backs, the thumb first."""
    for finger, curl in zip((THUMB, *FINGERS), pose.curls, strict=True):
        lean = np.radians(finger.lean) * (1 if finger is THUMB else pose.spread * (1 - 0.8 * max(curl, 0)) + 0.3)
        outwards = np.array([np.sin(lean), -np.cos(lean), 0.0])
        if finger is THUMB:  # it bends across the palm, not towards it, and starts in front of it
            inwards = np.array([0.80 * np.cos(lean), 0.80 * np.sin(lean), -0.6])
            outwards = rotation(-0.30, 0, 0) @ outwards
            yield finger, *bend(finger, outwards, inwards, curl * FULL_THUMB_CURL)
        else:
            yield finger, *bend(finger, outwards, np.array([0.0, 0.0, -1.0]), curl * FULL_CURL)


def finger_solid(finger: Finger, joints: list[Array], backs: list[Array], skin: Array, is_hand: bool = True) -> Solid:
    """Three bones of skin that redden towards the tip, with a nail, creases inside the joints, wrinkles outside."""
    radii = [finger.radius * shrink for shrink in (1.0, 0.92, 0.84, 0.68)]
    solid = chain(joints[:3], radii[:3], skin, is_hand) + chain(joints[2:], radii[2:], skin * [1, 0.93, 0.92], is_hand)
    for k in (2,) if finger is THUMB else (1, 2):  # the thumb's first joint is deep in the palm
        bone = (joints[k + 1] - joints[k]) / finger.bones[k]
        across = 0.8 * radii[k] * np.cross(bone, backs[k])
        for side, strength in ((-0.95, 0.5), (0.9, 0.25)):
            middle = joints[k] + side * radii[k] * backs[k]
            solid += stain([middle - across, middle + across], 0.3 * radii[k], skin * 0.45, strength)
    nail = joints[3] + radii[3] * (0.75 * backs[2] + 0.25 * bone)
    pink = np.clip(0.45 * skin + [0.55, 0.42, 0.42], 0, 1)
    return solid + stain([nail - 0.9 * radii[3] * bone, nail + 0.3 * radii[3] * bone], 0.68 * radii[3], pink, 0.9)


PALM_LINES = (  # of life, of head, of heart
    ((-0.36, -0.74, -0.14), (-0.12, -0.62, -0.15), (-0.02, -0.42, -0.17), (-0.02, -0.16, -0.20)),
    ((-0.36, -0.75, -0.13), (-0.10, -0.68, -0.15), (0.12, -0.58, -0.17), (0.28, -0.50, -0.20)),
    ((-0.14, -0.94, -0.12), (0.00, -0.82, -0.14), (0.20, -0.75, -0.14), (0.40, -0.76, -0.13)),
)


def palm_solid(skin: Array, fingers: list[list[Array]]) -> Solid:
    """Palm, balls of the thumb and the little finger, webs between the fingers, given the five fingers' joints."""
    thumb, knuckles = fingers[0], [finger[0] for finger in fingers[1:]]
    roots = [finger[0] + 0.25 * (finger[1] - finger[0]) for finger in fingers[1:]]
    knuckle_row = np.linspace(0, 3, 7)  # the knuckles and the points half way between them
    palm = []
    for place in knuckle_row:
        k, share = min(int(place), 2), place - min(int(place), 2)
        knuckle = knuckles[k] + share * (knuckles[k + 1] - knuckles[k]) + [0, 0.06 * (place % 1 > 0), 0]
        palm.append(Cone(np.array([0.105 * place - 0.15, -0.12, 0]), knuckle, 0.17, 0.125, skin, True))
    palm += chain(knuckles, [0.12] * 4, skin, True) + chain(roots, [0.085] * 4, skin, True)
    middle = (thumb[0] + thumb[1]) / 2
    for start, end, *radii in (
        ((-0.14, -0.20, -0.08), thumb[1], 0.19, 0.15),
        ((-0.24, -0.50, -0.07), thumb[1], 0.14, 0.12),
        (middle, knuckles[0] + [0.02, 0.32, -0.02], 0.12, 0.10),
        ((0.17, -0.20, -0.05), (0.29, -0.62, -0.04), 0.18, 0.15),
    ):
        palm.append(Cone(np.array(start), np.array(end), *radii, skin, True))
    return palm


def hand_solid(pose: Pose, skin: Array, rng: Rng) -> Solid:
    """A hand in its own coordinates; its cones with ``is_hand`` are what the box goes around."""
    parts = list(skeleton(pose))
    solid = palm_solid(skin, [joints for _, joints, _ in parts])
    inner = [(cone.start, cone.end, cone.start_radius, np.array([0.0, 0.0, 1.0])) for cone in solid]
    details = [part for line in PALM_LINES for part in stain([np.array(p) for p in line], 0.05, skin * 0.5, 0.4)]
    for finger, joints, backs in parts:
        for cone in finger_solid(finger, joints, backs, skin):
            (details if cone.stain else solid).append(cone)
        inner += [(*bone, 0.85 * finger.radius, back) for bone, back in zip(pairwise(joints), backs, strict=True)]
    pale = np.clip(skin * 0.55 + [0.46, 0.32, 0.27], 0, 1)
    for start, end, radius, back in inner:
        solid += stain([start - 1.1 * radius * back, end - 1.1 * radius * back], 1.35 * radius, pale, 0.75)
    solid += details
    if pose.holds:
        middle, half = np.array([0.0, -0.86, -0.33]), np.array([rng.uniform(0.8, 2.2), rng.normal(0, 0.15), 0.0])
        solid.append(Cone(middle - half, middle + half, 0.13, 0.13, any_colour(rng, 0.8)))
    return solid


def arm_solid(away: Array, bend_angle: float, skin: Array, rng: Rng) -> Solid:
    """Forearm and upper arm from the wrist at the origin on, bare or in a sleeve; ``away`` points away from the palm.

    The arm keeps closer to the plane of the picture than the hand, or it would hide everything.
    """
    flat = away * [1, 1, 0.4]
    forearm = rotation(0, 0, bend_angle) @ flat / np.linalg.norm(flat)
    upper_arm = rotation(0, 0, rng.normal(0, 0.6)) @ forearm
    elbow, side = rng.uniform(2.2, 3.0) * forearm, 0.09 * np.cross(forearm, [0, 0, 1])
    bones = (-1, 0, 1)  # a forearm is flat: three cones side by side

    def limb(start: Array, wrist_radius: float, elbow_radius: float, colour: Array) -> Solid:
        lower = [Cone(start + k * side, elbow + k * side, wrist_radius, elbow_radius, colour) for k in bones]
        return [*lower, Cone(elbow, elbow + 6 * upper_arm, elbow_radius + 0.04, elbow_radius + 0.12, colour)]

    arm = limb(np.zeros(3), 0.185, 0.29, skin)
    if rng.random() < 0.65:
        start = (rng.choice([0.15, 0.3, 1.2]) + rng.uniform(0, 0.3)) * forearm
        width, colour = rng.uniform(0.06, 0.18), any_colour(rng, 0.7)
        cuff = [start, start + 0.12 * forearm]
        arm += limb(start, 0.2 + width, 0.34 + width, colour)
        arm += [Cone(*(end + k * side for end in cuff), 0.22 + width, 0.22 + width, 0.8 * colour) for k in bones]
    return arm


def rotated_box(solid: Solid, along: Array) -> Array:
    """The tight rectangle around the outline of a solid with one axis ``along`` (x, y): (4, 2) corners a, b, c, d.

    The side a-b lies at the back end of ``along`` (the wrist), and the corners go around in order.
    """
    axes = np.array([along, [-along[1], along[0]]]) / np.linalg.norm(along)
    centres, radii = end_balls(solid)
    (back, left), (front, right) = (centres @ axes.T - radii).min(0), (centres @ axes.T + radii).max(0)
    return np.array([(back, left), (back, right), (front, right), (front, left)]) @ axes


def random_hand(rng: Rng) -> tuple[Solid, Array]:
    """A hand with its arm, turned any way that leaves its palm or back to be seen, and its box in palm lengths."""
    pose, skin = random_pose(rng), skin_tone(rng)
    tilt, turn = np.clip(rng.normal(0, [0.3, 0.45]), -0.8, 0.8)
    left_or_right = np.diag([rng.choice([-1, 1]), 1, 1])
    matrix = rotation(tilt, turn + rng.choice([0, np.pi]), rng.uniform(0, 2 * np.pi)) @ left_or_right
    solid = turned(hand_solid(pose, skin, rng), matrix)
    if rng.random() < 0.93:
        solid += arm_solid(matrix @ [0, 1, 0], pose.wrist, skin, rng)
    outline = [cone for cone in projected(solid, 1.0, np.zeros(2)) if cone.is_hand]
    return solid, rotated_box(outline, (matrix @ [0, -1, 0])[:2])


# Pictures of solids.


@dataclass
class Layer:
    """A solid seen from the front, in a window of the canvas with its upper left corner at (left, top)."""

    left: int
    top: int
    depth: Array  # (H, W) pixels towards the viewer; far away where there is nothing
    normal: Array  # (H, W, 3)
    colour: Array  # (H, W, 3)
    is_hand: Array  # (H, W)
    unit: float  # pixels a palm length

    @property
    def mask(self) -> Array:
        """(H, W), true where the solid is."""
        return self.depth > FAR

    def cropped(self, window: tuple[slice, slice]) -> "Layer":
        """The part in a window (rows, columns) of the layer."""
        top, left = self.top + window[0].start, self.left + window[1].start
        images = (image[window] for image in (self.depth, self.normal, self.colour, self.is_hand))
        return Layer(left, top, *images, self.unit)


def bounds(solid: Solid, low: Array, high: Array) -> tuple[slice, slice]:
    """The window (rows, columns) around a solid, within ``low`` and ``high`` (x, y)."""
    centres, radii = end_balls(solid)
    x0, y0 = np.clip(np.floor((centres - radii).min(0)), low, high).astype(int)
    x1, y1 = np.clip(np.ceil((centres + radii).max(0)) + 1, low, high).astype(int)
    return slice(y0, y1), slice(x0, x1)


def rasterise(solid: Solid, side: int, unit: float) -> Layer:
    """See a solid, in pixels, on a canvas of ``side`` pixels; it may stick out by a quarter of that."""
    rows, columns = bounds(solid, np.full(2, -side // 4), np.full(2, side * 5 // 4))
    shape = max(rows.stop - rows.start, 1), max(columns.stop - columns.start, 1)
    image = np.zeros((*shape, 3), np.float32)
    depth, nowhere = np.full(shape, FAR, np.float32), np.zeros(shape, bool)
    layer = Layer(columns.start, rows.start, depth, image, image.copy(), nowhere, unit)
    corner = np.array([columns.start, rows.start, 0])
    for cone in solid:
        draw = draw_stain if cone.stain else draw_cone
        draw(layer, cone._replace(start=cone.start - corner, end=cone.end - corner))
    return layer


def draw_cone(layer: Layer, cone: Cone) -> None:
    """Add the visible side of a cone to the layer where nothing is in front of it.

    A pixel sees the ball whose centre lies at the share ``t`` of the axis: the foot of the perpendicular, moved by
    the slope of the axis towards the viewer.
    """
    extent = np.array(layer.depth.shape[::-1])
    rows, columns = window = bounds([cone], np.zeros(2), extent)
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


def draw_stain(layer: Layer, stain: Cone) -> None:
    """Blend the stain's colour into the surface near its line, softly towards its radius."""
    extent = np.array(layer.depth.shape[::-1])
    rows, columns = window = bounds([stain], np.zeros(2), extent)
    y, x = np.ogrid[rows, columns]
    axis = stain.end - stain.start
    offsets = x - stain.start[0], y - stain.start[1], layer.depth[window] - stain.start[2]
    t = np.clip(sum(o * a for o, a in zip(offsets, axis, strict=True)) / max(axis @ axis, 1e-6), 0, 1)
    distance = np.sqrt(sum((o - t * a) ** 2 for o, a in zip(offsets, axis, strict=True)))
    weight = stain.stain * np.clip(2 * (1 - distance / stain.start_radius), 0, 1)[..., None]
    layer.colour[window] += weight * (stain.colour - layer.colour[window])


@dataclass
class Light:
    """Where the light comes from (unit vector), how much comes from everywhere, how glossy things look."""

    towards: Array
    ambient: float
    gloss: float


def blurred(image: Array, size: float) -> Array:
    """Two box filters, ``size`` pixels wide, over the first two axes; wide ones work on every second pixel."""
    step = 2 if size >= 4 else 1
    width = (max(int(size / step), 1),) * 2 + (1,) * (image.ndim - 2)
    small = uniform_filter(uniform_filter(image[::step, ::step], width, mode="nearest"), width, mode="nearest")
    return small.repeat(step, 0).repeat(step, 1)[: image.shape[0], : image.shape[1]]


def lit(layer: Layer, light: Light) -> Array:
    """The layer's colours, (H, W, 3), as the light shows them: soft joints, dark hollows, a red glow in the shade."""
    mask = layer.mask.astype(np.float32)
    around = blurred(np.dstack([layer.normal, layer.depth * mask, mask]), 0.15 * layer.unit)
    around /= around[..., 4:] + 1e-6
    normal = 0.75 * around[..., :3] + 0.25 * layer.normal
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-6
    hollow = np.clip((around[..., 3] - layer.depth) / (0.1 * layer.unit), 0, 1)
    facing = np.clip(normal @ light.towards, 0, 1)
    shade = (light.ambient + (1 - light.ambient) * facing) * (1 - 0.6 * hollow) * (0.7 + 0.3 * normal[..., 2])
    halfway = light.towards + np.array([0, 0, 1], np.float32)
    glint = light.gloss * np.clip(normal @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 24
    warm = np.power(np.maximum(shade, 1e-3)[..., None], np.array([0.85, 1.0, 1.08], np.float32))
    return layer.colour * warm * 1.15 + glint[..., None]


# Things that are no hands, in the coordinates and units of hands.


def any_turn(rng: Rng) -> Array:
    """A rotation in the plane of the picture."""
    return rotation(0, 0, rng.uniform(0, 2 * np.pi))


def branch(rng: Rng) -> Solid:
    """A crooked stick with twigs."""
    colour, thickness = skin_tone(rng) * rng.uniform(0.6, 1), rng.uniform(0.06, 0.16)
    points = list(np.linspace([-1, 0, 0], [1, 0, 0], 5) * rng.uniform(1, 2.5) + rng.normal(0, 0.11, (5, 3)))
    solid = chain(points, [thickness * (1 - 0.15 * k) for k in range(5)], colour)
    for joint in points[1:4]:
        twig = joint + np.array([*rng.normal(0, 0.6, 2), 0.1])
        solid.append(Cone(joint, twig, 0.6 * thickness, 0.3 * thickness, colour))
    return turned(solid, any_turn(rng))


def fruit(rng: Rng) -> Solid:
    """One to four bananas, sausages or gourds: curved, and side by side like fingers."""
    colour = any_colour(rng, 0.8) if rng.random() < 0.4 else np.array([0.92, 0.76, 0.25]) * rng.uniform(0.6, 1)
    angles = np.linspace(-0.6, 0.6, 7) * rng.uniform(0.5, 1.4)
    solid = []
    for k in range(rng.integers(1, 5)):
        arc = [np.array([1.3 * np.sin(a), 1.3 * np.cos(a) - 1.3 + 0.3 * k, -0.1 * k]) for a in angles]
        solid += chain(arc, [0.04, 0.16, 0.2, 0.21, 0.2, 0.15, 0.05], colour)
    return turned(solid, any_turn(rng))


def blob(rng: Rng) -> Solid:
    """A lump of up to four balls."""
    colour = skin_tone(rng) if rng.random() < 0.5 else any_colour(rng, 0.8)
    centres = rng.normal(0, 0.3, (rng.integers(1, 5), 3))
    return [Cone(c, c + rng.normal(0, 0.2, 3), *rng.uniform(0.2, 0.6, 2), colour) for c in centres]


def bottle(rng: Rng) -> Solid:
    """A bottle with a label."""
    width, heights = rng.uniform(0.25, 0.4), rng.uniform(0.7, 1.5) * np.array([1, -0.4, -0.7, -1.1])
    solid = chain([np.array([0, y, 0]) for y in heights], [width, width, 0.12, 0.1], any_colour(rng, 0.7))
    label = stain([np.array([0, y, width]) for y in (-0.2, 0.3)], 1.1 * width, any_colour(rng), 1.0)
    return turned(solid + label, rotation(0, 0, rng.normal(0, 0.5)))


def fence(rng: Rng) -> Solid:
    """Fingers with nails, side by side like a hand's, but no palm: only the whole makes a hand."""
    skin, gap, solid = skin_tone(rng), rng.uniform(0.26, 0.5), []
    for k in range(rng.integers(2, 7)):
        finger = Finger((gap * k - 0.6, 0.3, 0.0), 0, (0.5, 0.35, 0.3), 0.12)
        joints, backs = bend(finger, np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, -1.0]), rng.uniform(0, 0.3, 3))
        solid += finger_solid(finger, joints, backs, skin, is_hand=False)
    return turned(solid, any_turn(rng))


def person(rng: Rng) -> Solid:
    """A face on its shoulders, with hair."""
    skin, hair, cloth = skin_tone(rng), any_colour(rng, 0.5) * 0.5, any_colour(rng, 0.7)
    ears = [((side * 0.72, 0, 0), (side * 0.7, 0.2, 0), 0.13, 0.10, skin) for side in (-1, 1)]
    bodies = [
        ((0, -0.25, 0), (0, 0.3, 0.05), 0.75, 0.56, skin),
        ((0, 0.3, -0.2), (0, 1.2, -0.2), 0.35, 0.40, skin),
        ((0, -0.1, 0.7), (0, 0.15, 0.78), 0.06, 0.12, skin),
        ((0, -0.45, -0.25), (0, rng.uniform(-0.2, 0.9), -0.4), 0.86, 0.75, hair),
        ((-0.3, -0.85, 0.2), (0.3, -0.85, 0.2), 0.25, 0.25, hair),
        ((-0.9, 1.75, -0.4), (0.9, 1.75, -0.4), 0.45, 0.45, cloth),
        ((0, 2.6, -1), (0, 7, -1), 1.2, 1.2, cloth),
    ]
    solid = [Cone(np.array(start), np.array(end), *look) for start, end, *look in bodies + ears]
    solid += stain([np.array([-0.17, 0.46, 0.58]), np.array([0.17, 0.46, 0.58])], 0.17, skin * [0.75, 0.35, 0.35], 0.9)
    for side in (-1, 1):
        eye, right, up = np.array([side * 0.28, -0.13, 0.67]), np.array([0.1, 0, 0]), np.array([0, -0.2, 0])
        solid += stain([eye + up - right, eye + up + right], 0.11, hair, 0.9)
        solid += stain([eye - right, eye + right], 0.15, np.full(3, 0.95), 1.0)
        solid += stain([eye, eye], 0.13, hair * 0.4, 1.0)
    return turned(solid, rotation(*rng.normal(0, [0.15, 0.4, 0.25])))


BEHIND = (person, person, branch, fruit, blob, bottle, fence, fence)
IN_FRONT = (branch, blob, bottle, fruit)


# Backgrounds: functions of a grid of coordinates (u, v), both about [-0.5, 0.5], give RGB of shape (S, S, 3).


def noise(rng: Rng, side: int, octaves: tuple[int, ...] = (3, 6, 12, 24, 48), roughness: float = 0.6) -> Array:
    """(S, S) smooth noise with about unit range, made of grids with ``octaves`` cells a side."""
    total = np.zeros((side, side), np.float32)
    for k, cells in enumerate(octaves):
        grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        total += roughness**k * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
    return total


def wall(rng: Rng, u: Array, v: Array) -> Array:
    """Plaster in a gradient of light."""
    mix = np.clip(0.5 + v * rng.uniform(0, 1.4) + rng.uniform(0, 0.4) * noise(rng, len(u)), 0, 1)[..., None]
    return any_colour(rng) * mix + any_colour(rng) * (1 - mix)


def planks(rng: Rng, u: Array, v: Array) -> Array:
    """Boards with a grain."""
    boards = v * rng.uniform(3, 9) + 50
    tint = rng.uniform(0.75, 1.1, 100)[boards.astype(int)]
    grain = np.sin(rng.uniform(60, 200) * (v + 0.03 * noise(rng, len(u), (2, 4, 8))) + tint * 40)
    gap = np.where(boards % 1 < 0.05, 0.4, 1.0)
    return skin_tone(rng) * (tint * gap * (0.85 + 0.1 * grain))[..., None]


def cloth(rng: Rng, u: Array, v: Array) -> Array:
    """Stripes or checks on folds."""
    pitch = rng.uniform(20, 120)
    bands = np.sin(pitch * u) > rng.uniform(-0.5, 0.5)
    if rng.random() < 0.5:
        bands = (bands.astype(float) + (np.sin(pitch * v) > 0)) / 2
    folds = 0.9 + 0.2 * noise(rng, len(u), (3, 5, 9))
    return (any_colour(rng, 0.8) + bands[..., None] * (any_colour(rng, 0.8) - 0.5)) * folds[..., None]


def tiles(rng: Rng, u: Array, v: Array) -> Array:
    """Tiles or bricks with joints."""
    rows = v * rng.uniform(4, 10) + 50
    columns = u * rng.uniform(2, 8) + 50 + 0.5 * (rows.astype(int) % 2)
    tint = rng.uniform(0.7, 1.1, (100, 100))[rows.astype(int), columns.astype(int)]
    joint = ((rows % 1 < 0.07) | (columns % 1 < 0.05))[..., None]
    stone = any_colour(rng) * (tint + 0.1 * noise(rng, len(u)))[..., None]
    return np.where(joint, any_colour(rng, 0.1), stone)


def painted(rng: Rng, u: Array, v: Array, corners: int, count: int, widest: float) -> Array:
    """``count`` polygons of ``corners`` corners that lie about, at most ``widest`` times as wide as they are long."""
    side, base = len(u), any_colour(rng)
    image = Image.new("RGB", (side, side), as_bytes(base))
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        turns = 2 * np.pi * (np.arange(corners) + 0.5) / corners
        shape = np.stack([np.cos(turns), rng.uniform(0.5, 1) * widest * np.sin(turns)], axis=1)
        points = rng.uniform(0, side, 2) + side * rng.uniform(0.03, 0.16) * shape @ any_turn(rng)[:2, :2]
        colour = any_colour(rng, 0.7) if rng.random() < 0.3 else base * rng.uniform(0.4, 1.5)
        draw.polygon([tuple(point) for point in points], fill=as_bytes(colour))
    return np.asarray(image, np.float32) / 255 * (1 + 0.08 * noise(rng, side))[..., None]


def as_bytes(colour: Array) -> tuple[int, ...]:
    """An RGB colour for Pillow."""
    return tuple(int(255 * c) for c in np.clip(colour, 0, 1))


papers = partial(painted, corners=4, count=50, widest=1.0)
leaves = partial(painted, corners=12, count=260, widest=0.5)
lights = partial(painted, corners=24, count=70, widest=1.0)
BACKGROUNDS = (wall, planks, cloth, tiles, papers, papers, leaves, lights)


def background(rng: Rng, side: int) -> Array:
    """(S, S, 3): one surface, or two that meet along a line, more or less out of focus."""
    angle = rng.normal(0, 0.4) + rng.choice([0, np.pi / 2])
    y, x = np.mgrid[-0.5 : 0.5 : side * 1j, -0.5 : 0.5 : side * 1j].astype(np.float32)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    picture = pick(rng, BACKGROUNDS)(rng, u, v)
    if rng.random() < 0.5:
        beyond = v > rng.uniform(-0.3, 0.3)
        picture = np.where(beyond[..., None], pick(rng, BACKGROUNDS)(rng, u, v), picture)
    return blurred(picture.astype(np.float32), side * rng.uniform(0, 0.012))


# The scene: a stage on which solids are put one in front of the other.

LEAST_VISIBLE = 0.65  # share of a hand that must stay visible and inside the picture


@dataclass
class Stage:
    """The picture so far, (S, S, 3) in canvas pixels, and the hands on it."""

    canvas: Array
    light: Light
    grain: Array  # (S, S) roughness of every surface
    boxes: list[Array] = field(default_factory=list)  # (4, 2) corners (x, y), canvas pixels
    visible: list[Array] = field(default_factory=list)  # (S, S) what is seen of each hand
    areas: list[int] = field(default_factory=list)  # pixels of each hand, hidden ones too

    def put(self, solid: Solid, scale: float, place: Array, box: Array | None = None) -> bool:
        """Draw a solid in front of everything; refuse (False) where too little of some hand would be seen.

        ``solid`` and the (4, 2) ``box`` around its hand, if it is one, are in palm lengths of ``scale`` pixels, their
        origin at ``place`` (x, y).
        """
        side = len(self.canvas)
        layer = rasterise(projected(solid, scale, place), side, unit=scale)
        on_canvas, in_layer = overlap(layer, side)
        covered = np.zeros((side, side), bool)
        covered[on_canvas] = layer.mask[in_layer]
        boxes, areas, visible = list(self.boxes), list(self.areas), [seen & ~covered for seen in self.visible]
        if box is not None:
            boxes.append(box * scale + place)
            areas.append(np.count_nonzero(layer.is_hand))
            visible.append(np.zeros_like(covered))
            visible[-1][on_canvas] = layer.is_hand[in_layer]
        if any(np.count_nonzero(seen) < LEAST_VISIBLE * area for seen, area in zip(visible, areas, strict=True)):
            return False
        self.boxes, self.areas, self.visible = boxes, areas, visible
        self._cast_shadow(covered, 0.25 * scale)
        colours = lit(layer.cropped(in_layer), self.light) * (1 + 0.05 * self.grain[on_canvas])[..., None]
        seen = layer.mask[in_layer]
        self.canvas[on_canvas][seen] = colours[seen]
        return True

    def _cast_shadow(self, covered: Array, distance: float) -> None:
        across, down = np.round(-distance * self.light.towards[:2] / self.light.towards[2]).astype(int)
        shadow = blurred(shift(covered.astype(np.float32), (down, across), order=0), 0.5 * distance + 2)
        self.canvas *= 1 - 0.8 * (1 - self.light.ambient) * shadow[..., None]


def overlap(layer: Layer, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where layer and canvas meet: the window (rows, columns) in the canvas, and the same window in the layer."""
    spans = []
    for start, length in zip((layer.top, layer.left), layer.depth.shape, strict=True):
        first, last = np.clip([start, start + length], 0, side)
        spans.append((slice(first, last), slice(first - start, last - start)))
    (rows, layer_rows), (columns, layer_columns) = spans
    return (rows, columns), (layer_rows, layer_columns)


def put_hand(stage: Stage, rng: Rng, crowd: int) -> None:
    """Put one hand somewhere; its longer side is 20 to 60 % of the picture's, less in a crowd."""
    side = len(stage.canvas)
    for _ in range(12):
        solid, box = random_hand(rng)
        length = np.linalg.norm(box[1:3] - box[:2], axis=1).max()
        scale = side * rng.uniform(0.2, 0.66 - 0.06 * crowd) / length
        centre = side * rng.uniform(0.1, 0.9, 2)
        apart = all(np.linalg.norm(other.mean(0) - centre) > 0.5 * scale * length for other in stage.boxes)
        if apart and stage.put(solid, scale, centre - scale * box.mean(0), box):
            return


def put_things(stage: Stage, rng: Rng, kinds: tuple[Callable, ...], count: int, size: float) -> None:
    """Put up to ``count`` things somewhere, a palm length of them at most ``size`` of the picture's side."""
    side = len(stage.canvas)
    for _ in range(count):
        stage.put(pick(rng, kinds)(rng), side * rng.uniform(0.4, 1) * size, side * rng.uniform(0, 1, 2))


def draw_scene(rng: Rng, side: int) -> Stage:
    """A background with things on it, none to four hands, and now and then something in front of them."""
    direction = np.array([*rng.uniform(-0.8, 0.8, 2), rng.uniform(0.5, 1)]).astype(np.float32)
    light = Light(direction / np.linalg.norm(direction), rng.uniform(0.4, 0.7), rng.uniform(0, 0.25))
    stage = Stage(background(rng, side), light, noise(rng, side, (24, 64, side // 4), 0.9))
    hands = int(rng.choice(5, p=[0.08, 0.45, 0.29, 0.12, 0.06]))
    put_things(stage, rng, BEHIND, int(rng.integers(0, 4)) + 2 * (hands == 0), 0.22)
    for _ in range(hands):
        put_hand(stage, rng, hands)
    put_things(stage, rng, IN_FRONT, int(rng.integers(0, 3)), 0.14)
    return stage


def develop(canvas: Array, rng: Rng) -> Image.Image:
    """What lens and sensor make of a canvas: exposure, colour cast, vignette, blur, noise."""
    side = len(canvas) // SUPERSAMPLING
    picture = canvas.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING, 3).mean((1, 3))
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    falloff = 1 + rng.normal(0, 0.15) * x + rng.normal(0, 0.15) * y - rng.uniform(0, 0.15) * (x**2 + y**2)
    cast = rng.normal(1, 0.05, 3) * rng.uniform(0.8, 1.35)
    picture = np.clip(picture * falloff[..., None] * cast, 0, 1) ** rng.uniform(0.8, 1.25)
    picture = blurred(picture, 1 + rng.choice([0, 0, 0, 0, 1, 2]) * side / 256)
    picture += rng.normal(0, rng.uniform(0.002, 0.025), picture.shape)
    return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))


# Files.


def folder_of(dataset: Path, split: str) -> Path:
    """Where the Oxford hand data set keeps ``images`` and ``annotations`` of a split."""
    return dataset / f"{split}_dataset" / f"{split}_data"


def write_annotation(path: Path, boxes: Array) -> None:
    """Write ``boxes``, (N, 4, 2) corners (x, y) in pixels from the picture's corner, as Oxford's ``.mat`` files do.

    There ``boxes`` is a 1xN cell array of structs a, b, c, d: 1x2 doubles (row, column), the first pixel's centre
    being at (1, 1).
    """
    cells = np.empty((1, len(boxes)), object)
    for k, corners in enumerate(boxes):
        cells[0, k] = np.empty((1, 1), [(name, object) for name in "abcd"])
        cells[0, k][0, 0] = tuple(corner[None, ::-1] + 0.5 for corner in corners)
    buffer = io.BytesIO()
    savemat(buffer, {"boxes": cells}, do_compression=True)
    path.write_bytes(MAT_HEADER + buffer.getvalue()[len(MAT_HEADER) :])


def read_annotation(path: Path) -> Array:
    """The inverse of :func:`write_annotation`."""
    boxes = [[cell[name][0, 0][0, ::-1] for name in "abcd"] for cell in loadmat(path)["boxes"].flat]
    return np.array(boxes).reshape(-1, 4, 2) - 0.5


def draw_picture(task: tuple[str, int], dataset: Path, size: int, seed: int) -> int:
    """Draw and write picture ``task`` (split, number) of ``size`` x ``size`` pixels; returns its number of hands."""
    split, k = task
    rng = np.random.default_rng([seed, list(SPLITS).index(split), k])
    stage = draw_scene(rng, size * SUPERSAMPLING)
    folder, name = folder_of(dataset, split), f"{split}_{k:05d}"
    quality = int(rng.integers(60, 96))
    develop(stage.canvas, rng).save(folder / "images" / f"{name}.jpg", quality=quality)
    boxes = (np.array(stage.boxes).reshape(-1, 4, 2) + 0.5) / SUPERSAMPLING
    write_annotation(folder / "annotations" / f"{name}.mat", boxes)
    return len(boxes)


def draw_dataset(dataset: Path, counts: dict[str, int], size: int, seed: int, n_cpu: int) -> int:
    """Draw ``counts`` pictures of each split into the new folder ``dataset``; returns the number of hands.

    The files do not depend on ``n_cpu``, the number of processes.
    """
    for split in counts:
        for kind in ("images", "annotations"):
            (folder_of(dataset, split) / kind).mkdir(parents=True)
    tasks = [(split, k) for split, count in counts.items() for k in range(count)]
    draw = partial(draw_picture, dataset=dataset, size=size, seed=seed)
    progress = partial(tqdm, total=len(tasks), desc="drawing hands", unit="picture")
    if n_cpu == 1:
        return sum(progress(map(draw, tasks)))
    # Ctrl-C is for this process alone, which then ends the others.
    with ProcessPoolExecutor(n_cpu, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        return sum(progress(pool.map(draw, tasks, chunksize=4)))


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to be made and filled, which takes the place of ``folder`` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging / "new"
        if folder.exists():
            folder.rename(staging / "old")
        (staging / "new").rename(folder)
    finally:
        shutil.rmtree(staging)


def contact_sheet(dataset: Path, columns: int = 6, rows: int = 4) -> Image.Image:
    """The first pictures of a data set in a grid, read from their files, with the boxes as annotated and upright."""
    paths = sorted(dataset.glob("*/*/images/*.jpg"), key=lambda path: ("training" not in path.stem, path.stem))
    paths = paths[: columns * rows]
    side = Image.open(paths[0]).width
    sheet = Image.new("RGB", (columns * side, -(-len(paths) // columns) * side), "white")
    for k, path in enumerate(paths):
        picture = Image.open(path)
        draw = ImageDraw.Draw(picture)
        for corners in read_annotation(path.parents[1] / "annotations" / f"{path.stem}.mat"):
            draw.rectangle([*corners.min(0), *corners.max(0)], outline="white")
            draw.polygon([tuple(corner) for corner in corners], outline="lime", width=2)
        sheet.paste(picture, (k % columns * side, k // columns * side))
    return sheet


# The command line.


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = ArgumentParser("Draw a synthetic hand data set in the layout of the Oxford hand data set.")
    parser.add_argument("--output", type=Path, default=Path("data"), help="folder in which to make hand_dataset/")
    parser.add_argument("--train", type=number(int, 0), default=400, help="number of training pictures")
    parser.add_argument("--valid", type=number(int, 0), default=40, help="number of validation pictures")
    parser.add_argument("--test", type=number(int, 0), default=100, help="number of test pictures")
    parser.add_argument("--size", type=number(int, 64, 2048), default=256, help="side of a picture, pixels")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="another seed draws other pictures")
    parser.add_argument("--n_cpu", type=number(int, 1), default=os.cpu_count(), help="number of processes")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing hand_dataset/")
    parser.add_argument(
        "--contact_sheet", type=Path, metavar="FILE.png", help="show the first pictures and their boxes"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Draw the data set, and the contact sheet where one is asked for."""
    dataset = args.output / "hand_dataset"
    if dataset.exists() and not args.overwrite:
        raise InputError(f"{dataset} exists already: --overwrite replaces it, another --output leaves it alone")
    counts = {split: getattr(args, option) for split, option in SPLITS.items()}
    if not any(counts.values()):
        raise InputError("nothing to draw: one of --train, --valid and --test must be greater than 0")
    with replaced_folder(dataset) as folder:
        hands = draw_dataset(folder, counts, args.size, args.seed, args.n_cpu)
    print(f"{dataset}: {sum(counts.values())} pictures with {hands} hands")
    if args.contact_sheet:
        with atomic_writer(args.contact_sheet) as file:
            contact_sheet(dataset).save(file, format="PNG")
        print(f"{args.contact_sheet}: the first pictures and their boxes")


if __name__ == "__main__":
    run(get_args_parser(), main)
