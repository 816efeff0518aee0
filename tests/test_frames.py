"""Reading CSVs: ids stay text, rows are counted as an editor counts them, every mistake is told with its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tinydata import make_table, write_csv

from spatialfeat.data.frames import FrameTable, labelled_frames, list_frames, read_frames, refuse_two_spellings
from spatialfeat.errors import SpatialfeatError
from spatialfeat.names import natural_key


def _read(folder: Path, content: str | bytes, *, labels_required: bool = True) -> FrameTable:
    csv_path = folder / "train.csv"
    csv_path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_frames(csv_path, folder / "images", split="train", num_classes=7, labels_required=labels_required)


def row_numbers(table: FrameTable) -> list[int]:
    assert table.origin.row_numbers is not None
    return table.origin.row_numbers.tolist()


def _error(folder: Path, content: str | bytes, *, labels_required: bool = True) -> str:
    """The message for this CSV, without the folder's name."""
    with pytest.raises(SpatialfeatError) as caught:
        _read(folder, content, labels_required=labels_required)
    return str(caught.value).replace(f"{folder}/", "")


def test_ids_stay_text_and_their_fields_are_parsed(tmp_path: Path) -> None:
    table = _read(tmp_path, "id,label\n001_1_000001,0\n001_02_7,6\n")
    assert table.ids.tolist() == ["001_1_000001", "001_02_7"]
    assert table.videos.tolist() == ["001_1", "001_02"]
    assert table.patients.tolist() == ["001", "001"]
    assert table.segments.tolist() == [1, 2]
    assert table.frame_numbers.tolist() == [1, 7]
    assert table.labels.tolist() == [0, 6]
    assert table.labels.dtype == np.int64


def test_video_frame_ids(tmp_path: Path) -> None:
    table = _read(tmp_path, "id,label\nvideo01_000123,3\ncase-A_b_000124,3\n")
    assert table.videos.tolist() == ["video01", "case-A_b"]
    assert table.patients.tolist() == ["video01", "case-A_b"]
    assert table.segments.tolist() == [0, 0]
    assert table.frame_numbers.tolist() == [123, 124]


def test_ids_that_look_like_missing_values_stay_ids(tmp_path: Path) -> None:
    assert _read(tmp_path, "id,label\nNA_1,0\nnan_2,0\nNone_3,0\n").ids.tolist() == ["NA_1", "nan_2", "None_3"]


def test_rows_keep_the_order_of_the_file_and_gaps_are_fine(tmp_path: Path) -> None:
    table = _read(tmp_path, "id,label\n1_1_900,1\n1_1_3,2\n1_1_70,0\n")
    assert table.frame_numbers.tolist() == [900, 3, 70]
    assert table.labels.tolist() == [1, 2, 0]


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    table = _read(tmp_path, 'note,label,id\n"a, b",4,1_1_1\n,5,1_1_2\n')
    assert table.ids.tolist() == ["1_1_1", "1_1_2"]
    assert table.labels.tolist() == [4, 5]


