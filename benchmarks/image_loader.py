"""JPEGs a second from a parquet file into batches' memory: bedplate's store against plain loops over PIL.

    taskset -c 0,1 python benchmarks/image_loader.py --workers 2 [--data photos.parquet]

Each way ends with all pictures as one uint8 array (N, 3, 32, 32). Ours counts everything from the handles on: the start
of its processes, reading parquet, the file. The loops have the files' bytes in memory and, in several processes, these
running already. It fails unless all ways give the same pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from bedplate.data.image_files import LabelledImages, read_images
from bedplate.data.pixel_store import PixelStore

SIDE = 32
CHUNK = 256


def generated(path: Path, count: int) -> Path:
    """A parquet file of `count` JPEGs of SIDE pixels: shapes with some grain, about 1 KB each, as photos have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8)).resize((SIDE, SIDE))
        grain = draw.integers(-16, 17, (SIDE, SIDE, 1))
        sink = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(sink, "JPEG")
        rows.append({"bytes": sink.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows}), path)
    return path


def with_pil(files: list[bytes]) -> np.ndarray:
    """The loop that everyone writes."""
    pictures = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return np.stack(pictures).transpose(0, 3, 1, 2)


def with_processes(pool: ProcessPoolExecutor, files: list[bytes]) -> np.ndarray:
    """The same loop in processes."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    return np.concatenate(list(pool.map(with_pil, chunks)))


def with_bedplate(images: LabelledImages, cache: Path, workers: int) -> np.ndarray:
    shutil.rmtree(cache / "pixels", ignore_errors=True)
    return PixelStore(images, (SIDE, SIDE), "cover", cache, workers).pixels(np.arange(len(images)))


def main() -> None:
    from side_by_side import Way, measure  # brings torch, which the processes do without

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="times that each way is measured, in turn")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as well")
    options.add_argument("--data", type=Path, help=f"parquet of JPEGs of {SIDE} pixels; generated if not given")
    options.add_argument("--count", type=int, default=20_000, help="pictures, at most")
    options.add_argument("--workers", type=int, default=2)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = read_images(args.data or generated(folder / "x.parquet", args.count), label="")
        images = images.select(range(min(args.count, len(images))))
        files = [content for ref in images.images if isinstance(content := ref.read(), bytes)]
        with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
            names = [f"bedplate, {args.workers} processes", "PIL loop", f"PIL, {args.workers} processes"]
            works = [
                lambda: with_bedplate(images, folder, args.workers),
                lambda: with_pil(files),
                lambda: with_processes(pool, files),
            ]
            first = works[0]()
            if not all(np.array_equal(first, work()) for work in works[1:]):
                raise SystemExit("the pixels differ")
            ways = [Way(name, len(files), work, not i) for i, (name, work) in enumerate(zip(names, works, strict=True))]
            speeds = measure(ways, args.rounds, "wall")
    print(f"{len(files):,} JPEGs of {SIDE} pixels, {sum(map(len, files)) / len(files):,.0f} bytes each on average")
    print(f"{'':<34} {'JPEG/s':>9}   min - max")
    for name, values in speeds.items():
        print(f"{name:<34} {statistics.median(values):9,.0f}   {min(values):,.0f} - {max(values):,.0f}")
    ratios = {}
    for peer in names[1:]:
        pairs = zip(speeds[names[0]], speeds[peer], strict=True)
        ratios[peer] = statistics.median(ours / other for ours, other in pairs)
        print(f"times the speed of {peer:<23} {ratios[peer]:9.2f}")
    if args.json is not None:
        args.json.write_text(json.dumps({"jpegs_per_second": speeds, "ratios": ratios}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
