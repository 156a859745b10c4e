"""Masked language modelling: its metrics against plain sums, and blanks filled as `transformers` fills them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bedplate.data.masking import Masking
from bedplate.data.tokenizer import train_tokenizer
from bedplate.errors import InputError
from bedplate.hub.directory import save_directory
from bedplate.models.bert import MaskedLM
from bedplate.models.gpt import GPTConfig
from bedplate.tasks.masked import Masked, fill_blanks

TEXTS = [
    "The old man sees a small bird near the sea, and the bird sees him.",
    "A dog likes the river; the river likes no dog.",
]
WORDS = ["the", "old", "man", "see", "##s", "a", "bird", "near", "sea", ",", "dog", "##gy", "."]


def byte_level() -> Tokenizer:
    return train_tokenizer(TEXTS * 4, 300)


def word_piece() -> Tokenizer:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(names + WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(names)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def some_module(tokenizer: Tokenizer, preset: str = "bert") -> MaskedLM:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GPTConfig.from_preset(preset, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=32, **sizes)
    module, generator = MaskedLM(config).eval(), torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        is_gain = "norm" in name and name.endswith("weight")
        parameter.data = float(is_gain) + 0.3 * torch.randn(parameter.shape, generator=generator)
    return module


@pytest.mark.parametrize("preset", ["bert", "modernbert"])
def test_metrics_are_means_over_hidden_tokens(preset: str) -> None:
    tokenizer = byte_level()
    module, masking = some_module(tokenizer, preset), Masking.of(tokenizer, 0.3, shift=0, seed=0)
    ids = torch.tensor([(tokenizer.encode(text).ids * 3)[:31] for text in TEXTS])
    batches = [masking({"ids": row[None, :-1], "targets": row[None, 1:]}) for row in ids]
    found = Masked(module, tokenizer).evaluate(batches)
    nats, hits, count, size = 0.0, 0, 0, 0
    for batch in batches:
        logits = module(batch["masked_ids"])[0]
        for place, target in zip(batch["masked_at"][0], batch["masked_targets"][0], strict=True):
            assert target >= 0
            nats += F.cross_entropy(logits[place], target).item()
            hits, count = hits + int(logits[place].argmax() == target), count + 1
            size += len(tokenizer.decode([int(target)]).encode())
    assert count == 2 * 9
    assert found["loss"]["value"] == pytest.approx(nats / count, rel=1e-5)
    assert found["masked_accuracy"]["value"] == pytest.approx(hits / count)
    assert found["pseudo_bits_per_byte"]["value"] == pytest.approx(nats / size / 0.6931472, rel=1e-5)
    loss, weight = Masked(module, tokenizer).loss(batches[0])["loss"]
    assert weight == 9 and torch.isfinite(loss)


def test_blanks_are_filled_as_transformers_fills_them(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = word_piece()
    module = some_module(tokenizer)
    config = {"tokenizer_class": "BertTokenizer", "mask_token": "[MASK]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    save_directory(tmp_path, module, tokenizer, tokenizer_config=config | {"sep_token": "[SEP]", "unk_token": "[UNK]"})
    pipe = transformers.pipeline("fill-mask", model=str(tmp_path), top_k=6)
    text = "The [MASK] man sees a [MASK], doggy."
    theirs = pipe(text)
    (ours,) = fill_blanks(module, tokenizer, [text], candidates=6)
    assert len(ours["blanks"]) == len(theirs) == 2
    for mine, other in zip(ours["blanks"], theirs, strict=True):
        scores = [row["score"] for row in mine]
        assert scores == pytest.approx([row["score"] for row in other], rel=1e-4)
        named = {tokenizer.id_to_token(row["token"]): row["score"] for row in other}
        best = max(named, key=named.__getitem__)
        assert mine[0]["token"] == (tokenizer.decode([tokenizer.token_to_id(best)]).strip())
    assert (ours["token"], ours["score"]) == tuple(ours["blanks"][0][0].values())


@pytest.mark.parametrize("make", [byte_level, word_piece])
def test_the_filled_text_is_the_text_with_the_token_in_it(make: Any) -> None:
    tokenizer = make()
    blank, module = ("[MASK]" if make is word_piece else "<|mask|>"), some_module(tokenizer)
    wanted = {
        word_piece: {"man": "The old man, the sea.", "##s": "The olds, the sea."},
        byte_level: {"Ġbird": "The old bird, the sea.", "s": "The olds, the sea."},
    }[make]
    for token, text in wanted.items():
        with torch.no_grad():
            module.head.bias.zero_()[tokenizer.token_to_id(token)] = 1000.0
        (filled,) = fill_blanks(module, tokenizer, [f"The old {blank}, the sea."])
        assert filled["text"] == text and filled["score"] == pytest.approx(1.0)
        (both,) = fill_blanks(module, tokenizer, [f"{blank} the {blank}"])
        assert len(both["blanks"]) == 2 and blank not in both["text"]


def test_bad_texts() -> None:
    tokenizer = byte_level()
    module = some_module(tokenizer)
    with pytest.raises(InputError, match=r"text 2 has no blank; write <\|mask\|>"):
        fill_blanks(module, tokenizer, ["A <|mask|>", "A dog"])
    with pytest.raises(InputError, match="the model reads 32"):
        fill_blanks(module, tokenizer, ["A <|mask|>" + " dog" * 40])
    with pytest.raises(InputError, match="candidates=0"):
        fill_blanks(module, tokenizer, ["A <|mask|>"], candidates=0)
