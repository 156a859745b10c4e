"""`bedplate generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bedplate.cli.output import Json, print_json, say
from bedplate.errors import InputError

if TYPE_CHECKING:
    from bedplate.hub.chat import Conversation


def command(
    model: Annotated[str, typer.Argument(help="A model directory, zoo:NAME or hf:ORG/NAME.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to continue; with --chat, what to say.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Hold a conversation: /reset begins anew, /exit ends.")] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: what the model is told before.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="0: the likeliest token; higher: bolder.", show_default="0.8")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Draw from so many tokens only (0: all).")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that reach this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: what was written becomes less likely.")] = 1.0,
    beams: Annotated[int, typer.Option(help="Search for the likeliest text with so many beams; 1: sample.")] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="With --beams: above 0 favours long texts, below 0 short ones.")
    ] = 1.0,
    no_repeat_ngram: Annotated[int, typer.Option(help="No run of this many tokens twice; 0: any may.")] = 0,
    min_new_tokens: Annotated[int, typer.Option(help="Tokens to write at least.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.", show_default="random")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; 16 bits are faster.", show_default="the model's own")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="A LoRA adapter to put on the model: a folder.")] = None,
    json: Json = False,
) -> None:
    """Continue texts, or talk with a model; a single text or an answer is shown as it is written.

    \b
    Example:
      bedplate generate quickstart/model "This film is" --temperature 0.7 --seed 1
      bedplate generate quickstart/model "This film is" --beams 4 --no-repeat-ngram 3
      bedplate generate runs/chat/model --chat --system "Answer in one sentence."
    """
    from bedplate.api.generate import converse, generate

    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram,
        "min_new_tokens": min_new_tokens,
        "stop": stop or (),
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "adapter": adapter,
    }
    if chat:
        if beams != 1:
            raise InputError("--beams is for texts to continue; an answer of --chat is sampled as it is shown")
        if length_penalty != 1:
            raise InputError("--length-penalty is for --beams, and an answer of --chat is sampled; leave it out")
        options["temperature"] = 0.8 if temperature is None else temperature
        conversation = converse(model, system=system, **options)
        _talk(conversation, prompts, shown=not json)
        if json:
            print_json(conversation.messages)
        return
    options |= {"num_beams": beams, "length_penalty": length_penalty}
    if system is not None:
        raise InputError("--system is for conversations; add --chat")
    if not prompts:
        raise InputError("no PROMPT; give one or more texts to continue, or --chat to hold a conversation")
    streaming = len(prompts) == 1 and not json
    unsaid = [prompts[0]]  # said with the first piece, when nothing can be refused any more

    def show(_: int, piece: str) -> None:
        print(*unsaid, piece, sep="", end="", flush=True)
        unsaid.clear()

    result = generate(model, prompts, stream=show if streaming else None, **options)
    if json:
        print_json(result)
    elif streaming:
        print(*unsaid)
    else:
        print("\n\n".join(row["prompt"] + row["text"] for row in result))


def _talk(conversation: Conversation, prompts: list[str] | None, shown: bool) -> None:
    """Answer the prompts, or else each line of the input; at a terminal, mistakes and Ctrl-C end an answer only."""
    at_terminal = not prompts and sys.stdin.isatty()
    told = False
    turns: Iterable[str] = prompts or (_typed() if at_terminal else (line.rstrip("\r\n") for line in sys.stdin))
    for text in turns:
        if not prompts:
            if text.strip() == "/exit":
                break
            if text.strip() == "/reset":
                conversation.reset()
            if text.strip() in ("", "/reset"):
                continue
        try:
            conversation.ask(text, (lambda piece: print(piece, end="", flush=True)) if shown else None)
        except KeyboardInterrupt:
            if not at_terminal:
                raise
        except InputError as error:
            if not at_terminal:
                raise
            say(f"Error: {error}")
            continue
        if shown:
            print(flush=True)
        if conversation.left_out and not told:
            say("The context is full: the model no longer sees the oldest turns.")
            told = True


def _typed() -> Iterator[str]:
    """The lines that somebody types. What invites to it goes to stderr where stdout is no terminal."""
    with suppress(ImportError):  # Windows has its own
        import readline  # noqa: F401  # lets `input` edit the line and recall those before
    say("Ctrl-C stops an answer; /reset begins anew; /exit or Ctrl-D ends.")
    while True:
        try:
            with redirect_stdout(sys.stdout if sys.stdout.isatty() else sys.stderr):
                line = input("> ")
        except KeyboardInterrupt:
            say("")
            continue
        except EOFError:
            say("")
            return
        yield line
