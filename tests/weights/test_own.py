"""Weights of ours: a file that weights/add.py makes of a run is found by its name, and accepted by its digest alone."""

import dataclasses
import hashlib
import json
import os
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.lines import RunLine
from helpers.models import GREY

import mlpmixer
from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.models.names import MODELS
from mlpmixer.training import recipes, start
from mlpmixer.training.recipe import Init, Optim, Recipe, variant
from mlpmixer.training.run import train
from mlpmixer.weights import own
from mlpmixer.weights.model_file import load_model, read_meta, read_tensors, save_model
from mlpmixer.weights.own import OWN, OwnWeights

ROOT = Path(__file__).parents[2]
PICTURE = str(ROOT / "examples" / "digit.png")
TOLD = {
    "images": "images of scikit-learn's digits",
    "terms": "CC BY 4.0",
    "limits": "Light digits on dark; a stand-in.",
}
NAME = "stand-in"


def script(folder: Path) -> SimpleNamespace:
    """weights/add.py, writing into this folder."""
    found = runpy.run_path(str(ROOT / "weights" / "add.py"))
    found["add"].__globals__["FOLDER"] = folder
    return SimpleNamespace(**found)


@pytest.fixture(scope="module")
def finished(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the digits, started in a folder that nobody needs to know."""
    run = shutil.copytree(digits_run, tmp_path_factory.mktemp("own") / "run")
    env = json.loads((run / "env.json").read_text())
    env["command"] = ["mlpmixer", "train", "digits", "--out", "/disk/birders/run"]
    (run / "env.json").write_text(json.dumps(env))
    return run


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with weights that are in the table, made of a run; it is where one is, elsewhere than the weights."""
    place = tmp_path / "weights"
    place.mkdir()
    monkeypatch.setitem(OWN, NAME, script(place).add(NAME, finished, **TOLD))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv(own.VARIABLE, raising=False)
    return place


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> RunLine:
    def line(*words: str) -> tuple[int, str, str]:
        code = cli.main(list(words))
        return code, *capsys.readouterr()

    return line


def require_complete(card: str, known: OwnWeights) -> None:
    """The card states data, terms, recipe, command, accuracy with n, and limits."""
    assert known.data.split()[0] in card and known.terms in card and "mlpmixer train " in card and "imits" in card
    assert f"{100 * known.top1:.2f} %" in card and known.measured_on.split()[0] in card
    assert "recipe" in card or "--epochs" in card


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not in a checkout")
@pytest.mark.parametrize("name", OWN)
def test_file_and_card_of_the_repository_agree_with_the_table(name: str) -> None:
    known = OWN[name]
    (file,) = (f for f in (own.PACKAGED / f"{name}.safetensors", ROOT / f"weights/{name}.safetensors") if f.exists())
    content, meta = file.read_bytes(), read_meta(file)
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (known.sha256, known.num_bytes)
    sizes = meta.config.num_params, len(meta.classes), meta.config.image_size
    assert sizes == (known.num_params, known.num_classes, known.image_size)
    assert known.top1 == pytest.approx(
        meta.provenance["metrics"]["top1"] or meta.provenance["metrics"]["val_top1"], abs=1e-4
    )
    assert meta.provenance["stored_as"] == "float16"
    assert (meta.provenance["images"], meta.provenance["terms"]) == (known.data, known.terms)
    require_complete(file.with_suffix(".md").read_text(encoding="utf-8"), known)


def test_each_file_of_the_repository_is_in_the_table() -> None:
    files = [*(ROOT / "weights").glob("*.safetensors"), *own.PACKAGED.glob("*.safetensors")]
    assert {file.stem for file in files} <= OWN.keys()


def test_script_writes_file_card_and_entry(folder: Path, digits_run: Path) -> None:
    known, file = OWN[NAME], folder / f"{NAME}.safetensors"
    entry: dict[str, Any] = {"OWN": {}, "OwnWeights": OwnWeights}
    exec(script(folder).source_of(NAME, known), entry)
    assert entry["OWN"][NAME] == known, "what it prints is the entry"
    assert {t.dtype for t in read_tensors(file)[0].values()} == {torch.float16}
    meta, stored = read_meta(file), read_meta(digits_run / "model.safetensors")
    assert meta.classes == stored.classes and meta.splits and not meta.splits.all_names
    assert meta.data == Data(name="digits") and meta.provenance["terms"] == "CC BY 4.0"
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    require_complete(card, known)
    assert "/disk/birders" not in card
    for line in (
        "- command: `mlpmixer train digits --out run`",
        "- training images: 1,293 images of scikit-learn's digits",
        "- terms of the data: CC BY 4.0",
        "- recipe: `digits`",
        "- source: trained by this project",
        "## Limits\n\nLight digits on dark; a stand-in.\n",
        f"| test | 360 | {100 * known.top1:.2f} % |",
        "\n\nMeasured before the weights were rounded to float16.\n",
        "None is stated. The terms of its data: CC BY 4.0.",
    ):
        assert line in card
    assert (
        known.data == "1,293 images of scikit-learn's digits"
        and known.measured_on == "360 test images, before rounding to float16"
    )


def test_script_refuses_names_that_mean_something_else_and_unfinished_runs(digits_run: Path, tmp_path: Path) -> None:
    for name in ("resmlp-s12", "../new", "B/16:sam", "digits"):
        with pytest.raises(SystemExit, match="expected a new name"):
            script(tmp_path).add(name, digits_run, **TOLD)
    with pytest.raises(SystemExit, match="is not a finished run"):
        script(tmp_path).add("new", tmp_path, **TOLD)
    run = shutil.copytree(digits_run, tmp_path / "several")
    model, meta = load_model(run / "model.safetensors")
    save_model(run / "model.safetensors", model, dataclasses.replace(meta, threshold=0.5))
    with pytest.raises(SystemExit, match="several classes or none"):
        script(tmp_path).add("new", run, **TOLD)
    assert not list(tmp_path.glob("new.*")), "nothing is left behind"


@pytest.mark.parametrize(("scored", "images"), [("test", "of its own validation split"), ("val", "validation images")])
def test_script_says_which_images_were_scored(scored: str, images: str, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    summary, (model, meta) = json.loads((run / "summary.json").read_text()), load_model(run / "model.safetensors")
    if scored == "val":
        summary["test"] = summary["top1"] = None
    (run / "summary.json").write_text(json.dumps(summary))
    assert meta.data is not None
    data = dataclasses.replace(meta.data, val_is_test=True)
    save_model(run / "model.safetensors", model, dataclasses.replace(meta, data=data))
    known = script(tmp_path).add(NAME, run, **TOLD)
    assert known.top1 == round(summary[scored]["top1"], 4) and images in known.measured_on


def test_name_is_found_in_the_folder_that_option_or_variable_names(
    folder: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("predict", NAME, PICTURE, "--weights-dir", str(folder))
    assert code == 0 and len(out.splitlines()) == 6
    assert f"note: {NAME} is a model of mlpmixer's own, trained on 1,293 images of scikit-learn's" in err
    assert run("predict", NAME, PICTURE)[0] == 2, "the option is of its command alone"
    monkeypatch.setenv(own.VARIABLE, str(folder))
    assert run("predict", NAME, PICTURE)[1] == out
    monkeypatch.setenv(own.VARIABLE, "/nowhere")
    assert run("predict", NAME, PICTURE, "--weights-dir", str(folder))[1] == out, "the option counts"


def test_name_is_found_in_a_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = folder.parent / "src" / "mlpmixer" / "weights" / "own.py"
    monkeypatch.setattr(own, "__file__", str(module))
    assert own.here(NAME) is None, "installed somewhere"
    module.parents[1].mkdir(parents=True)
    assert own.here(NAME) == folder / f"{NAME}.safetensors"
    monkeypatch.setattr(own, "__file__", "/usr/lib/python3/site-packages/mlpmixer/weights/own.py")
    assert own.here(NAME) is None
    monkeypatch.chdir(folder.parent)
    assert own.here(NAME) == folder / f"{NAME}.safetensors", "installed, in a clone"
    monkeypatch.setenv(own.VARIABLE, "/nowhere")
    assert own.here(NAME) == folder / f"{NAME}.safetensors"


def test_every_command_takes_the_name(folder: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(own.VARIABLE, str(folder))
    tiny = "--steps 1 --device cpu --quiet"
    for words in (
        f"evaluate {NAME}",
        f"explain {NAME} {PICTURE} --out explained",
        f"probe {NAME} --shots 1 --knn 0",
        f"summary {NAME}",
        f"convert {NAME} {NAME}.npz",
        f"push {NAME} pushed",
        f"train digits --init {NAME} {tiny} --out tuned",
        f"train digits --teacher {NAME} {tiny} --out taught --model.num-blocks 1",
        f"compare {NAME} tuned",
    ):
        code, _, err = run(*words.split())
        assert code == 0, (words, err)
    assert mlpmixer.create_model(NAME, num_classes=3, head="reset").head.out_features == 3
    whole = mlpmixer.from_pretrained(NAME)
    assert torch.equal(whole.head.weight, mlpmixer.load(NAME).network.head.weight)
    assert {p.name for p in folder.iterdir()} == {f"{NAME}.safetensors", f"{NAME}.md"}, "nothing is written there"
    assert "## Limits\n\nLight digits" in Path("pushed/README.md").read_text(encoding="utf-8")
    assert run("push", "tuned", "passed-on")[0] == 0
    card = Path("passed-on/README.md").read_text(encoding="utf-8")
    assert f"- started from: `{NAME}`\n- learned from: 1,293 images of scikit-learn's digits (CC BY 4.0)\n" in card


@pytest.mark.parametrize("field", ["init", "distill"])
def test_terms_of_weights_go_with_what_is_made_of_them(field: str, folder: Path, tmp_path: Path) -> None:
    """By the path of the file, after a resumption without the file, and from one run to the next."""
    file = shutil.copy(folder / f"{NAME}.safetensors", "copied.safetensors")
    model = read_meta(Path(file)).config
    short: dict[str, Any] = {"steps": 2, "batch_size": 16, "device": "cpu", "save_every_s": 0.0, "test": False}
    recipe = variant(Recipe(model=model, data=Data(name="digits"), optim=Optim(name="adamw")), run=short)
    first = variant(recipe, **{field: {"weights" if field == "init" else "teacher": file}})

    def interrupt(event: dict[str, Any]) -> None:
        if event["kind"] == "save":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(first, out="first", report=interrupt)
    Path(file).unlink()
    train(first, out="first", resume=True)
    train(variant(recipe, init={"weights": "first"}), out="second")
    for run in ("first", "second"):
        assert read_meta(Path(run, "model.safetensors")).provenance["learned_from"] == (
            "1,293 images of scikit-learn's digits (CC BY 4.0)"
        )


@pytest.mark.exports
def test_export_and_service_take_the_name(folder: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlpmixer.cli.serve import Serve

    monkeypatch.setenv(own.VARIABLE, str(folder))
    assert run("export", NAME)[0] == 0 and Path("model.onnx").exists()
    assert Serve(run=NAME, device="cpu").app().title


def test_what_is_not_here_is_answered_with_where_it_was_looked_for(
    folder: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, where in (("nowhere", "nowhere (no such folder)"), (".", ".")):
        monkeypatch.setenv(own.VARIABLE, variable)
        for words in (("predict", NAME, PICTURE), ("train", "digits", "--init", NAME), ("summary", NAME)):
            code, _, err = run(*words)
            assert code == 2 and err.count("\n") == 1
            assert f"{NAME}.safetensors, trained by this project, is not in {where} or {ROOT}/weights: " in err
            assert "--weights-dir DIR or MLPMIXER_WEIGHTS=DIR, or give the path of the file" in err
    monkeypatch.delenv(own.VARIABLE)
    monkeypatch.setattr(own, "__file__", "/usr/lib/python3/site-packages/mlpmixer/weights/own.py")
    with pytest.raises(ValueError, match=r"is not in the package: take it from weights/ of the repository"):
        mlpmixer.load(NAME)


def test_folder_that_is_not_there_is_named_with_the_nearest(folder: Path, run: RunLine) -> None:
    for words in (("predict", "digits", PICTURE), ("train", "digits", "--steps", "2"), ("list", "weights")):
        code, _, err = run(*words, "--weights-dir", f"{folder}s")
        assert code == 2 and err.count("\n") == 1 and not Path("runs").exists()
        assert f"no folder '{folder}s' (--weights-dir); did you mean {folder}?" in err
    code, _, err = run("predict", NAME, PICTURE, "--weights-dir", str(folder / f"{NAME}.safetensors"))
    assert code == 2 and err.endswith(f"{NAME}.safetensors is a file (--weights-dir): name its folder, {folder}\n")


def test_another_file_of_the_name_does_not_hide_the_right_one(
    folder: Path, run: RunLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / f"{NAME}.safetensors").write_bytes(b"of last year")
    monkeypatch.setattr(own, "folders", lambda given: [tmp_path / "first", folder])
    assert own.find(NAME) == own.here(NAME) == folder / f"{NAME}.safetensors"
    assert run("predict", NAME, PICTURE)[0] == 0


def test_file_of_another_digest_is_refused_by_name_and_taken_by_path(
    folder: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(own.VARIABLE, str(folder))
    file = folder / f"{NAME}.safetensors"
    model, meta = mlpmixer.load(NAME).network, read_meta(file)
    save_model(file, model, dataclasses.replace(meta, provenance={}))
    found = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    code, _, err = run("predict", NAME, PICTURE)
    assert code == 2 and err.count("\n") == 1 and f"{file} is not the {NAME} of this version: expected" in err
    assert f"{OWN[NAME].sha256[:16]}..., found {found}...; put the right file there, or give its path" in err
    assert "not here: another file has its name" in run("list", "weights", NAME)[1]
    assert run("predict", str(file), PICTURE)[0] == 0
    file.write_bytes(file.read_bytes()[:1000])
    assert "of this version: expected" in run("evaluate", NAME)[2]
    assert "cut off" in run("predict", str(file), PICTURE)[2]


def test_wrong_name_suggests_it(folder: Path, run: RunLine) -> None:
    for words in ("predict stnad-in x.png", "train digits --init stand-inn", "summary stand_in", "list weights stand"):
        code, _, err = run(*words.split())
        assert code == 2 and f"did you mean {NAME}" in err, words
    with pytest.raises(ValueError, match=f"did you mean {NAME}"):
        mlpmixer.create_model("standin")
    assert f"--init {NAME}" in run("train", "digits", "--model", NAME)[2]


def test_folder_of_that_name_comes_first(
    folder: Path, digits_run: Path, run: RunLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(digits_run, NAME)
    assert (
        f"note: {NAME} is what lies in {Path(NAME).absolute()}; mlpmixer's own model {NAME} is not here\n"
        in run("predict", NAME, PICTURE)[2]
    )
    notes: list[dict[str, Any]] = []
    mlpmixer.create_model(NAME, report=notes.append)
    assert "is what lies in" in notes[0]["note"]


def test_list_shows_ours_first_with_data_terms_and_whether_they_are_here(folder: Path, run: RunLine) -> None:
    absent, present = run("list", "weights")[1], run("list", "weights", "--weights-dir", str(folder))[1]
    line = next(line for line in absent.splitlines() if line.startswith(NAME))
    assert "1,293 images of scikit-learn's digits  CC BY 4.0" in line and "360 test images" in line
    assert line.endswith("not here") and f"  {folder / NAME}.safetensors\n" in present
    assert absent.index(NAME) < absent.index("B/16:imagenet1k")
    assert run("list", "weights", "*gsam*")[1].startswith("others' weights")


def test_weights_with_an_address_are_fetched_and_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / f"{NAME}.safetensors"
    monkeypatch.setattr("mlpmixer.download.fetch", lambda url, *, num_bytes, report: file)
    monkeypatch.setitem(OWN, NAME, dataclasses.replace(OWN[NAME], url="https://example.org/a.safetensors"))
    assert own.get(NAME) == file
    monkeypatch.setitem(OWN, NAME, dataclasses.replace(OWN[NAME], sha256="0" * 64))
    with pytest.raises(ValueError, match="expected the SHA-256 digest 0000"):
        own.get(NAME)


PHOTOS = variant(recipes.photos(), data={"name": "photos/"}, model={"num_classes": 2})


@pytest.fixture
def helped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of ours that fit photos, and helped on two of three sets; in a folder that the variable names."""
    torch.manual_seed(0)
    model = mlpmixer.create_model("Nano/8", num_classes=200)
    file = folder / "photo-weights.safetensors"
    mlpmixer.weights.model_file.save_model(file, model, mlpmixer.weights.model_file.meta_of(model), "float16")
    known = dataclasses.replace(
        OWN[NAME],
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        data="45 photos",
        terms="for tests",
        gains={"flowers": 0.0321, "trash": -0.01, "birds": 0.1},
    )
    monkeypatch.setitem(OWN, "photo-weights", known)
    monkeypatch.setattr(start, "OWN", {"digits": OWN["digits"], "photo-weights": known})
    monkeypatch.setenv(own.VARIABLE, str(folder))


OFFER = (
    "--init photo-weights starts from weights trained on 45 photos (for tests), which usually helps: +3.2 "
    "to +10.0 points on 2 of 3 sets tried"
)


@pytest.mark.usefixtures("helped")
def test_weights_of_ours_are_offered_for_few_photos() -> None:
    assert start.offer(PHOTOS, 500, multi_label=False) == [OFFER]
    assert start.offer(PHOTOS, start.FEW_IMAGES + 1, multi_label=False) == []
    assert start.offer(PHOTOS, 500, multi_label=True) == []


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize(
    "recipe",
    [
        dataclasses.replace(PHOTOS, init=Init(weights="runs/other")),
        variant(PHOTOS, model={"image_size": 96}),
        variant(PHOTOS, model={"in_channels": 1}),
        variant(PHOTOS, data={"folds": 5, "fold": 2}),
        variant(PHOTOS, data={"name": "cifar10"}),
        recipes.digits(),
        dataclasses.replace(PHOTOS, model=MODELS["eamlp-nano"]),
        dataclasses.replace(PHOTOS, network="mine"),
    ],
    ids=["init", "size", "grey", "fold", "named", "recipe", "network", "own network"],
)
def test_nothing_is_offered_where_it_does_not_fit(recipe: Recipe) -> None:
    assert start.offer(recipe, 500, multi_label=False) == []


@pytest.mark.usefixtures("helped")
def test_nothing_is_offered_that_is_not_here_or_did_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ[own.VARIABLE]
    monkeypatch.setenv(own.VARIABLE, "/nowhere")
    assert start.offer(PHOTOS, 500, multi_label=False) == []
    monkeypatch.setenv(own.VARIABLE, folder)
    for gains in ({"flowers": -0.1}, {"flowers": 0.1, "trash": -0.1}, {}):
        known = dict(start.OWN) | {"photo-weights": dataclasses.replace(OWN["photo-weights"], gains=gains)}
        monkeypatch.setattr(start, "OWN", known)
        assert start.offer(PHOTOS, 500, multi_label=False) == [], "usually means on more than half of them"


def test_offer_stands_at_the_start_of_a_run_and_not_of_a_resumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpmixer.training.run.offer", lambda *asked: ["an offer"])
    recipe = Recipe(model=GREY, data=Data(name="digits"), optim=Optim(name="adamw"))
    events: list[dict[str, Any]] = []
    short = variant(recipe, run={"steps": 2, "batch_size": 16, "device": "cpu", "save_every_s": 0.0})

    def report(event: dict[str, Any]) -> None:
        events.append(event)
        if event["kind"] == "save" and len(starts()) == 1:
            raise KeyboardInterrupt

    def starts() -> list[list[str]]:
        return [event["notes"] for event in events if event["kind"] == "start"]

    with pytest.raises(KeyboardInterrupt):
        train(short, out=tmp_path / "run", report=report)
    train(short, out=tmp_path / "run", resume=True, report=report)
    first, second = starts()
    assert "an offer" in first and "an offer" not in second
    assert "an offer" not in json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]
