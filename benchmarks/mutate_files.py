"""What damaged and hostile files do to all that reads files: python benchmarks/mutate_files.py --files 1000

Good files of every format (a run and each file in it, exports, weights of other code, data sets, shards, listings,
labels, images) are made, and one at a time is damaged: bits and bytes changed, runs cut, doubled or replaced, lengths
set to their extremes; behind compression, checksums and digests too, which are mended so that what is behind them is
reached; and values of JSON replaced by hostile ones. What a command would do with the file is done in a process of its
own, with --memory-mib of address space beyond what it starts with and a limit of time. Good ends are a result, and a
ValueError or an OSError of one line, which fits on a screen and names the file or its folder. All else (another
exception, a crash, too much memory, a hang) is saved to --out, and makes the exit code 1.

File i is made from --seed and i alone: --only I does it again, with its traceback. The last line is JSON: counts by
format and end, and the slowest.
"""

import argparse
import faulthandler
import gzip
import io
import json
import logging
import lzma
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzz_uploads import MUTATIONS, mend_png
from PIL import Image

from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data, open_images
from mlpmixer.data.images import ImageError, decode
from mlpmixer.data.real_labels import read_real
from mlpmixer.data.streaming.datasets import open_streamed
from mlpmixer.data.streaming.shards import read_rows
from mlpmixer.download import Retry
from mlpmixer.exporters.export import export
from mlpmixer.inference.load import load
from mlpmixer.inference.onnx_model import open_onnx
from mlpmixer.models.architecture import create_model
from mlpmixer.models.configs import MixerConfig
from mlpmixer.training.distillation import open_teacher
from mlpmixer.training.recipe import Recipe, Run
from mlpmixer.training.run import train
from mlpmixer.weights.formats import to_foreign, write_foreign
from mlpmixer.weights.load import load_weights
from mlpmixer.weights.model_file import DIGEST, read_tensors

TINY = MixerConfig(image_size=8, patch_size=4, num_blocks=1, hidden_dim=16, tokens_mlp_dim=4, channels_mlp_dim=8)
PIXELS = np.zeros((8, 8), np.uint8)
CHUNK = 50  # files that a process does before another one takes over
MAX_MESSAGE = 2000  # characters: a screen
PLACE = "its-folder"


# --- damage -----------------------------------------------------------------------------------------------------------

NUMBERS = [True, -1, 0, 1, 2**31, 10**9, 2**63, 10**18, 10**400, -(10**18), 0.5, float("nan"), 1e308]
TEXTS = [
    "",
    "x" * 10**5,
    "\ud800",
    "\0",
    "\x1b[2J\n",
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "1" * 5000,
]
HOSTILE: list[Any] = [None, *NUMBERS, *TEXTS, [], {}, [[]], [0] * 1000, ["a", "a"], {"a": {}}, [10**9, 10**9]]


