"""Defaults of training that depend on what it starts from: on a network that was pruned, or on any other.

The checkpoint to start from (``-pre``) says whether its network was pruned (``pruned``). Checkpoints of older versions
and Darknet's .weights files do not; there the file name of the cfg decides, as test_prune.py gives it.
"""

import argparse
from dataclasses import dataclass

from utils.darknet.weights import is_darknet_weights
from utils.detection.checkpoints import read_checkpoint
from utils.training.runs import is_pruned_cfg


@dataclass(frozen=True)
class Recipe:
    """Defaults of train.py: the learning rate after the warm-up, and the probability of a mosaic of four images."""

    name: str
    learning_rate: float
    mosaic: float


TRAINING = Recipe("training", learning_rate=0.01, mosaic=0.5)
# Sparse training leaves small gammas, which larger steps would throw about; and it ended on single images.
FINE_TUNING = Recipe("fine-tuning", learning_rate=0.0005, mosaic=0.0)

# Mosaics stop before the end: for this share of the epochs the network sees images as it will when it detects.
WITHOUT_MOSAIC = 0.15


@dataclass(frozen=True)
class Origin:
    """What a run starts from.

    Attributes:
        pruned: whether it is a network whose channels were cut.
        reason: how that is known.
    """

    pruned: bool
    reason: str

    @property
    def recipe(self) -> Recipe:
        """The defaults that suit it."""
        return FINE_TUNING if self.pruned else TRAINING


def find_origin(pretrained: str | None, model_def: str) -> Origin:
    """What a run starts from, by the weights to start from and the network's cfg.

    Raises:
        InputError: the weights file cannot be read.
    """
    if pretrained is None:
        return Origin(False, "from random weights")
    stored = None if is_darknet_weights(pretrained) else read_checkpoint(pretrained).get("pruned")
    if stored is not None:
        return Origin(
            bool(stored), f"{pretrained} holds a {'pruned network' if stored else 'network that was not pruned'}"
        )
    pruned = is_pruned_cfg(model_def)
    name = f"the file name of {model_def} {'begins' if pruned else 'does not begin'} with prune_"
    return Origin(pruned, f"{pretrained} does not say whether its network was pruned; {name}")


def apply_recipe(args: argparse.Namespace, origin: Origin) -> None:
    """Set the options that the recipe has defaults for, where they were not given; say which recipe applies and why."""
    recipe = origin.recipe
    if args.learning_rate is None:
        args.learning_rate = recipe.learning_rate
    if args.mosaic is None:
        args.mosaic = recipe.mosaic
    mosaics = f"mosaics with probability {args.mosaic:g}" if args.mosaic else "no mosaics"
    print(f"recipe: {recipe.name} ({origin.reason}): learning rate {args.learning_rate:g}, {mosaics}")
