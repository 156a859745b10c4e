"""Draw accuracy against the number of labels from the `transfer.json` of one or more comparisons.

bedplate transfer --data sentences.csv --base zoo:text-mini --labels 30,100,300,1000,3000,all --out transfer
python benchmarks/learning_curve.py transfer/transfer.json --out docs/learning-curve.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"pretrained": "#1f6feb", "scratch": "#888888", "tfidf": "#d97706"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transfer", type=Path, help="transfer.json")
    parser.add_argument("--out", type=Path, default=Path("learning-curve.png"))
    args = parser.parse_args()
    result = json.loads(args.transfer.read_text("utf-8"))
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=130)
    for arm, name in result["arms"].items():
        rows = sorted((row for row in result["rows"] if row["arm"] == arm), key=lambda row: row["labels"])
        labels = [row["labels"] for row in rows]
        value, low, high = ([100 * row["accuracy"][key] for row in rows] for key in ("value", "low", "high"))
        axes.plot(labels, value, marker="o", color=COLOURS.get(arm), label=name)
        axes.fill_between(labels, low, high, color=COLOURS.get(arm), alpha=0.15, linewidth=0)
        for x, y in zip(labels, value, strict=True):
            axes.annotate(f"{y:.1f}", (x, y), textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8)
    ticks = sorted({row["labels"] for row in result["rows"]})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labelled texts to learn from")
    axes.set_ylabel("accuracy on the test texts, %")
    seeds = "one seed" if result["seeds"] == 1 else f"{result['seeds']} seeds"
    axes.set_title(f"{seeds}; bands are 95 % intervals", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