def raw(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, as of uploads."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if data:
            rng.choice(MUTATIONS)(data, rng)
    return bytes(data)


def of_json(content: bytes, rng: random.Random) -> bytes:
    """A value replaced, a key renamed or gone, or so much or so deep that a parser would fill memory or stack."""
    value = json.loads(content)
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        inside = waiting.pop()
        keys = list(inside) if isinstance(inside, dict) else range(min(len(inside), 50))
        places += [(inside, key) for key in keys]
        waiting += [inside[key] for key in keys if isinstance(inside[key], dict | list)]
    if not places or rng.random() < 0.1:
        return rng.choice(
            (b"[" * 10**5, b"[" + b"[]," * 10**7 + b"[]]", b'{"a":' * 900 + b"1" + b"}" * 900, b"[]", b"1")
        )
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        inside, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.8:
            inside[key] = rng.choice(HOSTILE)
        elif isinstance(inside, dict):
            gone = inside.pop(key, None)
            if kind < 0.9:
                inside[rng.choice(("", "x" * 10**5, "\ud800", f"{key}s"))] = gone
    return json.dumps(value).encode()


def of_lines(content: bytes, rng: random.Random) -> bytes:
    """One line of JSON replaced."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    return b"".join([*lines[:at], of_json(lines[at], rng).strip() + b"\n", *lines[at + 1 :]])


def of_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header, or the JSON in it, with the digest left out; sometimes the tensors."""
    (length,) = struct.unpack("<Q", content[:8])
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    stored = header.get("__metadata__", {}).get("mlpmixer")
    if stored:
        stored = json.loads(stored)
        stored.pop(DIGEST, None)
        text = json.dumps(stored).encode()
        header["__metadata__"]["mlpmixer"] = (of_json(text, rng) if rng.random() < 0.6 else text).decode()
    else:
        stored = None
    text = json.dumps(header).encode()
    if stored is None or rng.random() < 0.4:
        text = of_json(text, rng)
    if rng.random() < 0.2:
        tensors = raw(tensors, rng)
    return struct.pack("<Q", len(text)) + text + tensors


def of_zip(content: bytes, rng: random.Random) -> bytes:
    """One member, its checksum mended; or the same one, compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(out, "w") as after:
        names = before.namelist()
        chosen, zeros = rng.choice(names), rng.random() < 0.1
        for name in names:
            inside = before.read(name)
            if name == chosen:
                inside = inside[:200] + bytes(10**8) if zeros else raw(inside, rng)
            after.writestr(name, inside, zipfile.ZIP_DEFLATED if zeros else zipfile.ZIP_STORED)
    return out.getvalue()


def of_tar(content: bytes, rng: random.Random) -> bytes:
    """The checksums of the headers mended, as far as the sizes lead."""
    data, at = bytearray(raw(content, rng)), 0
    while at + 512 <= len(data):
        block = bytes(data[at : at + 148]) + b" " * 8 + bytes(data[at + 156 : at + 512])
        data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
        size = bytes(data[at + 124 : at + 135]).strip(b"\0 ")
        at += 512 + (int(size, 8) + 511) // 512 * 512 if size and set(size) <= set(b"01234567") else 512
    return bytes(data)


def of_onnx(content: bytes, rng: random.Random) -> bytes:
    """The JSON in its metadata."""
    import onnx

    model = onnx.load_from_string(content)
    for entry in model.metadata_props:
        with_surrogates = of_json(entry.value.encode(), rng).decode()
        entry.value = with_surrogates if len(with_surrogates) < 10**6 else "[" * 10**5
    return bytes(model.SerializeToString())


def repacked(
    pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]
) -> Callable[[bytes, random.Random], bytes]:
    return lambda content, rng: pack(of_tar(unpack(content), rng) if rng.random() < 0.3 else raw(unpack(content), rng))


BEHIND: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": of_json,
    ".jsonl": of_lines,
    ".safetensors": of_safetensors,
    ".npz": of_zip,
    ".pth": of_zip,
    ".tar": of_tar,
    ".onnx": of_onnx,
    ".gz": repacked(gzip.compress, gzip.decompress),
    ".xz": repacked(lzma.compress, lzma.decompress),
    ".png": lambda content, rng: mend_png(raw(content, rng)),
}


def damaged(name: str, content: bytes, rng: random.Random) -> bytes:
    way = BEHIND.get(os.path.splitext(name)[1], raw)
    return way(content, rng) if rng.random() < 0.6 else raw(content, rng)


# --- formats ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A folder of good files, those of them that are damaged, and what a command does with the folder."""

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], object]


def predicted(path: Path) -> object:
    model = load(path)
    return model.predict(PIXELS if model.preprocess.in_channels == 1 else np.dstack([PIXELS] * 3))


def all_read(folder: Path) -> object:
    """Every image of a data set."""
    splits = open_data(Data(name=str(folder)))
    return [decoded(images) for images in (splits.train, splits.val, splits.test) if images]


def all_streamed(folder: Path) -> object:
    splits = open_streamed(
        Data(name=str(folder), stream=True), cache_dir=folder / "cache", retry=Retry(timeout_s=1, attempts=1)
    )
    for shard in splits.train:
        list(read_rows(shard, 0, shard.samples, Retry(attempts=1)))
    return decoded(splits.val)


def decoded(images: Any) -> list[str]:
    """What is wrong with the images, as a run would list it."""
    return [ended(lambda i=i: decode(images.source(i), "RGB"), PLACE) for i in range(min(len(images), 20))]


def named(name: str) -> Callable[[Path], object]:
    return lambda folder: len(open_images(Data(name=name, data_dir=str(folder)), "all"))


def resumed(folder: Path) -> object:
    recipe = replace(RECIPE, run=replace(RECIPE.run, steps=2))
    return train(recipe, out=folder / "run", resume=True)


RECIPE = Recipe(name="digits", model=TINY, run=Run(steps=2, batch_size=8, device="cpu", kernels="torch"))


