"""`load`, `Model` and the streams of text that `generate` gives."""

from __future__ import annotations

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.data.tokenizer import END_OF_TEXT, SMALLEST_VOCABULARY, train_tokenizer, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub import locate
from bedplate.hub.directory import SpecialTokens, read_special_tokens, save_directory
from bedplate.hub.model import load
from bedplate.hub.text import TextStream
from bedplate.models.gpt import GPT, GPTConfig

BYTES = train_tokenizer([], SMALLEST_VOCABULARY)  # every byte is a token
WORDS = train_tokenizer(["the cat sat on the mat, naïve café 日本語 🙂 "] * 4, SMALLEST_VOCABULARY + 40)
TEXTS = st.text(st.sampled_from("ab é日🙂\ufffd\n"), max_size=12)


def make_module(vocab_size: int = vocabulary_size(WORDS)) -> GPT:
    config = GPTConfig.from_preset(
        "qwen3",
        vocab_size=vocab_size,
        max_position_embeddings=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    module = GPT(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_directory(tmp_path / "model", make_module(), WORDS, "# A card\n")
    return tmp_path / "model"


def stream(tokenizer: Any, prompt: str, text: str, stop: list[str]) -> tuple[list[str], str]:
    """(pieces as they are given out, final text)"""
    row = TextStream(tokenizer, tokenizer.encode(prompt).ids, stop)
    pieces = []
    for token in tokenizer.encode(text).ids:
        pieces.append(row.add(token))
        if row.stopped:
            break
    return [*pieces, row.finish()], row.text


@given(prompt=TEXTS, text=TEXTS, stop=st.lists(TEXTS.filter(bool), max_size=3))
@settings(max_examples=80, deadline=None)
def test_a_stream_is_the_text_up_to_the_first_stop(prompt: str, text: str, stop: list[str]) -> None:
    expected = text
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            expected = text[: min(starts)]
            break
    pieces, final = stream(BYTES, prompt, text, stop)
    assert final == "".join(pieces) == expected


@given(text=TEXTS)
@settings(max_examples=50, deadline=None)
def test_no_piece_splits_a_character(text: str) -> None:
    text = text.replace("\ufffd", "")
    for tokenizer in (BYTES, WORDS):
        pieces, final = stream(tokenizer, "the", text, [])
        assert final == "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)


def test_text_that_cannot_be_part_of_a_stop_string_is_given_at_once() -> None:
    pieces, _ = stream(BYTES, "", "ab##c", ["##!"])
    assert pieces == ["a", "b", "", "", "##c", ""]


def test_bytes_that_never_make_a_character_are_given_at_the_end() -> None:
    row = TextStream(BYTES, [], [])
    first, *_ = BYTES.encode("é").ids
    assert (row.add(first), row.finish(), row.text) == ("", "\ufffd", "\ufffd")


def test_a_directory_comes_back_whole(directory: Path) -> None:
    model = load(directory)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(model.module(ids), make_module()(ids), rtol=0, atol=0)
    assert model.tokenizer.to_str() == WORDS.to_str()
    assert model.card == "# A card\n"
    end = WORDS.token_to_id(END_OF_TEXT[0])
    assert model.special == SpecialTokens(end, (end,))
    assert model.config.family == "qwen3"
    model.save(directory.with_name("again"))
    for file in directory.iterdir():
        assert (directory.with_name("again") / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(InputError, match="not empty"):
        model.save(directory)


def test_a_run_directory_stands_for_its_model(directory: Path) -> None:
    assert load(directory.parent).card == "# A card\n"


def test_dtype(directory: Path) -> None:
    assert load(directory, dtype="bf16").module.embed.weight.dtype == torch.bfloat16


def test_generates_text_for_text_and_ids_for_ids(directory: Path) -> None:
    model = load(directory)
    prompts = ["the cat", "日本"]
    options = {"max_new_tokens": 12, "seed": 1}
    texts = model.generate(prompts, **options)
    rows = model.generate([WORDS.encode(prompt).ids for prompt in prompts], **options)
    assert texts == [WORDS.decode(row) for row in rows]
    assert model.generate("the cat", **options) == texts[:1]
    assert model.predict(prompts, **options) == [{"text": text} for text in texts]
    assert model.generate([], **options) == []


def test_stop_and_stream(directory: Path) -> None:
    model = load(directory)
    whole = model.generate(["the", "mat"], max_new_tokens=20, seed=3)
    stop = whole[0][9:11]
    pieces: dict[int, str] = {0: "", 1: ""}
    calls = []

    def take(row: int, piece: str) -> None:
        pieces[row] += piece
        calls.append(piece)

    texts = model.generate(["the", "mat"], max_new_tokens=20, seed=3, stop=stop, stream=take)
    assert texts == [text.partition(stop)[0] for text in whole]
    assert [pieces[0], pieces[1]] == texts
    assert len(texts[0]) > 4 and len(calls) > 2 and all(calls)


def test_the_end_of_text_ends_a_row(directory: Path) -> None:
    model = load(directory)
    (row,) = model.generate([[5, 6]], max_new_tokens=8, temperature=0)
    model.special = SpecialTokens(eos=(row[3], -1))
    assert model.generate([[5, 6]], max_new_tokens=8, temperature=0) == [row[: row.index(row[3])]]


def test_an_empty_prompt_begins_a_document(directory: Path) -> None:
    model = load(directory)
    (row,) = model.generate([[model.special.bos]], max_new_tokens=5, seed=0)
    assert model.generate("", max_new_tokens=5, seed=0) == [WORDS.decode(row)]
    model.special = SpecialTokens()
    with pytest.raises(InputError, match="prompt 1 is empty"):
        model.generate("")


def test_without_a_tokenizer_ids_still_work(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    model = load(directory)
    assert len(model.generate([[5, 6]], max_new_tokens=3, stop_ids=())[0]) == 3
    with pytest.raises(InputError, match=r"no tokenizer: put its tokenizer\.json into the directory"):
        model.generate("the cat")
    assert load(directory).tokenizer is None


def test_bad_prompts(directory: Path) -> None:
    model = load(directory)
    with pytest.raises(InputError, match="prompts mix strings and token ids"):
        model.generate(["the", [5]])  # type: ignore[list-item]
    with pytest.raises(InputError, match="stop and stream work on text"):
        model.generate([[5]], stop="x")
    with pytest.raises(InputError, match="an empty stop string"):
        model.generate("the", stop=["x", ""])


@pytest.mark.parametrize(
    "generation, config, expected",
    [
        ('{"eos_token_id": [1, 2]}', '{"eos_token_id": 3, "bos_token_id": 4}', SpecialTokens(4, (1, 2))),
        (None, '{"eos_token_id": 0}', SpecialTokens(None, (0,))),
        ('{"eos_token_id": null}', "{}", SpecialTokens()),
        ('{"eos_token_id": [2, -1]}', '{"eos_token_id": 3}', SpecialTokens(None, (2,))),
    ],
)
def test_special_tokens(generation: str | None, config: str, expected: SpecialTokens, tmp_path: Path) -> None:
    if generation:
        (tmp_path / "generation_config.json").write_text(generation)
    (tmp_path / "config.json").write_text(config)
    assert read_special_tokens(tmp_path) == expected


@pytest.mark.parametrize("value", ['"x"', "[1, {}]", "true", "1.5"])
def test_special_tokens_are_numbers(value: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"eos_token_id": {value}}}')
    with pytest.raises(InputError, match=r"bos_token_id and eos_token_id are token ids, and .* is none"):
        read_special_tokens(tmp_path)


def test_stops_beyond_the_vocabulary_end_nothing(directory: Path) -> None:
    """GPT-2's 50256, say, where the vocabulary is smaller; `transformers` lets them be."""
    model = load(directory)
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 2, "temperature": 0}
    assert model.generate([[5, 6]], stop_ids=(50256,), **options) == model.generate([[5, 6]], stop_ids=(), **options)


def test_a_tokenizer_of_another_model_is_told(directory: Path) -> None:
    save_directory(directory, make_module(40), WORDS, overwrite=True)
    model = load(directory)
    for use in (model.generate, model.embed, model.predict):
        with pytest.raises(InputError, match=r"the tokenizer has \d+ tokens and the model a vocabulary of 40"):
            use("the cat")


def test_vectors_of_adapters_that_came_off_are_not_kept(directory: Path) -> None:
    model = load(directory)
    model.embed("the cat", pooling="mean")
    first = weakref.ref(model.module)
    model.module = make_module()
    model.embed("the cat", pooling="mean")
    gc.collect()
    assert first() is None


def test_transformers_writes_the_same_text(directory: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    inputs = tokenizer("the cat", return_tensors="pt")
    ids = theirs.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    assert load(directory).generate("the cat", max_new_tokens=16, temperature=0) == [expected]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder; give a model directory, zoo:NAME or hf:ORG/NAME"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: is a file; give the folder"):
        load(tmp_path / "file")


def test_zoo(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "ZOO", "zoo_of_a_test")  # the real one may be installed
    with pytest.raises(InputError, match=r"zoo:small: the zoo of shipped models is not installed; .*install \./zoo"):
        load("zoo:small")
    package = tmp_path / "site" / "zoo_of_a_test"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    load(directory, dtype="bf16").save(package / "small")
    monkeypatch.syspath_prepend(package.parent)
    model = load("zoo:small")
    assert model.card == "# A card\n"
    assert model.module.embed.weight.dtype == torch.float32  # stored small, computed on any CPU
    assert load("zoo:small", dtype="bf16").module.embed.weight.dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"zoo:\.\./x: the installed zoo has no such model; it has small"):
        load("zoo:../x")
    sys.modules.pop("zoo_of_a_test", None)


def test_hub(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(directory)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert load("hf:org/name@v1.0").card == "# A card\n"
    assert (asked["name"], asked["revision"]) == ("org/name", "v1.0")
    assert set(asked["allow_patterns"]) == {"*.json", "*.jinja", "*.safetensors", "*.txt", "README.md"}
    with pytest.raises(InputError, match="hf:a/b/c: not a model id; write hf:ORG/NAME"):
        load("hf:a/b/c")


def test_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"hf:org/name: cannot be fetched .*; check the id, the revision"):
        load("hf:org/name")


def test_hub_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'needs the huggingface_hub library: pip install "bedplate\[hub\]"'):
        load("hf:org/name")
