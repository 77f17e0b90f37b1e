"""Attribution methods and the command."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from helpers.html import check_safe
from helpers.models import OBLONG, OBLONG_PARTS, digits_classifier, random_images, random_mixer
from PIL import Image
from torch import nn

from mlpmixer import cli
from mlpmixer.cli.explain import answer
from mlpmixer.explanation import attribution
from mlpmixer.explanation.attribution import METHODS
from mlpmixer.explanation.page import ExplanationFolder
from mlpmixer.inference.load import load
from mlpmixer.inference.torch_classifier import from_network
from mlpmixer.training.recipe import Recipe
from mlpmixer.weights.model_file import save_model
from mlpmixer.weights.run_folder import write_recipe

FILL = torch.tensor([0.1, -0.2, 0.3])


CLASSES = torch.tensor([4, 0, 2])
GRID = OBLONG.grid


# --- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [OBLONG, OBLONG_PARTS])
def test_evidence_sums_to_the_logits(cfg):
    model, images = random_mixer(cfg), random_images(cfg)
    evidence, logits = attribution.patch_evidence(model, images), model(images)
    assert evidence.shape == (3, 12, 5)
    torch.testing.assert_close(evidence.mean(dim=1), logits, rtol=0, atol=1e-5)
    of_class = METHODS["evidence"](model, images, CLASSES, FILL[: cfg.in_channels], GRID)
    torch.testing.assert_close(
        of_class.sum(dim=1) + model.head.bias[CLASSES], logits[range(3), CLASSES], rtol=0, atol=1e-5
    )


def test_occlusion_is_the_fall_of_the_logit(monkeypatch):
    model, images = random_mixer(), random_images()
    monkeypatch.setattr(attribution, "CHUNK", 5)  # 12 patches in three parts
    found = attribution.occlusion(model, images, CLASSES, FILL, GRID)
    hidden = images.clone()
    hidden[:, :, 4:8, 6:8] = FILL[:, None, None]  # row 1, column 3 of a 2 x 6 grid
    torch.testing.assert_close(
        found[:, 9], (model(images) - model(hidden))[range(3), CLASSES].detach(), rtol=0, atol=1e-5
    )


def test_integrated_gradients_are_complete():
    model, images = random_mixer(), random_images()
    sums = attribution.integrated_gradients(model, images, CLASSES, FILL, GRID, steps=128).sum(dim=1)
    empty = model(FILL[:, None, None].expand_as(images))
    torch.testing.assert_close(sums, (model(images) - empty)[range(3), CLASSES].detach(), rtol=0, atol=1e-4)


def test_gradient_x_input_is_exact_for_small_changes():
    model, fill = random_mixer().double(), FILL.double()
    empty = fill[:, None, None].expand(3, -1, 8, 12)
    images = empty + 1e-5 * random_images()
    sums = attribution.gradient_x_input(model, images, CLASSES, fill, GRID).sum(dim=1)
    torch.testing.assert_close(sums, (model(images) - model(empty))[range(3), CLASSES].detach(), rtol=1e-2, atol=1e-8)


def test_methods_equal_captum():
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    model, images = random_mixer(), random_images()
    theirs = attr.IntegratedGradients(model).attribute(
        images, FILL[None, :, None, None].expand_as(images), target=CLASSES, n_steps=20, method="gausslegendre"
    )
    ours = attribution.integrated_pixels(model, images, CLASSES, FILL, steps=20)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)
    theirs = attr.InputXGradient(model).attribute(images.clone().requires_grad_(), target=CLASSES)
    ours = attribution.gradient_x_input(model, images, CLASSES, torch.zeros(3), GRID)
    torch.testing.assert_close(ours, attribution.sum_patches(theirs, GRID).detach(), rtol=1e-4, atol=1e-5)
    theirs = attr.Occlusion(model).attribute(
        images, (3, 4, 2), strides=(3, 4, 2), baselines=FILL[None, :, None, None].expand_as(images), target=CLASSES
    )
    ours = attribution.occlusion(model, images, CLASSES, FILL, GRID)
    torch.testing.assert_close(ours, theirs[:, 0, ::4, ::2].flatten(1), rtol=1e-4, atol=1e-5)


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        attribution.patch_evidence(random_mixer().train(), random_images())


def test_a_network_without_classes_is_refused():
    classifier = digits_classifier()
    classifier.classes = ()
    with pytest.raises(ValueError, match="no head"):
        next(attribution.explain(classifier, ["x.png"], torch.zeros(1)))


class Convolutions(nn.Module):
    """A network of other code: no tokens, no patches."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.stem, self.head = cfg, nn.Conv2d(1, 4, 3), nn.Linear(4, cfg.num_classes)

    def pre_logits(self, images):
        return self.stem(images).relu().mean(dim=(2, 3))

    def forward(self, images):
        return self.head(self.pre_logits(images))


