import csv
import io
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from bedplate.data.labelled import LabelledTexts, read_labelled, sample_labelled, split_labelled
from bedplate.errors import InputError


def write(path: Path, header: str, rows: Iterable[Sequence[object]]) -> Path:
    """A .csv of this header line."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    path.write_text(header + "\n" + out.getvalue(), "utf-8", newline="")
    return path


def write_json(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(labels: Sequence[str]) -> LabelledTexts:
    texts = [f"text {i}" for i in range(len(labels))]
    return LabelledTexts(texts, list(labels), [f"x.csv:{i + 2}" for i in range(len(labels))], "text", "label", {})


WORDS = ("a", "film", "that", "nobody", "ever", "saw", "but", "everyone", "likes", "to", "talk", "about")


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=12))


def test_texts_labels_and_places(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,label,source", [[" good\n", "pos ", "a"], ["bad", "neg", "b"]])
    data = read_labelled(path)
    assert data == LabelledTexts(["good", "bad"], ["pos", "neg"], [f"{path}:2", f"{path}:4"], "text", "label", {})
    assert data.classes == ["neg", "pos"]
    assert len(data) == 2


@pytest.mark.parametrize(
    ("header", "kinds", "column", "label"),
    [
        ("text,label,source", "tls", "text", "label"),
        ("review,sentiment", "tl", "review", "sentiment"),
        ("Message,Category", "tl", "Message", "Category"),
        ("Category,Message", "lt", "Message", "Category"),
        (",sentence,target", "itl", "sentence", "target"),
        ("id,title,description,class", "itul", "description", "class"),
        ("Class Index,Title,Description", "ltu", "Description", "Class Index"),
        ("id,keyword,location,text,target", "iwwtl", "text", "target"),
        ("Unnamed: 0,v1,v2", "ilt", "v2", "v1"),
        ("post_id,Spam?,Words of the mail", "ilt", "Words of the mail", "Spam?"),
        ("user_id,mood,said", "slt", "said", "mood"),
        ("userId,mood,said", "slt", "said", "mood"),
        ("nr,mood,said,hash", "ilth", "said", "mood"),
        ("mood,title,said", "ltu", "title", "mood"),
    ],
)
def test_columns_are_guessed(tmp_path: Path, header: str, kinds: str, column: str, label: str) -> None:
    draw = random.Random(0)
    make = {
        "t": lambda i: sentence(draw),
        "u": lambda i: f"{i} {sentence(draw)} {sentence(draw)}",
        "l": lambda i: i % 3,
        "s": lambda i: i % 2,  # few short values too: as labels only by another name
        "i": lambda i: i,
        "w": lambda i: draw.choice(["fire", "flood", ""]),
        "h": lambda i: f"{i:0200x}",  # longer than the texts, but no text
    }
    rows = [[make[kind](i) for kind in kinds] for i in range(60)]
    data = read_labelled(write(tmp_path / "x.csv", header, rows))
    assert (data.column, data.label) == (column, label)


def test_a_first_row_is_not_taken_for_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"this is the long text number {i},{'neg' if i % 2 else 'pos'}\n" for i in range(30)]
    path.write_text("".join(rows))
    with pytest.raises(InputError, match=r"its first line looks like a row.*label 'pos' is among the labels"):
        read_labelled(path)
    path.write_text("pos,text\npos,one long text\nneg,another long text\n")
    assert read_labelled(path, label="pos").labels == ["pos", "neg"]  # whoever names it knows


def test_a_named_column_is_not_guessed_for_the_other(tmp_path: Path) -> None:
    rows = [[f"is it {i}?", f"it is {i}, of course it is", i % 2, "yes"] for i in range(20)]
    path = write(tmp_path / "x.csv", "text,answer,label,extra", rows)
    assert read_labelled(path, "answer").label == "label"
    assert read_labelled(path, "answer").texts[0] == "it is 0, of course it is"
    path = write(tmp_path / "z.csv", "text,mood", [[f"text {i % 8}", i % 3] for i in range(60)])
    assert read_labelled(path).label == "mood"  # though the texts are few and short too
    path = write(tmp_path / "y.csv", "text,label", [[f"t{i % 3}", f"is it {i}?"] for i in range(30)])
    assert (data := read_labelled(path, label="text")).column == "label"
    assert data.classes == ["t0", "t1", "t2"]


@pytest.mark.parametrize(
    ("header", "kinds", "parts"),
    [
        (
            "said,when,mood",
            "tll",
            ["which column holds the labels", "'when', 'mood' could be it", "data.label=", "--label"],
        ),
        ("said,nr", "ti", ["which column holds the labels", "present are 'said', 'nr'"]),
        ("id,label", "il", ["which column holds the texts", "present are 'id', 'label'", "data.column=", "--column"]),
        ("nr,label", "il", ["which column holds the texts", "present are 'nr', 'label'"]),
        ("id,said", "lt", ["which column holds the labels", "present are 'id', 'said'"]),
    ],
)
def test_columns_that_cannot_be_guessed(tmp_path: Path, header: str, kinds: str, parts: list[str]) -> None:
    draw = random.Random(0)
    rows = [[{"t": sentence(draw), "l": i % 2, "i": i}[kind] for kind in kinds] for i in range(40)]
    path = write(tmp_path / "x.csv", header, rows)
    with pytest.raises(InputError) as error:
        read_labelled(path)
    for part in [str(path), *parts]:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        (pa.array([10, 2, 2], pa.int64()), ["10", "2", "2"], ["2", "10"]),
        ([1.0, -1.0, None], ["1", "-1"], ["-1", "1"]),
        ([0.0, math.nan, 3.0], ["0", "3"], ["0", "3"]),
        ([True, False, True], ["True", "False", "True"], ["False", "True"]),
        (["10", "2.5", " "], ["10", "2.5"], ["2.5", "10"]),
        (["10", "2", "b"], ["10", "2", "b"], ["10", "2", "b"]),
    ],
)
def test_labels_of_any_type_are_strings(tmp_path: Path, values: Any, labels: list[str], classes: list[str]) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": values}), path)
    data = read_labelled(path)
    assert data.labels == labels
    assert data.classes == classes
    assert data.dropped == ({} if len(labels) == 3 else {"missing labels": 1})


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    one = write_json(
        tmp_path / "a.jsonl",
        [
            {"text": "good", "label": 1},
            {"text": "good ", "label": 1},
            {"text": "so so", "label": 0},
            {"text": "so so", "label": 1},
            {"text": "so so", "label": 1},
            {"text": " \n", "label": 1},
            {"text": None, "label": None},
            {"text": "who knows", "label": None},
            {"text": "who knows"},
        ],
    )
    two = write_json(tmp_path / "b.jsonl", [{"text": "good", "label": 1}])
    data = read_labelled([one, two])
    assert data.dropped == {"repeated texts": 1, "empty texts": 2, "missing labels": 2}
    assert list(zip(data.texts, data.labels, data.sources, strict=True)) == [
        ("good", "1", f"{one}:1"),
        ("so so", "0", f"{one}:3"),
        ("so so", "1", f"{one}:4"),
        ("so so", "1", f"{one}:5"),
        ("good", "1", f"{two}:1"),  # in another file: training and test data may share texts, which is not for here
    ]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"text": "a", "label": 0.37}], [":1", "'label' holds 0.37 (float)", "no class", "data.label="]),
        ([{"text": "a", "label": 1}, {"text": "a", "label": [1, 2]}], [":2", "[1, 2] (list)"]),
        ([{"text": "a", "label": {"x": 1}}], [":1", "(dict)"]),
        ([{"text": "a", "label": "\ud83d"}], [":1", "'label' holds half a surrogate pair"]),
        ([{"text": "a", "label": 1}, {"text": 7, "label": 1}], [":2", "'text' holds int, not a string"]),
        ([{"text": "a\ud83d", "label": 1}], [":1", "half a surrogate pair at character 1"]),
        ([{"text": "a", "label": 1}, {"label": 1}], [":2", "no column 'text'"]),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], ["every label in 'label' is '1'", "two classes"]),
        ([{"text": " ", "label": 1}, {"text": "a", "label": ""}], ["no row", "empty texts: 1, missing labels: 1"]),
        ([], ["no rows"]),
        ([{"text": str(i), "label": i} for i in range(21)], ["21 distinct labels in 21 rows", "is 'label' the label"]),
        ([{"text": str(i), "label": i % 1001} for i in range(3000)], ["1,001 distinct labels in 3,000 rows"]),
    ],
)
def test_bad_rows_are_told_by_place_and_remedy(tmp_path: Path, rows: list[Any], parts: list[str]) -> None:
    path = write_json(tmp_path / "x.jsonl", rows)
    with pytest.raises(InputError) as error:
        read_labelled(path)
    for part in [str(path), *parts]:
        assert part in str(error.value)


def test_few_rows_and_many_classes_are_fine(tmp_path: Path) -> None:
    assert len(read_labelled(write_json(tmp_path / "x.jsonl", [{"text": str(i), "label": i} for i in range(20)]))) == 20
    rows = [{"text": str(i), "label": i % 1000} for i in range(2000)]
    assert len(read_labelled(write_json(tmp_path / "x.jsonl", rows)).classes) == 1000


def test_named_columns_must_be_there(tmp_path: Path) -> None:
    good = write(tmp_path / "a.csv", "text,label", [["a", 1], ["b", 2]])
    plain = write(tmp_path / "b.csv", "text", [["a"], ["b"]])
    for path, column, label, part in [
        (good, "body", "label", r"a\.csv:2: no column 'body'; present are 'text', 'label'"),
        (good, "text", "class", r"a\.csv: no column 'class'; present are 'text', 'label'"),
        ([good, plain], None, None, r"b\.csv: no column 'label'; present are 'text'"),
        (good, "label", "label", "'label' cannot be both text and label"),
    ]:
        with pytest.raises(InputError, match=part):
            read_labelled(path, column, label)  # type: ignore[arg-type]


def test_known_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,label", [["", "odd"], ["a", "pos"], ["b", "pos"]])
    assert read_labelled(path, classes=["neg", "pos"]).labels == [
        "pos",
        "pos",
    ]  # one class is fine where more are known
    path = write(tmp_path / "x.csv", "text,label", [["a", "pos"], ["b", "odd"]])
    with pytest.raises(InputError, match=r"x\.csv:3: label 'odd' is not among the known classes 'neg', 'pos'; mend"):
        read_labelled(path, classes=["neg", "pos"])


def test_a_label_in_another_spelling_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "text,label", [["a", "positive"], ["b", "Negative"]])
    with pytest.raises(InputError, match=r"x\.csv:3: label 'Negative' .* \(did you mean 'negative'\?\); mend the row"):
        read_labelled(path, classes=["negative", "positive"])


def test_doubts_about_labels(tmp_path: Path) -> None:
    rows = [[f"text {i}", "pos" if i else "Neg"] for i in range(30)]
    path = write(tmp_path / "x.csv", "text,label", [*rows, ["another", "neg"]])
    spelt, unbalanced = read_labelled(path).doubts()
    assert spelt == "'Neg', 'neg' are taken for different labels; are they spellings of one?"
    assert unbalanced.startswith("The labels are unbalanced ('pos' 29, ")
    path = write(tmp_path / "y.csv", "text,label", [[f"text {i}", "pos" if i % 3 else "neg"] for i in range(30)])
    assert read_labelled(path).doubts() == []


def test_select_keeps_order_and_facts() -> None:
    data = labelled(["a", "b", "c"])
    part = data.select([2, 0])
    assert (part.texts, part.labels, part.sources) == (["text 2", "text 0"], ["c", "a"], ["x.csv:4", "x.csv:2"])
    assert (part.column, part.label) == ("text", "label")
    assert len(data.select([])) == 0


LABELS = st.lists(st.sampled_from("aaaaaaaabbbcd"), min_size=1, max_size=120)
SEEDS = st.integers(0, 2**32)


def is_proportional(part: LabelledTexts, whole: LabelledTexts) -> bool:
    """Whether each class has its share of the part, but for the one of each class and for rounding."""
    counts, share = Counter(part.labels), len(part) / len(whole)
    slack = len(whole.classes)
    return all(abs(counts[name] - share * n) <= slack for name, n in Counter(whole.labels).items())


@given(LABELS, SEEDS, st.data())
def test_samples_are_nested_proportional_and_hold_every_class(
    labels: list[str], seed: int, draw: st.DataObject
) -> None:
    data = labelled(labels)
    sizes = st.integers(len(data.classes), len(data))
    few, many = sorted((draw.draw(sizes), draw.draw(sizes)))
    small, large = sample_labelled(data, few, seed), sample_labelled(data, many, seed)
    assert (len(small), len(large)) == (few, many)
    assert set(small.sources) <= set(large.sources) <= set(data.sources)
    assert small.classes == large.classes == data.classes
    assert is_proportional(small, data) and is_proportional(large, data)
    assert sample_labelled(data, few, seed) == small
    assert sample_labelled(data, len(data), seed) == data


@given(LABELS, SEEDS, st.floats(0.01, 0.99))
def test_a_split_parts_the_rows_in_proportion(labels: list[str], seed: int, fraction: float) -> None:
    data = labelled(labels)
    held = round(fraction * len(data))
    if min(held, len(data) - held) < len(data.classes):
        with pytest.raises(InputError, match=r"fewer than the \d classes: give a (greater|smaller) fraction"):
            split_labelled(data, fraction, seed)
        return
    rest, out = split_labelled(data, fraction, seed)
    assert len(out) == held
    assert sorted(rest.sources + out.sources) == sorted(data.sources)
    assert rest.classes == data.classes
    assert is_proportional(rest, data) and is_proportional(out, data)
    assert split_labelled(data, fraction, seed) == (rest, out)


def test_class_counts_are_those_of_scikit_learn() -> None:
    data = labelled(random.Random(0).choices("abc", weights=[60, 30, 10], k=1000))
    _, out = split_labelled(data, 0.2, seed=0)
    expected = Counter(train_test_split(data.labels, test_size=0.2, stratify=data.labels, random_state=0)[1])
    assert all(abs(Counter(out.labels)[name] - n) <= 1 for name, n in expected.items())


def test_seeds_choose_different_rows_at_random() -> None:
    data = labelled(["a", "b"] * 500)
    samples = [set(sample_labelled(data, 200, seed).sources) for seed in range(4)]
    assert all(20 < len(one & other) < 60 for one in samples for other in samples if one is not other)  # 40 expected
    rows = [data.sources.index(source) for source in samples[0]]
    assert 450 < sum(rows) / len(rows) < 550


@pytest.mark.parametrize(
    ("count", "part"), [(4, "cannot sample 4 of 3"), (1, "1 labelled rows cannot hold .* 2 classes")]
)
def test_samples_of_impossible_sizes(count: int, part: str) -> None:
    with pytest.raises(InputError, match=part):
        sample_labelled(labelled(["a", "b", "a"]), count, 0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 20.0, math.nan])
def test_a_fraction_that_is_none(fraction: float) -> None:
    with pytest.raises(InputError, match=r"is not in \(0, 1\): give the share"):
        split_labelled(labelled(["a", "b"] * 10), fraction, 0)