@pytest.mark.parametrize(
    "content",
    [
        "id,label\n1_1_1,0\n1_1_2,3\n",
        "id,label\n1_1_1,0\n1_1_2,3",
        "\ufeffid,label\n1_1_1,0\n1_1_2,3\n",
        "id,label\r\n1_1_1,0\r\n1_1_2,3\r\n",
        '"id","label"\n"1_1_1","0"\n"1_1_2","3"\n',
        "id, label\n1_1_1, 0\n 1_1_2,  3\n",
        "id,label \n1_1_1,0 \n1_1_2,3\t\n",
        "id,label\n1_1_1,+0\n1_1_2,03\n",
        "id;label\r\n1_1_1;0\r\n1_1_2;3\r\n",
        '\ufeffnote;id;label\n"a, b;";1_1_1;0\n;1_1_2;3\n',
        "id\tlabel\n1_1_1\t0\n1_1_2\t3\n",
        "id,label,a;b;c;d\n1_1_1,0,\n1_1_2,3,x;y\n",
        'id;label;"start, end"\n1_1_1;0;1,2\n1_1_2;3;3,4\n',
        "id\tlabel\r\n1_1_1\t0\r\n1_1_2\t3\r\n".encode("utf-16"),
    ],
    ids=[
        "plain",
        "no final newline",
        "BOM",
        "CRLF",
        "quoted",
        "blanks before",
        "blanks behind",
        "signs and zeros",
        "semicolons",
        "commas in cells",
        "tabs",
        "semicolons in a name",
        "commas in a name",
        "UTF-16",
    ],
)
def test_ways_to_write_the_same_csv(tmp_path: Path, content: str | bytes) -> None:
    table = _read(tmp_path, content)
    assert table.ids.tolist() == ["1_1_1", "1_1_2"]
    assert table.labels.tolist() == [0, 3]
    assert row_numbers(table) == [2, 3]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_row_numbers_are_those_of_an_editor_after_blank_lines(tmp_path: Path, newline: str) -> None:
    content = newline.join(["id,label", "1_1_1,0", "", "   ", ",", "1_1_2,3", ""])
    table = _read(tmp_path, content)
    assert row_numbers(table) == [2, 6]
    assert table.where(1) == f"{tmp_path}/train.csv row 6"
    assert _error(tmp_path, content.replace(",3", ",9")).startswith("train.csv row 6: label 9 ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "train.csv: is empty; the first line must be `id,label`"),
        ("id,label\n", "train.csv: has no rows; add one row `id,label` per frame"),
        ("id,label", "train.csv: has no rows; add one row `id,label` per frame"),
        ("id,label\n\n\n", "train.csv: has no rows; add one row `id,label` per frame"),
        ("id\n1_1_1\n", "train.csv: no column label (found: id); the header must be `id,label`"),
        ("frame,label\n1,0\n", "train.csv: no column id (found: frame, label); the header must be `id,label`"),
        ("id;phase\n1_1_1;0\n", "train.csv: no column label (found: id, phase); the header must be `id,label`"),
        ("id|label\n1_1_1|0\n", "train.csv: no column id and label (found: id|label); the header must be"),
        ("id;label\n1_1_1;0;5\n", "train.csv row 2: has 3 fields, the header 2; remove surplus semicolons"),
        ("id\tlabel\n1_1_1\t0\t5\n", "train.csv row 2: has 3 fields, the header 2; remove surplus tabs"),
        (
            "id,label\nvideo05/000014;-1\nvideo05/000015;0\n",
            "train.csv row 2: its cells are separated by `;`, those of the header by `,`; use one separator in all "
            "rows: write the header as `id;label`, or the rows like the header",
        ),
        ("id\tlabel\n1_1_1,0\n", "train.csv row 2: its cells are separated by `,`, those of the header by tabs; use"),
        ("id;label\n1_1_1;3,0\n", "train.csv row 2: label '3,0' is not an integer"),
        ("id,label,label\n1_1_1,0,3\n", "train.csv: column label is there twice; keep one"),
        ("id,id ,label\n1_1_1,1_1_2,3\n", "train.csv: column id is there twice; keep one"),
        ("id,label\n1_1_1,0,5\n1_1_2,0\n", "train.csv row 2: has 3 fields, the header 2; remove surplus commas"),
        ("id,label\n1_1_1,0\n\n1_1_2,0,5\n", "train.csv row 4: has 3 fields, the header 2; remove surplus commas"),
        ("id,label\n1_1_1,0,\n1_1_2,0,\n", "train.csv row 2: has 3 fields, the header 2; remove surplus commas"),
        ("id,label\n\u00e9_1,0\n".encode("latin-1"), "train.csv: is not UTF-8 text"),
    ],
)
def test_malformed_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert _error(tmp_path, content).startswith(message)


def test_an_open_quote_is_told_with_its_row(tmp_path: Path) -> None:
    message = _error(tmp_path, 'id,label\n1_1_1,0\n"1_1_2,0\n1_1_3,0\n')
    assert message.startswith("train.csv row 3: is not valid CSV")
    assert "quotes" in message


