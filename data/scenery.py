"""The rest of an image of hands: objects that could be mistaken for hands, and backgrounds."""

from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from data.hand_drawing import Finger, bend, finger_solid
from data.solids import Array, Cone, Rng, Solid, any_colour, blurred, chain, rotation, skin_tone, stain, turned

# Objects: solids around the origin, in palm lengths.


def any_turn(rng: Rng) -> Array:
    """A rotation in the plane of the image."""
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
    """Fingers with nails, side by side as in a hand, but without a palm: a part of a hand is not a hand."""
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


# Backgrounds: functions from grids of coordinates (u, v), both from about -0.5 to 0.5, to RGB of shape (S, S, 3).


def noise(rng: Rng, side: int, octaves: tuple[int, ...] = (3, 6, 12, 24, 48), roughness: float = 0.6) -> Array:
    """(S, S) smooth noise of about unit range: a sum of grids with ``octaves`` cells per side."""
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
    """``count`` scattered polygons with ``corners`` corners, at most ``widest`` times as wide as they are long."""
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
    image = rng.choice(BACKGROUNDS)(rng, u, v)
    if rng.random() < 0.5:
        beyond = v > rng.uniform(-0.3, 0.3)
        image = np.where(beyond[..., None], rng.choice(BACKGROUNDS)(rng, u, v), image)
    return blurred(image.astype(np.float32), side * rng.uniform(0, 0.012))
