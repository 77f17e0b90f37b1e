"""A model goes out as a repository of the Hub and comes back the same; its card says what the run says. No test leaves
this machine."""

import dataclasses
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import GREY, random_mixer
from huggingface_hub import ModelCard
from torch import nn

import mlpmixer
from mlpmixer import cli
from mlpmixer.config import to_json
from mlpmixer.data.config import Data
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load
from mlpmixer.models.configs import MixerConfig, ResNetConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.resmlp import ResMLP
from mlpmixer.training.recipe import Recipe, Run, read_recipe
from mlpmixer.training.run import train
from mlpmixer.weights import hub, model_file, run_folder
from mlpmixer.weights.card import model_card
from mlpmixer.weights.create import _source

TINY = MixerConfig(
    image_size=8,
    patch_size=4,
    in_channels=1,
    num_classes=10,
    num_blocks=1,
    hidden_dim=8,
    tokens_mlp_dim=4,
    channels_mlp_dim=8,
)
FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(name="tiny", model=TINY, data=Data(name="digits"), run=Run(steps=3, device="cpu"))
    return train(recipe, out=tmp_path_factory.mktemp("runs") / "digits").path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model file on its own, which says nothing about its origin."""
    path = tmp_path / "bare" / "model.safetensors"
    preprocess = Preprocess(image_size=(8, 8), in_channels=1)
    meta = model_file.ModelMeta(config=TINY, classes=tuple("0123456789"), preprocess=preprocess)
    model_file.save_model(path, Mixer(TINY), meta)
    return path


def card_of(folder: Path) -> Any:
    """The card as the Hub's own library reads it."""
    return ModelCard((folder / "README.md").read_text(encoding="utf-8"))


def logits(classifier: Classifier) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    return classifier.probabilities(images)


# --- to a folder --------------------------------------------------------------------------------------------------


def test_a_pushed_folder_gives_the_same_answers_as_the_run(run: Path, tmp_path: Path) -> None:
    folder = Path(hub.push(run, tmp_path / "out"))
    assert {p.name for p in folder.iterdir()} == FILES
    ours, theirs = load(run), load(folder)
    np.testing.assert_array_equal(logits(theirs), logits(ours))
    assert ours.meta is not None and ours.meta.data == Data(name="digits")
    assert theirs.meta == model_file.public(ours.meta)


