import pytest

from tests.data.converters.scene import make_oxford


@pytest.fixture
def oxford(tmp_path):
    """A hand_dataset of one 100x50 image per split."""
    return make_oxford(tmp_path)
