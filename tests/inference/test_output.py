"""Results as text, and features as a file."""

import csv
import io
import json
import os
import tracemalloc

import numpy as np
import pytest

from mlpmixer.inference import output
from mlpmixer.inference.output import FeatureFile, csv_lines, json_lines, jsonl_lines, write_parquet
from mlpmixer.inference.prediction import Failure, Prediction

RESULTS = [
    Prediction('a,"b"\n.png', "dark", 0.75, (("dark", 0.75), ("bright", 0.25))),
    Failure("bad\udcff.png", "empty file"),
]


def test_csv_is_quoted():
    rows = list(csv.reader(io.StringIO("".join(csv_lines(RESULTS, top_k=3)))))
    assert rows[0] == ["image", "label", "probability", "label_2", "probability_2", "label_3", "probability_3", "error"]
    assert rows[1] == ['a,"b"\n.png', "dark", "0.750000", "bright", "0.250000", "", "", ""]
    assert rows[2][0].startswith("bad") and rows[2][-1] == "empty file"
    "".join(csv_lines(RESULTS)).encode("utf-8")  # a name that is no UTF-8 can be written


def test_json_equals_jsonl():
    lines = [json.loads(line) for line in jsonl_lines(RESULTS)]
    assert lines == json.loads("".join(json_lines(RESULTS)))
    assert lines[0]["top"][1] == {"label": "bright", "probability": 0.25}
    assert lines[1]["error"] == "empty file"
    assert json.loads("".join(json_lines([]))) == []


def test_parquet_has_the_columns_of_csv_and_the_classes(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra hf is not installed")
    write_parquet(tmp_path / "x.parquet", RESULTS, ("bright", "dark", "grün"), top_k=3)
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.column_names == next(csv.reader(csv_lines([], top_k=3)))
    assert list(map(str, table.schema.types)) == ["string", *["string", "float"] * 3, "string"]
    assert table.to_pylist() == [
        dict(zip(table.column_names, row, strict=True))
        for row in (
            ['a,"b"\n.png', "dark", 0.75, "bright", 0.25, None, None, None],
            ["bad\N{REPLACEMENT CHARACTER}.png", *[None] * 6, "empty file"],
        )
    ]
    schema = parquet.read_schema(tmp_path / "x.parquet")
    assert json.loads(schema.metadata[b"classes"]) == ["bright", "dark", "grün"]
    write_parquet(tmp_path / "none.parquet", [], ("a",))
    none = parquet.read_table(tmp_path / "none.parquet")
    assert none.num_rows == 0 and none.column_names == ["image", "label", "probability", "error"]


def test_parquet_is_written_in_groups_and_whole_or_not_at_all(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra hf is not installed")
    monkeypatch.setattr(output, "ROW_GROUP", 10)
    file, asked = tmp_path / "x.parquet", []

    def results(until=25):
        for i in range(until):
            asked.append(i)
            yield Prediction(f"{i}.png", "dark", i / 32, (("dark", i / 32),))
        if until != 25:
            raise KeyboardInterrupt

    write_parquet(file, results(), ("dark",))
    found = parquet.ParquetFile(file)
    assert [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)] == [10, 10, 5]
    assert found.read()["probability"].to_pylist() == [i / 32 for i in range(25)]
    before = file.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_parquet(file, results(15), ("dark",))
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["x.parquet"]


@pytest.mark.parametrize("names", [["a", 'b,"c"\nd', "bad\udcff.png", "ü" * 300], []])
def test_feature_file_equals_numpys(names, tmp_path):
    rows = np.random.default_rng(0).standard_normal((len(names), 3)).astype(np.float32)
    with FeatureFile(tmp_path / "f.npz") as npz, FeatureFile(tmp_path / "f.csv") as table:
        for name, row in zip(names, rows, strict=True):
            npz.add(name, row)
            table.add(name, row)
        assert not (tmp_path / "f.npz").exists() and not (tmp_path / "f.csv").exists()
    np.savez(tmp_path / "wanted.npz", names=np.array(names, str), features=rows)
    with np.load(tmp_path / "f.npz") as found, np.load(tmp_path / "wanted.npz") as wanted:
        assert found.files == wanted.files
        assert found["names"].dtype == wanted["names"].dtype and found["names"].tolist() == names
        assert found["features"].dtype == np.float32
        np.testing.assert_array_equal(found["features"], rows if names else np.zeros((0, 0)))
    assert len(list(csv.reader(io.StringIO((tmp_path / "f.csv").read_text("utf-8"))))) == 1 + len(names)
    assert sorted(os.listdir(tmp_path)) == ["f.csv", "f.npz", "wanted.npz"]


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_interrupted_feature_file_changes_nothing(suffix, tmp_path):
    file = tmp_path / f"f{suffix}"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt), FeatureFile(file) as rows:
        rows.add("a", np.zeros(3, np.float32))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == [file.name] and file.read_text() == "before"
    with pytest.raises(OSError, match="nowhere"), FeatureFile(tmp_path / "nowhere" / file.name):
        pass


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_feature_file_memory_does_not_grow(suffix, tmp_path):
    row = np.arange(500, dtype=np.float32)
    peaks = []
    for count in (100, 1_000):
        tracemalloc.start()
        with FeatureFile(tmp_path / f"f{suffix}") as rows:
            for i in range(count):
                rows.add(f"folder/{i}.png", row)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000, peaks  # the rows alone are 2 MB