def test_the_configuration_can_be_read_without_this_package(run: Path, tmp_path: Path) -> None:
    hub.push(run, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["library_name"] == "mlpmixer"
    assert config["config"] == to_json(TINY) and config["classes"] == list("0123456789")
    assert config["preprocess"]["image_size"] == [8, 8]


def test_the_card_has_the_figures_of_the_run(run: Path, tmp_path: Path) -> None:
    card = card_of(Path(hub.push(run, tmp_path / "digit-reader", licence="cc-by-4.0")))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    test, val = summary["test"], summary["val"]
    row = (
        f"{test['n']} | {100 * test['top1']:.2f} % | {100 * test['top5']:.2f} % | {test['nll']:.4f} | "
        f"{test['ece']:.4f} |"
    )
    assert f"| test | {row}" in card.text and f"| validation | {val['n']} | {100 * val['top1']:.2f} %" in card.text
    assert "# digit-reader" in card.text and "mlpmixer predict . IMAGE" in card.text
    assert f"training images: {summary['train_images']:,}" in card.text and "optimizer steps: 3" in card.text
    assert "data: `digits`" in card.text and "recipe: `tiny`" in card.text and "hidden_dim 8" in card.text
    assert "cc-by-4.0, as stated by whoever published this model" in card.text
    assert card.data.library_name == "mlpmixer" and card.data.license == "cc-by-4.0"
    results = {r.dataset_split: r for r in card.data.eval_results}
    assert results["test"].metric_value == test["top1"] and results["validation"].metric_value == val["top1"]
    assert results["test"].dataset_name == "digits"


def test_the_card_says_that_an_image_may_have_several_classes(squares_run: Path, run: Path, tmp_path: Path) -> None:
    threshold = load(squares_run).threshold
    several = f"An image may have several of the classes, or none: those whose probability is at least {threshold}."
    assert several in card_of(Path(hub.push(squares_run, tmp_path / "squares"))).text
    assert "may have several" not in card_of(Path(hub.push(run, tmp_path / "digits"))).text


def test_what_is_not_known_is_not_in_the_card(bare: Path, tmp_path: Path) -> None:
    card = card_of(Path(hub.push(bare, tmp_path / "out")))
    assert "## Metrics\n\nNone are recorded" in card.text and "Nothing is recorded with this model" in card.text
    assert "## Licence\n\nNone is stated" in card.text
    assert card.data.license is None and card.data.datasets is None and card.data.eval_results is None


def test_a_model_without_its_run_brings_the_accuracy_that_is_stored_with_it(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "model.safetensors"
    alone.parent.mkdir()
    shutil.copy(run / "model.safetensors", alone)
    card = card_of(Path(hub.push(alone, tmp_path / "out")))
    stored = model_file.read_meta(alone).provenance["metrics"]
    assert f"| test | {100 * stored['top1']:.2f} % |" in card.text
    assert "images |" not in card.text and "hidden_dim 8" in card.text


@pytest.mark.parametrize(
    ("name", "datasets"),
    [("cifar10", ["uoft-cs/cifar10"]), ("hf:me/birds", ["me/birds"]), ("/Users/ada/secret/cifar10", None)],
)
def test_data_of_the_hub_is_linked_and_folders_of_the_machine_stay_private(
    name: str, datasets: list[str] | None, run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    recipe = read_recipe(run)
    run_folder.write_recipe(
        copy, dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, name=name, data_dir="/Users/ada/data"))
    )
    hub.push(copy, tmp_path / "out")
    assert card_of(tmp_path / "out").data.datasets == datasets
    assert not any(b"/Users/ada" in p.read_bytes() for p in (tmp_path / "out").iterdir())


def test_strange_names_of_classes_and_data_do_not_break_the_card(bare: Path, tmp_path: Path) -> None:
    odd = ('a"b', "c\nd", "é: {x}", "`e`", "---", "<b>", "|", "- f", "😀", "\t")
    provenance = {"data": 'my "birds":\n- {a}', "metrics": {"top1": 0.5}}
    model_file.rewrite_meta(bare, lambda meta: dataclasses.replace(meta, classes=odd, provenance=provenance))
    card = card_of(Path(hub.push(bare, tmp_path / "out")))
    assert card.data.eval_results[0].dataset_name == provenance["data"]
    assert "`<b>`" in card.text and "`'e'`" in card.text and "`c d`" in card.text


def test_the_card_names_the_network_and_its_paper(tmp_path: Path) -> None:
    preprocess = Preprocess(image_size=(224, 224))
    meta = model_file.ModelMeta(config=ResNetConfig(num_classes=2), classes=("a", "b"), preprocess=preprocess)
    card = ModelCard(model_card(tmp_path, meta, "mine", ".", ""))
    assert "classifier of 2 classes: [ResNet](https://arxiv.org/abs/1512.03385)" in card.text
    assert card.data.tags == ["resnet"] and "- resnet: depths [3, 4, 6, 3], width 64" in card.text


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "mine.txt", run):
        with pytest.raises(ValueError, match="holds something already"):
            hub.push(run, target)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    hub.push(run, tmp_path / "empty")


