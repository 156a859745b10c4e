"""Questions about pictures in every form that people have them in."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bedplate.data.pixel_store import PixelStore
from bedplate.data.questions import Asked, Question, join, majority_answers, majority_baseline, read_questions
from bedplate.errors import InputError

from .pictures import encoded, noise, save
from .writers import write_tar

ROWS = [
    {"image": "a.png", "question": "what is it?", "answer": "cat", "kind": "what"},
    {"image": "b.png", "question": "how many?", "answer": 2, "kind": ""},
    {"image": "./a.png", "question": "is it red?", "answer": True, "kind": ""},
    {"image": "b.png", "question": "what colour?", "answer": ["grey", "gray", "grey"], "kind": "colour"},
]
EXPECTED = {
    "a": (Question("what is it?", ("cat",), "what"), Question("is it red?", ("yes",), "yes_no")),
    "b": (Question("how many?", ("2",), "number"), Question("what colour?", ("grey", "gray"), "colour")),
}


def by_name(asked: Asked) -> dict[str, tuple[Question, ...]]:
    return {Path(ref.file).stem: several for ref, several in zip(asked.images, asked.questions, strict=True)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate("ab"):
        save(tmp_path / f"{name}.png", i)
    return tmp_path


# Tables


def test_rows_of_one_picture_are_joined(root: Path) -> None:
    asked = read_questions(write_rows(root / "rows.jsonl", ROWS))
    assert by_name(asked) == EXPECTED and asked.dropped == {} and len(asked) == 2
    assert [source.rpartition("/")[2] for source in asked.sources] == ["a.png)", "b.png)"]
    assert by_name(asked.select([1])) == {"b": EXPECTED["b"]}
    assert PixelStore(asked, (4, 4), "stretch", root / "cache", 1).usable.tolist() == [0, 1]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_columns_are_guessed_or_named(root: Path, suffix: str) -> None:
    comma = "," if suffix == "csv" else "\t"
    lines = [["file_name", "query", "label"], ["a.png", "what is it?", "cat"], ["b.png", "is it?", "No"]]
    (root / f"x.{suffix}").write_text("\n".join(comma.join(line) for line in lines))
    expected = {"a": (Question("what is it?", ("cat",), "other"),), "b": (Question("is it?", ("No",), "yes_no"),)}
    assert by_name(read_questions(root / f"x.{suffix}")) == expected
    lines[0] = ["p", "q", "r"]
    (root / f"x.{suffix}").write_text("\n".join(comma.join(line) for line in lines))
    assert by_name(read_questions(root / f"x.{suffix}", question="q", answer="r")) == expected
    with pytest.raises(InputError, match=r"not clear which column holds the questions: present are 'p', 'q', 'r'"):
        read_questions(root / f"x.{suffix}")
    with pytest.raises(InputError, match="no column 'z'"):
        read_questions(root / f"x.{suffix}", question="z")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_pictures_inside_of_parquet_are_joined_by_their_bytes(tmp_path: Path, suffix: str) -> None:
    pictures = [encoded(noise(8, 8, i)) for i in (0, 1, 0)]
    said = [[{"answer": "cat", "answer_id": n} for n in range(4)], [{"answer": "no"}] * 2, [{"answer": "two"}] * 10]
    table = {
        "image": [{"bytes": each, "path": None} for each in pictures],
        "question": ["what?", "is it?", "how many?"],
        "answers": said,
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(table), sink)
    import gzip

    path = tmp_path / f"x.parquet{suffix}"
    path.write_bytes(gzip.compress(sink.getvalue()) if suffix else sink.getvalue())
    asked = read_questions(path)
    assert [ref.read() for ref in asked.images] == pictures[:2]
    assert [[each.answers for each in several] for several in asked.questions] == [[("cat",), ("two",)], [("no",)]]


def test_rows_that_ask_nothing_are_counted(root: Path) -> None:
    more = [
        {"image": "a.png", "question": " ", "answer": "x"},
        {"image": "a.png", "question": "what?", "answer": None},
        {"image": "a.png", "question": "what?", "answer": []},
        {"image": "", "question": "what?", "answer": "x"},
    ]
    asked = read_questions(write_rows(root / "rows.jsonl", ROWS + more))
    assert by_name(asked) == EXPECTED
    counts = {"rows without a question": 1, "questions without an answer": 2, "rows without a picture": 1}
    assert asked.dropped == counts
    with pytest.raises(InputError, match=r"no questions \(questions without an answer: 1\)"):
        read_questions(write_rows(root / "none.jsonl", [{"image": "a.png", "question": "what?", "answer": ""}]))
    with pytest.raises(InputError, match=r"none\.jsonl:1: no column 'answer'|not clear which column holds the answer"):
        read_questions(write_rows(root / "none.jsonl", [{"image": "a.png", "question": "what?"}]))
    with pytest.raises(InputError, match="'question' holds dict, not a string"):
        read_questions(write_rows(root / "none.jsonl", [{"image": "a.png", "question": {}, "answer": "x"}]))


# Folders


def test_a_folder_of_questions_and_captions(root: Path) -> None:
    write_rows(root / "x" / "questions.jsonl", [{**row, "image": f"../{row['image']}"} for row in ROWS])
    write_rows(root / "x" / "captions.jsonl", [{"image": "../a.png", "caption": c} for c in ("a cat", "one cat")])
    caption = Question("", ("a cat", "one cat"), "caption")
    assert by_name(read_questions(root / "x")) == {**EXPECTED, "a": (*EXPECTED["a"], caption)}
    named = {**EXPECTED, "a": (*EXPECTED["a"], caption)}
    assert by_name(read_questions(root / "x", question="question", answer="answer", kind="kind")) == named
    parts = [read_questions(root / "x" / f"{name}.jsonl") for name in ("questions", "captions")]
    assert by_name(join(parts)) == by_name(read_questions(root / "x"))


def write_easy(root: Path, rows: list[Any]) -> Path:
    for number in {row[2] for row in rows}:
        save(root / "images" / f"{number}.png", int(number))
    (root / "questions.json").write_text(json.dumps(rows))
    return root


def test_easy_vqa(tmp_path: Path) -> None:
    rows = [["what is it?", "circle", 0], ["is it red?", "no", 2], ["what colour is it?", "red", 0], ["is it?", "", 2]]
    write_easy(tmp_path / "train", rows)
    write_easy(tmp_path / "test", [["is it?", "yes", 7]])
    circle, red = Question("what is it?", ("circle",), "other"), Question("what colour is it?", ("red",), "other")
    expected = {"0": (circle, red), "2": (Question("is it red?", ("no",), "yes_no"),)}
    for path in (tmp_path, tmp_path / "train", tmp_path / "train" / "questions.json"):
        assert by_name(read_questions(path)) == expected
    dropped = read_questions(tmp_path).dropped
    assert dropped == {"questions without an answer": 1, "files of other splits": 1}
    assert list(by_name(read_questions(tmp_path / "test"))) == ["7"]
    (tmp_path / "train" / "images" / "2.png").unlink()
    with pytest.raises(InputError, match=r"entry 1 is about picture 2, which is not in .*images; put it there"):
        read_questions(tmp_path)
    (tmp_path / "train" / "questions.json").write_text('[["what?", "x"]]')
    with pytest.raises(InputError, match=r"entry 0 is not \[question, answer, number of the picture\]"):
        read_questions(tmp_path)


def test_vqa_v2(tmp_path: Path) -> None:
    for name in ("train2014/COCO_train2014_000000000009", "val2014/COCO_val2014_000000000009"):
        save(tmp_path / f"{name}.jpg")
    questions = [{"image_id": 9, "question_id": n, "question": text} for n, text in enumerate(["What?", "Is it?", "?"])]
    said = ["dog"] * 2 + ["cat"] * 4 + ["a cat"] * 3 + ["pet"]
    annotations = [
        {"question_id": 1, "image_id": 9, "answer_type": "yes/no", "multiple_choice_answer": "yes", "answers": []},
        {
            "question_id": 0,
            "image_id": 9,
            "multiple_choice_answer": "cat",
            "answers": [{"answer": each} for each in said],
        },
    ]
    files = {
        "v2_OpenEnded_mscoco_train2014_questions": {"questions": questions, "data_subtype": "train2014"},
        "v2_mscoco_train2014_annotations": {"annotations": annotations},
        "v2_mscoco_val2014_annotations": {"annotations": []},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    expected = (Question("What?", ("cat", "a cat"), "other"), Question("Is it?", ("yes",), "yes/no"))
    for path in (tmp_path, *(tmp_path / f"{name}.json" for name in list(files)[:2])):
        asked = read_questions(path)
        assert by_name(asked) == {"COCO_train2014_000000000009": expected}
        assert asked.dropped == {"questions without an answer": 1}
    file = tmp_path / "v2_mscoco_train2014_annotations.json"
    as_strings = [{**each, "question_id": str(each["question_id"])} for each in annotations]
    file.write_text(json.dumps({"annotations": [*as_strings, {"question_id": 2, "answers": None}]}))
    assert by_name(read_questions(tmp_path)) == {"COCO_train2014_000000000009": expected}
    for wrong, told in (
        ({"question_id": 0, "answers": ["cat"]}, "question 0: 'answers' is no list of"),
        ({"question_id": [0]}, r"annotation number 0: question_id is '\[0\]'; give a whole number"),
    ):
        file.write_text(json.dumps({"annotations": [wrong]}))
        with pytest.raises(InputError, match=told):
            read_questions(tmp_path)
    file.write_text(json.dumps({"annotations": annotations}))
    (tmp_path / "train2014" / "COCO_train2014_000000000009.jpg").unlink()
    (tmp_path / "val2014" / "COCO_val2014_000000000009.jpg").unlink()
    with pytest.raises(InputError, match="question 0 is about picture 9, which is not in"):
        read_questions(tmp_path)
    (tmp_path / "v2_mscoco_train2014_annotations.json").unlink()
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(InputError, match=r"it needs its file of annotations .* beside it; there is none"):
        read_questions(tmp_path)


def test_captions_are_answers_to_the_empty_question(root: Path) -> None:
    texts = {"x.json": json.dumps({"caption": "a cat", "keywords": ["pet"]}).encode()}
    archive = write_tar(root / "x.tar", {"x.png": encoded(noise(8, 8)), **texts})
    expected = (Question("", ("a cat",), "caption"),)
    assert read_questions(archive).questions == [expected]
    assert read_questions(write_rows(root / "x.jsonl", [{"image": "a.png", "caption": "a cat"}])).questions == [
        expected
    ]
    (root / "pictures").mkdir()
    save(root / "pictures" / "a.png")
    (root / "pictures" / "a.txt").write_text("a cat")
    assert read_questions(root / "pictures").questions == [expected]


def test_what_is_no_data_is_told(tmp_path: Path) -> None:
    for content, said in (("{", "this is no JSON"), ("{}", "no questions of a known form")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(InputError, match=said):
            read_questions(tmp_path / "x.json")
    with pytest.raises(InputError, match="no such file or folder"):
        read_questions(tmp_path / "y")
    with pytest.raises(InputError, match="list of data paths is empty"):
        read_questions([])
    (tmp_path / "z").mkdir()
    with pytest.raises(InputError, match="no questions in this folder"):
        read_questions(tmp_path / "z")
    write_tar(tmp_path / "a.tar", {"0.png": encoded(noise(8, 8, 0)), "0.json": b'{"said": "a cat"}'})
    with pytest.raises(InputError, match=r"none of 1 pictures has a text; name the column or key by data\.answer"):
        read_questions(tmp_path / "a.tar")


def test_fingerprints_tell_questions_apart(root: Path) -> None:
    asked = read_questions(write_rows(root / "rows.jsonl", ROWS))
    again = read_questions(write_rows(root / "again.jsonl", ROWS))
    other = read_questions(write_rows(root / "other.jsonl", [*ROWS[:3], {**ROWS[3], "answer": "red"}]))
    assert asked.fingerprint(root / "c") == again.fingerprint(root / "c") != other.fingerprint(root / "c")


def test_splits_are_whole_pictures() -> None:
    asked = Asked([None] * 10, [(Question(str(i), ("x",)),) for i in range(10)], {"y": 1})  # type: ignore[list-item]
    rest, held = asked.split(0.3, 4)
    assert len(held) == 3 and rest.dropped == {"y": 1}
    assert sorted(each.text for part in (rest, held) for (each,) in part.questions) == [str(i) for i in range(10)]


# Who sees no picture


def test_the_majority_baseline_by_hand() -> None:
    def of(*rows: tuple[str, str, str]) -> Asked:
        return Asked([], [tuple(Question(text, (answer,), kind) for text, answer, kind in rows)], {})

    asked = of(("a?", "yes", "k"), ("b?", "no", "k"), ("b?", "no", "k"), ("c?", "red", "c"))
    assert majority_answers(asked) == ["no", "no", "no", "red"]
    assert majority_baseline(asked) == {"all": 0.75, "c": 1.0, "k": 2 / 3}
    learnt = of(("a?", "yes", "k"), ("x?", "no", "k"), ("y?", "no", "k"), ("z?", "no", "k"))
    assert majority_answers(asked, learnt) == ["yes", "no", "no", "no"]  # by words, by kind, by kind, by all
    assert majority_baseline(asked, learnt) == {"all": 0.75, "c": 0.0, "k": 1.0}
