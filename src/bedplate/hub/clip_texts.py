"""Texts as a CLIP reads them: rows of token ids that end with its end token, and the templates of labels."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, processors

from bedplate.data.tokenizer import affixes, end_of_text_id, literal
from bedplate.errors import InputError
from bedplate.models.clip import ClipConfig

TEMPLATES = ("a photo of a {label}.",)  # arXiv 2103.00020, section 3.1.4
PLACE = "{label}"
SHOWN = 40  # characters of a text in an error


def end_id(tokenizer: Tokenizer, config: ClipConfig) -> int:
    """The token that ends a text; the config of the first checkpoints names another one."""
    return end_of_text_id(tokenizer) if config.ends_at_highest else config.eos_token_id


def text_ids(tokenizer: Tokenizer, config: ClipConfig, text: str) -> list[int]:
    """Token ids of a whole text, the special tokens of its tokenizer around it and the end token last."""
    end, ids = end_id(tokenizer, config), literal(tokenizer).encode(text).ids
    while ids and ids[0] == end:  # as encoders have it; it would end the text before it begins
        ids = ids[1:]
    return [*(ids[: ids.index(end)] if end in ids else ids), end]


def text_rows(
    tokenizer: Tokenizer,
    config: ClipConfig,
    texts: Sequence[str],
    *,
    truncate: bool | None = None,
    what: str = "text",
) -> list[list[int]]:
    """Token ids of each text, see `text_ids`.

    Args:
        truncate: cut a text that is too long at its end; the end token stays. None: who calls has no such option, and
            no error names it.
        what: the texts are called in errors.

    Raises:
        InputError: an empty text, one that is no string, or one of more tokens than the model reads.
    """
    limit, rows = config.text.max_position_embeddings, []
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise InputError(f"{what} {number}: must be a string, not {type(text).__name__}")
        if not text.strip():
            raise InputError(f"{what} {number}: the text is empty; remove it or fill it in")
        ids = text_ids(tokenizer, config, text)
        if len(ids) > limit and not truncate:
            raise InputError(
                f"{what} {number} ({' '.join(text.split())[:SHOWN]!r}...): {len(ids):,} tokens with its end, and this "
                f"model reads {limit}; shorten the {what}{'' if truncate is None else ', or give truncate=True'}"
            )
        rows.append(ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]])
    return rows


def ended(tokenizer: Tokenizer, config: ClipConfig) -> Tokenizer:
    """A tokenizer that puts the end token behind a text by itself, so that whoever loads it gets the same ids."""
    end = end_id(tokenizer, config)
    if end in affixes(tokenizer)[1]:
        return tokenizer
    copy, name = Tokenizer.from_str(tokenizer.to_str()), tokenizer.id_to_token(end)
    if name is None:
        raise InputError(f"the tokenizer has no token {end}, which is the model's eos_token_id; give the model's own")
    copy.post_processor = processors.TemplateProcessing(
        single=f"$A {name}", pair=f"$A {name} $B:1 {name}:1", special_tokens=[(name, end)]
    )
    return copy


def checked_templates(templates: str | Sequence[str], where: str = "template") -> tuple[str, ...]:
    """Templates of labels as people give them: one, or several whose vectors are averaged.

    Raises:
        InputError: none at all, or one that does not hold {label} once.
    """
    if not isinstance(templates, str | Sequence):
        raise InputError(f"{where}: {templates!r} is no text with {PLACE}, nor a list of some")
    found = (templates,) if isinstance(templates, str) else tuple(templates)
    if not found:
        raise InputError(f"{where}: none is given; write one with {PLACE}, which alone is the label as it is")
    for template in found:
        if not isinstance(template, str) or template.count(PLACE) != 1:
            raise InputError(f"{where} {template!r}: must hold {PLACE} once, as in {TEMPLATES[0]!r}")
    return found
