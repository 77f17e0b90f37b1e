"""Numbers of images that have several classes, against scikit-learn's, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.multi_label import write_squares
from sklearn import metrics as sk

from mlpmixer import cli, load
from mlpmixer.data.check import check_data
from mlpmixer.data.config import Data
from mlpmixer.evaluation.compare import compare
from mlpmixer.evaluation.evaluate import evaluate
from mlpmixer.evaluation.multi_label import (
    MultiLabelMetrics,
    best_threshold,
    binary_cross_entropies,
    mean_average_precision,
    multi_label_metrics,
)
from mlpmixer.evaluation.probe import probe

CLASSES = ["a", "b", "c", "d", "none of these"]


def made_up(seed: int = 0, n: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.random((n, 5)) < np.array([0.5, 0.3, 0.1, 0.05, 0])
    p = np.clip(0.5 * targets + 0.6 * rng.random((n, 5)), 0.001, 0.999).astype(np.float32).round(2)  # with ties
    return p, targets


@pytest.mark.parametrize("threshold", [0.5, 0.31])
def test_the_numbers_are_scikit_learns(threshold: float) -> None:
    p, targets = made_up()
    m = multi_label_metrics(p, targets, CLASSES, [str(i) for i in range(80)], threshold)
    said = p.astype(np.float64) >= threshold
    ap = [sk.average_precision_score(targets[:, k], p[:, k]) for k in range(4)]
    assert m.map == pytest.approx(np.mean(ap), abs=1e-12)
    assert [c.average_precision for c in m.per_class] == [*map(pytest.approx, ap), None]
    found = sk.precision_recall_fscore_support(targets, said, zero_division=0)
    for numbers, name in zip(found, ("precision", "recall", "f1", "support"), strict=True):
        assert [getattr(c, name) for c in m.per_class] == pytest.approx(numbers)
    assert m.f1_micro == pytest.approx(sk.f1_score(targets, said, average="micro"))
    assert m.f1_macro == pytest.approx(sk.f1_score(targets[:, :4], said[:, :4], average="macro"))
    assert m.precision == pytest.approx(sk.precision_score(targets, said, average="micro"))
    assert m.recall == pytest.approx(sk.recall_score(targets, said, average="micro"))
    assert m.exact_match == pytest.approx(sk.accuracy_score(targets, said))
    assert m.nll == pytest.approx(
        sum(sk.log_loss(targets[:, k], p[:, k].astype(float), labels=[0, 1]) for k in range(5))
    )
    assert json.loads(json.dumps(m.to_json()))["per_class"][4]["average_precision"] is None


def test_the_threshold_has_the_highest_micro_f1() -> None:
    p, targets = made_up(1)
    found = best_threshold(p, targets)
    scores = {t: sk.f1_score(targets, p.astype(float) >= t, average="micro") for t in np.arange(1, 100) / 100}
    assert scores[found] == max(scores.values())
    assert best_threshold(np.array([[0.9], [0.1]]), np.array([[True], [False]])) == 0.5


def test_mistakes_are_the_most_confident_of_each_image() -> None:
    p = np.array([[0.9, 0.2, 0.1], [0.1, 0.05, 0.7], [0.99, 0.6, 0.1]])
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=bool)
    wrong = multi_label_metrics(p, targets, ["x", "y", "z"], ["i", "j", "k"], 0.5).most_wrong
    assert [(w.name, w.true, w.label, w.probability, w.index) for w in wrong] == [
        ("j", ("x", "y"), "y", 0.05, 1),
        ("k", ("x",), "y", 0.6, 2),
    ]
    with pytest.raises(ValueError, match="none of these 3 images has a class"):
        mean_average_precision(p, np.zeros((3, 3), dtype=bool))
    assert binary_cross_entropies(np.array([[1.0, 0.0]]), np.array([[True, False]])).tolist() == [0.0]


def test_evaluation_of_a_run(squares_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(squares_run), "--html", str(tmp_path / "x.html"), "--tta", "flip"]) == 0
    out = capsys.readouterr().out
    assert "mAP" in out and "top-1" not in out and "F1" in out and "test-time augmentation (flip" in out
    page = (tmp_path / "x.html").read_text()
    assert "mean average precision" in page and "top-1" not in page and "Confusion" not in page
    other = write_squares(tmp_path / "other", 30, seed=5)
    assert cli.main(["evaluate", str(squares_run), str(other), "--threshold", "0.25", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["threshold"]) == (30, 0.25) and found["trained_on"] == 0
    for value in ("0", "1", "7"):
        assert cli.main(["evaluate", str(squares_run), "--threshold", value]) == 2
        assert "above 0 and below 1" in capsys.readouterr().err


def test_data_of_one_class_each_is_taken_as_it_is(squares_run: Path, tmp_path: Path) -> None:
    table = write_squares(tmp_path / "one", 40)
    rows = [line for line in table.read_text().splitlines() if ";" not in line and not line.endswith(",")]
    table.write_text("\n".join(rows))
    metrics = evaluate(squares_run, str(table))
    assert isinstance(metrics, MultiLabelMetrics) and metrics.n == len(rows) - 1
    assert sum(c.support for c in metrics.per_class) == metrics.n


def test_images_without_a_class_count_where_none_has_several(squares_run: Path, tmp_path: Path) -> None:
    table = write_squares(tmp_path / "few", 40)
    rows = [line for line in table.read_text().splitlines() if ";" not in line]
    table.write_text("\n".join(rows))
    metrics = evaluate(squares_run, str(table))
    assert isinstance(metrics, MultiLabelMetrics) and metrics.n == len(rows) - 1
    assert sum(c.support for c in metrics.per_class) == sum(not line.endswith(",") for line in rows[1:]) < metrics.n


def test_what_needs_one_class_is_refused(
    squares_run: Path, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_squares(tmp_path / "squares", 20)
    with pytest.raises(ValueError, match="a probe needs images of one class each"):
        probe(squares_run)
    with pytest.raises(ValueError, match="A may give an image several classes"):
        compare(squares_run, squares_run)
    for options in (["--temperature"], ["--real", "x.json"]):
        assert cli.main(["evaluate", str(squares_run), *options]) == 2
    assert "one class per image" in capsys.readouterr().err
    assert cli.main(["evaluate", str(digits_run), "--threshold", "0.5"]) == 2
    assert "this one gives each image one class" in capsys.readouterr().err
    assert cli.main(["data", "shards", str(table), str(tmp_path / "shards")]) == 2
    assert "a shard has one label per image" in capsys.readouterr().err
    assert cli.main(["data", "check", str(table), "--data.multi-label", "yes"]) in (0, 1)
    assert "several labels per image" in capsys.readouterr().out
    report = check_data(Data(name=str(table)))
    assert report.images == {"all": 20} != {"all": sum(report.counts["all"].values())}


def test_a_model_of_one_class_refuses_images_of_several(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this model gives an image one class, but these images have several or none"):
        evaluate(digits_run, str(write_squares(tmp_path, 9)))


def test_a_preview_shows_all_classes(squares_run: Path, tmp_path: Path) -> None:
    table = write_squares(tmp_path / "squares", 20)
    out = str(tmp_path / "x.png")
    assert cli.main(["data", "preview", str(table), "--image-size", "16", "--patch-size", "4", "--out", out]) == 0


def test_half_precision_is_compared_by_average_precision(
    squares_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(squares_run), str(tmp_path / "x.safetensors"), "--precision", "float16"]) == 0
    assert "not trained on, mAP is" in capsys.readouterr().err
    assert load(tmp_path / "x.safetensors").threshold == load(squares_run).threshold
