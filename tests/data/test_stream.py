"""Streamed images: each once an epoch, in an order that neither a restart nor the number of ranks changes, within
bounded memory.

All servers run on loopback.
"""

import dataclasses
import io
import json
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data, open_images
from mlpmixer.data.image_set import ImageSet, array_images, numbered
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.data.streaming import datasets as streamed_module
from mlpmixer.data.streaming.datasets import StreamedSplits, is_streamed, open_shards, open_streamed
from mlpmixer.data.streaming.remote import RemoteFile
from mlpmixer.data.streaming.shards import Kind, Sample, Shard, ShardError, read_rows
from mlpmixer.data.streaming.write import write_shards
from mlpmixer.download import Refused, Retry
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.models.names import MIXERS
from mlpmixer.training import stream as stream_module
from mlpmixer.training.batches import RowRange, row_range
from mlpmixer.training.inputs import batches
from mlpmixer.training.recipe import Augment, Init, Optim, Recipe, Run, variant
from mlpmixer.training.run import train
from mlpmixer.training.stream import Order, Stream
from mlpmixer.weights import model_file, run_folder

PREPROCESS = Preprocess(image_size=(4, 4), in_channels=1)
QUICK = Retry(timeout_s=0.2, backoff_s=0.0)
CLASSES = ("ant", "bee", "cat")


def image_set(n: int, first: int = 0) -> ImageSet:
    """Image i is a square of grey value first + i, of class (first + i) mod 3."""
    values = np.arange(first, first + n)
    pixels = np.broadcast_to(values[:, None, None], (n, 4, 4)).astype(np.uint8).copy()
    return ImageSet(CLASSES, values % 3, numbered("image", n), array_images(pixels), channels=1)


