"""Conversations with a model: its chat template makes the prompt, its end-of-turn token ends the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bedplate.data.chat import ChatEncoder, checked_message
from bedplate.data.template import ChatTemplate, Messages, default_template
from bedplate.data.tokenizer import end_of_text_id, tokenizer_config
from bedplate.errors import InputError
from bedplate.hub.directory import SpecialTokens
from bedplate.hub.text import TextStream
from bedplate.models.beam import generate

if TYPE_CHECKING:
    from bedplate.hub.model import Model

Stream = Callable[[str], object]


def chat_encoder(model: Model) -> ChatEncoder:
    """What turns conversations into the tokens of this model.

    Raises:
        InputError: the model has no tokenizer or no chat template, or is no language model.
    """
    model.need_language_model()
    tokenizer, template = model.need_tokenizer(), ChatTemplate.of(model.tokenizer_config)
    if template is None:
        raise InputError(
            "this model has no chat template: fine-tune it on conversations (bedplate finetune, task=chat), or put the "
            "chat_template that it was trained with into its tokenizer_config.json"
        )
    return ChatEncoder(tokenizer, template)


def give_template(model: Model, source: str | None = None) -> None:
    """Give a model that will learn to chat a template, and add the tokens that end a turn to those that end a text.

    Args:
        source: Jinja; by default the model's own template, and where it has none `default_template`.
    """
    tokenizer = model.need_tokenizer()
    config = dict(model.tokenizer_config) or tokenizer_config(tokenizer, model.config.max_position_embeddings)
    if not config.get("eos_token"):  # GPT-2's, which leaves that to the code of its class
        config["eos_token"] = tokenizer.id_to_token(end_of_text_id(tokenizer))
    if source is not None or ChatTemplate.of(config) is None:
        config["chat_template"] = source or default_template(tokenizer)
    model.tokenizer_config = config
    ends = dict.fromkeys((*chat_encoder(model).stop_ids, *model.special.eos))
    model.special = SpecialTokens(model.special.bos, tuple(ends))


def chat(
    model: Model, messages: Messages, *, stream: Stream | None = None, stop: str | Sequence[str] = (), **options: Any
) -> dict[str, str]:
    """The assistant's next message in a conversation.

    Args:
        messages: {"role", "content"} each, in order.
        stream: called with new text as it becomes certain.
        stop: strings that end the answer; it is cut before the first.
        options: those of `Model.generate`, such as max_new_tokens, temperature or num_beams.

    Returns:
        {"role": "assistant", "content"}.

    Raises:
        InputError: the model cannot chat, or a message or option is wrong, or they are longer than the context.
    """
    checked = [checked_message(f"message {number}", message) for number, message in enumerate(messages, 1)]
    encoder = chat_encoder(model)
    answer = _Answer(model, encoder, encoder.prompt(checked), stop, stream)
    answer.write(options)
    return {"role": "assistant", "content": answer.text}


class Conversation:
    """A conversation that goes on for as long as one likes: the oldest turns are left out where the context is full.

    Attributes:
        messages: All that was said.
        left_out: Messages, after the system's, that the model does not see any more.

    Args:
        system: What the system says first.
        options: those of `chat`, for every answer.
    """

    def __init__(self, model: Model, system: str | None = None, **options: Any) -> None:
        self._model, self._encoder, self._options = model, chat_encoder(model), options
        self._stop = options.pop("stop", ())
        self._begin = [] if system is None else [checked_message("system", {"role": "system", "content": system})]
        self.reset()

    def reset(self) -> None:
        """Forget all but what the system said."""
        self.messages, self.left_out = list(self._begin), 0

    def ask(self, text: str, stream: Stream | None = None) -> str:
        """The answer to what the user says. Interrupted by Ctrl-C, the conversation keeps what was written of it.

        Raises:
            InputError: the text alone is longer than the context, or an option is wrong; the conversation is as before.
        """
        before, answer = self.left_out, None
        self.messages.append(checked_message("the text", {"role": "user", "content": text}))
        try:
            answer = _Answer(self._model, self._encoder, self._prompt(), self._stop, stream)
            answer.write(self._options)
        except InputError:
            self.messages.pop()
            self.left_out = before
            raise
        except KeyboardInterrupt:
            self.messages.append({"role": "assistant", "content": answer.text if answer else ""})
            raise
        self.messages.append({"role": "assistant", "content": answer.text})
        return answer.text

    def _prompt(self) -> list[int]:
        """The newest turns that leave room for an answer, a quarter of the context at most; the last one always."""
        context, begin = self._model.config.max_position_embeddings, len(self._begin)
        room = context - min(self._options.get("max_new_tokens", 128), context // 4)
        last = len(self.messages) - 1 - begin
        while True:
            ids = self._encoder.prompt(self._begin + self.messages[begin + self.left_out :])
            if len(ids) <= room or self.left_out == last:
                break
            self.left_out += 1
            while self.messages[begin + self.left_out]["role"] != "user":
                self.left_out += 1
        if len(ids) >= context:
            raise InputError(
                f"this message makes a prompt of {len(ids)} tokens and the model's context holds {context}, the answer "
                "included; say it in fewer words"
            )
        return ids


class _Answer:
    """An answer in the making: `text` is what has been written of it."""

    def __init__(
        self, model: Model, encoder: ChatEncoder, prompt: list[int], stop: str | Sequence[str], stream: Stream | None
    ) -> None:
        stops = [stop] if isinstance(stop, str) else list(stop)
        if "" in stops:
            raise InputError("an empty stop string would end every text at once; leave it out")
        self._model, self._prompt, self._stream = model, prompt, stream
        self._ends = {*encoder.stop_ids, *model.special.eos}
        self._text = TextStream(model.need_tokenizer(), prompt, stops)

    @property
    def text(self) -> str:
        return self._text.text

    def write(self, options: dict[str, Any]) -> None:
        module = self._model.need_language_model()
        generate(module, [self._prompt], stop_ids=self._ends, on_token=self._add, **options)
        self._give(self._text.finish())

    def _add(self, _: int, token: int) -> bool:
        self._give(self._text.add(token))
        return self._text.stopped

    def _give(self, piece: str) -> None:
        if self._stream and piece:
            self._stream(piece)
