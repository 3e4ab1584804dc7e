"""Hands: a skeleton in three dimensions is posed, covered with a solid of skin, and joined to an arm.

In hand coordinates a hand shows its back. The wrist is the origin, the fingers point up (negative y), the thumb is on
the left, and z points out of the back. Lengths are in palm lengths (wrist to middle knuckle).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data.solids import (
    Array,
    Cone,
    Rng,
    Solid,
    any_colour,
    chain,
    end_balls,
    projected,
    rotation,
    skin_tone,
    stain,
    turned,
)


class Finger(NamedTuple):
    """A straight finger: its knuckle, how far it leans outwards (degrees), the lengths of its bones, its radius."""

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
    """The curls and spread of the fingers, the bend of the wrist (radians), and whether the hand holds a stick."""

    curls: Array
    spread: float
    wrist: float
    holds: bool


def random_pose(rng: Rng) -> Pose:
    """One of the named poses with noise, or sometimes random curls."""
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
    # The nail lies at the end of the last bone.
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
    palm = []
    for place in np.linspace(0, 3, 7):  # along the knuckles: each of them, and half way between them
        k = min(int(place), 2)
        knuckle = knuckles[k] + (place - k) * (knuckles[k + 1] - knuckles[k]) + [0, 0.06 * (place % 1 > 0), 0]
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
    """A hand in hand coordinates; the box encloses its cones with ``is_hand``."""
    parts = list(skeleton(pose))
    solid = palm_solid(skin, [joints for _, joints, _ in parts])
    # Start, end, radius and direction of the back of each part that has a pale inner side.
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
    """A forearm and an upper arm, bare or in a sleeve; the wrist is the origin, ``away`` points away from the palm.

    The arm stays closer to the image plane than the hand, or it would hide the rest of the image.
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
    """A hand with its arm, in a random orientation that shows its palm or back, and its box, both in palm lengths."""
    pose, skin = random_pose(rng), skin_tone(rng)
    tilt, turn = np.clip(rng.normal(0, [0.3, 0.45]), -0.8, 0.8)
    left_or_right = np.diag([rng.choice([-1, 1]), 1, 1])
    matrix = rotation(tilt, turn + rng.choice([0, np.pi]), rng.uniform(0, 2 * np.pi)) @ left_or_right
    solid = turned(hand_solid(pose, skin, rng), matrix)
    if rng.random() < 0.93:
        solid += arm_solid(matrix @ [0, 1, 0], pose.wrist, skin, rng)
    outline = [cone for cone in projected(solid, 1.0, np.zeros(2)) if cone.is_hand]
    return solid, rotated_box(outline, (matrix @ [0, -1, 0])[:2])
