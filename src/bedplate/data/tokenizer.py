"""Tokenizers: train a byte-level BPE, load and save `tokenizer.json`, and what a run must know of any vocabulary."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bedplate.errors import InputError

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT = ("<|endoftext|>", "</s>", "[SEP]", "<|end_of_text|>", "<eos>", "<|eot_id|>", "<｜end▁of▁sentence｜>")
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with GPT-2's pre-tokenization (Radford et al. 2019); the same texts give the same tokenizer.

    Ids 0, 1 and 2 are `<|endoftext|>`, `<|im_start|>` and `<|im_end|>`, then the 256 bytes, then the merges. The
    vocabulary is smaller than `vocab_size` when the texts hold fewer pairs to merge.

    Raises:
        InputError: `vocab_size` has no room for the special tokens and the bytes.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"vocab_size {vocab_size} is too small: a byte-level tokenizer needs at least {SMALLEST_VOCABULARY} "
            f"(256 bytes and {len(SPECIAL_TOKENS)} special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a `tokenizer.json`, or the one in a directory, without the truncation and padding that it may prescribe.

    Raises:
        InputError: There is no such file, or it is not a tokenizer.
    """
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a tokenizer.json or a directory that holds one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise InputError(f"{file}: not a tokenizer ({error}); save it again with the tokenizers library") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path, context_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` loads to the same ids.

    Args:
        tokenizer: Any tokenizer that has an end-of-text token, which becomes `eos_token` and `pad_token`.
        directory: Model directory; made if missing.
        context_length: Longest sequence of the model in tokens (`model_max_length`).
    """
    end_of_text = tokenizer.id_to_token(end_of_text_id(tokenizer))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "eos_token": end_of_text,
        "pad_token": end_of_text,
        "clean_up_tokenization_spaces": False,
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """Return the id of the token that ends a document.

    Raises:
        InputError: The vocabulary has none of the names in `END_OF_TEXT`.
    """
    for token in END_OF_TEXT:
        if (index := tokenizer.token_to_id(token)) is not None:
            return int(index)
    raise InputError(f"the tokenizer has no end-of-text token; add one of {', '.join(END_OF_TEXT)} to its vocabulary")


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return the largest id plus one: the rows that an embedding needs (a vocabulary may have holes)."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Count the UTF-8 bytes of text that each token stands for.

    Exact for byte-level BPE (each character of a token is one byte) and for SentencePiece vocabularies (`▁` is a space,
    `<0xAB>` one byte). WordPiece drops spaces and case before it tokenises, so there the counts are those of the tokens
    alone.

    Returns:
        (V,) int32; 0 for special tokens and for ids that no token has.
    """
    spec = json.loads(tokenizer.to_str())
    added = {token["id"]: token for token in spec["added_tokens"]}
    byte_level = _has_component(spec["decoder"], "ByteLevel") or _has_component(spec["pre_tokenizer"], "ByteLevel")
    word_piece_prefix = spec["model"].get("continuing_subword_prefix") or ""
    lengths = np.zeros(vocabulary_size(tokenizer), dtype=np.int32)
    for token, index in tokenizer.get_vocab().items():
        if index in added:
            lengths[index] = 0 if added[index]["special"] else len(token.encode())
        elif byte_level:
            lengths[index] = len(token)
        elif re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
            lengths[index] = 1
        else:
            lengths[index] = len(token.removeprefix(word_piece_prefix).replace("▁", " ").encode())
    return lengths


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Hash all that the tokenizer does: hexadecimal BLAKE2b of its JSON, 32 characters."""
    return hashlib.blake2b(tokenizer.to_str().encode(), digest_size=16).hexdigest()


def _has_component(spec: Any, kind: str) -> bool:
    """Whether a pre-tokenizer's or decoder's JSON is, or in a sequence holds, a component of this type."""
    if isinstance(spec, dict):
        return spec.get("type") == kind or any(_has_component(value, kind) for value in spec.values())
    return isinstance(spec, list) and any(_has_component(item, kind) for item in spec)