def write(folder: Path, kind: Kind = "tar", n: int = 103, per_shard: int = 10) -> Path:
    """n training images, grey values 0..n-1, in shards of ten; six for val and six for test, 200..211."""
    write_shards(
        {"train": image_set(n), "val": image_set(6, 200), "test": image_set(6, 206)},
        folder,
        kind=kind,
        per_shard=per_shard,
    )
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(params=["tar", "parquet"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "shards", request.param)


def opened(folder: Path | str, retry: Retry = QUICK, **data: Any) -> Stream:
    values = {"lanes": 4, "buffer": 64, "workers": 2, "stream": True} | data
    splits = open_streamed(Data(name=str(folder), **values), retry=retry)
    return Stream(splits.train, splits.labels, PREPROCESS, Data(name=str(folder), **values), retry)


def drawn(
    stream: Stream, run: Run, first: int, last: int, rows: RowRange | None = None
) -> list[tuple[int, list[int], list[int], list[int]]]:
    """(step, numbers, labels, grey values) of each batch."""
    return [
        (batch.step, batch.numbers.tolist(), batch.labels.tolist(), batch.images[:, 0, 0, 0].tolist())
        for batch in stream.batches(run, first, last, rows)
    ]


# --- the order ----------------------------------------------------------------------------------------------------


ORDERS = st.builds(
    Order,
    samples=st.lists(st.integers(0, 30), min_size=1, max_size=12).map(tuple).filter(lambda s: sum(s) > 0),
    rows=st.integers(1, 40),
    lanes=st.integers(1, 9),
    block=st.integers(1, 20),
    seed=st.integers(0, 3),
).filter(lambda o: sum(o.samples) >= o.rows)


@given(order=ORDERS, epoch=st.integers(0, 3))
def test_epoch_has_each_sample_once(order: Order, epoch: int) -> None:
    total, first = sum(order.samples), epoch * order.steps + 1
    batches = [order.numbers(step) for step in range(first, first + order.steps)]
    assert all(len(b) == order.rows for b in batches)
    seen = np.concatenate(batches)
    assert len(set(seen.tolist())) == len(seen) > total - order.rows and seen.min() >= 0 and seen.max() < total


def test_epochs_and_seeds_differ_and_shuffle() -> None:
    order = Order(samples=(20,) * 5, rows=25, lanes=4, block=8, seed=0)
    orders = [
        np.concatenate([dataclasses.replace(order, seed=seed).numbers(epoch * 4 + i) for i in range(1, 5)])
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(sorted(o.tolist()) == list(range(100)) for o in orders)
    assert len({tuple(o.tolist()) for o in orders}) == 4
    assert all(len(set((o[:25] // 20).tolist())) >= 3 for o in orders), "a batch has images of several shards"


def test_stream_follows_the_order(shards: Path) -> None:
    stream, run = opened(shards), Run(batch_size=20, seed=5)
    assert len(stream) == 103
    content = [s for shard in stream.shards for s in read_rows(shard, 0, shard.samples, QUICK)]
    values = [int(np.asarray(Image.open(io.BytesIO(s.content)))[0, 0]) for s in content]
    assert sorted(values) == list(range(103))
    order, seen = stream.order(run), drawn(stream, run, 1, 10)
    for step, numbers, labels, greys in seen:
        assert numbers == order.numbers(step).tolist()
        assert greys == [values[n] for n in numbers] and labels == [g % 3 for g in greys]
    assert len({n for _, numbers, *_ in seen[:5] for n in numbers}) == 100 == 5 * 20
    assert drawn(opened(shards, workers=1), run, 1, 10) == seen
    assert [(b.step, b.numbers.tolist()) for b in batches(stream, run, 1, 3)] == [(s, n) for s, n, *_ in seen[:3]]


def test_tar_and_parquet_give_the_same_batches(tmp_path: Path) -> None:
    run = Run(batch_size=17)
    a, b = (drawn(opened(write(tmp_path / kind, kind)), run, 1, 8) for kind in ("tar", "parquet"))  # type: ignore[arg-type]
    assert a == b


class Reads:
    """What was read: (shard, row) as often as it was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[str, int]] = []

        def watched(shard: Shard, first: int, last: int, retry: Retry) -> Iterator[Sample]:
            for row, sample in enumerate(read_rows(shard, first, last, retry), first):
                self.rows.append((shard.name, row))
                yield sample

        monkeypatch.setattr(stream_module, "read_rows", watched)


@pytest.mark.parametrize("first", [2, 3, 6, 7, 10])
def test_resumed_stream_is_the_tail(first: int, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, run = opened(shards), Run(batch_size=20, seed=1)
    whole = drawn(stream, run, 1, 10)
    reads = Reads(monkeypatch)
    assert drawn(opened(shards), run, first, 10) == whole[first - 1 :]
    needed = (10 - first + 1) * 20
    assert len(reads.rows) <= needed + stream.data.buffer // 2


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("batch_size", [24, 20])
def test_ranks_split_the_batch_and_the_reading(
    world_size: int, batch_size: int, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(batch_size=batch_size, seed=2)
    whole = drawn(opened(shards), run, 1, 8)
    per_epoch, of_rank = 103 // batch_size, []
    reads, rows_read = Reads(monkeypatch), []
    for rank in range(world_size):
        rows = row_range(batch_size, rank, world_size)
        of_rank.append(drawn(opened(shards), run, 1, 8, rows))
        reads.rows.clear()
        drawn(opened(shards), run, 1, per_epoch, rows)
        rows_read.append(set(reads.rows))
        assert len(rows_read[-1]) == len(reads.rows)
    for i, (step, numbers, labels, greys) in enumerate(whole):
        assert all(part[i][0] == step for part in of_rank)
        assert [v for part in of_rank for v in part[i][1]] == numbers
        assert [v for part in of_rank for v in part[i][2]] == labels
        assert [v for part in of_rank for v in part[i][3]] == greys
    assert sum(map(len, rows_read)) == len(set.union(*rows_read)) == per_epoch * batch_size


def test_a_rank_may_borrow_rows_of_the_next(shards: Path) -> None:
    run = Run(batch_size=12, seed=2)
    whole = drawn(opened(shards), run, 1, 5)
    rows = [6, 7, 8, 9, 10, 11, 0]
    part = drawn(opened(shards), run, 1, 5, row_range(12, 1, 2, overlap=1))
    for everything, some in zip(whole, part, strict=True):
        assert some == (everything[0], *([values[row] for row in rows] for values in everything[1:]))


def test_repeats_in_a_batch(shards: Path) -> None:
    once = drawn(opened(shards), Run(batch_size=10), 1, 3)
    for (_, numbers, _, greys), (_, several, _, twice) in zip(
        once, drawn(opened(shards), Run(batch_size=20, repeats=2), 1, 3), strict=True
    ):
        assert sorted(several) == sorted(numbers * 2) and sorted(twice) == sorted(greys * 2)


def test_memory_holds_the_buffer_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = most = 0
    lock = threading.Lock()

    class Counted(bytes):
        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def counted(*args: Any) -> Iterator[Sample]:
        nonlocal alive, most
        for sample in read_rows(*args):
            with lock:
                alive += 1
                most = max(most, alive)
            yield sample._replace(content=Counted(sample.content))

    stream, run = opened(write(tmp_path / "shards", n=250, per_shard=50), buffer=32), Run(batch_size=8)
    monkeypatch.setattr(stream_module, "read_rows", counted)
    for _ in stream.batches(run, 1, 60):
        pass
    assert 16 < most <= 32 + 2 * 8, "and what is being decoded"


# --- bad images ---------------------------------------------------------------------------------------------------


def tar_of(path: Path, files: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def with_bad_images(folder: Path) -> Path:
    """Shards of 20: of the first one sample 3 is torn, 7 has no label, 11 no image."""
    folder.mkdir()
    files = [[(f"a/{i:03}.png", png(i)), (f"a/{i:03}.cls", b"%d" % (i % 3))] for i in range(60)]
    files[3][0] = (files[3][0][0], png(3)[:30])
    del files[7][1], files[11][0]
    for k in range(3):
        tar_of(folder / f"train-{k}.tar", [f for pair in files[20 * k : 20 * k + 20] for f in pair])
    for split in ("val", "test"):
        tar_of(folder / f"{split}-0.tar", [f for pair in files[20:30] for f in pair])
    return folder


def test_bad_image_is_replaced_in_place(tmp_path: Path) -> None:
    stream, run = opened(with_bad_images(tmp_path / "shards"), max_bad_share=0.1), Run(batch_size=20, seed=3)
    assert len(stream) == 60
    order = stream.order(run)
    for step, numbers, labels, greys in drawn(stream, run, 1, 6):
        planned = order.numbers(step).tolist()
        assert greys == numbers and labels == [n % 3 for n in numbers]
        assert all(n == p for n, p in zip(numbers, planned, strict=True) if p not in (3, 7, 11))
        assert not {3, 7, 11} & set(numbers)
    assert sorted(name for name, _ in stream.bad) == ["train-0.tar/a/003", "train-0.tar/a/007", "train-0.tar/a/011"]
    assert "no label" in dict(stream.bad)["train-0.tar/a/007"]
    assert drawn(opened(tmp_path / "shards", max_bad_share=0.1), run, 4, 6) == drawn(stream, run, 4, 6)
    ranks = [drawn(opened(tmp_path / "shards", max_bad_share=0.1), run, 1, 6, row_range(20, r, 2)) for r in (0, 1)]
    assert [a[3] + b[3] for a, b in zip(*ranks, strict=True)] == [greys for *_, greys in drawn(stream, run, 1, 6)]


def test_too_many_bad_images_end_the_stream(tmp_path: Path) -> None:
    stream = opened(with_bad_images(tmp_path / "shards"), max_bad_share=0.01)
    with pytest.raises(ValueError, match=r"3 of 60 images cannot be read.*0\.01 allowed.*train-0\.tar/a/003"):
        drawn(stream, Run(batch_size=20), 1, 6)


# --- what data there is -------------------------------------------------------------------------------------------


def test_splits_from_names(shards: Path) -> None:
    assert is_streamed(Data(name=str(shards)))
    for split, values in (("val", range(200, 206)), ("test", range(206, 212))):
        images = open_images(Data(name=str(shards)), split)
        greys = [int(PREPROCESS.array(images.source(i))[0, 0, 0]) for i in range(len(images))]
        assert sorted(greys) == list(values) and images.labels.tolist() == [g % 3 for g in greys]
    with pytest.raises(ValueError, match="is streamed"):
        open_data(Data(name=str(shards)))


def greys_of(splits: StreamedSplits) -> dict[str, set[int]]:
    def grey(content: Any) -> int:
        return int(PREPROCESS.array(content)[0, 0, 0])

    assert splits.test is not None
    train = {grey(s.content) for shard in splits.train for s in read_rows(shard, 0, shard.samples, QUICK)}
    by_index = {
        name: {grey(images.source(i)) for i in range(len(images))}
        for name, images in (("val", splits.val), ("test", splits.test))
    }
    return {"train": train} | by_index


def test_own_val_shards_can_be_the_test(tmp_path: Path) -> None:
    write_shards({"train": image_set(103), "val": image_set(6, 200)}, tmp_path / "shards", kind="tar", per_shard=10)
    splits = open_streamed(Data(name=str(tmp_path / "shards"), val_is_test=True))
    assert greys_of(splits)["test"] == set(range(200, 206)) and len(splits.val) == 10
    assert "test: what the data calls val (data.val_is_test)" in splits.notes


def test_unnamed_splits_are_cut_by_shards(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards")
    (folder / "_info.json").unlink()
    for path in [*folder.glob("val*"), *folder.glob("test*")]:
        path.unlink()
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    data = Data(name=str(folder), val_fraction=0.2)
    splits = open_streamed(data)
    found = greys_of(splits)
    assert [len(splits.train), len(found["train"] | found["val"] | found["test"]), sum(map(len, found.values()))] == [
        7,
        103,
        103,
    ]
    assert any("val: 2 of 9 training shards" in n for n in splits.notes) and any(
        "test: 2 of 11" in n for n in splits.notes
    )
    assert greys_of(open_streamed(data)) == found
    assert greys_of(open_streamed(dataclasses.replace(data, split_seed=1))) != found


def test_training_and_evaluation_find_the_same_shards(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_shards({"train": image_set(24), "val": image_set(8, 200)}, folder, kind="tar", per_shard=8)
    (folder / "_info.json").unlink()
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    data = Data(name=str(folder), classes=str(tmp_path / "names.txt"))
    alike = dataclasses.replace(data, layout="classes")

    def found(data: Data) -> tuple[dict[str, int], int]:
        whole, streamed = open_shards(data), open_streamed(data)
        training = sum(shard.samples for shard in streamed.train) + len(streamed.val) + len(streamed.test or ())
        return {split: len(images) for split, images in whole.sets.items()}, training

    assert found(data) == ({"train": 24, "val": 8}, 32) and found(alike) == ({"all": 32}, 32)
    (folder / "val-00000-of-00001.tar").rename(folder / "more.tar")
    assert found(data) == ({"train": 24}, 24) and found(alike) == ({"all": 32}, 32)
    (note,) = open_shards(data).notes
    assert "not used, as the name says no split: more.tar" in note and note in open_streamed(data).notes
    for shard in folder.glob("train-*"):
        shard.unlink()
    for opens in (open_shards, open_streamed):
        with pytest.raises(ValueError, match="no name says train, val or test"):
            opens(dataclasses.replace(data, layout="splits"))


def test_sources_of_class_names(tmp_path: Path) -> None:
    def shards(folder: Path, label: Callable[[int], tuple[str, bytes]]) -> Path:
        folder.mkdir(exist_ok=True)
        for split in ("train", "val", "test"):
            tar_of(
                folder / f"{split}.tar",
                [f for i in range(6) for f in ((f"{i}.PNG", png(i)), (f"{i}.{label(i)[0]}", label(i)[1]))],
            )
        return folder

    folder = shards(tmp_path / "named", lambda i: ("cls", b"bee" if i % 2 else b"ant"))
    assert open_streamed(Data(name=str(folder))).classes == ("ant", "bee")
    (folder / "classes.txt").write_text("bee\nant\ncat\n")
    splits = open_streamed(Data(name=str(folder)))
    assert splits.classes == ("bee", "ant", "cat") and splits.val.labels.tolist() == [1, 0] * 3
    with pytest.raises(ValueError, match=r"has the label 'ant', which is none of the 3 classes: 0, 1, 2"):
        open_streamed(Data(name=str(folder), classes="3"))
    with pytest.raises(ValueError, match=r"data\.classes 'nowhere' is neither a number"):
        open_streamed(Data(name=str(folder), classes="nowhere"))
    folder = shards(tmp_path / "numbered", lambda i: ("json", json.dumps({"label": 3 + i % 2}).encode()))
    assert open_streamed(Data(name=str(folder))).classes == ("3", "4")
    ((_, _, labels, greys),) = drawn(opened(folder, classes="7"), Run(batch_size=6), 1, 1)
    assert labels == [3 + g % 2 for g in greys]


@pytest.mark.parametrize("content", [b"[1, 2]", b'{"half": ', b"[" * 100_000, b"\xff"])
def test_damaged_counts_are_made_again(content: bytes, tmp_path: Path, home: Path) -> None:
    folder = with_bad_images(tmp_path / "shards")
    first = open_streamed(Data(name=str(folder)))
    (kept,) = home.rglob("shards/*.json")
    kept.write_bytes(content)
    assert open_streamed(Data(name=str(folder))).train == first.train and json.loads(kept.read_bytes())


def test_shards_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_bad_images(tmp_path / "shards")
    first = open_streamed(Data(name=str(folder)))
    assert [s.samples for s in first.train] == [20, 20, 20]
    looked = []
    monkeypatch.setattr(
        streamed_module,
        "inspect_shard",
        lambda shard, retry: looked.append(shard.name) or streamed_module.Contents(1, None, (0, 1)),
    )
    assert open_streamed(Data(name=str(folder))).train == first.train and not looked
    tar_of(folder / "train-1.tar", [("x.png", png(1)), ("x.cls", b"1")])
    assert [s.samples for s in open_streamed(Data(name=str(folder))).train] == [20, 1, 20] and looked == ["train-1.tar"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shard", r"no folder of shards .*did you mean .*shards"),
        ("empty", r"holds no shards .*expected \.tar or \.parquet"),
        ("shards/train-{00003..00001}-of-00011.tar", r"names no shards: a range goes from the lower"),
        (
            "shards/train-00000-of-00011.tar",
            r"has 1 training shard and no validation shards; streaming takes at least two",
        ),
        ("hf:a/b/../c", r"expected hf:owner/name"),
    ],
)
def test_wrong_shard_names(name: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "shards")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        open_streamed(Data(name=name if name.startswith("hf:") else str(tmp_path / name), stream=True))


def test_shards_in_split_folders(tmp_path: Path) -> None:
    flat = write(tmp_path / "shards")
    (flat / "_info.json").unlink()
    for path in list(flat.iterdir()):
        split, _, rest = path.name.partition("-")
        (flat / split).mkdir(exist_ok=True)
        path.rename(flat / split / f"part-{rest}")
    assert is_streamed(Data(name=str(flat)))
    splits = open_streamed(Data(name=str(flat), classes="3"))
    assert {name: len(greys) for name, greys in greys_of(splits).items()} == {"train": 103, "val": 6, "test": 6}
    assert drawn(opened(flat, lanes=16, buffer=1), Run(batch_size=5), 20, 21)[1][0] == 21, "more lanes than rows"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards")
    (folder / "train-00004-of-00011.tar").unlink()
    with pytest.raises(ShardError, match=r"train-00004-of-00011\.tar is missing; .*_info\.json lists it"):
        open_streamed(Data(name=str(folder)))
    (folder / "_info.json").unlink()
    with pytest.raises(ValueError, match=r"incomplete: train-00004-of-00011\.tar missing"):
        open_streamed(Data(name=str(folder)))


# --- broken shards ------------------------------------------------------------------------------------------------


def test_truncated_shard_while_training(shards: Path) -> None:
    stream = opened(shards)
    victim = next(shards.glob("train-00005*"))
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with pytest.raises(ShardError, match=r"train-00005-of-00011\.(tar|parquet)"):
        drawn(stream, Run(batch_size=20), 1, 5)


def test_tar_cut_between_two_samples(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards")
    stream = opened(folder)
    victim = next(folder.glob("train-00005*"))
    with tarfile.open(victim) as tar:
        victim_end = tar.getmembers()[12].offset
    victim.write_bytes(victim.read_bytes()[:victim_end])
    with pytest.raises(
        ShardError, match=r"train-00005-of-00011\.tar holds 6 samples, expected at least 10: it is cut short"
    ):
        drawn(stream, Run(batch_size=20), 1, 5)


def test_missing_shard_while_training(shards: Path) -> None:
    stream = opened(shards)
    next(shards.glob("train-00005*")).unlink()
    with pytest.raises(ShardError, match=r"train-00005-of-00011\.(tar|parquet) cannot be read: No such file"):
        drawn(stream, Run(batch_size=20), 1, 5)


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    for kind in ("tar", "parquet"):
        folder = tmp_path / kind
        folder.mkdir()
        for k in range(3):
            (folder / f"{k}.{kind}").write_bytes(b"\0" * 100 + b"no shard" * 300)
        with pytest.raises(ShardError, match=rf"\d\.{kind} cannot be read: "):
            open_streamed(Data(name=str(folder), stream=True))


# --- servers ------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves a folder with Range requests; for each file, first answers as `plan` says.

    "500", "404"...: that status; "half": breaks off; "stall": sends half, then nothing; "silent": sends nothing; "no
    range": all of it."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.released = folder, threading.Event()
        self.plan: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client went away


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        s, name, asked = self.server, self.path.lstrip("/"), self.headers.get("Range", "")
        s.requests.append((name, asked))
        plan = (s.plan.get(name) or [""]).pop(0)
        path = s.folder / name
        if plan.isdigit() or not path.is_file():
            return self.send_error(int(plan or 404))
        content = path.read_bytes()
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and plan != "no range" else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: {"half": len(body) // 2, "stall": len(body) // 2, "silent": 0}.get(plan, len(body))])
        self.wfile.flush()
        if plan in ("stall", "silent"):
            s.released.wait(10)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Server]]:
    servers: list[Server] = []

    def start(folder: Path) -> Server:
        servers.append(Server(folder))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


Serve = Callable[[Path], Server]


def test_remote_shards_equal_local_ones(shards: Path, serve: Serve, home: Path) -> None:
    server, run = serve(shards), Run(batch_size=20)
    remote = opened(server.url)
    assert drawn(remote, run, 1, 7) == drawn(opened(shards), run, 1, 7)
    opened(server.url)
    val = next(p.name for p in shards.glob("val*"))
    assert [name for name, _ in server.requests].count(val) == 1
    assert not list((home / ".cache").rglob("train*")), "what is streamed is not kept"


@pytest.mark.parametrize("plan", [["500"], ["half"], ["stall"], ["500", "half"], ["half", "stall"]])
def test_failing_server_is_retried(plan: list[str], shards: Path, serve: Serve) -> None:
    server, run = serve(shards), Run(batch_size=20)
    stream = opened(server.url)
    train = [s.name for s in stream.shards]
    server.plan = {train[2]: list(plan), train[7]: list(plan)}
    assert drawn(stream, run, 1, 5) == drawn(opened(shards), run, 1, 5)
    assert not server.plan[train[2]] and not server.plan[train[7]]


@pytest.mark.parametrize(
    ("fault", "message"),
    [("503", r"answers 503 .*tried 3 times"), ("silent", r"silent for 0\.1 s \(tried 3"), ("404", "answers 404")],
)
def test_lasting_failure_names_the_shard(fault: str, message: str, tmp_path: Path, serve: Serve) -> None:
    folder = write(tmp_path / "shards")
    server = serve(folder)
    stream = opened(server.url, Retry(timeout_s=0.1, backoff_s=0.0))
    victim = stream.shards[5].name
    server.plan = {victim: [fault] * 99}
    began = time.monotonic()
    with pytest.raises(ShardError, match=rf"{re.escape(server.url)}/{re.escape(victim)} cannot be read: .*{message}"):
        drawn(stream, Run(batch_size=20), 1, 5)
    assert time.monotonic() - began < 3


def test_server_without_range_requests(tmp_path: Path, serve: Serve) -> None:
    server = serve(write(tmp_path / "shards", "parquet"))
    server.plan = {f"train-{k:05}-of-00011.parquet": ["no range"] * 99 for k in range(11)}
    with pytest.raises(ShardError, match="does not support Range requests"):
        drawn(opened(server.url), Run(batch_size=20), 1, 5)


def test_remote_file_that_changes_is_refused(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "x").write_bytes(bytes(3 << 20))
    with RemoteFile(f"{serve(tmp_path).url}/x", QUICK) as file:
        assert file.read(10) == bytes(10)
        (tmp_path / "x").write_bytes(bytes(4 << 20))
        file.seek(2 << 20)
        with pytest.raises(Refused, match="the file has changed since it was opened; it had 3,145,728 bytes then"):
            file.read(10)


def test_a_pattern_names_shards_on_a_server(tmp_path: Path, serve: Serve) -> None:
    server = serve(write(tmp_path / "shards"))
    name = f"{server.url}/train-{{00000..00003}}-of-00011.tar"
    assert is_streamed(Data(name=name))
    splits = open_streamed(Data(name=name, classes="3"), retry=QUICK)
    assert splits.name == "train" and splits.classes == ("0", "1", "2")
    found = greys_of(splits)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 40
    with pytest.raises(ValueError, match=r"_info\.json could not be read .*pattern such as"):
        open_streamed(Data(name=f"{server.url}/nothing"), retry=QUICK)


def test_streams_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub as hub

    folder = write(tmp_path / "shards", "parquet")
    (folder / "_info.json").unlink()
    tries: list[str] = []

    class FileSystem:
        def open(self, path: str, mode: str) -> Any:
            prefix, _, name = path.rpartition("/")
            assert prefix == "datasets/owner/insects@abc/data" and mode == "rb"
            tries.append(name)
            if tries.count(name) == 1:
                raise hub.errors.HfHubHTTPError.__mro__[1]("reset by peer")
            return open(folder / name, "rb")

    class Api:
        def dataset_info(self, repo: str) -> Any:
            assert repo == "owner/insects"
            files = [f"data/{p.name}" for p in folder.iterdir()] + ["README.md"]
            return type(
                "Info",
                (),
                {"siblings": [type("S", (), {"rfilename": f})() for f in files], "sha": "abc", "card_data": None},
            )()

    monkeypatch.setattr(hub, "HfFileSystem", FileSystem)
    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo, file, repo_type, revision: str(folder / Path(file).name))
    stream = opened("hf:owner/insects")
    assert stream.label_names.classes == CLASSES
    assert drawn(stream, Run(batch_size=20), 1, 7) == drawn(opened(folder), Run(batch_size=20), 1, 7)


# --- training -----------------------------------------------------------------------------------------------------


MODEL = dataclasses.replace(
    MIXERS["Pico/2"],
    image_size=4,
    patch_size=2,
    in_channels=1,
    num_blocks=1,
    hidden_dim=8,
    tokens_mlp_dim=4,
    channels_mlp_dim=8,
)


def recipe(folder: Path, **data: Any) -> Recipe:
    return Recipe(
        name="streamed",
        model=MODEL,
        data=Data(name=str(folder), lanes=4, buffer=24, **data),
        init=Init(stem="whitened"),
        augment=Augment(pad_crop_px=1, mixup=0.2),
        optim=Optim(ema_decay=0.9),
        run=Run(epochs=3, batch_size=16, save_every_s=0, log_every=2, device="cpu"),
    )


class Killed(Exception):
    pass


def test_killed_run_resumes_to_the_same_bits(shards: Path, tmp_path: Path) -> None:
    whole = train(recipe(shards), out=tmp_path / "whole")

    def kill(line: dict[str, Any]) -> None:
        if line["kind"] == "save" and line["step"] == 8:
            raise Killed

    with pytest.raises(Killed):
        train(recipe(shards), out=tmp_path / "killed", report=kill)
    again = train(recipe(shards), out=tmp_path / "killed", resume=True)
    first, second = (model_file.read_tensors(r.path / run_folder.MODEL_FILE)[0] for r in (whole, again))
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert again.summary["steps"] == 18 and again.summary["train_images"] == 103 and again.summary["test"]["n"] == 6
    assert evaluate(str(again.path)).top1 == again.summary["top1"]
    moved = shutil.copytree(shards, tmp_path / "moved")
    own = evaluate(str(again.path), str(moved))
    assert (own.n, own.top1) == (6, again.summary["top1"])
    assert str(own.scored) == "6 of the images of moved: test, as split when the model was trained"
    info = json.loads((moved / "_info.json").read_text())
    for values in info["splits"]["train"].values():
        if isinstance(values, list):
            values.pop()
    (moved / "_info.json").write_text(
        json.dumps(info)
    )  # other shards to train on; validation and test are known by content
    assert "6 of 112 images of moved: test, as split when" in str(evaluate(str(again.path), str(moved)).scored)


def test_foreign_shards_without_splits_are_scored_whole(shards: Path, tmp_path: Path) -> None:
    run = train(variant(recipe(shards), run={"epochs": 1}), out=tmp_path / "run").path
    other, names = tmp_path / "other", tmp_path / "names.txt"
    other.mkdir()
    names.write_text("\n".join(CLASSES))
    for i, shard in enumerate(sorted(shards.glob("train*"))[:2]):
        shutil.copy(shard, other / f"{i}{shard.suffix}")
    found = evaluate(str(run), Data(name=str(other), stream=True, classes=str(names)))
    assert found.scored and found.scored.split == "all" and found.n == found.scored.of and found.trained_on is None


def test_run_resumes_after_a_broken_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write(tmp_path / "shards"), tmp_path / "run"
    victim = folder / "train-00005-of-00011.tar"
    sound = victim.read_bytes()

    def cut(line: dict[str, Any]) -> None:
        if line["kind"] == "save" and line["step"] == 3:
            victim.write_bytes(sound[:3000])

    with pytest.raises(ShardError, match=re.escape(str(victim))):
        train(recipe(folder), out=out, report=cut)
    assert cli.main(["train", "--resume", str(out), "--quiet"]) == 1
    message = capsys.readouterr().err
    assert (
        str(victim) in message and f"to resume: mlpmixer train --resume {out}" in message and message.count("\n") == 1
    )
    victim.write_bytes(sound)
    assert cli.main(["train", "--resume", str(out), "--quiet"]) == 0
    assert "step 18 of 18" in capsys.readouterr().out


def test_other_shards_do_not_continue_a_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards")

    def kill(line: dict[str, Any]) -> None:
        if line["kind"] == "save":
            raise Killed

    with pytest.raises(Killed):
        train(recipe(folder), out=tmp_path / "run", report=kill)
    for path in folder.iterdir():
        path.unlink()
    write(folder, per_shard=20)
    with pytest.raises(ValueError, match=r"its data has changed since it was started: .*shards"):
        train(recipe(folder), out=tmp_path / "run", resume=True)


def test_summary_has_bad_images_from_before_a_restart(tmp_path: Path) -> None:
    folder = with_bad_images(tmp_path / "shards")

    def kill(line: dict[str, Any]) -> None:
        if line["kind"] == "save" and line["step"] == 6:
            raise Killed

    wanted = recipe(folder, max_bad_share=0.2)
    with pytest.raises(Killed):
        train(wanted, out=tmp_path / "run", report=kill)
    named = {name for name, _ in train(wanted, out=tmp_path / "run", resume=True).summary["bad_images"]}
    assert {"train-0.tar/a/003", "train-0.tar/a/007", "train-0.tar/a/011"} <= named


def test_what_needs_all_labels_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards")
    with pytest.raises(ValueError, match="class_weights=balanced counts the labels before training"):
        train(recipe(folder, class_weights="balanced"), out=tmp_path / "run")
    np.save(tmp_path / "logits.npy", np.zeros((103, 3), np.float32))
    taught = dataclasses.replace(
        recipe(folder), distill=dataclasses.replace(Recipe().distill, teacher=str(tmp_path / "logits.npy"))
    )
    with pytest.raises(ValueError, match="these images are streamed: use a network as teacher"):
        train(taught, out=tmp_path / "run")
    with pytest.raises(ValueError, match="103 training images do not fill a batch of 200"):
        train(dataclasses.replace(recipe(folder), run=Run(batch_size=200)), out=tmp_path / "run")


# --- writing ------------------------------------------------------------------------------------------------------


def test_data_shards_writes_what_train_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    for i in range(40):
        path = photos / ("ant" if i % 2 else "bee") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (i, 0, 0)).save(path, quality=95)
    (photos / "ant" / "broken.jpg").write_bytes(b"no image")
    originals = sorted(p.read_bytes() for p in photos.rglob("*.jpg") if p.name != "broken.jpg")
    for kind in ("tar", "parquet"):
        out = tmp_path / kind
        assert cli.main(["data", "shards", str(photos), str(out), "--format", kind, "--per-shard", "8"]) == 1
        printed = capsys.readouterr()
        assert "broken.jpg" in printed.err and f"mlpmixer train {out}" in printed.out
        splits = open_streamed(Data(name=str(out)))
        assert splits.classes == ("ant", "bee") and splits.test is not None
        streamed = [s.content for shard in splits.train for s in read_rows(shard, 0, shard.samples, QUICK)]
        by_index = [images.source(i) for images in (splits.val, splits.test) for i in range(len(images))]
        assert sorted([*streamed, *by_index]) == originals, "the files' own bytes"  # type: ignore[type-var]
        assert cli.main(["data", "shards", str(photos), str(out)]) == 2
        assert "not an empty folder" in capsys.readouterr().err


def test_parquet_shards_open_unstreamed(tmp_path: Path) -> None:
    folder = write(tmp_path / "shards", "parquet")
    (folder / "_info.json").unlink()
    splits = open_data(Data(name=str(folder)))
    assert (len(splits.train), len(splits.val), splits.classes) == (103, 6, CLASSES)
