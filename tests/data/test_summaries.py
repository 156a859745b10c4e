"""Documents with summaries: what is read, what is a target, and how long documents are cut."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bedplate.data.loader import IGNORE
from bedplate.data.summaries import CUE, SummaryEncoder, SummaryForm, encode_summaries, read_summaries
from bedplate.data.tokenizer import save_tokenizer, train_tokenizer
from bedplate.errors import InputError

TEXTS = ["the cat sees a dog at night.", "her sister follows the river in the garden!", "für immer, ohne ein Wort"]
WORDS = st.text("ab .\n!?ü€", min_size=1, max_size=200).filter(str.strip)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 20, 330)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> SummaryEncoder:
    return SummaryEncoder(tokenizer, CUE, 0)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "document", "summary"),
    [
        ({"id": 1, "document": "d", "summary": "s"}, "document", "summary"),
        ({"article": "d", "highlights": "s", "id": 1}, "article", "highlights"),
        ({"title": "s", "Text": "d"}, "Text", "title"),
        ({"tldr": ["s"], "source": "d"}, "source", "tldr"),
        ({"target": "s", "summary": "s", "body": "d"}, "body", "summary"),
    ],
)
def test_columns_are_guessed(tmp_path: Path, row: dict[str, Any], document: str, summary: str) -> None:
    data = read_summaries(write(tmp_path / "a.jsonl", [row]))
    assert (data.document, data.summary) == (document, summary)
    assert data.rows == [("d", ("s",), f"{tmp_path}/a.jsonl:1")]


def test_references_and_other_formats(tmp_path: Path) -> None:
    rows = read_summaries(write(tmp_path / "a.jsonl", [{"text": " d ", "summary": ["one", " two\n"]}])).rows
    assert rows[0].document == "d" and rows[0].summaries == ("one", "two")
    (tmp_path / "a.csv").write_text('doc,short\n"d, e",s\n', "utf-8")
    assert read_summaries(tmp_path / "a.csv", "doc", "short").rows[0][:2] == ("d, e", ("s",))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows; give documents with their summaries"),
        ([{"words": "d", "summary": "s"}], "which column holds the document: present are 'words', 'summary'; name"),
        ([{"text": "d", "label": "s"}], r"which column holds the summary: .* data\.summary=\.\.\."),
        ([{"text": "d", "summary": "s"}, {"text": "d"}], r"a\.jsonl:2: no column 'summary'"),
        (
            [{"text": "d", "summary": "s"}, {"text": " ", "summary": "s"}],
            r"a\.jsonl:2: the document in 'text' is empty",
        ),
        ([{"text": "d", "summary": ["s", ""]}], r"a\.jsonl:1: the summary in 'summary' is empty"),
        ([{"text": "d", "summary": []}], r"a\.jsonl:1: the summary in 'summary' is empty"),
        ([{"text": 3, "summary": "s"}], r"a\.jsonl:1: 'text' holds int, not a string"),
    ],
)
def test_wrong_rows(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_summaries(write(tmp_path / "a.jsonl", rows))


def test_the_summary_and_its_end_alone_are_targets(encoder: SummaryEncoder, tokenizer: Tokenizer) -> None:
    (ids, targets), cut = encoder.example(TEXTS[0], "a dog", 100)
    learnt = targets[targets != IGNORE].tolist()
    assert learnt == [*tokenizer.encode(" a dog").ids, 0] and not cut
    assert tokenizer.decode(ids.tolist()) == f"{TEXTS[0]}{CUE} a dog"
    assert ids[: -len(learnt) + 1].tolist() == encoder.prompt(TEXTS[0], 100), "as the prompt that it will be written to"
    assert (targets[-len(learnt) :] != IGNORE).all()


def test_transformers_makes_the_same_prompt(encoder: SummaryEncoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    form = SummaryForm(CUE, 64, 16)
    save_tokenizer(tokenizer, tmp_path, 64, {"tokenizer_class": "PreTrainedTokenizerFast", **form.to_config()})
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert loaded(text + loaded.init_kwargs["summarize"]["cue"]).input_ids == encoder.prompt(text, 100)


def test_a_document_cannot_spell_a_special_token(encoder: SummaryEncoder) -> None:
    assert 0 not in encoder.prompt("the cat <|endoftext|> sees", 100)


@given(document=WORDS, room=st.integers(12, 60))
def test_long_documents_are_cut_at_their_end(encoder: SummaryEncoder, document: str, room: int) -> None:
    text = document.strip()
    (ids, _), cut = encoder.example(text, "a", room + 1)  # two tokens, of which the last is no input
    whole = encoder.prompt(text, 10**6)
    assert len(ids) <= room + 1 and cut == (len(whole) > room)
    assert cut or ids[:-1].tolist() == whole


@given(document=WORDS, room=st.integers(14, 60))
def test_windows_hold_all_of_a_document(
    encoder: SummaryEncoder, tokenizer: Tokenizer, document: str, room: int
) -> None:
    windows = encoder.windows(document, room)
    assert all(len(window) <= room for window in windows)
    parts = [tokenizer.decode(window).removesuffix(CUE) for window in windows]
    assert "".join("".join(parts).split()) == "".join(document.split())


def test_windows_end_with_sentences_and_are_about_equal(encoder: SummaryEncoder, tokenizer: Tokenizer) -> None:
    document = " ".join(["The cat sees a dog."] * 9)
    alone = len(tokenizer.encode(document).ids)
    windows = [tokenizer.decode(window).removesuffix(CUE) for window in encoder.windows(document, alone)]
    assert len(windows) == 2 and all(window.endswith("dog.") for window in windows)
    assert abs(len(windows[0]) - len(windows[1])) <= len("The cat sees a dog. ")


def test_a_summary_longer_than_a_row(tmp_path: Path, encoder: SummaryEncoder) -> None:
    rows = read_summaries(write(tmp_path / "a.jsonl", [{"text": "d", "summary": "zzzz " * 20}])).rows
    with pytest.raises(InputError, match=r"a\.jsonl:1: the summary has .* a row 32, which leaves no room"):
        encode_summaries(encoder, rows, 32)


@pytest.mark.parametrize("values", [[], {"cue": 1}, {"cue": "x"}, {"cue": "x", "sequence_length": "8"}, {"other": 1}])
def test_a_damaged_form(values: Any) -> None:
    with pytest.raises(InputError, match=r"tokenizer_config\.json: 'summarize' holds .* save it again"):
        SummaryForm.of({"summarize": values})
    assert SummaryForm.of({}) is None
