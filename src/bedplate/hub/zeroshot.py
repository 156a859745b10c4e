"""Labels that a model was not trained for: what `Model.predict` does with `labels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

from bedplate.errors import InputError
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPT
from bedplate.tasks.classify import as_predictions
from bedplate.tasks.zeroshot import (
    TEMPLATE,
    Example,
    Labels,
    Method,
    Prompt,
    Template,
    check_distinct,
    checked_examples,
    read_labels,
    similarities,
)

if TYPE_CHECKING:
    from bedplate.hub.model import Model

OPTIONS: Mapping[str, Any] = MappingProxyType({"method": None, "template": None, "examples": (), "calibrate": None})
"""Options of `ZeroShot` and what they are by default."""


class ZeroShot:
    """A choice between labels by a model that has not learnt them.

    Args:
        labels: names, or names with the words that the model reads for them; see `tasks.zeroshot.read_labels`.
        method: "embedding": whose words are nearest to the text; "prompt": whose words go best with the text in the
            template; see `similarities` and `Prompt` in `tasks.zeroshot`. Default: "embedding".
        template: of a prompt; holds {text} and {label}. Given alone, it chooses the method "prompt".
        examples: (text, label) pairs or {"text", "label"} to learn from.
        calibrate: whether a prompt's scores are taken relative to those of a text without content; default: yes.

    Raises:
        InputError: the model is a classifier, or an encoder that is given a prompt, or labels, template, examples or
            options that do not fit.
    """

    def __init__(
        self,
        model: Model,
        labels: Labels,
        *,
        method: Method | None = None,
        template: str | None = None,
        examples: Sequence[Example | Mapping[str, str]] = (),
        calibrate: bool | None = None,
    ) -> None:
        if isinstance(model.module, Classifier):
            own = ", ".join(model.module.labels[:8])
            raise InputError(f"this model is a classifier with labels of its own ({own}); leave labels out")
        self._model, self._words = model, read_labels(labels)
        self.labels = list(self._words)
        self.method: Method = method or ("embedding" if template is None and calibrate is None else "prompt")
        if self.method not in get_args(Method):
            raise InputError(f"method={method!r} is not known; choose one of {', '.join(get_args(Method))}")
        self._examples = checked_examples(examples, self.labels)
        tokenizer = model.need_tokenizer()
        check_distinct(self._words, [tokenizer.encode(words).ids for words in self._words.values()])
        self._prompt = None
        if self.method == "embedding":
            if template is not None or calibrate is not None:
                raise InputError(
                    "template and calibrate are for method='prompt'; leave them out, or choose that method"
                )
            return
        special, module = model.special, model.module
        if not isinstance(module, GPT):
            of_prompt = {"template": template, "calibrate": calibrate, "method": method}
            given = " and the ".join(name for name, value in of_prompt.items() if value is not None)
            raise InputError(
                f"a prompt needs a model that writes text, and this one is an encoder; leave the {given} out (method "
                "embedding)"
            )
        start = special.bos if special.bos is not None else next(iter(special.eos), None)
        self._prompt = Prompt(
            module,
            tokenizer,
            self._words,
            start,
            Template(TEMPLATE if template is None else template),
            self._examples,
            calibrate is not False,
        )

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """[{"label", "score", "scores": {label: share}}], one a text, in order; each text by itself.

        Raises:
            InputError: an empty text.
        """
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise InputError(f"text {number}: the text is empty; remove it or fill it in")
        if not texts:
            return []
        if self._prompt is not None:
            logits = self._prompt.scores(texts)
        else:
            logits = similarities(self._embed, texts, self._words, self._examples)
        return as_predictions(logits, self.labels)

    @property
    def cut(self) -> int:
        """Texts, examples included, of which a prompt left the end out, so far."""
        return 0 if self._prompt is None else self._prompt.cut

    def _embed(self, texts: Sequence[str]) -> Any:
        return self._model.embed(texts, normalize=True)