def picture(rng: np.random.Generator, kind: str = "PNG", size: int = 12) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8).astype(np.uint8)).save(out, kind)
    return out.getvalue()


def write_idx(folder: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    for stem, n in (("train", 30), ("t10k", 10)):
        pixels, labels = bytes(n * 784), bytes(i % 10 for i in range(n))
        head = struct.pack(">4BI", 0, 0, 8, 3, n) + struct.pack(">II", 28, 28)
        (folder / f"{stem}-images-idx3-ubyte{suffix}").write_bytes(pack(head + pixels))
        (folder / f"{stem}-labels-idx1-ubyte{suffix}").write_bytes(pack(struct.pack(">4BI", 0, 0, 8, 1, n) + labels))


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_teacher(path: Path, export: Path) -> None:
    """A linear classifier of float images, with the metadata of an export."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 10])
    weights = onnx.numpy_helper.from_array(np.ones((64, 10), np.float32), "w")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weights]), ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    helper.set_model_props(model, {p.key: p.value for p in onnx.load(str(export)).metadata_props})
    onnx.save(model, str(path))


def make(root: Path) -> dict[str, Format]:
    """Good files of every format. Each is read once as it is."""
    rng, found = np.random.default_rng(0), dict[str, Format]()

    def add(name: str, read: Callable[[Path], object], *files: str) -> None:
        folder = root / name
        chosen = files or tuple(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()))
        found[name] = Format(folder, chosen, read)

    def folder(name: str) -> Path:
        (root / name).mkdir()
        return root / name

    run = train(RECIPE, out=folder("run") / "run").path
    add(
        "run",
        resumed,
        *(
            f"run/{name}"
            for name in ("recipe.json", "splits.json", "metrics.jsonl", "summary.json", "env.json", "model.safetensors")
        ),
    )
    state = next((run / "checkpoints").iterdir(), None)
    shutil.copy(state or run / "model.safetensors", folder("state") / "state.safetensors")
    add("state", lambda at: read_tensors(at / "state.safetensors"))
    shutil.copy(run / "model.safetensors", folder("model"))
    add("model", lambda at: predicted(at / "model.safetensors"))
    for target, file in (("onnx", "m.onnx"), ("openvino", "m.xml"), ("bundle", "b")):
        to = folder(target) / file
        apart(lambda target=target, to=to: export(run, target, out=to))
        add(target, lambda at, file=file: predicted(at / file))
    write_teacher(folder("teacher") / "m.onnx", root / "onnx" / "m.onnx")
    add("teacher", lambda at: open_onnx(at / "m.onnx", threads=1))
    model = create_model(TINY, num_classes=10)
    theirs = to_foreign(model.cfg, model.state_dict(), "timm")
    for form, file in (("official", "w.npz"), ("timm", "w.safetensors")):
        write_foreign(folder(form) / file, model.cfg, model.state_dict(), form)
        add(form, lambda at, file=file: load_weights(at / file))
    for name, file, zipped in (("pth", "w.pth", True), ("old pth", "w.pt", False)):
        content = {"state_dict": theirs, "epoch": 3, "args": argparse.Namespace(a=1)}
        torch.save(content, folder(name) / file, _use_new_zipfile_serialization=zipped)
        add(name, lambda at, file=file: load_weights(at / file))
    logits = rng.normal(size=(40, 10)).astype(np.float32)
    np.save(folder("logits npy") / "t.npy", logits)
    hashes, names = rng.integers(0, 2**63, 40).astype(np.uint64), [str(i) for i in range(10)]
    np.savez_compressed(folder("logits npz") / "t.npz", logits=logits, hashes=hashes, classes=names)
    for file in ("t.npy", "t.npz"):
        add(f"logits {file[2:]}", lambda at, file=file: open_teacher(str(at / file)))

    packs: dict[str, Callable[[bytes], bytes]] = {"": lambda b: b, ".gz": gzip.compress, ".xz": lzma.compress}
    for suffix, pack in packs.items():
        write_idx(folder(f"idx{suffix}"), suffix, pack)
        add(f"idx{suffix}", named("mnist"))
    batches = {n: np.zeros((10, 3072), np.uint8) for n in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")}
    for protocol in (2, 5):
        at = folder(f"cifar pickle {protocol}")
        for name, pixels in batches.items():
            labels = list(range(10))
            (at / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels, "filenames": ["x"] * 10}, protocol))
        add(at.name, named("cifar10"))
    files = {name: (root / "cifar pickle 2" / name).read_bytes() for name in batches}
    write_tar(folder("cifar tar") / "c.tar", files)
    (root / "cifar tar" / "cifar-10-python.tar.gz").write_bytes(
        gzip.compress((root / "cifar tar" / "c.tar").read_bytes())
    )
    add("cifar tar", named("cifar10"), "cifar-10-python.tar.gz")
    rows = np.hstack([np.arange(10, dtype=np.uint8)[:, None], batches["test_batch"]]).tobytes()
    for name in batches:
        (root / "cifar binary").mkdir(exist_ok=True)
        (root / "cifar binary" / f"{name}.bin").write_bytes(rows)
    add("cifar binary", named("cifar10"))

    samples = [(picture(rng), i % 3) for i in range(12)]
    for name, compression in (("parquet", "snappy"), ("streamed parquet", "zstd")):
        for split in ("train", "val"):
            images = pa.array([{"bytes": content, "path": f"{i}.png"} for i, (content, _) in enumerate(samples)])
            table = pa.table({"image": images, "label": pa.array([label for _, label in samples])})
            features = {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            (root / name).mkdir(exist_ok=True)
            pq.write_table(table, root / name / f"{split}.parquet", compression=compression, row_group_size=5)
        add(name, all_streamed if "streamed" in name else all_read)
    for name in ("tar cls", "tar json", "listing"):
        at = folder(name)
        for split in ("train", "val"):
            kind = "json" if "json" in name else "cls"
            label = (lambda n: json.dumps({"label": n, "x": [1]}).encode()) if kind == "json" else (lambda n: b"%d" % n)
            content = {f"{i}.png": image for i, (image, _) in enumerate(samples)}
            content |= {f"{i}.{kind}": label(number) for i, (_, number) in enumerate(samples)}
            write_tar(at / f"{split}-0.tar", dict(sorted(content.items())))
        (at / "classes.txt").write_text("a\nb\nc\n")
        add(name, all_streamed)
    splits = {s: {"filenames": [f"{s}-0.tar"], "shard_lengths": [12]} for s in ("train", "val")}
    (root / "listing" / "_info.json").write_text(json.dumps({"splits": splits, "classes": ["a", "b", "c"]}))
    add("listing", all_streamed, "_info.json", "_info.json", "_info.json", "classes.txt")
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "TGA", "JPEG2000", "AVIF"):
        suffix = {"JPEG2000": "jp2"}.get(kind, kind.lower())
        for label in "ab":
            for i in range(3):
                (root / "images" / label).mkdir(parents=True, exist_ok=True)
                try:
                    (root / "images" / label / f"{kind}{i}.{suffix}").write_bytes(picture(rng, kind, 16))
                except (KeyError, OSError):  # a Pillow without it
                    continue
    add("images", all_read)
    table = folder("table")
    for i in range(12):
        (table / f"{i}.png").write_bytes(picture(rng))
    rows = "".join(f"{i}.png,{'abc'[i % 3]},{('train', 'val')[i % 2]}\n" for i in range(12))
    (table / "labels.csv").write_text(f"file,label,split\n{rows}")
    add("table", lambda at: all_read(at / "labels.csv"), "labels.csv")
    (folder("real") / "real.json").write_text(json.dumps([[i % 1000] for i in range(50_000)]))
    add("real", lambda at: read_real(at / "real.json"))
    for name, form in found.items():
        apart(lambda form=form, name=name: form.read(copied(form, root / "good" / PLACE)))
    return found


def apart(work: Callable[[], object]) -> None:
    """Done in a process of its own: the threads of engines do not survive the forks that follow."""
    if (pid := os.fork()) == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0, "a good file is not read, see above"


def copied(form: Format, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(form.folder, to)
    return to


def ended(read: Callable[[], object], *names: str) -> str:
    """read, or the kind of a good refusal; any other exception passes. An AssertionError for a bad message."""
    try:
        read()
    except (ValueError, OSError) as e:
        text = str(e)
        assert "\n" not in text and len(text) <= MAX_MESSAGE, f"a message of {len(text)} characters: {text[:300]!r}"
        named = any(name in text for name in names) or isinstance(e, ImageError)
        assert named, f"a message that names no file: {text[:300]!r}"
        return "refused"
    return "read"


# --- the attack -------------------------------------------------------------------------------------------------------


class TooSlow(BaseException):
    """A file took longer than it may."""


def prepared(formats: dict[str, Format], to: Path, seed: int, i: int) -> tuple[str, str, Callable[[], object]]:
    """(format, file, what is done) of file i, which is written."""
    rng = random.Random(f"{seed} {i}")
    name = list(formats)[i % len(formats)]
    form = formats[name]
    folder, file = copied(form, to / PLACE), rng.choice(form.files)
    (folder / file).write_bytes(damaged(file, (folder / file).read_bytes(), rng))
    return name, file, lambda: form.read(folder)


def child(formats: dict[str, Format], to: Path, numbers: list[int], args: argparse.Namespace, pipe: Any) -> None:
    """Writes a line of JSON before and after each file."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + args.memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def slow(*_: Any) -> None:
        raise TooSlow(f"more than {args.seconds} s")

    signal.signal(signal.SIGALRM, slow)
    for i in numbers:
        name, file, read = prepared(formats, to, args.seed, i)
        print(json.dumps([i, name, file]), file=pipe, flush=True)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, args.seconds)
        faulthandler.dump_traceback_later(3 * args.seconds, exit=True)  # where no signal gets through
        try:
            said = [ended(read, PLACE, Path(file).name), ""]
        except BaseException:
            said = ["finding", traceback.format_exc()]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps([i, *said, time.process_time() - start]), file=pipe, flush=True)


