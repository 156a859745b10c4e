"""Conversations: prompts and answers as of `transformers`, histories that fit, chat models that come back whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from bedplate.data.template import CHATML, PLAIN
from bedplate.data.tokenizer import SMALLEST_VOCABULARY, train_tokenizer, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub import chat as hub_chat
from bedplate.hub.chat import Conversation, give_template
from bedplate.hub.directory import SpecialTokens
from bedplate.hub.model import Model, load
from bedplate.models.gpt import GPT, GPTConfig

WORDS = train_tokenizer(["the cat sat on the mat, naïve café 日本語 🙂 "] * 4, SMALLEST_VOCABULARY + 40)
HELLO = [{"role": "user", "content": "the cat"}]


@pytest.fixture
def model() -> Model:
    """A chat model with random weights and a context of 64."""
    config = GPTConfig.from_preset(
        "qwen3",
        vocab_size=vocabulary_size(WORDS),
        max_position_embeddings=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    module, generator = GPT(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model = Model(module, WORDS, special=SpecialTokens(0, (0,)))
    give_template(model)
    return model


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """`script(*answers)`: what the model writes, one answer after the other; returns the prompts that it was given."""

    def play(*answers: str) -> list[str]:
        prompts: list[str] = []

        def generate(
            module: GPT, rows: list[list[int]], *, stop_ids: Collection[int], on_token: Any, **options: Any
        ) -> None:
            prompts.append(WORDS.decode(rows[0], skip_special_tokens=False))
            for token in WORDS.encode(answers[len(prompts) - 1]).ids:
                if token in stop_ids or on_token(0, token):
                    return

        monkeypatch.setattr(hub_chat, "generate", generate)
        return prompts

    return play


def prompt(*texts: str) -> str:
    """ChatML of these texts in turn, up to where the next answer begins."""
    turns = zip(("user", "assistant") * len(texts), texts, strict=False)
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


def test_an_answer_is_that_of_transformers(model: Model, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model.save(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    messages = [{"role": "system", "content": "sat on"}, *HELLO]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert inputs["input_ids"][0].tolist() == hub_chat.chat_encoder(model).prompt(messages)
    assert tokenizer.mask_token == "<|mask|>"
    assert set(tokenizer.all_special_tokens) == {"<|endoftext|>", "<|mask|>", "<|im_start|>", "<|im_end|>"}
    assert theirs.generation_config.eos_token_id == [2, 0]
    ids = theirs.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = load(tmp_path / "model").chat(messages, max_new_tokens=16, temperature=0)
    assert answer == {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}


def test_an_answer_ends_with_the_turn_and_is_streamed(model: Model, script: Any) -> None:
    prompts, pieces = script("日本 sat<|im_end|>on", "mat<|endoftext|>x", "the naïve##! x"), list[str]()
    assert model.chat(HELLO, stream=pieces.append)["content"] == "日本 sat" == "".join(pieces)
    assert len(pieces) > 1 and prompts == [prompt("the cat")]
    assert model.chat(HELLO)["content"] == "mat"
    assert model.chat(HELLO, stop="##")["content"] == "the naïve"


def test_bad_messages(model: Model) -> None:
    for messages, part in (
        ([{"role": "robot", "content": "x"}], "message 1: unknown role 'robot'"),
        ([*HELLO, {"role": "user", "content": 3}], "message 2: 'content' holds int"),
        ([{"role": "user", "content": "the " * 99}], "context holds 64"),
    ):
        with pytest.raises(InputError, match=part):
            model.chat(messages)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="an empty stop string"):
        model.chat(HELLO, stop="")


def test_a_model_without_a_template(model: Model) -> None:
    model.tokenizer_config.pop("chat_template")
    with pytest.raises(InputError, match=r"no chat template: fine-tune it on conversations .* tokenizer_config\.json"):
        model.chat(HELLO)
    model.tokenizer = None
    with pytest.raises(InputError, match="no tokenizer"):
        model.chat(HELLO)


def test_a_template_is_given_once(model: Model) -> None:
    assert model.tokenizer_config["chat_template"] == CHATML and model.special == SpecialTokens(0, (2, 0))
    give_template(model, PLAIN)
    assert model.tokenizer_config["chat_template"] == PLAIN and model.special.eos == (0, 2)
    give_template(model)
    assert model.tokenizer_config["chat_template"] == PLAIN  # it keeps what it has


def test_a_tokenizer_without_the_tokens_of_chatml(model: Model) -> None:
    model.tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0, "a": 1, ":": 2}, []))
    model.tokenizer.add_special_tokens(["<|endoftext|>"])
    model.tokenizer_config, model.special = {"model_max_length": 5}, SpecialTokens()  # as GPT-2's directory has it
    give_template(model)
    assert model.tokenizer_config["chat_template"] == PLAIN and model.special.eos == (0,)
    assert hub_chat.chat_encoder(model).prompt([{"role": "user", "content": "a<|endoftext|>"}]).count(0) == 1


def test_a_conversation_keeps_its_history(model: Model, script: Any) -> None:
    prompts = script("sat", "on", "mat")
    conversation = Conversation(model, seed=1)
    assert [conversation.ask(text) for text in ("the", "cat")] == ["sat", "on"]
    assert prompts == [prompt("the"), prompt("the", "sat", "cat")]
    assert [message["content"] for message in conversation.messages] == ["the", "sat", "cat", "on"]
    conversation.reset()
    conversation.ask("a")
    assert prompts[2] == prompt("a") and len(conversation.messages) == 2


def test_the_oldest_turns_are_left_out_and_the_system_stays(model: Model, script: Any) -> None:
    prompts = script(*["on the mat"] * 8)
    conversation = Conversation(model, "sat", max_new_tokens=8)
    system = "<|im_start|>system\nsat<|im_end|>\n"
    seen = []
    for turn in range(8):
        conversation.ask(f"the cat {turn}")
        assert prompts[-1].startswith(system + "<|im_start|>user\n") and f"cat {turn}<|im_end|>" in prompts[-1]
        assert len(WORDS.encode(prompts[-1]).ids) <= 64 - 8
        seen.append(conversation.left_out)
    assert seen[0] == 0 < seen[-1] and seen == sorted(seen) and not any(count % 2 for count in seen)
    assert len(conversation.messages) == 17
    with pytest.raises(InputError, match=r"this message makes a prompt of .* the model's context holds 64"):
        conversation.ask("日" * 60)
    assert (len(conversation.messages), conversation.left_out) == (17, seen[-1])  # as before


def test_a_last_turn_may_take_the_room_of_the_answer(model: Model, script: Any) -> None:
    script("the", "cat")
    conversation = Conversation(model, max_new_tokens=50)
    conversation.ask("a")
    assert conversation.ask("x" * 35) == "cat" and conversation.left_out == 2


def test_ctrl_c_keeps_what_was_written(model: Model, script: Any) -> None:
    prompts = script("the cat sat on the mat", "on")
    conversation, pieces = Conversation(model), list[str]()

    def interrupt(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("a", interrupt)
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    conversation.ask("go on")
    assert prompts[1] == prompt("a", "".join(pieces), "go on")


def save_theirs(directory: Path, template: str | dict[str, str], jinja: bool) -> Any:
    """A tokenizer directory as `transformers` writes it: a template, special tokens and settings of its own."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=WORDS,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        model_max_length=33,
    )
    theirs.chat_template = template
    theirs.save_pretrained(directory, save_jinja_files=jinja)
    return theirs


