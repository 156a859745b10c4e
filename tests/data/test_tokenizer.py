import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bedplate.data.tokenizer import (
    SPECIAL_TOKENS,
    end_of_text_id,
    literal,
    load_tokenizer,
    load_tokenizer_config,
    save_tokenizer,
    token_byte_lengths,
    tokenizer_hash,
    train_tokenizer,
    vocabulary_size,
)
from bedplate.errors import InputError

from .writers import SENTENCES


def test_special_tokens_come_first_and_bytes_follow(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(i) for i in range(4)] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
    assert {tokenizer.id_to_token(i) for i in range(4, 260)} == set(pre_tokenizers.ByteLevel.alphabet())
    assert vocabulary_size(tokenizer) == 320


def test_a_literal_copy_reads_special_tokens_as_text(tokenizer: Tokenizer) -> None:
    copy, end = literal(tokenizer), tokenizer.token_to_id("<|endoftext|>")
    assert end in tokenizer.encode("a<|endoftext|>").ids and end not in copy.encode("a<|endoftext|>").ids
    assert literal(tokenizer) is copy  # a large vocabulary takes its time
    own = Tokenizer.from_str(tokenizer.to_str())
    assert literal(own) is not copy
    before = literal(own)
    own.add_tokens(["<|more|>"])
    assert literal(own).get_vocab_size() == before.get_vocab_size() + 1


def test_training_is_deterministic() -> None:
    assert train_tokenizer(SENTENCES, 300).to_str() == train_tokenizer(list(SENTENCES), 300).to_str()


def test_a_small_corpus_gives_a_small_vocabulary() -> None:
    assert vocabulary_size(train_tokenizer(["ab ab"], 1000)) == 260 + 2  # ab, and Ġab


def test_capitals_are_read_as_small_letters_where_that_is_asked_for() -> None:
    tokenizer = train_tokenizer(["A RED heart", "a red Heart"], 300, lowercase=True)
    assert tokenizer.encode("A Red HEART <|endoftext|>").ids == tokenizer.encode("a red heart <|endoftext|>").ids
    assert tokenizer.encode("<|endoftext|>").ids == [0] and tokenizer.decode(tokenizer.encode("RED").ids) == "red"
    cased = train_tokenizer(["A RED heart"], 300)
    assert cased.encode("RED").ids != cased.encode("red").ids


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    assert vocabulary_size(train_tokenizer(["ab ab"], 260)) == 260
    with pytest.raises(InputError, match=r"vocab_size 259 .* at least 260"):
        train_tokenizer(["ab"], 259)


@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))
def test_any_text_survives_and_its_bytes_are_counted(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert token_byte_lengths(tokenizer)[ids].sum() == len(text.encode())


def test_byte_lengths_of_special_tokens_are_zero(tokenizer: Tokenizer) -> None:
    lengths = token_byte_lengths(tokenizer)
    assert lengths.dtype == np.int32
    assert lengths.shape == (320,)
    assert lengths[:4].tolist() == [0, 0, 0, 0]
    assert (lengths[4:260] == 1).all()


def test_byte_lengths_of_a_sentencepiece_vocabulary() -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "▁": 2, "▁é": 3, "<0xE4>": 4, "a": 7}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    assert token_byte_lengths(tokenizer).tolist() == [0, 0, 1, 3, 1, 0, 0, 1]
    assert end_of_text_id(tokenizer) == 1


def test_saved_directories_load_here_and_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path / "model", context_length=77)
    ours = load_tokenizer(tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = " It's  the best\n\n of <|endoftext|>times, Zwölf 世界 "
    assert ours.encode(text).ids == theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert (theirs.eos_token, theirs.eos_token_id, theirs.model_max_length) == ("<|endoftext|>", 0, 77)
    assert tokenizer_hash(ours) == tokenizer_hash(tokenizer)


def test_loading_drops_truncation_and_padding(tokenizer: Tokenizer, tmp_path: Path) -> None:
    limited = Tokenizer.from_str(tokenizer.to_str())
    limited.enable_truncation(4)
    limited.enable_padding(length=4)
    limited.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(SENTENCES[0]).ids == tokenizer.encode(SENTENCES[0]).ids
    assert loaded.encode("a").ids == tokenizer.encode("a").ids


def test_bad_tokenizers_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="no end-of-text token"):
        end_of_text_id(Tokenizer(models.BPE({"a": 0}, [])))


def test_their_settings_come_back_as_they_were(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = {
        "tokenizer_class": "X",
        "eos_token": {"content": "<|im_end|>"},
        "chat_template": "é{{ messages }}",
        "n": 1,
    }
    save_tokenizer(tokenizer, tmp_path, 77, config)
    assert load_tokenizer_config(tmp_path) == config | {"model_max_length": 77}
    save_tokenizer(tokenizer, tmp_path / "again", 5, load_tokenizer_config(tmp_path))
    again = (tmp_path / "again" / "tokenizer_config.json").read_bytes()
    assert again == (tmp_path / "tokenizer_config.json").read_bytes()
    assert load_tokenizer_config(tmp_path / "nothing") == {}


def test_templates_and_special_tokens_of_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "old", "additional_special_tokens": ["<x>"]}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": "new", "chat_template": "old", "auto_map": {"AutoTokenizer": ["x.X", null]}}'
    )
    config = load_tokenizer_config(tmp_path)
    assert (config["eos_token"], config["chat_template"], config["additional_special_tokens"]) == (
        "new",
        "old",
        ["<x>"],
    )
    assert "auto_map" not in config and config["tokenizer_class"] == "PreTrainedTokenizerFast"  # its code stays behind
    (tmp_path / "chat_template.jinja").write_text("file")
    assert load_tokenizer_config(tmp_path)["chat_template"] == "file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("r")
    named = [{"name": "default", "template": "file"}, {"name": "rag", "template": "r"}]
    assert load_tokenizer_config(tmp_path)["chat_template"] == named


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("tokenizer_config.json", b"[1]", "must hold a JSON object, got list"),
        ("tokenizer_config.json", b'{"a":\n', ":2: not valid JSON"),
        ("chat_template.jinja", b"caf\xe9", "byte 3 is not UTF-8"),
    ],
)
def test_damaged_settings_are_told(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.*{part}"):
        load_tokenizer_config(tmp_path)
