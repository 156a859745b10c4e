"""Chat templates: the Jinja that turns messages into what a model reads, as `transformers` stores and runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from bedplate.errors import InputError

Messages = Sequence[Mapping[str, str]]
"""A conversation: {"role": system, user or assistant, "content": text}, in order."""

CHATML = """\
{% for message in messages %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
"""The template of tokenizers with ChatML's tokens, which ours have."""
PLAIN = """\
{% for message in messages %}
{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}assistant:{% endif %}
"""
"""The template of tokenizers without them: the end of text ends each message."""

MAX_STEPS = 100_000
"""Loop iterations and calls of one rendering: seconds at most. A conversation takes some ten a message."""
MAX_CHARACTERS = 2**24
"""Length of a rendered conversation, and bound of the products that a template forms."""
_STEPS = "steps left"  # no identifier: a template can neither read nor set it


def default_template(tokenizer: Tokenizer) -> str:
    """The template to teach a model that has none: `CHATML` where the vocabulary has its tokens, else `PLAIN`."""
    has_chatml = all(tokenizer.token_to_id(token) is not None for token in ("<|im_start|>", "<|im_end|>"))
    return CHATML if has_chatml else PLAIN


class ChatTemplate:
    """A compiled chat template. It may be anybody's: it runs in Jinja's sandbox, for a bounded number of steps.

    Args:
        source: Jinja, with what `transformers` gives templates: `break` and `continue`, `tojson`, `raise_exception`,
            `strftime_now` and the `generation` tag.
        special_tokens: Spellings by their names, such as {"eos_token": "</s>"}, for the template to write.

    Raises:
        InputError: The source is not Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source, self.special_tokens = source, dict(special_tokens or {})
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except Exception as error:  # the compiler stumbles in its own ways over what is nested too deeply
            place = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise InputError(
                f"the chat template{place}: not a template ({error}); mend chat_template in tokenizer_config.json"
            ) from error

    @staticmethod
    def of(tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
        """The template in the values of a tokenizer_config.json, of several the one named "default", or None."""
        source = tokenizer_config.get("chat_template")
        if isinstance(source, list):
            named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
            source = named.get("default")
        if source is None:
            return None
        if not isinstance(source, str):
            kind = type(source).__name__
            raise InputError(f"tokenizer_config.json: chat_template holds {kind}, not a string; save it as a string")
        return ChatTemplate(source, _special_tokens(tokenizer_config))

    def render(self, messages: Messages, add_generation_prompt: bool = False, **variables: object) -> str:
        """The conversation as text; with `add_generation_prompt` up to where the assistant's next answer begins.

        Raises:
            InputError: The template refuses the conversation, fails, reaches for what the sandbox forbids, or does not
                come to an end.
        """
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        pieces, size = [], 0
        try:
            for piece in self._template.generate(
                given | self.special_tokens | variables | {_STEPS: iter(range(MAX_STEPS))}
            ):
                pieces.append(piece)
                if (size := size + len(piece)) > MAX_CHARACTERS:
                    raise SecurityError(f"it writes more than {MAX_CHARACTERS:,} characters")
        except Exception as error:  # a foreign program: it may fail in any way
            raise InputError(
                f"the chat template cannot write this conversation ({error or type(error).__name__}); change the "
                "messages, or chat_template in tokenizer_config.json"
            ) from error
        return "".join(pieces)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Spellings by name; a value is a string, or an object that has it as its content."""
    found = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token")
    }
    return {name: value for name, value in found.items() if isinstance(value, str)}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which loops, calls and products are bounded too."""

    intercepted_binops = frozenset(("*", "**"))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        for loop in source.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "bounded", [], [], None, None, lineno=loop.lineno)
        return super()._generate(source, *args, **kwargs)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        _step(context)
        return super().call(context, called, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or _size(left) * _size(right) > MAX_CHARACTERS:
            raise SecurityError("a number or product is too large")
        return super().call_binop(context, operator, left, right)


def _step(context: Context) -> None:
    if next(context.parent[_STEPS], None) is None:
        raise SecurityError(f"it takes more than {MAX_STEPS:,} steps")


@pass_context
def _bounded(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step(context)
        yield item


def _size(value: Any) -> float:
    return len(value) if isinstance(value, Collection) else abs(value) if isinstance(value, int | float) else 0


class _Generation(Extension):
    """`{% generation %}`, around the parts that an assistant writes: what is inside is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _environment() -> Environment:
    made = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    made.filters |= {"tojson": _to_json, "bounded": _bounded}
    functions: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    made.globals |= functions
    return made


_ENVIRONMENT = _environment()