def test_what_is_no_run_cannot_be_pushed(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="expected a finished run"):
            hub.push(path, tmp_path / "out")
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"not a safetensors file"):
        hub.push(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prints_where_the_model_is(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", str(run), str(tmp_path / "out"), "--licence", "mit"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert card_of(tmp_path / "out").data.license == "mit"


# --- to the Hub and back ------------------------------------------------------------------------------------------


class FakeApi:
    """Keeps what it is given."""

    repos: dict[str, bool]
    files: dict[str, bytes]

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.repos[repo] = private

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.files.update({f"{repo_id}/{p.name}": p.read_bytes() for p in Path(folder_path).iterdir()})


def test_a_repository_is_pushed_and_loaded_by_its_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(FakeApi, "repos", {}, raising=False)
    monkeypatch.setattr(FakeApi, "files", {}, raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert hub.push(run, "hf:ada/digits", private=True) == "https://huggingface.co/ada/digits"
    assert FakeApi.repos == {"ada/digits": True}
    assert FakeApi.files.keys() == {f"ada/digits/{name}" for name in FILES}
    card = FakeApi.files["ada/digits/README.md"].decode()
    assert 'mlpmixer.load("hf:ada/digits")' in card and "# digits" in card

    def hf_hub_download(repo: str, file: str, *, local_dir: None, local_files_only: bool) -> str:
        assert not local_files_only
        (tmp_path / file).write_bytes(FakeApi.files[f"{repo}/{file}"])
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    np.testing.assert_array_equal(logits(load("hf:ada/digits")), logits(load(run)))


@pytest.fixture
def pushed(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What has been pushed to a Hub."""
    import huggingface_hub

    monkeypatch.setattr(FakeApi, "repos", {}, raising=False)
    monkeypatch.setattr(FakeApi, "files", {}, raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return FakeApi.files


def test_a_classifier_pushes_as_the_command_does(run: Path, pushed: dict[str, bytes], tmp_path: Path) -> None:
    classifier = load(run)
    assert classifier.push("ada/digits", licence="mit", private=True) == "https://huggingface.co/ada/digits"
    assert FakeApi.repos == {"ada/digits": True}
    by_python = dict(pushed)
    hub.push(run, "hf:ada/digits", licence="mit")
    assert by_python == pushed and len(pushed) == len(FILES)
    assert classifier.push("hf:ada/again").endswith("/ada/again")
    assert classifier.push(tmp_path / "out") == str(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES


def test_a_classifier_pushes_its_network_as_it_is_now(
    run: Path, pushed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    classifier = load(run)
    with torch.no_grad():
        classifier.network.head.bias += 1  # type: ignore[union-attr, operator]
    assert classifier.push("./trained") == "trained"
    theirs = load("trained")
    assert torch.equal(theirs.network.head.bias, classifier.network.head.bias)  # type: ignore[union-attr]
    assert "top-1" not in (tmp_path / "trained" / "README.md").read_text() and "metrics" not in theirs.meta.provenance  # type: ignore[union-attr]
    larger = load(run, image_size=16)
    larger.classes = tuple("abcdefghij")
    larger.push(Path("larger"))
    theirs = load("larger")
    assert theirs.classes == larger.classes and theirs.preprocess.image_size == (16, 16)


def test_where_a_classifier_pushes_is_never_guessed(run: Path, pushed: dict[str, bytes], digits_bundle: Path) -> None:
    for target in ("digits", "a/b/c", "hf:digits"):
        with pytest.raises(ValueError, match=r"expected ('|hf:)owner/name"):
            load(run).push(target)
    with pytest.raises(ValueError, match=r"model\.onnx is not a network of torch: push the run it was made from"):
        load(digits_bundle).push("ada/digits")
    assert pushed == {}


# --- networks by themselves -------------------------------------------------------------------------------------------


@pytest.fixture
def fake_hub(pushed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    """A Hub in memory, to push to and to fetch from."""
    import huggingface_hub

    def hf_hub_download(repo: str, file: str, **options: Any) -> str:
        (tmp_path / "fetched").mkdir(exist_ok=True)
        (tmp_path / "fetched" / file).write_bytes(pushed[f"{repo}/{file}"])
        return str(tmp_path / "fetched" / file)

    def metadata(url: str) -> None:
        if not any(name.rpartition("/")[0] in url for name in pushed):
            raise FileNotFoundError("404 Repository not found")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    return FakeApi


def same(a: Any, b: Any) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


def test_a_network_goes_to_the_hub_and_comes_back_bit_for_bit(fake_hub: type[FakeApi]) -> None:
    model = random_mixer(GREY)
    assert model.push_to_hub("ada/mine", licence="mit", private=True) == "https://huggingface.co/ada/mine"
    assert fake_hub.repos == {"ada/mine": True} and fake_hub.files.keys() == {f"ada/mine/{name}" for name in FILES}
    assert 'mlpmixer.load("hf:ada/mine")' in fake_hub.files["ada/mine/README.md"].decode()
    for name in ("ada/mine", "hf:ada/mine"):
        back = mlpmixer.from_pretrained(name)
        assert same(back, model) and back.cfg == model.cfg and not back.training
    assert same(Mixer.from_pretrained("ada/mine"), model)
    with pytest.raises(ValueError, match=r"ada/mine is a Mixer, not a ResMLP: use Mixer\.from_pretrained"):
        ResMLP.from_pretrained("ada/mine")
    with pytest.raises(ValueError, match=r"ada/nothing is not a file or folder here, and on the Hub: .*404"):
        mlpmixer.from_pretrained("ada/nothing")


def test_a_fresh_network_has_numbered_classes_and_the_preprocessing_of_a_run(tmp_path: Path) -> None:
    model = random_mixer(GREY)
    folder = model.save_pretrained(tmp_path / "out")
    found = load(folder)
    assert found.classes == tuple(f"class {i}" for i in range(10))
    assert found.preprocess == Preprocess(image_size=(8, 8), in_channels=1)
    assert same(found.network, model) and "Nothing is recorded" in card_of(Path(folder)).text
    with pytest.raises(ValueError, match="holds something already"):
        model.save_pretrained(folder)
    with pytest.raises(ValueError, match="classes has 2 names for the 10 outputs"):
        model.save_pretrained(tmp_path / "other", classes=["a", "b"])
    assert not (tmp_path / "other").exists()
    named = model.save_pretrained(tmp_path / "named", classes="abcdefghij", preprocess=found.preprocess)
    assert load(named).classes == tuple("abcdefghij")


def test_what_came_with_the_weights_goes_out_again_without_the_figures_of_the_run(run: Path, tmp_path: Path) -> None:
    model = mlpmixer.from_pretrained(run)
    ours, theirs = load(run), load(model.save_pretrained(tmp_path / "out"))
    assert theirs.classes == ours.classes == tuple("0123456789") and theirs.preprocess == ours.preprocess
    assert theirs.meta is not None and theirs.meta.provenance.keys() <= {"loss"} and theirs.meta.splits is None
    np.testing.assert_array_equal(logits(theirs), logits(ours))
    copied = pickle.loads(pickle.dumps(model))
    copied.reset_classifier(10)  # other classes, even if they are as many
    fresh = load(copied.save_pretrained(tmp_path / "fresh"))
    assert fresh.classes[0] == "class 0" and np.allclose(logits(fresh), 0.1)  # the head of zeros is in the file
    half = model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load(half).classes == ours.classes and model.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda m: setattr(m, "head", nn.Linear(16, 3)),
            r"size mismatch for head\.weight.*reset_classifier\(K\) gives",
        ),
        (lambda m: setattr(m, "head", nn.Sequential(nn.Dropout(), nn.Linear(16, 10))), r"Missing key.*head\.weight"),
        (lambda m: nn.utils.parametrizations.weight_norm(m.head), "Missing key"),
        (lambda m: setattr(m, "blocks", m.blocks[:1]), r"model\.safetensors has .* bytes, too few"),
        (lambda m: setattr(m.blocks[0], "norm1", m.blocks[1].norm1), "share memory"),
        (lambda m: nn.init.constant_(m.head.bias, float("nan")), r"'head\.bias' is not finite"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_written(change: Any, says: str, tmp_path: Path) -> None:
    model = random_mixer(GREY)
    change(model)
    with pytest.raises(ValueError, match=f"the network could not be loaded again: .*{says}"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_of_ones_own_is_not_stored_as_another(tmp_path: Path) -> None:
    class Strongest(Mixer):
        def pool(self, features: torch.Tensor) -> torch.Tensor:
            return features.amax(dim=1)

    with pytest.raises(ValueError, match=r"Strongest is a network of your own, and would be loaded as a mixer: store"):
        Strongest(GREY).save_pretrained(tmp_path / "out")


def test_what_is_set_on_a_classifier_is_pushed(run: Path, tmp_path: Path) -> None:
    model = load(run)
    model.classes, model.threshold, model.sigmoid = list("abcdefghij"), 0.3, True
    found = load(model.push(tmp_path / "out"))
    assert (found.classes, found.threshold, found.sigmoid) == (tuple("abcdefghij"), 0.3, True)


def test_another_size_takes_its_preprocessing_along(run: Path, tmp_path: Path) -> None:
    model = mlpmixer.from_pretrained(run, img_size=16, in_chans=3)
    found = load(model.save_pretrained(tmp_path / "out"))
    assert found.preprocess.image_size == (16, 16) and found.preprocess.in_channels == 3
    assert found.classes == tuple("0123456789")
    assert mlpmixer.from_pretrained(run, num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match="mixer has no field 'img_sise'; did you mean img_size"):
        mlpmixer.from_pretrained(run, img_sise=16)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("B/16:sam", "B/16:sam"),
        ("B/16", "B/16:imagenet1k"),
        ("mixer_b16_224", "mixer_b16_224.goog_in21k_ft_in1k"),
        ("timm/mixer_b16_224.miil_in21k", "mixer_b16_224.miil_in21k"),
        ("hf-hub:timm/mixer_b16_224.miil_in21k", "mixer_b16_224.miil_in21k"),
        ("hf:timm/mixer_b16_224.miil_in21k", "mixer_b16_224.miil_in21k"),
        ("ada/mine", "hf:ada/mine"),
        ("./ada/mine", "./ada/mine"),
        ("w.npz", "w.npz"),
    ],
)
def test_names_of_other_libraries_lead_to_the_same_weights(name: str, source: str) -> None:
    assert _source(name) == source


def test_what_lies_here_comes_before_the_hub(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "ada" / "mine")
    monkeypatch.chdir(tmp_path)
    assert same(mlpmixer.from_pretrained("ada/mine"), load(run).network)


def test_a_hub_that_refuses_is_answered_with_what_to_do(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError("401 Unauthorized\nRequest ID: 1")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ValueError, match=r"401 Unauthorized\. Log in .*hf auth login.* or push to a folder"):
        hub.push(run, "hf:ada/digits")
    with pytest.raises(
        ValueError, match=r"401 Unauthorized\. Without.*huggingface\.co/ada/digits/resolve/main/model\.safetensors"
    ):
        load("hf:ada/digits")


def test_without_huggingface_hub_the_error_says_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install \"mlpmixer\[hf\]\""):
        hub.push(run, "hf:ada/digits")
    with pytest.raises(ValueError, match=r"pip install \"mlpmixer\[hf\]\""):
        hub.download("hf:ada/digits")


@pytest.mark.parametrize("name", ["hf:ada", "hf:ada/digits/x", "hf:", "hf:ada/dig its"])
def test_a_name_that_is_no_repository_is_refused(name: str, run: Path) -> None:
    for call in (lambda: hub.push(run, name), lambda: load(name)):
        with pytest.raises(ValueError, match="expected hf:owner/name"):
            call()
