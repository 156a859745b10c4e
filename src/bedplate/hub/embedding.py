"""Texts as vectors: what a model makes of a whole text, pooled over its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.examples import Rows, SortedEvalLoader, encode_rows
from bedplate.errors import InputError
from bedplate.models.gpt import GPT, TextModel

Pooling = Literal["mean", "last", "cls", "words"]

MODULES, POOLING, MAX_LENGTH = "modules.json", "config.json", "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
RARE = 1e-4  # frequency at which a word counts half
MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """How a directory in the form of `sentence-transformers` makes a vector of a text.

    Attributes:
        pooling: None where the directory asks for what bedplate does not have; `refused` says what then.
        max_tokens: Longest row, special tokens included; None for the model's context.
        lowercase: Whether a text is read in small letters.
        prompt: What is put before each text.
    """

    pooling: Pooling | None = None
    normalize: bool = False
    max_tokens: int | None = None
    refused: str = ""
    lowercase: bool = False
    prompt: str = ""


def read_embedding_settings(directory: str | Path) -> EmbeddingSettings | None:
    """What `modules.json` and the files that it names say; None for a directory without it.

    Raises:
        InputError: A file that is not JSON of the form that it should have.
    """
    directory = Path(directory)
    if not (directory / MODULES).is_file():
        return None
    kinds = {}
    for module in _json(directory / MODULES, list):
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise InputError(f"{directory / MODULES}: each module must have a type, got {module!r}")
        kinds[module["type"].rpartition(".")[2]] = str(module.get("path", ""))
    normalize = "Normalize" in kinds
    length = _json(directory / MAX_LENGTH, dict) if (directory / MAX_LENGTH).is_file() else {}
    most = length.get("max_seq_length")
    if most is not None and not (type(most) is int and most > 0):
        raise InputError(f"{directory / MAX_LENGTH}: max_seq_length={most!r} is no number of tokens; mend it")
    lowercase, prompt = length.get("do_lower_case") is True, _default_prompt(directory)
    others = sorted(kinds.keys() - {"Transformer", "Pooling", "Normalize"})
    if others or "Pooling" not in kinds:
        refused = f"{MODULES} has a {others[0]} module" if others else f"{MODULES} has no Pooling module"
        return EmbeddingSettings(None, normalize, most, f"{directory}: {refused}, which is not supported")
    file = (directory / kinds["Pooling"] / POOLING).resolve()
    if not file.is_relative_to(directory.resolve()):
        raise InputError(f"{directory / MODULES}: the path {kinds['Pooling']!r} leads out of the folder")
    if not file.is_file():
        return EmbeddingSettings(None, normalize, most, f"{file}: no such file, which {MODULES} names")
    flags = [name for name, value in _json(file, dict).items() if name.startswith("pooling_mode_") and value is True]
    if len(flags) != 1 or flags[0] not in MODES:
        return EmbeddingSettings(None, normalize, most, f"{file}: {' + '.join(flags) or 'no pooling'} is not supported")
    if prompt and _json(file, dict).get("include_prompt") is False:
        return EmbeddingSettings(None, normalize, most, f"{file}: include_prompt=false is not supported")
    return EmbeddingSettings(MODES[flags[0]], normalize, most, lowercase=lowercase, prompt=prompt)


def _default_prompt(directory: Path) -> str:
    """What `default_prompt_name` puts before each text."""
    values = _json(directory / PROMPTS, dict) if (directory / PROMPTS).is_file() else {}
    prompts, name = values.get("prompts") or {}, values.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise InputError(f"{directory / PROMPTS}: default_prompt_name={name!r} is none of its prompts; mend it")
    return str(prompts[name])


def write_embedding_settings(directory: str | Path, settings: EmbeddingSettings) -> None:
    """The files that `read_embedding_settings` and `sentence-transformers` read, beside a saved model."""
    directory, kinds = Path(directory), ["Transformer", "Pooling", *(["Normalize"] if settings.normalize else [])]
    if settings.pooling is None:  # of a form that is not known, so that none can be written either
        return
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    width = json.loads((directory / "config.json").read_text("utf-8")).get("hidden_size")
    flags = {flag: pooling == settings.pooling for flag, pooling in MODES.items()}
    (directory / "1_Pooling").mkdir(exist_ok=True)
    _write(directory / "1_Pooling" / POOLING, {"word_embedding_dimension": width, **flags})
    if settings.max_tokens is not None or settings.lowercase:
        values = {"max_seq_length": settings.max_tokens, "do_lower_case": settings.lowercase}
        _write(directory / MAX_LENGTH, values)
    if settings.prompt:
        _write(directory / PROMPTS, {"prompts": {"default": settings.prompt}, "default_prompt_name": "default"})
    _write(directory / MODULES, modules)


class Embedder:
    """Vectors of texts by one model.

    A text is encoded as the tokenizer does by itself: special tokens are put around it, and nothing else is added. One
    longer than a row is read in windows, whose vectors are averaged. Poolings:

    - "mean": of the final hidden states; "last", "cls": that of the last, of the first token.
    - "words": the mean of the token embeddings, each weighted by a / (a + frequency), less the mean that text has
      (smooth inverse frequency, Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings"). Both
      come from the model itself, see `own_frequencies`. The trunk takes no part, so it is fast, and in small language
      models the embeddings tell more of a text's subject than the states do.

    Args:
        settings: what the directory says, if it does: its pooling and normalisation are the defaults then.
        pooling: default: the directory's; else "words" for a causal language model and "mean" for others.
        normalize: whether vectors have length 1, so that products are cosines; default: the directory's, else true.

    Raises:
        InputError: a pooling that is not known, or none where the directory asks for one that bedplate does not have.
    """

    def __init__(
        self,
        module: TextModel,
        tokenizer: Tokenizer,
        settings: EmbeddingSettings | None = None,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
    ) -> None:
        self.module, self._tokenizer, self._settings = module, tokenizer, settings
        if pooling is None and settings is not None and settings.refused:
            raise InputError(f"{settings.refused}; give a pooling: {', '.join(get_args(Pooling))}")
        own = settings.pooling if settings is not None else None
        self.pooling = pooling or own or ("words" if isinstance(module, GPT) else "mean")
        if self.pooling not in get_args(Pooling):
            raise InputError(f"pooling={pooling!r} is not known; choose one of {', '.join(get_args(Pooling))}")
        if self.pooling == "words" and not isinstance(module, GPT):
            raise InputError(
                "pooling='words' is for causal language models, which know how frequent words are; use mean"
            )
        self.normalize = normalize if normalize is not None else settings is None or settings.normalize
        most = settings.max_tokens if settings is not None else None
        self._length = min(module.config.max_position_embeddings, most or module.config.max_position_embeddings)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Vectors `(N, D)` fp32 on the CPU, one a text, in order; a text's does not depend on the others.

        Args:
            batch_size: texts or windows at one time, at most; they are sorted by length, and long ones are fewer.

        Raises:
            InputError: a text that is empty or no string, or a batch_size below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be 1 or more")
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise InputError(f"text {number}: must be a string, not {type(text).__name__}")
            if not text.strip():
                raise InputError(f"text {number}: the text is empty and has no vector; remove it or fill it in")
        if not texts:
            return torch.empty(0, self.module.config.trunk.hidden_size)
        rows = self._encode(texts)
        total = torch.zeros(len(texts), self.module.config.trunk.hidden_size)
        device = self.module.embed.weight.device
        for batch in SortedEvalLoader(rows, most=batch_size):
            pooled = self._pool(batch["ids"].to(device), batch["lengths"].to(device))
            total.index_add_(0, batch["text"], pooled.float().cpu())
        vectors = total / torch.from_numpy(np.bincount(rows.text, minlength=len(texts)))[:, None]
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def _encode(self, texts: Sequence[str]) -> Rows:
        if self._settings is not None:
            texts = [self._settings.prompt + text for text in texts]
            texts = [text.lower() for text in texts] if self._settings.lowercase else texts
        return encode_rows(self._tokenizer, texts, None, self._length, framed=self.pooling != "words")

    def _pool(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Vectors `(B, D)` of rows of ids `(B, N)` of which `lengths (B,)` tokens are not padding."""
        valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        if self.pooling == "words":
            weight, mean = self._words
            shares = weight[ids] * valid
            shares = (shares / shares.sum(1, keepdim=True)).to(self.module.embed.weight.dtype)
            return F.embedding_bag(ids, self.module.embed.weight, per_sample_weights=shares, mode="sum") - mean
        if self.pooling != "mean":
            at = lengths - 1 if self.pooling == "last" else torch.zeros_like(lengths)
            return self.module.hidden(ids, valid=valid, right_padded=True, at=at)[:, 0]
        hidden = self.module.hidden(ids, valid=valid, right_padded=True).float()
        return (hidden * valid[..., None]).sum(1) / lengths[:, None]

    @cached_property
    def _words(self) -> tuple[Tensor, Tensor]:
        """(weight of each token `(V,)`, mean embedding of text with these weights `(D,)`)."""
        assert isinstance(self.module, GPT)
        frequency = own_frequencies(self.module)
        weight = RARE / (RARE + frequency)
        shares = weight * frequency / (weight * frequency).sum()
        return weight, shares @ self.module.embed.weight.float()


@torch.inference_mode()
def own_frequencies(module: GPT, draws: int = 512, rounds: int = 3) -> Tensor:
    """How frequent a language model takes each token to be, `(V,)` fp32, which sums to 1.

    What follows a single token on average, where the tokens are drawn from the frequencies of the round before, at
    first all alike: the power iteration towards the stationary distribution of the model's bigrams. Always the same.
    """
    weight = module.head.weight
    generator = torch.Generator().manual_seed(0)
    frequency = torch.full((len(weight),), 1 / len(weight))
    for _ in range(rounds):
        drawn = torch.multinomial(frequency, draws, replacement=True, generator=generator).to(weight.device)
        parts = [module(ids[:, None])[:, 0].float().softmax(1).sum(0) for ids in drawn.split(64)]
        frequency = (torch.stack(parts).sum(0) / draws).cpu()
    return frequency.to(weight.device)


def _json(file: Path, kind: type) -> Any:
    """The JSON value in a file, where it is an object or a list as asked."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: not valid JSON ({error}); save or download it again") from None
    if not isinstance(value, kind):
        raise InputError(f"{file}: must hold a JSON {'list' if kind is list else 'object'}; save or download it again")
    return value


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
