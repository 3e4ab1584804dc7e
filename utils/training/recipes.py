"""Defaults of training that depend on what is trained: a network from scratch, or one that was pruned."""

from dataclasses import dataclass

from utils.training.runs import is_pruned_cfg


@dataclass(frozen=True)
class Recipe:
    """Defaults of train.py: the learning rate after the warm-up, and the chance of a mosaic."""

    learning_rate: float
    mosaic: float


TRAINING = Recipe(learning_rate=0.01, mosaic=0.5)
# Sparse training leaves small gammas, which larger steps would throw about; and it ended on single images.
FINE_TUNING = Recipe(learning_rate=0.0005, mosaic=0.0)

# Mosaics stop before the end: for this share of the epochs the network sees images as it will when it detects.
WITHOUT_MOSAIC = 0.15


def recipe_for(model_def: str) -> Recipe:
    """The recipe for a cfg: fine-tuning where its name says that it was pruned."""
    return FINE_TUNING if is_pruned_cfg(model_def) else TRAINING
