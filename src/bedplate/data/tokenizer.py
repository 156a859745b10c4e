"""Tokenizers: train a byte-level BPE, load and save their files, and what a run must know of any vocabulary."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bedplate.errors import InputError

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
MASK = ("<|mask|>", "[MASK]", "<mask>")
END_OF_TEXT = ("<|endoftext|>", "</s>", "[SEP]", "<|end_of_text|>", "<eos>", "<|eot_id|>", "<｜end▁of▁sentence｜>")
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, lowercase: bool = False) -> Tokenizer:
    """Train byte-level BPE with GPT-2's pre-tokenization (Radford et al. 2019); the same texts give the same tokenizer.

    Ids 0 to 3 are `<|endoftext|>`, `<|im_start|>`, `<|im_end|>` and `<|mask|>`, then come the 256 bytes and the merges.
    The vocabulary is smaller than `vocab_size` when the texts hold fewer pairs to merge.

    Args:
        texts: What its merges are counted in.
        vocab_size: Tokens, at most.
        lowercase: Capitals are read as small letters, here and whenever the tokenizer is used; for texts that are only
            read, as descriptions of pictures are.

    Raises:
        InputError: `vocab_size` has no room for the special tokens and the bytes.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"vocab_size {vocab_size} is too small: a byte-level tokenizer needs at least {SMALLEST_VOCABULARY} "
            f"(256 bytes and {len(SPECIAL_TOKENS)} special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
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


def load_tokenizer_config(directory: str | Path) -> dict[str, Any]:
    """Read all that `transformers` stores beside a `tokenizer.json`, as the values of one `tokenizer_config.json`.

    These are that file's, the special tokens of an older `special_tokens_map.json`, and the chat templates of files of
    their own: `chat_template.jinja` and, by name, `additional_chat_templates/*.jinja`. Code that a directory brings
    along is neither run nor kept: its tokenizer is what its `tokenizer.json` says.

    Returns:
        The values; empty where the directory has none of these files.

    Raises:
        InputError: A file is not what its suffix promises.
    """
    directory = Path(directory)
    config = _read_object(directory / "special_tokens_map.json") | _read_object(directory / "tokenizer_config.json")
    templates = {"default": directory / "chat_template.jinja"}
    templates |= {file.stem: file for file in sorted(directory.glob("additional_chat_templates/*.jinja"))}
    named = {name: _read_text(file) for name, file in templates.items() if file.is_file()}
    if set(named) == {"default"}:
        config["chat_template"] = named["default"]
    elif named:
        config["chat_template"] = [{"name": name, "template": template} for name, template in named.items()]
    if config.pop("auto_map", None) is not None:
        config["tokenizer_class"] = TOKENIZER_CLASS
    return config


def save_tokenizer(
    tokenizer: Tokenizer, directory: str | Path, context_length: int, config: Mapping[str, Any] | None = None
) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` loads to the same ids.

    Args:
        tokenizer: Any tokenizer; without a `config` it needs an end-of-text token.
        directory: Model directory; made if missing.
        context_length: Longest sequence of the model in tokens (`model_max_length`), where `config` has none.
        config: Values of the `tokenizer_config.json` that the tokenizer came with, or more, such as `chat_template`;
            by default those of a tokenizer of ours, whose end of text is `eos_token` and `pad_token`.
    """
    values = dict(config) if config else tokenizer_config(tokenizer, context_length)
    values.setdefault("model_max_length", context_length)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def tokenizer_config(tokenizer: Tokenizer, context_length: int) -> dict[str, Any]:
    """The values of `tokenizer_config.json` for a tokenizer that came without any."""
    end_of_text = tokenizer.id_to_token(end_of_text_id(tokenizer))
    others = [token for token in SPECIAL_TOKENS if token != end_of_text and tokenizer.token_to_id(token) is not None]
    mask = next((token for token in MASK if tokenizer.token_to_id(token) is not None), None)
    return {
        "tokenizer_class": TOKENIZER_CLASS,
        "model_max_length": context_length,
        "eos_token": end_of_text,
        "pad_token": end_of_text,
        **({} if mask is None else {"mask_token": mask}),
        "additional_special_tokens": [token for token in others if token != mask],
        "clean_up_tokenization_spaces": False,
    }


def end_of_text_id(tokenizer: Tokenizer) -> int:
    """Return the id of the token that ends a document.

    Raises:
        InputError: The vocabulary has none of the names in `END_OF_TEXT`.
    """
    for token in END_OF_TEXT:
        if (index := tokenizer.token_to_id(token)) is not None:
            return int(index)
    raise InputError(f"the tokenizer has no end-of-text token; add one of {', '.join(END_OF_TEXT)} to its vocabulary")


def mask_id(tokenizer: Tokenizer) -> int:
    """Return the id of the token that hides another.

    Raises:
        InputError: The vocabulary has none of the names in `MASK`.
    """
    for token in MASK:
        if (index := tokenizer.token_to_id(token)) is not None:
            return int(index)
    raise InputError(f"the tokenizer has no mask token; add one of {', '.join(MASK)} to its vocabulary")


def literal(tokenizer: Tokenizer) -> Tokenizer:
    """A copy, kept, for which a special token that a text spells out is plain text.

    To set that on the original for a while would not do: it may be at work in another thread.
    """
    return _literal(tokenizer, tokenizer.get_vocab_size())


@lru_cache(maxsize=8)
def _literal(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """`size` tells a tokenizer from what it was before tokens were added."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy


def affixes(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and behind a text, such as BERT's `[CLS]` and `[SEP]`."""
    encoding = tokenizer.encode("a")
    is_text = [place for place, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
    if not is_text:
        return list(encoding.ids), []
    return encoding.ids[: is_text[0]], encoding.ids[is_text[-1] + 1 :]


def frame_texts(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that puts the end-of-text token before and behind a text, unless it already puts something there.

    An encoder's classifier reads the first token; in packed rows that one stood between documents.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    if affixes(tokenizer) == ([], []):
        end = end_of_text_id(tokenizer)
        name = tokenizer.id_to_token(end)
        copy.post_processor = processors.TemplateProcessing(
            single=f"{name} $A {name}", pair=f"{name} $A {name} $B:1 {name}:1", special_tokens=[(name, end)]
        )
    return copy


def special_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that stand for no text, in order."""
    return sorted(index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special)


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


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: not valid JSON ({error.msg}); save or download it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: must hold a JSON object, got {type(values).__name__}; save or download it again")
    return values


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8; save or download it again") from None
