"""Data files that claim more than they hold, or point elsewhere: one line, and no memory beyond their size."""

import _codecs
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.datasets import write_idx
from helpers.processes import python
from PIL import Image

from mlpmixer import download
from mlpmixer.data.bounded import BoundedFile, file_below
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.data.readers import cifar, files, parquet
from mlpmixer.data.real_labels import read_real
from mlpmixer.data.streaming.datasets import open_streamed
from mlpmixer.data.streaming.listing import find_shards, read_classes
from mlpmixer.data.streaming.shards import Shard, ShardError, index_shard, inspect_shard, read_rows
from mlpmixer.download import Connection, Refused, Retry

QUICK = Retry(timeout_s=2, attempts=1, backoff_s=0)
SPARE = 2_000_000  # bytes that Python itself may take


def refused(read: Callable[[], object], says: str, most_bytes: int = SPARE) -> None:
    """One short line, and no more memory."""
    tracemalloc.start()
    with pytest.raises(ValueError, match=says) as e:
        read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(e.value) and len(str(e.value)) < 700
    assert peak < most_bytes, f"{peak:,} bytes"


class SameText:
    def __reduce__(self) -> tuple[object, ...]:
        return _codecs.encode, (TEXT, "latin1")


TEXT = "x" * 100_000


def pickles() -> Iterator[tuple[str, bytes, str]]:
    pixels, laughs = np.zeros((2, 3072), np.uint8), [0] * 10
    for _ in range(9):
        laughs = [laughs] * 10
    yield "a memo of 2 GiB", bytes.fromhex("80024e72000000082e"), "a memo of 134,217,728 places"
    yield "a memo of 2 GiB in text", b"(dp134217728\n.", "a memo of 134,217,728 places"
    yield "bytes that are not there", b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "not a CIFAR batch"
    yield "a bytearray that is not there", b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", "not a CIFAR batch"
    yield "a frame that is not there", b"\x80\x05\x95" + struct.pack("<Q", 1 << 40) + b"N.", "not a CIFAR batch"
    yield "lists of lists", pickle.dumps({"data": pixels, "labels": laughs}), "not a list of whole numbers"
    yield (
        "text again and again",
        pickle.dumps([SameText() for _ in range(999)], 2),
        "again and again",
    )
    for way, double in ("DUP", b"2\x86"), ("the memo", b"q\x00h\x00\x86"):
        yield f"a key of 2^40 values by {way}", b"})" + double * 40 + b"Ns.", "the same tuples again and again"
    yield "a key deeper than the C stack", b"})" + b"\x85" * 10**6 + b"Ns.", "more than 100 tuples nested in each other"
    ndarray, lists = b"cnumpy\nndarray\n", b"]" + b"q\x000](h\x00h\x00e" * 40
    yield "an array of lists by reference", ndarray + lists + b"\x85R.", "it holds arrays of list"
    yield "a module of a million letters", b"c" + b"o" * 10**6 + b"\nsystem\n.", "it asks for 'ooo"
    yield "a number of a million digits", b"I" + b"9" * 10**6 + b"\n.", "not a CIFAR batch"
    yield "numbers beyond 64 bits", pickle.dumps({"data": pixels, "labels": [2**64, 1]}), "not a CIFAR batch"


@pytest.mark.parametrize(("content", "says"), [p[1:] for p in pickles()], ids=[p[0] for p in pickles()])
def test_pickle_takes_no_memory_that_it_does_not_fill(content: bytes, says: str) -> None:
    refused(lambda: cifar._python(content, "data_batch_1", key="labels"), says, 6 * len(content) + SPARE)


def test_compressed_file_unpacks_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAX_BYTES", 3_000_000)
    for suffix, pack in ((".gz", gzip.compress), (".xz", lzma.compress)):
        path = tmp_path / f"train-images-idx3-ubyte{suffix}"
        path.write_bytes(pack(bytes(30_000_000)))
        refused(lambda p=path: files._unpacked(str(p)), "unpacks to more than 2 MiB", 20_000_000)


def test_several_streams_of_xz_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.xz").write_bytes(lzma.compress(b"ab" * 10**6) + bytes(4) + lzma.compress(b"c"))
    assert files._unpacked(str(tmp_path / "a.xz")) == b"ab" * 10**6 + b"c"
    (tmp_path / "a.xz").write_bytes(lzma.compress(b"ab" * 10**6)[:-20])
    refused(lambda: files._unpacked(str(tmp_path / "a.xz")), "damaged or cut short", 20_000_000)


