"""What a CLIP calls emoji: among all names, by a keyword, and in a style that it saw only other concepts of.

python benchmarks/clip_names.py names zoo:clip-mini noto.tar fluent.tar
python benchmarks/clip_names.py concepts zoo:clip-mini noto.tar fluent.tar
python benchmarks/clip_names.py stamps zoo:clip-mini noto.tar --folder /usr/share/tuxpaint/stamps
python benchmarks/clip_names.py split noto.tar fluent.tar --out search
bedplate pretrain recipes/clip-mini.yaml data.path=search/train.jsonl data.text=name data.val_fraction=0 \\
    train.steps=600 evaluate.every=600 train.ema=0.99 \\
    'objective.templates=["{}","a picture of {}"]' out=runs/search
python benchmarks/clip_names.py unseen runs/search search

An archive holds KEY.png beside KEY.json with name, keywords and tone; names are asked for in their toneless form alone.
`concepts` asks for what `recipes/clip-mini.yaml` held out of the same archives, where no other skin tone was learnt.
`stamps` asks for pictures of Tux Paint (Debian's `tuxpaint-stamps-default`: photos and drawings) whose text is one of
the archive's names. `split` holds out a quarter of the last archive's concepts, in its pictures alone.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

import bedplate
from bedplate.data.pairs import read_pairs, split_pairs
from bedplate.metrics.proportion import proportion

FRAMES = ("{}", "a picture of {}")
HELD_OUT = 0.02  # recipes/clip-mini.yaml
MARGINS = (0.08, 0.16)
ASKED, BESIDE = 400, 9  # pictures of which a keyword is asked for, and how many keywords of others stand beside it
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    names = verbs.add_parser("names")
    names.add_argument("model")
    names.add_argument("archives", type=Path, nargs="+")
    concepts = verbs.add_parser("concepts")
    concepts.add_argument("model")
    concepts.add_argument("archives", type=Path, nargs="+")
    stamps = verbs.add_parser("stamps")
    stamps.add_argument("model")
    stamps.add_argument("archives", type=Path, nargs="+")
    stamps.add_argument("--folder", type=Path, required=True)
    split = verbs.add_parser("split")
    split.add_argument("archives", type=Path, nargs="+")
    split.add_argument("--out", type=Path, required=True)
    unseen = verbs.add_parser("unseen")
    unseen.add_argument("model")
    unseen.add_argument("folder", type=Path, help="what `split` wrote")
    args = parser.parse_args()
    if args.verb == "split":
        write_split(args.archives, args.out)
        return
    model = bedplate.load(args.model, dtype="fp32")
    if args.verb == "unseen":
        score_unseen(model, args.folder)
        return
    if args.verb == "stamps":
        score_stamps(model, args.archives, args.folder)
        return
    if args.verb == "concepts":
        score_concepts(model, args.archives)
        return
    for archive in args.archives:
        rows = read(archive)
        asked = sorted({row["name"] for row in rows})
        say(f"{archive.stem}, {len(asked):,} names", ranks(model, rows, asked))
        by_keyword(model, archive.stem, rows)


def read(archive: Path) -> list[Row]:
    """The toneless pictures of an archive, in the order of their keys."""
    parts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            stem, _, kind = member.name.rpartition(".")
            file = tar.extractfile(member)
            assert file is not None
            parts.setdefault(stem, {})[kind] = file.read()
    rows = [json.loads(part["json"]) | {"png": part["png"]} for _, part in sorted(parts.items())]
    return [row for row in rows if row["tone"] is None]


def ranks(model: Any, rows: Sequence[Row], names: Sequence[str], margin: float = 0.0) -> np.ndarray:
    """How many of `names` are nearer to each picture than its own."""
    near = pictures(model, rows, margin) @ words(model, names).T
    own = near[np.arange(len(rows)), [names.index(row["name"]) for row in rows]]
    return (near > own[:, None]).sum(1)


def by_keyword(model: Any, what: str, rows: Sequence[Row]) -> None:
    """One keyword that the name does not hold, beside keywords of other pictures."""
    draw = random.Random(0)
    rows = draw.sample([row for row in rows if row["keywords"]], min(ASKED, len(rows)))
    asked = []
    for row in rows:
        own = [word for word in row["keywords"] if word not in row["name"].lower()]
        others = [draw.choice(other["keywords"]) for other in draw.sample(rows, BESIDE)]
        if own:
            asked.append((row, [draw.choice(own), *(word for word in others if word not in row["keywords"])]))
    every = sorted({word for _, choice in asked for word in choice})
    vectors = dict(zip(every, words(model, every), strict=True))
    shown = pictures(model, [row for row, _ in asked])
    right = [
        bool(np.argmax([picture @ vectors[word] for word in choice]) == 0)
        for picture, (_, choice) in zip(shown, asked, strict=True)
    ]
    chance = np.mean([1 / len(choice) for _, choice in asked])
    say(f"{what}, one keyword among others (chance {chance:.1%})", np.where(right, 0, 1), (1,))


def score_concepts(model: Any, archives: Sequence[Path]) -> None:
    pairs = read_pairs([str(archive) for archive in archives], text=["name"])
    learnt, _ = split_pairs(pairs, HELD_OUT, seed=0)
    known = {plain(texts[0]) for texts in learnt.texts}
    rows = [row for archive in archives for row in read(archive)]
    every = sorted({row["name"] for row in rows})
    new = [row for row in rows if plain(row["name"]) not in known]
    say(f"{len(new)} pictures of concepts that were held out, all {len(every):,} names", ranks(model, new, every))


def score_stamps(model: Any, archives: Sequence[Path], folder: Path) -> None:
    every = sorted({row["name"] for archive in archives for row in read(archive)})
    named = {name.lower(): name for name in every}
    rows: list[Row] = []
    for text in sorted(folder.rglob("*.txt")):
        first = text.read_text("utf-8", errors="replace").partition("\n")[0].strip().lower().rstrip(".!")
        name, picture = named.get(re.sub("^(an?|the|some) ", "", first)), text.with_suffix(".png")
        if name and picture.is_file():
            rows.append({"name": name, "png": picture.read_bytes()})
    say(f"{len(rows)} stamps, all {len(every):,} names", ranks(model, rows, every))


def plain(name: str) -> str:
    """A name without what follows its colon, such as a skin tone."""
    return name.partition(":")[0].lower()


def write_split(archives: Sequence[Path], out: Path) -> None:
    draw = random.Random(0)
    (out / "images").mkdir(parents=True)
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    for archive in archives:
        for number, row in enumerate(read(archive)):
            held = archive == archives[-1] and draw.random() < 0.25
            file = Path("images") / f"{archive.stem}-{number}.png"
            (out / file).write_bytes(row["png"])
            part = {"image": str(file), "style": archive.stem, **{key: row[key] for key in ("name", "keywords")}}
            parts["test" if held else "train"].append(part)
    for name, rows in parts.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        print(f"{name}: {len(rows):,} pictures")


def score_unseen(model: Any, folder: Path) -> None:
    train, test = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("train", "test")
    )
    for row in test:
        row["png"] = (folder / row["image"]).read_bytes()
    every = sorted({row["name"] for row in [*train, *test]})
    learnt = {row["name"] for row in train if row["style"] == test[0]["style"]}
    rest = [name for name in every if name not in learnt]
    say(f"{len(test)} pictures, all {len(every):,} names", ranks(model, test, every))
    say(f"... the {len(rest)} names that were not learnt in this style", ranks(model, test, rest))
    for margin in MARGINS:
        say(f"... all names, {margin:.0%} of margin more on each side", ranks(model, test, every, margin))


def pictures(model: Any, rows: Sequence[Row], margin: float = 0.0) -> np.ndarray:
    """Vectors of pictures, `margin` of their width added on each side, transparent."""
    whole = [Image.open(io.BytesIO(row["png"])).convert("RGBA") for row in rows]
    return unit(model.embed([ImageOps.expand(each, round(margin * each.width), (0, 0, 0, 0)) for each in whole]))


def words(model: Any, texts: Sequence[str]) -> np.ndarray:
    """The mean of the vectors of the frames, as labels are read."""
    return unit(sum(unit(model.embed([frame.format(text) for text in texts])) for frame in FRAMES))


def unit(vectors: Any) -> np.ndarray:
    values = np.asarray(vectors, np.float64)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def say(what: str, rank: np.ndarray, firsts: Sequence[int] = (1, 5)) -> None:
    found = {most: proportion(rank < most) for most in firsts}
    shares = [f"first {k}: {x['value']:.1%} ({x['low']:.1%} to {x['high']:.1%})" for k, x in found.items()]
    print(f"{what}: {', '.join(shares)}")


if __name__ == "__main__":
    main()
