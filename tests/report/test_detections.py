import pytest
import torch

from utils.report.detections import LEAST_SCORE, SCORE, Collected, disagreements

LEFT, RIGHT = [0.0, 0, 10, 10], [50.0, 0, 60, 10]
NEAR_LEFT = [1.0, 0, 11, 10]  # an IoU of 9 / 11 with LEFT
FAR_LEFT = [5.0, 0, 15, 10]  # of 1 / 3


def detected(*rows):
    """Detections (D, 6) from pairs of a box and its score, and a class where it is not 0."""
    return torch.tensor([[*box, score, *(label or [0])] for box, score, *label in rows]).reshape(-1, 6)


NOTHING = detected()


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (NOTHING, NOTHING, 0),
        (detected((LEFT, 0.9)), detected((NEAR_LEFT, 0.5)), 0),
        (detected((LEFT, 0.9)), detected((FAR_LEFT, 0.5)), 1.4),
        (detected((LEFT, 0.9)), NOTHING, 0.9),
        (NOTHING, detected((LEFT, 0.75)), 0.75),
        (detected((LEFT, 0.9)), detected((LEFT, 0.5, 1)), 1.4),  # of another class
        (detected((LEFT, 0.9), (NEAR_LEFT, 0.5)), detected((LEFT, 0.75)), 0.5),  # a partner is one box's only
        (detected((LEFT, 0.9)), detected((LEFT, SCORE - 0.01)), 0.9),  # a box that is not shown is no partner
        (detected((LEFT, SCORE - 0.01)), NOTHING, 0),
        (detected((LEFT, 0.9), (RIGHT, 0.5)), detected((RIGHT, 0.75), (LEFT, 0.25)), 0),
    ],
)
def test_the_scores_of_boxes_without_a_partner_are_added(first, second, expected):
    assert disagreements([first], [second]).tolist() == pytest.approx([expected])
    assert disagreements([second], [first]).tolist() == pytest.approx([expected])


def test_images_do_not_mix():
    first = [detected((LEFT, 0.9)), NOTHING, detected((RIGHT, 0.5))]
    second = [NOTHING, detected((LEFT, 0.75)), detected((RIGHT, 0.9))]
    assert disagreements(first, second).tolist() == pytest.approx([0.9, 0.75, 0])


def test_what_is_collected_has_the_least_score_or_more():
    collected = Collected()
    collected(detected((LEFT, 0.9), (RIGHT, LEAST_SCORE), (LEFT, LEAST_SCORE / 2)), torch.tensor([[1.0, *RIGHT]]))
    assert collected.detections[0][:, 4].tolist() == pytest.approx([0.9, LEAST_SCORE])
    assert collected.truth_as_detections[0].tolist() == [[*RIGHT, 1, 1]]