def test_missing_file_and_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match=r"gone\.csv: no such file; go to the folder"):
        read_frames(tmp_path / "gone.csv", tmp_path, split="train")
    with pytest.raises(SpatialfeatError, match="cannot be read"):
        read_frames(tmp_path, tmp_path, split="train")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("9", "label 9 is outside 0..6; fix the row or pass --num-classes"),
        ("7", "label 7 is outside 0..6"),
        ("-2", "label -2 is outside 0..6; fix the row: phases count from 0; a frame without a label has -100, -1 or"),
        ("-10", "label -10 is outside 0..6; fix the row"),
        ("9" * 18, f"label {'9' * 18} is outside 0..6"),
        ("9" * 30, f"label {'9' * 30} is outside 0..6"),
        ("-" + "9" * 30, f"label -{'9' * 30} is outside 0..6"),
        ("3.5", "label '3.5' is not an integer; write the phase's number, e.g. 3, or pass --phase-names"),
        ("3.01", "label '3.01' is not an integer"),
        (".0", "label '.0' is not an integer"),
        ("1e0", "label '1e0' is not an integer"),
        ("sellar", "label 'sellar' is not an integer"),
        ("nan", "label 'nan' is not an integer"),
        ("\u0663", "label '\u0663' is not an integer"),  # an Arabic three, which Python's int() takes
    ],
)
def test_bad_labels(tmp_path: Path, label: str, message: str) -> None:
    assert _error(tmp_path, f"id,label\n1_1_1,0\n1_1_2,{label}\n1_1_3,0\n").startswith(f"train.csv row 3: {message}")


def test_the_first_of_several_bad_rows_is_named_and_the_others_counted(tmp_path: Path) -> None:
    message = _error(tmp_path, "id,label\n1_1_1,0\n1_1_2,8\n1_1_3,9\n1_1_4,7\n")
    assert message == "train.csv row 3: label 8 is outside 0..6 (3 such rows); fix the row or pass --num-classes"


def test_without_a_number_of_classes_only_negative_labels_are_refused(tmp_path: Path) -> None:
    good = write_csv(tmp_path / "good.csv", [("1_1_1", 250)])
    assert read_frames(good, tmp_path, split="train").labels.tolist() == [250]
    bad = write_csv(tmp_path / "bad.csv", [("1_1_1", -2)])
    with pytest.raises(SpatialfeatError, match="row 2: label -2 is outside 0 and above"):
        read_frames(bad, tmp_path, split="train")


def test_unlabelled_frames_are_minus_100_minus_1_or_empty(tmp_path: Path) -> None:
    texts = ["-100", "-1", "", "  ", "-1.0", "-100.00", "3", "3.0", "3.", "+3", "03"]
    content = "id,label\n" + "".join(f"1_1_{row},{text}\n" for row, text in enumerate(texts))
    for labels_required in (True, False):
        table = _read(tmp_path, content, labels_required=labels_required)
        assert table.labels.tolist() == [-100] * 6 + [3] * 5
    no_column = "id\n1_1_1\n1_1_2\n"
    assert _read(tmp_path, no_column, labels_required=False).labels.tolist() == [-100, -100]
    assert "no column label" in _error(tmp_path, no_column)


NAMES = ("Preparation", "Clipping Cutting", "2", "Retraction")
"""The third phase, number 2, is called 2, which can be read in one way only."""


def _named(folder: Path, names: tuple[str, ...], labels: list[str]) -> FrameTable:
    path = write_csv(folder / "train.csv", [(f"1_1_{row}", label) for row, label in enumerate(labels)])
    return read_frames(path, folder, split="train", num_classes=len(names), phase_names=names)


def test_phase_names_are_labels_beside_numbers_and_unlabelled_frames(tmp_path: Path) -> None:
    labels = ["Retraction", "0", "Clipping Cutting", "2", " Preparation ", "-1", "", "3.0"]
    assert _named(tmp_path, NAMES, labels).labels.tolist() == [3, 0, 1, 2, 0, -100, -100, 3]


