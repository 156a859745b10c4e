"""Generation: filters against their formulas, and rows that do not depend on the rows beside them."""

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bedplate.errors import InputError
from bedplate.models.decoder import Decoder
from bedplate.models.gpt import GPT
from bedplate.models.rules import penalize
from bedplate.models.sampling import distribution, draw, generate

PROPERTY = settings(
    deadline=None, derandomize=True, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LOGITS = st.lists(st.integers(-40, 40).map(lambda x: x / 10), min_size=1, max_size=12, unique=True)
PROMPTS = st.lists(st.lists(st.integers(0, 28), min_size=1, max_size=6), min_size=1, max_size=4)


@torch.no_grad()
def greedy(gpt: GPT, prompt: list[int], n: int) -> list[int]:
    """Without a cache and without a batch."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(gpt(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@PROPERTY
@given(prompts=PROMPTS)
def test_greedy_is_the_argmax_of_the_uncached_forward(gpt: GPT, prompts: list[list[int]]) -> None:
    assert generate(gpt, prompts, max_new_tokens=6, temperature=0) == [greedy(gpt, prompt, 6) for prompt in prompts]


@PROPERTY
@given(
    prompts=PROMPTS.filter(lambda prompts: len({tuple(p) for p in prompts}) == len(prompts)),
    options=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.5, 1.0, 3.0]),
            "top_k": st.sampled_from([None, 3]),
            "top_p": st.sampled_from([None, 0.8]),
            "repetition_penalty": st.sampled_from([1.0, 1.5]),
        }
    ),
    seed=st.integers(0, 999),
)
def test_a_row_does_not_depend_on_the_rows_beside_it(
    gpt: GPT, prompts: list, options: dict[str, Any], seed: int
) -> None:
    options |= {"seed": seed, "max_new_tokens": 7, "stop_ids": {0, 1, 2}}
    alone = [generate(gpt, [prompt], **options)[0] for prompt in prompts]
    assert generate(gpt, prompts, **options) == alone


def test_seeds_reproduce_and_differ(make_gpt: Callable[..., GPT]) -> None:
    gpt = make_gpt("qwen3")

    def sample(prompts: list[list[int]], seed: int | None) -> list[list[int]]:
        return generate(gpt, prompts, max_new_tokens=12, temperature=2.0, seed=seed)

    assert sample([[5]], 0) == sample([[5]], 0) != sample([[5]], 1)
    assert sample([[5]], None) != sample([[5]], None)
    # A prompt given three times is sampled three times, by the seeds that follow.
    assert sample([[5], [7], [5], [5]], 0) == [*sample([[5], [7]], 0), *sample([[5]], 1), *sample([[5]], 2)]


def test_sampling_leaves_the_global_generator_alone(make_gpt: Callable[..., GPT]) -> None:
    gpt, state = make_gpt("gpt2"), torch.get_rng_state()
    generate(gpt, [[5]], max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), state), "samples drawn in training must not change the run"


def test_equally_long_prompts_decode_without_a_mask(
    make_gpt: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bedplate.nn.attention.visible", lambda *_: pytest.fail("a mask was made"))
    visible = Decoder._visible
    monkeypatch.setattr(
        Decoder, "_visible", lambda *args: pytest.fail("a mask was used") if visible(*args) is not None else None
    )
    generate(make_gpt("qwen3-gqa"), [[1, 2, 3], [4, 5, 6]], max_new_tokens=3)


def test_narrowest_filters_are_greedy(gpt: GPT) -> None:
    prompts, expected = [[5, 6], [7]], generate(gpt, [[5, 6], [7]], max_new_tokens=6, temperature=0)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}, {"temperature": 1e-320}):
        assert generate(gpt, prompts, max_new_tokens=6, seed=0, **options) == expected


@settings(deadline=None, derandomize=True)
@given(
    values=LOGITS, temperature=st.sampled_from([0.5, 1.0, 2.0]), top_k=st.none() | st.integers(1, 14), data=st.data()
)
def test_filters_keep_the_smallest_sets(values: list[float], temperature: float, top_k: int | None, data: Any) -> None:
    top_p = data.draw(st.none() | st.floats(0.01, 1))
    logits = torch.tensor([values])
    exact = (logits.double() / temperature).softmax(-1)[0].tolist()
    ranked = sorted(range(len(values)), key=lambda token: -exact[token])[:top_k]
    mass = sum(exact[token] for token in ranked)
    kept: list[int] = []
    for token in ranked:
        reached = sum(exact[token] for token in kept) / mass
        assume(top_p is None or top_p == 1 or abs(reached - top_p) > 1e-5)
        if kept and top_p is not None and reached >= top_p:
            break
        kept.append(token)
    weights, ids = distribution(logits, temperature, top_k, top_p)
    found = {
        (token if ids is None else int(ids[0, token])): weight
        for token, weight in enumerate(weights[0].tolist())
        if weight
    }
    assert set(found) == set(kept)
    for token, weight in found.items():  # what is kept is kept in proportion
        share = exact[token] / sum(exact[token] for token in kept)
        assert weight / sum(found.values()) == pytest.approx(share, rel=1e-4)


@settings(deadline=None, derandomize=True)
@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any),
    share=st.floats(0, 1, exclude_min=True, width=32) | st.sampled_from([2.0**-53, 1.0]),
)
def test_draw_inverts_the_distribution(weights: list[int], share: float) -> None:
    chosen = int(draw(torch.tensor([weights], dtype=torch.float), torch.tensor([[share]])))
    assert weights[chosen] > 0
    # in fp32 as the draw is, where the share is rounded
    reached = torch.tensor(share, dtype=torch.float) * sum(weights)
    assert sum(weights[:chosen]) < reached <= sum(weights[: chosen + 1])


def test_draws_follow_the_probabilities(make_gpt: Callable[..., GPT]) -> None:
    gpt, n = make_gpt("qwen3"), 4000
    drawn = torch.tensor(generate(gpt, [[5, 6]] * n, max_new_tokens=1, seed=0)).flatten()
    expected = gpt(torch.tensor([[5, 6]]))[0, -1].softmax(-1)
    error = (expected * (1 - expected) / n).sqrt()
    assert ((drawn.bincount(minlength=29) / n - expected).abs() < 4 * error + 1e-3).all()


@settings(deadline=None, derandomize=True)
@given(values=LOGITS, penalty=st.floats(0.5, 4), data=st.data())
def test_penalty_is_the_formula(values: list[float], penalty: float, data: Any) -> None:
    ids = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1))
    expected = [
        value if token not in ids else value / penalty if value > 0 else value * penalty
        for token, value in enumerate(values)
    ]
    found = penalize(torch.tensor([values]), torch.tensor([ids]), penalty)[0]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_penalty_covers_prompt_and_continuation(gpt: GPT) -> None:
    prompts = [[5, 6, 7, 8], [9]]
    with torch.no_grad():
        for prompt, found in zip(
            prompts, generate(gpt, prompts, max_new_tokens=8, temperature=0, repetition_penalty=1.8), strict=True
        ):
            ids = list(prompt)
            for token in found:
                logits = gpt(torch.tensor([ids]))[0, -1]
                for old in set(ids):
                    logits[old] = logits[old] / 1.8 if logits[old] > 0 else logits[old] * 1.8
                assert token == logits.argmax()
                ids.append(token)
    never_twice = generate(gpt, prompts, max_new_tokens=8, temperature=0, repetition_penalty=1e6)
    for prompt, found in zip(prompts, never_twice, strict=True):
        assert len({*prompt, *found}) == len(prompt) + len(found)


def test_stop_ids_end_their_row_only(gpt: GPT) -> None:
    prompts = [[5, 6, 7], [9], [12, 13]]
    full = generate(gpt, prompts, max_new_tokens=10, temperature=0)
    for stop in {token for row in full for token in row}:
        cut = [row[: row.index(stop)] if stop in row else row for row in full]
        assert generate(gpt, prompts, max_new_tokens=10, temperature=0, stop_ids={stop}) == cut


def test_decoding_ends_with_the_last_row(make_gpt: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, steps = make_gpt("gpt2"), Mock()
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda *args: (steps(), step(*args))[1])
    generate(gpt, [[5], [6, 7]], max_new_tokens=10, on_token=lambda row, token: True)
    generate(gpt, [[5], [6, 7]], max_new_tokens=10, stop_ids=set(range(29)))
    generate(gpt, [[5], [6, 7]], max_new_tokens=1)
    assert steps.call_count == 0  # the prompt gives the first token
    generate(gpt, [[5], [6, 7]], max_new_tokens=3)
    assert steps.call_count == 2  # the last token chosen is not fed


def test_on_token_sees_what_is_recorded_and_may_end_a_row(gpt: GPT) -> None:
    prompts: list[list[int]] = [[5, 6, 7], [9]]
    full = generate(gpt, prompts, max_new_tokens=8, temperature=0)
    told: list[list[int]] = [[], []]

    def tell(row: int, token: int) -> bool:
        told[row].append(token)
        return row == 0 and len(told[0]) == 3

    found = generate(gpt, prompts, max_new_tokens=8, temperature=0, on_token=tell)
    assert found == told == [full[0][:3], full[1]]


def test_every_row_ends_at_the_context_limit(gpt: GPT) -> None:
    prompts = [[5] * 30, [6] * 27, [7]]
    found = generate(gpt, prompts, max_new_tokens=100, temperature=0)
    assert [len(row) for row in found] == [2, 5, 31]
    assert found == [generate(gpt, [prompt], max_new_tokens=100, temperature=0)[0] for prompt in prompts]
    assert generate(gpt, [[5] * 30], max_new_tokens=1, temperature=0) == [found[0][:1]]


def test_no_prompts_no_rows(gpt: GPT) -> None:
    assert generate(gpt, []) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 2 is empty"),
        ({"prompts": [[1], [2] * 4000]}, "prompt 2 has 4,000 tokens and the model's context holds 32"),
        ({"prompts": [[2] * 32]}, "prompt 1 has 32 tokens and the model's context holds 32"),
        ({"prompts": [[29]]}, "prompt 1 has a token id outside the model's vocabulary of 29"),
        ({"prompts": [[-1]]}, "prompt 1 has a token id outside"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be"),
        ({"temperature": -0.1}, "temperature=-0.1 must be"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"temperature": float("inf")}, "temperature=inf must be"),
        ({"top_k": 0}, "top_k=0 must be"),
        ({"top_p": 0.0}, "top_p=0.0 must be"),
        ({"top_p": 1.1}, "top_p=1.1 must be"),
        ({"top_p": float("nan")}, "top_p=nan must be"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0 must be"),
    ],
)
def test_errors_name_the_value(make_gpt: Callable[..., GPT], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(make_gpt("llama"), **{"prompts": [[1]], **options})


def test_generation_with_dropout_on_is_refused(make_gpt: Callable[..., GPT]) -> None:
    with pytest.raises(AssertionError, match="eval"):
        generate(make_gpt("gpt2").train(), [[1]])
