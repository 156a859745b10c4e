"""Chat templates: the text of `transformers`, and bounds on what a foreign template may do."""

from typing import Any

import pytest

from bedplate.data.template import CHATML, PLAIN, ChatTemplate
from bedplate.errors import InputError

from .templates import STYLES

TURNS = [
    {"role": "user", "content": "  Wie geht's?\n"},
    {"role": "assistant", "content": " Gut & <b>dir</b>? "},
    {"role": "user", "content": "日本 🙂"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nJa."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def theirs(source: str, messages: list[dict[str, str]], prompt: bool) -> str:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    ((text,), _) = utilities.render_jinja_template(
        [messages], chat_template=source, add_generation_prompt=prompt, **SPECIAL
    )
    return str(text)


@pytest.mark.parametrize("name", [*STYLES, "chatml", "plain"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("prompt", [False, True])
def test_templates_write_what_transformers_writes(name: str, count: int, prompt: bool) -> None:
    source = {"chatml": CHATML, "plain": PLAIN, **STYLES}[name]
    template = ChatTemplate(source, SPECIAL)
    assert template.render(TURNS[:count], prompt) == theirs(source, TURNS[:count], prompt)
    if name != "gemma":  # whose templates refuse a system message
        messages = [SYSTEM, *TURNS[:count]]
        assert template.render(messages, prompt) == theirs(source, messages, prompt)


def test_helpers_are_those_of_transformers() -> None:
    source = """{{ messages | tojson }}{{ {'b': '<é>', 'a': 1} | tojson(indent=2, sort_keys=true) }}{{ tools is none }}
{{ documents is defined }}{{ nothing is defined }}{% for i in range(9) %}{% if i == 3 %}{% continue %}{% endif %}{{ i }}
{% if loop.last or i > 5 %}{% break %}{% endif %}{{ loop.length }}{% else %}none{% endfor %}{{ 'ab' * 3 + '%s' % 2 }}
{% macro f(x, y=2) %}{{ x ~ y }}{% endmacro %}{{ f(1) }}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}"""
    assert ChatTemplate(source).render(TURNS) == theirs(source, TURNS, False)
    assert len(ChatTemplate("{{ strftime_now('%Y-%m') }}").render([])) == 7


def test_chatml_is_chatml() -> None:
    text = ChatTemplate(CHATML).render([{"role": "user", "content": "a"}], add_generation_prompt=True)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id') }}", "unsafe"),
        ("{{ messages['append'](1) }}", "unsafe"),
        ("{{ '{0.__class__.__mro__}'.format(1).real.x }}", "undefined|unsafe"),
        ("{{ raise_exception.__globals__.json }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "too large"),
        ("{% for i in range(1000000) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "100,000 steps"),
        ("{% for a in 'abcdefghij' %}" * 9 + "x" + "{% endfor %}" * 9, "100,000 steps"),
        ("{% set x = {'steps left': 1} %}{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 10000000000 }}", "too large"),
        ("{{ [0] * 10000000000 }}", "too large"),
        ("{% for i in range(50000) %}{{ 'abcdefghij' * 100 }}{% endfor %}", "characters"),
        ("{{ raise_exception('no tools here') }}", r"no tools here\); change the messages"),
        ("{{ messages[9].content + 1 }}", "no element 9"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
    ],
)
def test_templates_are_kept_in_bounds(source: str, part: str) -> None:
    with pytest.raises(InputError, match=rf"the chat template cannot write this conversation \(.*({part})"):
        ChatTemplate(source).render(TURNS)


def test_calls_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.data.template.MAX_STEPS", 999)
    doubling = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    ChatTemplate(doubling + "{{ f(8) }}").render([])
    with pytest.raises(InputError, match="it takes more than 999 steps"):
        ChatTemplate(doubling + "{{ f(40) }}").render([])


def test_what_is_no_template_is_told_by_its_line() -> None:
    with pytest.raises(InputError, match=r"the chat template, line 2: not a template \(.*endfor"):
        ChatTemplate("{% for m in messages %}\n{% endif %}")
    with pytest.raises(InputError, match="not a template"):
        ChatTemplate("{% for a in 'ab' %}" * 50 + "{% endfor %}" * 50)


def test_the_template_of_a_tokenizer_config() -> None:
    def of(value: Any) -> ChatTemplate | None:
        return ChatTemplate.of({"chat_template": value, "eos_token": {"content": "</s>"}, "bos_token": None, "n": 3})

    found = of([{"name": "rag", "template": "r"}, {"name": "default", "template": "d{{ eos_token }}{{ bos_token }}"}])
    assert found is not None and found.render([]) == "d</s>"
    assert of(None) is None and of([{"name": "rag", "template": "r"}]) is None and ChatTemplate.of({}) is None
    with pytest.raises(InputError, match="chat_template holds int"):
        of(3)