@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        (NAMES, "retraction", "label 'retraction' is no phase; write 0..3 or one of Preparation, Clipping Cutting, 2"),
        (NAMES, "4", "label 4 is outside 0..3; fix the row or pass --num-classes"),
        # As AutoLaparo counts its phases: number 3 is called 4, and number 4 is called 5.
        (("1", "2", "3", "4", "5"), "4", "label 4 is a number, and the name of another phase; give names with"),
        (("a", "b", "-1"), "-1", "label -1 is a number, and the name of another phase; give names with --phase-names"),
    ],
)
def test_names_that_are_no_phase_or_two(tmp_path: Path, names: tuple[str, ...], label: str, message: str) -> None:
    with pytest.raises(SpatialfeatError) as caught:
        _named(tmp_path, names, ["0" if "a" in names or names is NAMES else "", label])
    assert str(caught.value).startswith(f"{tmp_path}/train.csv row 3: {message}")


def test_a_message_shows_few_of_many_names(tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match=r"one of a0, a1, .*a9 and 490 more, or give other names"):
        _named(tmp_path, tuple(f"a{phase}" for phase in range(500)), ["b"])


@pytest.mark.parametrize(
    "bad_id",
    [
        "../x_1",
        "/abs_1",
        "a/./b_1",
        "a/ b_1",
        "a\\b_1",
        "a\x01b_1",
        ".hidden_1",
        " 1_1_1",
        "1_1_1 ",
        "a\n_1",
        "1" * 5000 + "_1",
    ],
)
def test_ids_that_are_no_file_names(tmp_path: Path, bad_id: str) -> None:
    message = _error(tmp_path, f'id,label\n1_1_1,0\n"{bad_id}",0\n')
    assert message.startswith(f"train.csv row 3: id {bad_id[:80]!r}"[:60])
    assert "cannot be a file name: it " in message
    assert "; use at most 200 letters, digits, - and _" in message
    assert len(message) < 300


@pytest.mark.parametrize("bad_id", ["a\x00b_1", "ab_1\x00"])
def test_a_nul_is_refused_by_every_version_of_python(tmp_path: Path, bad_id: str) -> None:
    message = _error(tmp_path, f"id,label\n1_1_1,0\n{bad_id},0\n")
    assert message == "train.csv row 3: holds a NUL character; save it as plain UTF-8 text"


@pytest.mark.parametrize(
    "bad_id", ["1_1_1.png", "1_1_000001.PNG", "x", "_5", "a_", "1_1_-5", "1_1_1.5", "1_1_" + "9" * 19]
)
def test_ids_without_a_frame_number(tmp_path: Path, bad_id: str) -> None:
    message = _error(tmp_path, f"id,label\n1_1_1,0\n{bad_id},0\n")
    assert message.startswith(f"train.csv row 3: id {bad_id!r} does not end in _FRAME; write PATIENT_SEGMENT_FRAME")
    assert "without .png" in message


def test_a_repeated_id_names_both_rows(tmp_path: Path) -> None:
    message = _error(tmp_path, "id,label\n1_1_9,0\n1_1_10,0\n\n1_1_9,0\n")
    assert message == "train.csv row 5: id 1_1_9 repeats 1_1_9 of train.csv row 2; remove one of them"


def test_one_frame_in_two_spellings(tmp_path: Path) -> None:
    message = _error(tmp_path, "id,label\n1_1_9,0\n1_1_009,0\n1_1_9,0\n")
    assert message == "train.csv row 3: id 1_1_009 repeats 1_1_9 of train.csv row 2 (2 such rows); remove one of them"


def test_the_same_frame_number_in_another_video_is_no_repetition(tmp_path: Path) -> None:
    assert len(_read(tmp_path, "id,label\n1_1_9,0\n1_2_9,0\n2_1_9,0\n11_9,0\n")) == 4


