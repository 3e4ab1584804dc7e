"""The defaults of training, how long a run that cuts its network trains, and what a run starts from.

The checkpoint to start from (``-pre``) says whether its network was pruned (``pruned``). Checkpoints of older versions
and Darknet's .weights files do not; there the file name of the cfg decides, as test_prune.py gives it.
"""

from dataclasses import dataclass

from utils.darknet.weights import is_darknet_weights
from utils.detection.checkpoints import read_checkpoint
from utils.training.runs import is_pruned_cfg

# A pruned network is trained as any other: one that was cut hard has much to learn.
LEARNING_RATE = 0.01  # after the warm-up
MOSAIC = 0.5  # probability of a mosaic of four images
# Mosaics stop before the end: for this share of the epochs the network sees images as it will when it detects.
WITHOUT_MOSAIC = 0.15
# A training step costs three forward passes, its own and two for the gradients; a teacher costs one more.
TEACHER_COST = 1 / 3


def epochs_after_cut(epochs: int, share: float, has_teacher: bool, images: int, classes: int) -> int:
    """How many epochs of the network after a cut cost what ``epochs`` of the one before it do, in MACs.

    At least as many; and not more than Darknet advises to train on any data set (README of AlexeyAB's Darknet, "When
    should I stop training"): 2,000 batches of 64 images per class, and at least 6,000.

    Args:
        epochs: of the network before the cut.
        share: of the MACs that the cut leaves.
        has_teacher: whether what is left learns from the network before the cut.
        images: in an epoch.
        classes: of the data set.
    """
    same_cost = epochs / (share + TEACHER_COST * has_teacher)
    enough = 64 * max(6000, 2000 * classes) / images
    return max(epochs, int(min(same_cost, enough)))


@dataclass(frozen=True)
class Origin:
    """What a run starts from.

    Attributes:
        pruned: whether it is a network whose channels were cut.
        reason: how that is known.
    """

    pruned: bool
    reason: str


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