def test_networks_without_tokens_have_the_other_methods(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "a.png")
    meta = dataclasses.replace(digits_classifier().meta, network="Convolutions")
    classifier = from_network(Convolutions(meta.config).eval(), meta)
    (found,) = attribution.explain(classifier, [str(tmp_path / "a.png")], torch.zeros(1))
    assert list(found.maps) == ["occlusion", "gradient-x-input", "integrated-gradients"]
    assert found.maps["occlusion"].shape == (4, 4) and found.target.bias is None
    total = found.maps["integrated-gradients"].sum()
    assert total == pytest.approx(found.target.logit - found.filled_logit, abs=1e-3)
    assert found.target.logit == pytest.approx(found.top[0].logit) and found.to_json()["asked"]["bias"] is None
    folder = ExplanationFolder(tmp_path / "out")
    folder.add(found)
    page = folder.write_page(model="x", fill="0").read_text(encoding="utf-8")
    text = check_safe(page).text
    assert "Approximately" in text and "all orange squares" not in text and "Votes of the squares" not in text
    for wrong, says in (
        ({"methods": ["evidence"]}, "Convolutions has no tokens"),
        ({"mixing": True}, "--method mixing"),
    ):
        with pytest.raises(ValueError, match=says):
            next(attribution.explain(classifier, [str(tmp_path / "a.png")], torch.zeros(1), **wrong))


def test_uneven_patches_differ_by_a_pixel():
    number = attribution.patch_numbers(torch.zeros(1, 1, 5, 7), (2, 3))
    assert number[0].tolist() == [0, 0, 0, 1, 1, 2, 2] and number[:, 0].tolist() == [0, 0, 0, 3, 3]
    sums = attribution.sum_patches(torch.ones(1, 2, 5, 7), (2, 3))
    assert sums.tolist() == [[18, 12, 12, 12, 8, 8]]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    classifier = digits_classifier()
    save_model(tmp_path / "run" / "model.safetensors", classifier.network, classifier.meta)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "a<b.png")
    (tmp_path / "torn.png").write_bytes(b"no")
    return tmp_path