def test_one_video_in_two_spellings(tmp_path: Path) -> None:
    message = _error(tmp_path, "id,label\n1050_1_9,0\n1050_01_10,0\n")
    for part in ("1050_1 ", "1050_01 ", "row 2", "row 3", "use one spelling"):
        assert part in message


def test_one_video_in_two_spellings_across_files(tmp_path: Path) -> None:
    tables = [make_table(tmp_path, ["video7_1"]), make_table(tmp_path, ["video07_2"], split="val")]
    with pytest.raises(SpatialfeatError) as caught:
        refuse_two_spellings(tables)
    expected = (
        f"{tmp_path}/val.csv row 2: video video07 is the same as video7 in {tmp_path}/train.csv row 2, "
        "written differently; use one spelling"
    )
    assert str(caught.value) == expected


def test_natural_order() -> None:
    names = ["video10", "video2", "video1", "1050_10", "1050_2", "999_1"]
    assert sorted(names, key=natural_key) == ["999_1", "1050_2", "1050_10", "video1", "video2", "video10"]
    assert natural_key("1050_01") == natural_key("1050_1")
    assert natural_key("1050_1") != natural_key("1050_10")
    assert natural_key("10501") != natural_key("1050_1")


def test_image_paths_use_the_id_as_written(tmp_path: Path) -> None:
    table = _read(tmp_path, "id,label\n001_1_000001,0\n")
    assert table.image_path(0) == tmp_path / "images" / "001_1_000001.png"


def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    # 250 videos of 400 frames.
    lines = [f"{1000 + index // 400}_1_{index % 400:06d},{index % 7}" for index in range(100_000)]
    csv_path = tmp_path / "big.csv"
    csv_path.write_text("\n".join(["id,label", *lines]))
    table = read_frames(csv_path, tmp_path, split="train", num_classes=7)
    assert len(table) == 100_000
    assert table.ids[99_999] == "1249_1_000399"
    assert row_numbers(table)[99_999] == 100_001
    assert (table.labels == np.arange(100_000) % 7).all()


def test_a_folder_of_images_is_a_table_of_unlabelled_frames(tmp_path: Path) -> None:
    for name in ("1_1_10.png", "1_1_9.png", "video01_3.png", "._1_1_9.png", "notes.txt"):
        (tmp_path / name).touch()
    table = list_frames(tmp_path, split="all")
    assert sorted(table.ids.tolist()) == ["1_1_10", "1_1_9", "video01_3"]
    assert set(table.labels.tolist()) == {-100}
    (tmp_path / "poster.png").touch()
    with pytest.raises(SpatialfeatError) as caught:
        list_frames(tmp_path, split="all")
    assert str(caught.value).startswith(f"{tmp_path}: poster: id 'poster' does not end in _FRAME")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpatialfeatError, match="holds no PNG or JPEG file"):
        list_frames(tmp_path, split="all")
    with pytest.raises(SpatialfeatError, match="cannot be read"):
        list_frames(tmp_path / "absent", split="all")


def test_labels_counted_from_one_are_recognized(tmp_path: Path) -> None:
    message = _error(tmp_path, "id,label\n1_1_1,1\n1_1_2,4\n1_1_3,7\n")
    assert message.startswith("train.csv row 4: label 7 is outside 0..6; ")
    assert "these run from 1 to 7, so subtract 1 everywhere" in message


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ((0, -1, -1, -1), "train.csv: 2_1 and 1 other video have no label at all: left out"),
        ((0, -1, 1, -1), "train.csv: 10_1 has no label at all: left out"),
        ((0, -1, 1, 0), ""),
    ],
)
def test_videos_without_any_label_are_named(
    tmp_path: Path, labels: tuple[int, ...], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = zip(("1_1_1", "1_1_2", "2_1_1", "10_1_1"), labels, strict=True)
    labelled_frames(_read(tmp_path, "id,label\n" + "".join(f"{frame_id},{label}\n" for frame_id, label in rows)))
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.replace(f"{tmp_path}/", "") for message in told] == ([text] if text else [])
