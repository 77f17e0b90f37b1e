"""Figures 5 to 7 from networks trained here: what is measured on weights that are known, and a whole run to its
page."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from helpers.datasets import write_cifar10

from mlpmixer.inference.load import load
from mlpmixer.models.mixing import hidden_units, opposite_pairs, stem_filters
from mlpmixer.reproduce import ExperimentContext, run, weights
from mlpmixer.reproduce.comparison import COMPARISONS, cifar10, nano
from mlpmixer.reproduce.weights import PLAIN, Look, look_at, untrained
from mlpmixer.training.recipe import read_recipe


def waves(*cycles: int, size: int = 8) -> torch.Tensor:
    """Cosines across the columns, as maps (n, size, size)."""
    x = torch.arange(size)
    return torch.stack([torch.cos(2 * math.pi * c * x / size).expand(size, size) for c in cycles])


def test_waves_and_their_opposites_are_measured() -> None:
    look = look_at(torch.cat([waves(1, 2), -waves(1, 2)]))
    assert (
        look.frequency == pytest.approx((1 / 8 + 2 / 8) / 2)
        and look.opposite == (1.0, 1.0)
        and look.median_cosine == pytest.approx(-1)
    )
    alone = look_at(waves(0, 1, 2, 3))
    assert alone.opposite == (0.0, 0.0) and alone.frequency == pytest.approx(1.5 / 8)
    nearly = look_at(torch.stack([waves(1)[0], -waves(1)[0] + 1.2 * waves(2)[0]]))  # cosine -1 / sqrt(1 + 1.44) = -0.64
    assert nearly.opposite == (1.0, 0.0)
    assert (
        look_at(torch.stack([waves(1, 2, 3), waves(3, 2, 1)])).opposite == ()
    )  # a stem's filters, by their frequency alone


def test_frequencies_within_their_errors_are_equal() -> None:
    before, after = Look(frequency=0.30, error=0.003), Look(frequency=0.312, error=0.004)
    assert after.unlike(before) == ""
    assert dataclasses.replace(after, frequency=0.317).unlike(before) == "higher"
    assert dataclasses.replace(after, frequency=0.28).unlike(before) == "lower"


def test_random_units_have_no_opposites() -> None:
    torch.manual_seed(0)
    assert look_at(torch.randn(128, 8, 8)).opposite == (0.0, 0.0)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A stand-in for CIFAR-10, and networks that are soon trained."""
    networks = {"Mixer": nano(2, 16, 8)}
    small = dataclasses.replace(COMPARISONS["small"], networks=networks, steps=3, batch_size=16, evaluations=1)
    monkeypatch.setitem(weights.SCALES, "small", (small, (8,)))
    return str(write_cifar10(tmp_path / "data", per_class=2))


@pytest.mark.slow
def test_weights_writes_its_page(data: str, tmp_path: Path) -> None:
    page, path = run("weights", out=tmp_path / "out", data_dir=data, device="cpu")
    plain, augmented, coarse = (
        read_recipe(tmp_path / "out" / "runs" / name) for name in ("plain", "augmented", "patch-8")
    )
    assert (
        dataclasses.replace(augmented, name="plain", augment=plain.augment) == plain
        and augmented.augment != plain.augment
    )
    assert plain.optim.locality == 0 and not plain.optim.mirror and plain.init.stem == "lecun"
    assert (coarse.model.patch_size, coarse.model.grid) == (8, (4, 4))

    model = load(tmp_path / "out" / "runs" / "plain").network
    units = hidden_units(model, 1)  # type: ignore[arg-type]
    measured, text = page.figures["units"][PLAIN][1], path.read_text()
    assert measured["median_cosine"] == pytest.approx(float(opposite_pairs(units)[1].median()), abs=1e-6)
    assert json.loads((tmp_path / "out" / "table.json").read_text())["figures"]["stems"]["8"]["trained"][
        "frequency"
    ] == pytest.approx(
        look_at(stem_filters(load(tmp_path / "out" / "runs" / "patch-8").network)).frequency  # type: ignore[arg-type]
    )
    assert (
        f"| {PLAIN} | 2 | {measured['frequency']:.3f} ± {measured['error']:.3f} |" in text
        and "The paper shows pictures" in text
    )
    for name in ("units-plain", "units-augmented", "blocks", "stems"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000 and f"({name}.png)" in text


def test_start_is_that_of_a_run(data: str, tmp_path: Path) -> None:
    small, _ = weights.SCALES["small"]
    context = ExperimentContext(name="weights", out=tmp_path, data_dir=data, device="cpu")
    recipes = [small.recipe("Mixer", cifar10(context), 90, 1e-9, seed) for seed in (3, 4)]  # nothing moves
    start, model = untrained(recipes[0]), load(context.train("still", recipes[0]).path).network
    assert model and all(
        torch.allclose(a, b, atol=1e-7) for a, b in zip(start.parameters(), model.parameters(), strict=True)
    )
    assert not torch.equal(start.stem.weight, untrained(recipes[1]).stem.weight)