def attack(formats: dict[str, Format], to: Path, numbers: list[int], args: argparse.Namespace) -> list[list[Any]]:
    """[format, file, end, traceback, seconds, number] of each, in a process that may die of it."""
    ends: list[list[Any]] = []
    while numbers:
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(read)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            try:
                with os.fdopen(write, "w") as pipe:
                    child(formats, to, numbers, args, pipe)
                os._exit(0)
            except BaseException:
                Path(to / "broken").write_text(traceback.format_exc())
                os._exit(1)
        os.close(write)
        at: list[Any] | None = None
        with os.fdopen(read) as pipe:
            for line in pipe:
                said = json.loads(line)
                if at is None:
                    at = said
                else:
                    ends.append([*at[1:], *said[1:], at[0]])
                    at = None
        _, status = os.waitpid(pid, 0)
        if at is not None:
            ends.append([*at[1:], "finding", f"the process died: {os.waitstatus_to_exitcode(status)}", 0.0, at[0]])
        done = {end[-1] for end in ends}
        left = [i for i in numbers if i not in done]
        assert len(left) < len(numbers), (to / "broken").read_text()
        numbers = left
    return ends


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this file alone, here, with its traceback")
    parser.add_argument("--seconds", type=float, default=20, help="limit for one file")
    parser.add_argument("--memory-mib", type=int, default=1024, help="address space for one file")
    parser.add_argument("--out", default="mutated", metavar="DIR", help="where findings are saved")
    args = parser.parse_args(words)
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # threads do not survive a fork
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        formats = make(Path(scratch))
        if args.only is not None:
            name, file, read = prepared(formats, Path(scratch), args.seed, args.only)
            print(name, file, (Path(scratch) / PLACE / file).read_bytes()[:300])
            print(read())
            return 0
        counts, slowest, findings = Counter[str](), (0.0, -1), 0
        numbers = list(range(args.first, args.first + args.files))
        for at in range(0, len(numbers), CHUNK):
            for name, file, end, why, seconds, i in attack(formats, Path(scratch), numbers[at : at + CHUNK], args):
                counts[f"{name}: {end}"] += 1
                slowest = max(slowest, (seconds, i))
                if end == "finding":
                    findings += 1
                    print(
                        f"file {i}, {name}, {file}: {why.strip().splitlines()[-1][:300]}", file=sys.stderr, flush=True
                    )
                    folder = Path(args.out)
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{args.seed}-{i}.txt").write_text(f"{name}, {file}\n{why}\n", encoding="utf-8")
    slow = {"file": slowest[1], "cpu_s": round(slowest[0], 3)}
    took = round(time.monotonic() - start, 1)
    ends = dict(sorted(counts.items()))
    print(json.dumps({"files": sum(counts.values()), "seed": args.seed, "s": took, "ends": ends, "slowest": slow,
                      "findings": findings}))  # fmt: skip
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
