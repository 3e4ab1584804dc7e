import pytest

from utils.darknet.cfg import format_cfg, parse_cfg, read_cfg
from utils.errors import InputError


def plain(blocks):
    return [dict(block) for block in blocks]


def test_blocks_are_the_sections_in_order_as_dicts_of_strings():
    blocks = parse_cfg("[net]\nwidth=416\n[convolutional]\nfilters=16\nactivation=leaky\n[yolo]\n")
    assert plain(blocks) == [
        {"type": "net", "width": "416"},
        {"type": "convolutional", "filters": "16", "activation": "leaky"},
        {"type": "yolo"},
    ]


@pytest.mark.parametrize(
    "line",
    [
        "width=416",
        "  width = 416  ",
        "\twidth\t=\t416",
        "wid th=4 16",
        "width=416 # pixels",
        "width=416;pixels",
        "width=416#1;2",
        "\n\n   \nwidth=416\n\n",
        "# width=1\n;width=2\n  # width=3\nwidth=416",
        "width=416\nwidth=1",
        "width=416\r",
        "# a form feed \f and a line separator \u2028 end no comment\nwidth=416",
    ],
)
def test_spaces_comments_blank_lines_and_later_duplicates_change_nothing(line):
    assert plain(parse_cfg(f"[net]\n{line}\nheight=9\n")) == [{"type": "net", "width": "416", "height": "9"}]


def test_a_value_may_hold_commas_equals_signs_and_nothing():
    assert plain(parse_cfg("[net]\nsteps = 400000, 450000\na=b=c\nempty=\n"))[0] == {
        "type": "net",
        "steps": "400000,450000",
        "a": "b=c",
        "empty": "",
    }


def test_the_first_of_duplicate_keys_counts_within_its_section_only():
    blocks = parse_cfg("[net]\na=1\na=2\n[route]\na=3\n[route]\na=4\n")
    assert [block["a"] for block in blocks] == ["1", "3", "4"]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("[conv]", "convolutional"),
        ("[convolutional]", "convolutional"),
        ("[max]", "maxpool"),
        ("[avg]", "avgpool"),
        ("[silence]", "empty"),
        ("  [ route ]  # merges", "route"),
        ("[never_heard_of]", "never_heard_of"),
    ],
)
def test_section_names(header, name):
    assert [block["type"] for block in parse_cfg(f"[network]\n{header}\n")] == ["net", name]


@pytest.mark.parametrize(
    "content",
    [
        b"[net]\nwidth=416\n[yolo]\nmask=0\n",
        b"[net]\r\nwidth=416\r\n[yolo]\r\nmask=0\r\n",
        b"\xef\xbb\xbf[net]\r\nwidth=416\n[yolo]\nmask=0",
        *(
            f"[net]\n# {comment}\nwidth=416\n[yolo]\nmask=0\n".encode(encoding)
            for comment, encoding in (
                ("Größe, 大小", "utf-8"),
                ("网络", "gbk"),
                ("Größe", "cp1252"),
                ("大小", "utf-16"),
                ("大小", "utf-16-le"),
            )
        ),
    ],
    ids=["plain", "windows", "byte-order-mark", "utf-8", "gbk", "cp1252", "utf-16", "utf-16-without-mark"],
)
def test_files_of_every_origin_read_alike(tmp_path, content):
    path = tmp_path / "a.cfg"
    path.write_bytes(content)
    assert plain(read_cfg(path)) == [{"type": "net", "width": "416"}, {"type": "yolo", "mask": "0"}]


def test_a_block_remembers_its_file_and_line(tmp_path):
    path = tmp_path / "a.cfg"
    path.write_bytes(b"\r\n# one\r\n[net]\r\nwidth=1\r\n\r\n[yolo]\r\n")
    blocks = read_cfg(path)
    assert [(block.source, block.line) for block in blocks] == [(str(path), 3), (str(path), 6)]
    copy = blocks[1].copy()
    copy["mask"] = "1"
    assert (copy.source, copy.line) == (str(path), 6)
    assert "mask" not in blocks[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width=416\n[net]\n", ":1: 'width=416' stands before the first"),
        ("\n# a\n[net]\nwidth\n", ":4: 'width' is neither"),
        ("[net]\n\n=416\n", ":3: '=416' is neither"),
        ("[net]\nwidth=1\n[yolo\n", r":3: '\[yolo' is not a section header"),
        ("[net]\n[]\n", r":2: '\[\]' is not a section header"),
        ("[net]\n[yolo] mask=1\n", ":2: .* is not a section header"),
        ("[convolutional]\nfilters=1\n", r": a cfg begins with \[net\], this one with \[convolutional\]"),
        ("", ": a cfg begins with .* no section"),
        ("# nothing\n", ": a cfg begins with .* no section"),
    ],
)
def test_what_does_not_parse_is_named_with_file_and_line(tmp_path, text, message):
    path = tmp_path / "wrong.cfg"
    path.write_text(text)
    with pytest.raises(InputError, match=f"wrong.cfg{message}") as error:
        read_cfg(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.cfg: there is no such cfg file"):
        read_cfg(tmp_path / "none.cfg")


@pytest.mark.parametrize("content", [bytes(range(256)), b"\x7fELF\0\0\0", b"\xff\xfe[\0n\0e\0t\0]\0\1\0"])
def test_a_binary_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "binary.cfg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"binary\.cfg") as error:
        read_cfg(path)
    assert str(error.value).isprintable()


def test_written_text_is_what_darknet_reads():
    blocks = parse_cfg("[net]\nwidth = 416 # pixels\n[conv]\nfilters=3\n")
    assert format_cfg(blocks) == "[net]\nwidth=416\n\n[convolutional]\nfilters=3\n"


def test_darknets_networks_survive_writing_and_reading(darknet_cfg):
    blocks = read_cfg(darknet_cfg)
    assert len(blocks) > 10
    assert parse_cfg(format_cfg(blocks)) == blocks


def test_an_option_named_type_is_left_out_with_a_warning_but_for_cost_which_has_it(capsys):
    blocks = parse_cfg("[net]\ntype=route\nwidth=9\n[cost]\ntype=sse\n", "a.cfg")
    assert plain(blocks) == [{"type": "net", "width": "9"}, {"type": "cost"}]
    assert capsys.readouterr().err.splitlines() == [
        "warning: a.cfg:2: no layer but [cost] has an option named type: it is left out"
    ]
