"""Beam search and the rules of decoding: the tokens of `transformers`' `generate`, for any setting."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedplate.errors import InputError
from bedplate.models.beam import beam_search, generate
from bedplate.models.gpt import GPT

STOPS = (0, 1)
PROMPTS = [[5, 6, 7, 5, 6], [8, 3, 8, 3, 9]]
PROPERTY = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["gpt2", "qwen3-gqa"])
def pair(request: pytest.FixtureRequest, make_gpt: Callable[..., GPT], tmp_path_factory: Any) -> tuple[GPT, Any]:
    """A network of ours and the same in `transformers`, with two tokens that end a text."""
    transformers = pytest.importorskip("transformers")
    from bedplate.hub.directory import SpecialTokens, save_directory

    gpt, folder = make_gpt(request.param), Path(tmp_path_factory.mktemp("pair")) / "model"
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter *= 0.8  # less sure of itself, so that beams differ
    save_directory(folder, gpt, special=SpecialTokens(0, STOPS))
    return gpt, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def theirs(reference: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """What `transformers` writes behind prompts of one length."""
    ids = torch.tensor(prompts)
    written = reference.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=STOPS[0], **options
    )
    rows = written[:, ids.shape[1] :].tolist()
    return [list(itertools.takewhile(lambda token: token not in STOPS, row)) for row in rows]


@PROPERTY
@given(
    num_beams=st.integers(2, 5),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
    no_repeat_ngram_size=st.integers(0, 3),
    min_new_tokens=st.sampled_from([0, 4]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    max_new_tokens=st.integers(4, 16),
)
def test_beams_are_those_of_transformers(pair: tuple[GPT, Any], **options: Any) -> None:
    gpt, reference = pair
    assert beam_search(gpt, PROMPTS, stop_ids=STOPS, **options) == theirs(reference, PROMPTS, **options)


@PROPERTY
@given(
    no_repeat_ngram_size=st.integers(0, 3),
    min_new_tokens=st.sampled_from([0, 4, 9]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
)
def test_greedy_choices_follow_the_rules_of_transformers(pair: tuple[GPT, Any], **options: Any) -> None:
    gpt, reference = pair
    options["max_new_tokens"] = 12
    assert generate(gpt, PROMPTS, temperature=0, stop_ids=STOPS, **options) == theirs(reference, PROMPTS, **options)


def test_the_settings_of_the_parity_tests_make_a_difference(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt("qwen3")
    base: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 14, "stop_ids": STOPS}
    plain = beam_search(gpt, PROMPTS, **base)
    for changed in ({"no_repeat_ngram_size": 2}, {"repetition_penalty": 1.3}, {"length_penalty": -1.0}):
        assert beam_search(gpt, PROMPTS, **base | changed) != plain, changed
    assert min(map(len, beam_search(gpt, PROMPTS, **base | {"min_new_tokens": 14}))) == 14


@PROPERTY
@given(
    prompts=st.lists(st.lists(st.integers(0, 28), min_size=1, max_size=8), min_size=1, max_size=4),
    no_repeat_ngram_size=st.sampled_from([0, 2]),
)
def test_a_search_does_not_depend_on_the_rows_beside_it(
    gpt: GPT, prompts: list[list[int]], no_repeat_ngram_size: int
) -> None:
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 30, "stop_ids": STOPS}  # the context ends some
    options |= {"no_repeat_ngram_size": no_repeat_ngram_size}
    assert beam_search(gpt, prompts, **options) == [beam_search(gpt, [p], **options)[0] for p in prompts]


def test_with_beams_enough_it_finds_the_likeliest_text_of_all(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt("qwen3", vocab_size=5)
    prompt, length = [2, 3], 3
    texts = [list(text) for text in itertools.product(range(5), repeat=length)]
    with torch.no_grad():
        rows = torch.tensor([prompt + text for text in texts])
        logs = gpt(rows)[:, len(prompt) - 1 : -1].log_softmax(-1)
    total = logs.gather(2, rows[:, len(prompt) :, None]).sum((1, 2))
    assert beam_search(gpt, [prompt], num_beams=25, max_new_tokens=length) == [texts[int(total.argmax())]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_ngram_stands_twice_in_what_is_sampled(make_gpt: Callable[..., GPT], temperature: float) -> None:
    prompt = [4, 5, 4]
    for scope in (True, False):
        options: dict[str, Any] = {"no_repeat_ngram_size": 2, "ngrams_of_prompt": scope, "temperature": temperature}
        (row,) = generate(make_gpt("gpt2"), [prompt], max_new_tokens=28, seed=3, **options)
        text = prompt + row if scope else row
        pairs = list(itertools.pairwise(text))
        assert len(row) == 28 and len(set(pairs)) == len(pairs)


def test_ngrams_of_the_prompt_may_be_left_out(make_gpt: Callable[..., GPT]) -> None:
    gpt, options = make_gpt("gpt2"), {"temperature": 0.0, "max_new_tokens": 1}
    (first,) = generate(gpt, [[7, 8]], **options)
    prompt = [8, *first, 7, 8]  # which holds what would follow
    forced = generate(gpt, [prompt], **options)[0][0]
    again = [8, forced, *prompt[1:]] if forced != first[0] else prompt
    allowed = generate(gpt, [again], no_repeat_ngram_size=2, ngrams_of_prompt=False, **options)[0]
    refused = generate(gpt, [again], no_repeat_ngram_size=2, **options)[0]
    assert allowed == generate(gpt, [again], **options)[0]
    assert refused[0] not in {after for before, after in itertools.pairwise(again) if before == again[-1]}


def test_what_beams_wrote_is_given_out_and_cut(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt("qwen3")
    heard: list[tuple[int, int]] = []
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 6}
    rows = generate(gpt, PROMPTS, **options)

    def listen(row: int, token: int) -> bool:
        heard.append((row, token))
        return row == 1 and sum(1 for other, _ in heard if other == 1) == 2

    assert generate(gpt, PROMPTS, on_token=listen, **options) == [rows[0], rows[1][:2]]
    assert heard == [(0, token) for token in rows[0]] + [(1, token) for token in rows[1][:2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams=0 must be 1"),
        ({"num_beams": 2, "temperature": 0.7}, "temperature is of sampling, and num_beams=2 searches"),
        ({"length_penalty": 2.0}, "give num_beams=2 or more"),
        ({"early_stopping": True}, "give num_beams=2 or more"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping='soon' is not known"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty=nan must be from -10 to 10"),
        ({"num_beams": 2, "max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens=9 must be from 0 to max_new_tokens, which is 3"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1 must be 0"),
        ({"num_beams": 2, "repetition_penalty": 0}, "repetition_penalty=0 must be a positive number"),
    ],
)
def test_settings_outside_their_range(make_gpt: Callable[..., GPT], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(make_gpt("qwen3"), PROMPTS, **options)
    assert generate(make_gpt("qwen3"), [], num_beams=2) == []