def called(capsys, *args):
    code = cli.main(["explain", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, re.sub(r"\s+", " ", captured.err)


def test_the_command_writes_pictures_and_a_page(folder, capsys):
    write_recipe(folder / "run", Recipe(name="digits"))
    out = folder / "out"
    methods = "evidence,occlusion,gradient-x-input,integrated-gradients,mixing"
    code, printed, errors = called(
        capsys, folder / "run", folder / "torn.png", folder / "a<b.png", "--out", out, "--method", methods
    )
    assert code == 1 and "torn.png" in errors and "a<b.png" in printed
    assert {p.name for p in out.iterdir()} == {f"01-a_b-{m}.png" for m in ("seen", *methods.split(","))} | {
        "explanation.html"
    }
    page = check_safe((out / "explanation.html").read_text(encoding="utf-8"))
    for text in (
        "a<b.png",
        "torn.png",
        "bias",
        "mean of 512 training images",
        "How far a patch sees",
        *(m for m in METHODS if m != "evidence"),
    ):
        assert text in page.text, text
    assert [tag for tag in ("img", "svg", "details") if tag not in page.tags] == []


def test_the_command_prints_json(folder, capsys):
    args = (
        folder / "run",
        folder / "a<b.png",
        "--class",
        "7",
        "--out",
        folder / "out",
        "--method",
        "evidence",
        "--json",
    )
    code, printed, _ = called(capsys, *args, "--faithfulness", "digits", "--faithfulness-images", "5")
    found = json.loads(printed)
    (image,) = found["images"]
    assert code == 0 and image["asked"]["label"] == "7" and "128 of 255 (the middle" in found["fill"]
    sums = sum(map(sum, image["maps"]["evidence"])) + image["asked"]["bias"]
    assert sums == pytest.approx(image["asked"]["logit"], abs=1e-5)
    assert [row["method"] for row in found["faithfulness"]["areas"]] == ["evidence", "random"] and found[
        "faithfulness"
    ]["images"] == 5
    assert "Which method is faithful" in check_safe((folder / "out" / "explanation.html").read_text()).text


def test_the_page_begins_with_the_answer_and_what_adds_up_to_it(folder, capsys):
    out = folder / "out"
    code, printed, _ = called(capsys, folder / "run", folder / "a<b.png", "--out", out, "--method", "evidence")
    (found,) = attribution.explain(
        load(folder / "run"), [str(folder / "a<b.png")], torch.zeros(1), methods=["evidence"]
    )
    evidence = found.lead_map("evidence")
    assert evidence.sum() + found.lead_bias == pytest.approx(found.target.logit - found.rival.logit, abs=1e-5)
    assert found.lead == pytest.approx(math.log(found.target.probability / found.rival.probability), abs=1e-4)
    answer, _ = printed.split("\n\n")
    assert code == 0 and f"lead {found.lead:+.2f}" in answer and len(answer.splitlines()) == 2
    text = re.sub(r"\s+", " ", check_safe((out / "explanation.html").read_text()).text.split("</style>")[-1])
    start = text.index("What spoke for")
    for words in (
        f"What spoke for {found.target.label} {100 * found.target.probability:.1f} %",
        f"the runner-up is {found.rival.label}",
        f"{evidence.clip(min=0).sum():+.2f}all orange squares",
        f"{evidence.clip(max=0).sum():+.2f}all blue squares",
        f"{found.lead:+.2f}points",
    ):
        assert start <= text.index(words) < start + 1200, words


def test_a_class_that_is_asked_for_is_compared_with_the_answer(folder):
    classifier = load(folder / "run")
    (plain,) = attribution.explain(classifier, [str(folder / "a<b.png")], torch.zeros(1))
    label = plain.top[3].label
    (asked,) = attribution.explain(classifier, [str(folder / "a<b.png")], torch.zeros(1), label=label)
    assert asked.target.label == label and asked.rival == plain.target and asked.lead < 0
    np.testing.assert_allclose(asked.rival_maps["occlusion"], plain.maps["occlusion"], atol=1e-5)
    explained = ExplanationFolder(folder / "out")
    explained.add(asked)
    text = re.sub(r"\s+", " ", check_safe(explained.write_page(model="x", fill="0").read_text(encoding="utf-8")).text)
    times = f"{asked.rival.probability / asked.target.probability:.1f}"
    assert f"the model says {asked.rival.label}, with" in text
    assert f"points: {asked.rival.label} is {times} times as likely as {label} (" in text


def test_classes_that_do_not_compete_have_no_rival(folder):
    classifier = load(folder / "run")
    classifier.threshold = 0.25
    (found,) = attribution.explain(classifier, [str(folder / "a<b.png")], torch.zeros(1))
    assert found.rival is None and not found.rival_maps and found.lead == found.target.logit
    explained = ExplanationFolder(folder / "out")
    explained.add(found)
    page = explained.write_page(model="x", fill="0").read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", check_safe(page).text)
    said = "a yes" if found.target.probability >= 0.25 else "a no"
    assert f"{said}: the model says yes at 25.0 % or more" in text and "-1.10 or more is a yes" in text
    assert "runner-up" not in page and found.least_lead == pytest.approx(-1.0986, abs=1e-4)
    assert f"{'' if said == 'a yes' else 'not '}given, as its threshold is 25.00 %" in answer(
        found
    ) and "logit" in answer(found)


def test_photos_are_shown_sharper_than_the_network_sees_them(folder):
    Image.effect_noise((200, 100), 50).save(folder / "wide.png")
    classifier = load(folder / "run")
    small, wide = attribution.explain(
        classifier, [str(folder / "a<b.png"), str(folder / "wide.png")], torch.zeros(1), methods=["evidence"]
    )
    assert small.photo is small.pixels and small.pixels.shape == (8, 8, 1)
    assert wide.pixels.shape == (8, 8, 1) and wide.photo.shape == (100, 100, 1)


@pytest.mark.parametrize(
    ("args", "answer"),
    [
        (["rum", "a<b.png"], "did you mean"),
        (["run", "a<b.png", "--class", "77"], "did you mean 7"),
        (["run", "a<b.png", "--method", "ocllusion"], "did you mean occlusion"),
        (["run", "--faithfulness", "digits", "--method", "mixing"], "compares methods"),
        (["run"], "which images?"),
    ],
)
def test_typos_get_suggestions(folder, capsys, monkeypatch, args, answer):
    monkeypatch.chdir(folder)
    code, _, errors = called(capsys, *args)
    assert code == 2 and answer in errors, errors


def test_without_a_readable_image_there_is_no_page(folder, capsys):
    code, printed, errors = called(
        capsys, folder / "run", folder / "torn.png", folder / "none.png", "--out", folder / "out"
    )
    assert code == 1 and "torn.png" in errors and "none.png" in errors and not printed and not (folder / "out").exists()
