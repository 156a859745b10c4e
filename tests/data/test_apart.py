"""Pictures that are scored are left out of what is learnt from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bedplate.data.apart import keep_apart
from bedplate.data.image_files import LabelledImages, read_images
from bedplate.data.image_refs import ImageRef
from bedplate.errors import InputError


def part(folder: Path, colours: list[int]) -> LabelledImages:
    """Pictures of one colour each; -1 is a file that is no picture."""
    refs = []
    for number, colour in enumerate(colours):
        file = folder / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if colour >= 0:
            Image.new("RGB", (2, 2), (colour, 0, 0)).save(file)
        refs.append(ImageRef(str(file), str(file)))
    return LabelledImages(refs, [str(colour) for colour in colours], [], {})


def test_later_parts_win_and_what_cannot_be_read_stays(tmp_path: Path) -> None:
    train, val, test = [1, 2, -1, 3, 4, 4], [3, 5, 6], [4, 5, -1]
    given_parts = {"train": train, "val": val, "test": test}
    kept, left = keep_apart({name: part(tmp_path / name, colours) for name, colours in given_parts.items()})
    assert list(kept) == ["train", "val", "test"] and left == 4
    assert [kept[name].labels for name in kept] == [["1", "2", "-1"], ["3", "6"], ["4", "5", "-1"]]


def test_one_part_is_not_read() -> None:
    only = LabelledImages([ImageRef("gone", "gone")], None, [], {})
    assert keep_apart({"train": only}) == ({"train": only}, 0)


@pytest.mark.parametrize(("name", "colours"), [("train", [1, 2, 2]), ("val", [2])])
def test_nothing_left_is_said(tmp_path: Path, name: str, colours: list[int]) -> None:
    parts = {"train": [7, 8], "val": [9], "test": [1, 2]} | {name: colours}
    with pytest.raises(InputError, match=r"every picture .* is also one that is scored in another part"):
        keep_apart({name: part(tmp_path / name, colours) for name, colours in parts.items()})


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_no_picture_is_in_two_parts(tmp_path_factory: pytest.TempPathFactory, train: list[int], val: list[int]) -> None:
    folder = tmp_path_factory.mktemp("parts")
    parts = {"train": part(folder / "train", train), "val": part(folder / "val", val)}
    if set(train) <= set(val):
        with pytest.raises(InputError):
            keep_apart(parts)
        return
    kept, left = keep_apart(parts)
    assert kept["val"] == parts["val"] and left == len(train) - len(kept["train"])
    assert kept["train"].labels == [str(colour) for colour in train if colour not in val]


def test_folders_and_tables_are_compared_by_content(tmp_path: Path) -> None:
    part(tmp_path / "train" / "a", [1, 2, 3])
    part(tmp_path / "test" / "b", [9, 2])
    (tmp_path / "test.csv").write_text("image\ntest/b/1.png\n")
    kept, left = keep_apart(
        {"train": read_images(tmp_path / "train"), "test": read_images(tmp_path / "test.csv", label="")}
    )
    assert left == 1 and [Path(ref.file).name for ref in kept["train"].images] == ["0.png", "2.png"]
