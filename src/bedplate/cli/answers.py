"""What `bedplate evaluate` prints of a reader."""

from collections.abc import Mapping
from typing import Any

from bedplate.cli.output import print_left_out

BLIND = {
    "majority": "the most frequent answer of the kind",
    "question": "the most frequent answer to the same question",
}


def print_answers(result: Mapping[str, Any]) -> None:
    """What is right without looking, a line for each kind of question, and how many there were."""
    for name, values in result["baselines"].items():
        print(f"{BLIND[name]}: {_share(values['accuracy'])}")
    if len(result["kinds"]) > 1:
        for kind, values in result["kinds"].items():
            blind = ", ".join(f"{name} {values[name]['value']:.4f}" for name in BLIND)
            print(f"  {kind} ({values['accuracy']['n']:,}): {_share(values['accuracy'])}; {blind}")
    for name, metric in result.get("captions", {}).items():
        print(f"captions {name}: {_share(metric)}")
    print(f"{result['n']:,} questions about {result['pictures']:,} pictures")
    print_left_out(result, "pictures")


def _share(metric: Mapping[str, float]) -> str:
    return f"{metric['value']:.4f} (95 % interval {metric['low']:.4f} to {metric['high']:.4f})"