@pytest.mark.parametrize("template", [CHATML, {"default": CHATML, "rag": "{{ messages }}"}])
@pytest.mark.parametrize("jinja", [True, False])
def test_a_chat_model_of_theirs_comes_back_whole(model: Model, tmp_path: Path, template: Any, jinja: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model.save(tmp_path / "theirs")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "theirs" / file).unlink()
    theirs = save_theirs(tmp_path / "theirs", template, jinja)
    load(tmp_path / "theirs").save(tmp_path / "ours")
    ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert ours.chat_template == theirs.chat_template
    for name in ("special_tokens_map", "all_special_ids", "model_max_length", "padding_side", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    expected = theirs.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False)
    assert ours.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=False) == expected
    loaded = load(tmp_path / "ours")
    assert hub_chat.chat_encoder(loaded).prompt(HELLO) == expected
    loaded.save(tmp_path / "again")
    for path in (tmp_path / "ours").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def stops(ids: Sequence[int]) -> set[str]:
    return {str(WORDS.id_to_token(index)) for index in ids}


def test_the_end_of_a_turn_stops_an_answer_whatever_the_config_says(model: Model) -> None:
    model.special = SpecialTokens()
    assert stops(hub_chat.chat_encoder(model).stop_ids) == {"<|im_end|>"}
