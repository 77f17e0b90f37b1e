"""How fast shards become batches on this machine: python benchmarks/stream.py SHARDS --image-size 224 --workers 1

SHARDS is what `mlpmixer train` takes (mlpmixer data shards writes some). Three rows: reading alone; decoding and
resizing alone, by so many threads, of images that are in memory; the whole stream as training sees it. Then the peak of
the process's memory. "A core" is by processor time, which other programs on the machine change little; the rest is by
the clock. The files may be in the operating system's cache: reading is then that of memory, not of the disk.
"""

import argparse
import itertools
import resource
import time
from collections.abc import Iterator

from mlpmixer.data.config import Data
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.store import map_indices, worker_count
from mlpmixer.data.streaming.datasets import open_streamed
from mlpmixer.data.streaming.shards import Sample, read_rows
from mlpmixer.download import Retry
from mlpmixer.training.recipe import Run
from mlpmixer.training.stream import Stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--buffer", type=int, default=1024)
    parser.add_argument(
        "--images",
        type=int,
        default=1500,
        help="that reading and decoding are timed on; the stream takes twice as many",
    )
    args = parser.parse_args()

    data = Data(name=args.shards, stream=True, lanes=args.lanes, buffer=args.buffer, workers=args.workers)
    start = time.perf_counter()
    splits = open_streamed(data)
    print(f"{time.perf_counter() - start:7.2f} s to open: {len(splits.train)} training shards")
    preprocess = Preprocess(image_size=(args.image_size, args.image_size))
    stream = Stream(splits.train, splits.labels, preprocess, data)

    def everything() -> Iterator[Sample]:
        for shard in itertools.cycle(splits.train):
            yield from read_rows(shard, 0, shard.samples, Retry())

    start = clocks()
    samples = list(itertools.islice(everything(), args.images))
    size_mb = sum(len(s.content) for s in samples) / 1e6
    row("reading", args.images, size_mb, start)

    start = clocks()
    list(map_indices(lambda i: preprocess.array(samples[i].content), len(samples), args.workers))
    row(f"decoding, {worker_count(args.workers)} threads", args.images, size_mb, start)
    samples.clear()

    steps = max(2 * args.images // args.batch_size, 2)
    run = Run(batch_size=args.batch_size)
    start = clocks()
    first = 0.0
    for batch in stream.batches(run, 1, steps):
        first = first or time.perf_counter() - start[0]
        last = batch.step
    row("the stream", last * args.batch_size, size_mb * last * args.batch_size / args.images, start)
    print(
        f"{first:7.2f} s to its first batch; peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB"
    )


def clocks() -> tuple[float, float]:
    """Seconds of the clock, and of all processors together."""
    return time.perf_counter(), time.process_time()


def row(what: str, images: int, size_mb: float, start: tuple[float, float]) -> None:
    seconds, busy = (now - then for now, then in zip(clocks(), start, strict=True))
    by_clock, by_core = (f"{images / t:7,.0f} images/s {size_mb / t:7,.1f} MB/s" for t in (seconds, busy))
    print(f"{what:20} {by_clock}   a core: {by_core}   {1000 * size_mb / images:4.0f} kB an image")


if __name__ == "__main__":
    main()
