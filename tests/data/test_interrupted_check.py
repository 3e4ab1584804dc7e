import pytest

from tests.scene import five_images
from utils.data import check
from utils.data.data_config import DataConfig


def test_an_interrupted_check_goes_on_where_it_stopped(tmp_path, monkeypatch):
    paths = five_images(tmp_path)
    list_path = tmp_path / "set.txt"
    list_path.write_text("".join(f"{path}\n" for path in paths))
    data = DataConfig(tmp_path / "set.data", 2, list_path, list_path, ["a", "b"])
    decode, decoded = check.decode, []

    def interrupted(path, status):
        if path == paths[3]:
            raise KeyboardInterrupt
        return decode(path, status)

    def counted(path, status):
        decoded.append(path)
        return decode(path, status)

    monkeypatch.setattr(check, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check.check_data(data, "train")
    monkeypatch.setattr(check, "decode", counted)
    check.check_data(data, "train")
    assert sorted(decoded) == paths[3:]