def test_xz_that_asks_for_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    content = bytearray(lzma.compress(b"x"))
    header = 4 * (content[12] + 1)  # of the block; then its last byte but the padding and the CRC32 is the dictionary
    content[12 + 4] = 40  # 4 GiB
    content[12 + header - 4 : 12 + header] = struct.pack("<I", zlib.crc32(content[12 : 12 + header - 4]))
    (tmp_path / "a.xz").write_bytes(content)
    refused(lambda: files._unpacked(str(tmp_path / "a.xz")), "Memory usage limit")


def test_idx_files_are_read_under_a_limit_of_the_address_space(tmp_path: Path) -> None:
    for suffix in (".gz", ".xz"):
        write_idx(tmp_path, suffix=suffix)
        done = python(
            "import resource\n"
            "from mlpmixer.data.readers.idx import IDX\n"
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
            f"print(len(IDX.read(IDX.find({str(tmp_path)!r}), [str(i) for i in range(10)])['train']))"
        )
        assert int(done.stdout) > 0, done.stderr


def tar_member(name: str, size: int, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


TARS = {
    "a member of 4 EiB": tar_member("0.png", 1 << 62, content=b"x" * 2000),
    "a label of 4 EiB": tar_member("0.cls", 1 << 62, content=b"x" * 2000),
    "a member of 4 EiB behind a sound one": tar_member("0.cls", 1, content=b"1") + tar_member("0.png", 1 << 62),
    "a header of 4 EiB": tar_member("0", 1 << 62, tarfile.XHDTYPE, b"x" * 2000),
    "a name of 2 GiB": tar_member("0", 1 << 31, tarfile.GNUTYPE_LONGNAME, b"x" * 2000),
    "a negative size": tar_member("0.cls", -1024, content=b"1"),
    "a header of negative size": tar_member("0", -1024, tarfile.XHDTYPE, b"1" * 600),
    "headers without end": tar_member("0", 0, tarfile.XHDTYPE) * 3000,
}


@pytest.mark.parametrize("case", TARS)
def test_tar_that_claims_more_than_it_holds_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "train-0.tar"
    path.write_bytes(TARS[case])
    shard = Shard(str(path))
    for read in (
        lambda: inspect_shard(shard, QUICK),
        lambda: index_shard(shard),
        lambda: [*read_rows(shard, 0, 1, QUICK)],
    ):
        refused(read, r"train-0\.tar (cannot be read|holds 0 samples)", 2 * len(TARS[case]) + SPARE)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(gzip.compress(TARS[case].replace(b"0.png", b"test_batch"[:5])))
    with pytest.raises(ValueError, match=r"cifar10|damaged"):
        open_data(Data(name="cifar10", data_dir=str(tmp_path)))


def test_sparse_member_of_an_archive_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    member = bytearray(tar_member("test_batch", 0, tarfile.GNUTYPE_SPARSE))
    member[483:495] = b"%011o\0" % (1 << 27)  # the size with its holes
    member[148:156] = b"        "
    member[148:156] = b"%06o\0 " % sum(member[:512])
    (tmp_path / "cifar-10-python.tar").write_bytes(bytes(member) + bytes(1024))
    found = cifar.CIFAR10.find(str(tmp_path))
    assert "test_batch" not in found


def picture(value: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def write_tar(path: Path, label: Callable[[int], bytes] = lambda i: b"%d" % (i % 2), suffix: str = "cls") -> None:
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            for name, content in ((f"{i}.png", picture(i)), (f"{i}.{suffix}", label(i))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("label", [b'{"label":' + b"[" * 50_000, b'{"label": 1e400}', b'{"label": "\\ud800"}', b"[]"])
def test_label_that_is_hostile_json_is_none(label: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", lambda i: label, "json")
    assert inspect_shard(Shard(str(tmp_path / "train-0.tar")), QUICK).labels == ()


def write_parquet(path: Path, labels: pa.Array, content: bytes | None = None) -> None:
    images = pa.array([content or picture(i % 9) for i in range(len(labels))])
    pq.write_table(pa.table({"image": images, "label": labels}), path)


@pytest.mark.parametrize("stream", [False, True])
def test_parquet_labels_are_any_whole_numbers_or_text_and_nothing_else(tmp_path: Path, stream: bool) -> None:
    for labels in (
        pa.array([2**64 - 1, 2**63, 1] * 8, pa.uint64()),
        pa.array([-(2**62), 2**62, 1] * 8),
        pa.array([200, 100, 1] * 8, pa.uint8()),
        pa.array(["a", "b", "c"] * 8).dictionary_encode(),
    ):
        for split in ("train", "val"):
            write_parquet(tmp_path / f"{split}.parquet", labels)
        data = Data(name=str(tmp_path), stream=stream)
        splits = open_streamed(data, cache_dir=tmp_path / "cache") if stream else open_data(data)
        assert len(splits.classes) == 3 and splits.val.counts().tolist() == [8, 8, 8]
    for labels in (
        pa.array([[0.5], [2]] * 12),
        pa.array([[[1]], [[2]]] * 12),
        pa.array([{"a": 1}] * 24),
        pa.array([0.5, 1] * 12),
        pa.array([True] * 24),
    ):
        write_parquet(tmp_path / "train.parquet", labels)
        data = Data(name=str(tmp_path), stream=stream)
        with pytest.raises(ValueError, match=r"train\.parquet: labels must be whole numbers or text"):
            _ = open_streamed(data, cache_dir=tmp_path / "cache") if stream else open_data(data)


def test_parquet_of_one_image_in_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "SPARE_BYTES", 10**6)
    write_parquet(tmp_path / "train.parquet", pa.array([0, 1] * 1000), b"x" * 10_000)
    assert (tmp_path / "train.parquet").stat().st_size < 10**5
    with pytest.raises(ValueError, match=r"not a readable Parquet file: its .* bytes unpack to more"):
        open_data(Data(name=str(tmp_path)))
    assert pa.total_allocated_bytes() < 10**7


# ---- what a listing names


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Path]:
    """A folder whose _info.json names a shard of this name, beside a tar outside of it."""
    write_tar(tmp_path / "outside.tar")
    folder = tmp_path / "data"
    (folder / "below").mkdir(parents=True)
    for name in ("in.tar", "below/in.tar"):
        write_tar(folder / name)
    os.symlink(tmp_path / "outside.tar", folder / "link.tar")
    os.symlink(tmp_path, folder / "up")

    def write(file: object, samples: object = 4, **more: object) -> Path:
        splits = {
            "train": {"filenames": [file], "shard_lengths": [samples]},
            "val": {"filenames": ["in.tar"], "shard_lengths": [4]},
        }
        (folder / "_info.json").write_text(json.dumps({"splits": splits, **more}))
        return folder

    return write


def opened(folder: Path) -> object:
    return open_streamed(Data(name=str(folder)), cache_dir=folder.parent / "cache", retry=QUICK)


@pytest.mark.parametrize("name", ["in.tar", "below/in.tar", "./in.tar", "below/../in.tar"])
def test_listing_of_a_folder_names_what_lies_below_it(name: str, listed: Callable[..., Path]) -> None:
    opened(listed(name))


@pytest.mark.parametrize("name", ["../outside.tar", "OUTSIDE", "link.tar", "up/outside.tar", "/etc/passwd"])
def test_listing_of_a_folder_names_nothing_elsewhere(name: str, listed: Callable[..., Path], tmp_path: Path) -> None:
    name = str(tmp_path / "outside.tar") if name == "OUTSIDE" else name
    refused(lambda: opened(listed(name)), r"_info\.json lists .*; expected only files in its folder or below it")


@pytest.mark.parametrize(
    ("file", "samples", "more", "says"),
    [
        (5, 4, {}, "got .*not 'int'"),
        ("a\0.tar", 4, {}, "is missing"),
        ("x" * 10**6, 4, {}, "lists|name too long"),
        ("in.tar", 10**30, {}, "a shard of 1000"),
        ("in.tar", -1, {}, "a shard of -1 samples"),
        ("in.tar", True, {}, "a shard of True samples"),
        ("in.tar", 4, {"classes": "ab"}, "classes 'ab'"),
        ("in.tar", 4, {"classes": ["0", "0"]}, "two classes have the same name, '0'"),
        ("in.tar", 4, {"classes": ["0", "\ud800"]}, "surrogates"),
        ("in.tar", 4, {"labels": "x" * 10**6}, 'expected "labels" to be'),
    ],
)
def test_listing_with_wrong_values_is_refused(
    file: object, samples: object, more: dict[str, object], says: str, listed: Callable[..., Path]
) -> None:
    refused(lambda: opened(listed(file, samples, **more)), says, 10**8)


class Server(ThreadingHTTPServer):
    pages: dict[str, tuple[int, dict[str, str], bytes]]

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what is tested."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = self.server.pages.get(self.path, (404, {}, b""))  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.pages = {}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    "name",
    [
        "file:///etc/passwd",
        "http://other.invalid/x.tar",
        "//other.invalid/x.tar",
        "../x.tar",
        "/x.tar",
        "%2e%2e/x.tar",
        "a/..%2f..%2fx.tar",
        "..\\x.tar",
        "HERE@other.invalid/x.tar",
        "ftp://127.0.0.1/data/x.tar",
        "data:,x",
    ],
)
def test_listing_of_a_server_names_nothing_elsewhere(name: str, server: Server, tmp_path: Path) -> None:
    name = name.replace("HERE", server.address)
    info = {"splits": {"train": {"filenames": [name], "shard_lengths": [4]}}}
    server.pages["/data/_info.json"] = (200, {}, json.dumps(info).encode())
    with pytest.raises(ShardError, match=r"_info\.json lists .*; expected only files below http.*/data/"):
        open_streamed(Data(name=f"{server.address}/data"), cache_dir=tmp_path, retry=QUICK)


def test_listing_without_end_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpmixer.data.streaming.listing.MAX_INFO_BYTES", 10**6)
    server.pages["/_info.json"] = (200, {}, bytes(5 * 10**6))
    refused(
        lambda: open_streamed(Data(name=server.address), cache_dir=tmp_path, retry=QUICK),
        "more than 1,000,000 bytes",
        2 * 10**7,
    )


def test_addresses_and_redirects_stay_on_the_web(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.pages["/here"] = (302, {"Location": "/there"}, b"")
    server.pages["/there"] = (200, {}, b"content")
    assert Connection(f"{server.address}/here", 2).read(100) == b"content"
    for i, place in enumerate(("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://127.0.0.1/")):
        server.pages[f"/{i}"] = (302, {"Location": place}, b"")
        for address in (f"{server.address}/{i}", place):
            with pytest.raises(Refused, match=r"not followed|not allowed|expected an address of http or https"):
                Connection(address, 2)
    server.pages["/local"] = (302, {"Location": server.address.replace("127.0.0.1", "localhost") + "/there"}, b"")
    assert Connection(f"{server.address}/local", 2).read(100) == b"content"
    monkeypatch.setattr(download, "_is_local", lambda host: host == "localhost")  # as if the first one were public
    with pytest.raises(Refused, match="not followed"):
        Connection(f"{server.address}/local", 2)


@pytest.mark.parametrize(
    "info",
    ["text", [[]], {"features": [1]}, {"features": [{"name": "label", "dtype": {"class_label": {"names": {"x": 1}}}}]}],
)
def test_card_with_wrong_values_is_refused(info: object, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra hf is not installed")
    card = type("Card", (), {"to_dict": lambda self: {"dataset_info": info}})()
    found = type("Info", (), {"siblings": [type("S", (), {"rfilename": "a.tar"})()], "sha": "abc", "card_data": card})()
    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda self, repo: found)
    refused(lambda: find_shards("hf:owner/name", None, 1), "the card of hf:owner/name has a dataset_info that cannot")


@pytest.mark.parametrize("length", ["x", "-5", "9" * 5000, "٣"])
def test_server_that_lies_about_its_length_is_refused(length: str, server: Server) -> None:
    server.pages["/a.tar"] = (200, {"Content-Length": length.encode("utf-8").decode("latin-1")}, b"")
    with pytest.raises(ShardError, match=r"a\.tar cannot be read"):
        inspect_shard(Shard(f"{server.address}/a.tar"), QUICK)


def test_bounded_file_reserves_nothing_that_is_not_there() -> None:
    file = BoundedFile.whole(io.BytesIO(b"0123456789"))
    assert (file.read(4), file.read(1 << 62), file.read()) == (b"0123", b"456789", b"")
    assert file.seek(1 << 62) == 10 and file.read(1) == b""
    with pytest.raises(OSError, match="before its start"):
        file.seek(-1)
    with pytest.raises(OSError, match="at once"):
        BoundedFile(io.BytesIO(), 1 << 62).read(1 << 61)


def test_file_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("out", "in/x", "in/a/x"):
        (tmp_path / name).touch()
    folder = str(tmp_path / "in")
    assert file_below(folder, "x") and file_below(folder, "a/../a/x")
    assert not any(file_below(folder, name) for name in ("../out", str(tmp_path / "out"), "a", "none", "", "\0"))


def test_class_names_and_real_labels_are_read_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "names").write_text("\n" * 10**6)
    refused(lambda: read_classes(str(tmp_path / "names")), "more than 1,000,000 lines", 10**8)
    refused(lambda: read_classes("9" * 15), "neither a number of classes nor a file")
    (tmp_path / "real.json").write_text("[" * 10**6)
    refused(lambda: read_real(tmp_path / "real.json"), "nested deeper", 10**7)
    with pytest.raises(ValueError, match="names 100000000000 shards"):
        open_streamed(Data(name=str(tmp_path / "a-{0..99999999999}.tar")), cache_dir=tmp_path)
