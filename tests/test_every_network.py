"""Every command with every architecture: it works, or is refused in one sentence.

docs/reference/networks.md has the table.

`WRITE_DOCS=1 python -m pytest tests/test_every_network.py -n 0 -m ""` writes the table that this test proves.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers.processes import Forks
from helpers.shared import Once

from mlpmixer import cli
from mlpmixer.config import to_json
from mlpmixer.models.architecture import ARCHITECTURES
from mlpmixer.training.recipe import read_recipe
from mlpmixer.training.run import train
from mlpmixer.weights.model_file import read_tensors
from mlpmixer.weights.run_folder import MODEL_FILE

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "networks.md"
TINY = {  # a small one of each architecture, on the digits: the options of `train`
    "mixer": "--model Pico/2 --model.num-blocks 2 --model.hidden-dim 16 --model.tokens-mlp-dim 8 "
    "--model.channels-mlp-dim 32",
    "resmlp": "--model resmlp-s12 --model.num-blocks 2 --model.hidden-dim 16 --model.channels-mlp-dim 32",
    "gmlp": "--model gmlp-ti/16 --model.num-blocks 2 --model.hidden-dim 16 --model.channels-mlp-dim 32",
    "s2-mlp": "--model s2-mlp-wide --model.num-blocks 2 --model.hidden-dim 16 --model.channels-mlp-dim 32",
    "s2-mlpv2": "--model s2-mlpv2-s/7 --model.hidden-dims 8 16 --model.depths 1 1",
    "as-mlp": "--model as-mlp-t --model.hidden-dims 10 20 --model.depths 1 1",
    "vip": "--model vip-s/7 --model.hidden-dims 8 16 --model.depths 1 1 --model.strides 2",
    "repmlpnet": "--model repmlpnet-t224 --model.hidden-dims 8 16 --model.depths 1 1 --model.share-sets 2 4",
    "eamlp": "--model eamlp-nano --model.num-blocks 2 --model.hidden-dim 16 --model.channels-mlp-dim 32",
    "vit": "--model vit-ti/16 --model.num-blocks 1 --model.hidden-dim 16 --model.num-heads 2 --model.mlp-dim 32",
    "resnet": "--model resnet-18 --model.depths 1 1 --model.width 8 --model.small-images",
}
SIZES = {name: "--image-size 8 --in-channels 1" + " --patch-size 2" * (name != "resnet") for name in TINY}
IMAGE = "{images}/0-0.png"
FOUR_STEPS = "--optim.name adamw --steps 4 --batch-size 64 --quiet --out {tmp}/new"
TRAIN = f"train digits {{model}} {FOUR_STEPS}"
COMMANDS = {
    "train, resume": "train --resume {run} --quiet",
    "`train --optim.name muon`": f"{TRAIN} --optim.name muon",
    "`train --optim.layer-decay 0.8`": f"{TRAIN} --optim.layer-decay 0.8",
    "`train --optim.frozen-layers 1`": f"{TRAIN} --optim.frozen-layers 1",
    "`train --run.checkpointing`": f"{TRAIN} --run.checkpointing",
    "`train --init.stem whitened`": f"{TRAIN} --init.stem whitened",
    "`train --optim.locality 3`": f"{TRAIN} --optim.locality 3",
    "`train --optim.mirror`": f"{TRAIN} --optim.mirror",
    "`train --progressive 4:0.5`": f"{TRAIN} --progressive 4:0.5",
    "`train --run.kernels compiled`": f"{TRAIN} --run.kernels compiled",
    "`train --init RUN`": f"train digits --init {{run}} {FOUR_STEPS}",
    "`train --init RUN --image-size 16`": f"train digits --init {{run}} --image-size 16 {FOUR_STEPS}",
    "`train --teacher RUN`": f"{TRAIN} --teacher {{run}}",
    "lr-find": "lr-find digits {model} --optim.name adamw --steps 10 --out {tmp}/lr.png",
    "evaluate": "evaluate {run}",
    "predict": f"predict {{run}} {IMAGE}",
    "`predict --features FILE`": f"predict {{run}} {IMAGE} --features {{tmp}}/f.csv",
    "`predict --image-size 16`": f"predict {{run}} {IMAGE} --image-size 16",
    "compare": "compare {run} {run}",
    "probe": "probe {run} --shots 1 --cache {tmp}/features",
    "explain": f"explain {{run}} {IMAGE} --out {{tmp}}/explained",
    "`explain --method evidence`": f"explain {{run}} {IMAGE} --out {{tmp}}/explained --method evidence",
    "summary": "summary {run}",
    "push": "push {run} {tmp}/pushed",
    "convert": "convert {run} {tmp}/w.safetensors",
    "`convert FILE.npz`": "convert {run} {tmp}/w.npz",
    "`convert --official`": "convert {run} {tmp}/w.safetensors --official",
    "`convert --timm`": "convert {run} {tmp}/w.safetensors --timm",
    "bench": "bench {run} --seconds 0.1 --batch 1 --threads 1",
    "`export --to onnx`": "export {run} --to onnx --out {tmp}/model.onnx --images 20",
    "`export --to onnx --int8`": "export {run} --to onnx --int8 --out {tmp}/model.onnx --images 20",
    "`export --to onnx --evidence`": "export {run} --to onnx --evidence --out {tmp}/model.onnx --images 20",
    "`export --to bundle`": "export {run} --to bundle --out {tmp}/bundle --images 20",
    "`export --to web`": "export {run} --to web --out {tmp}/page --images 20",
    "`export --to openvino`": "export {run} --to openvino --out {tmp}/model.xml --images 20",
    "`export --to pt2`": "export {run} --to pt2 --out {tmp}/model.pt2 --images 20",
}
SLOW = [command for command in COMMANDS if "export" in command or command == "bench"]
WORKS = "works"


@pytest.fixture(
    scope="module",  # the Mixer's commands have tests of their own, and the column of one other network is proof enough
    params=[pytest.param(name, marks=[] if name == "resmlp" else [pytest.mark.slow]) for name in ARCHITECTURES],
)
def architecture(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if ARCHITECTURES[name].extra:
        pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    return name


@pytest.fixture(scope="module")
def run(architecture: str, once: Once) -> Path:
    """A finished run of each architecture, trained from the command line."""

    def make(folder: Path) -> None:
        words = f"train digits {TINY[architecture]} {SIZES[architecture]} --optim.name adamw --steps 60 --quiet"
        assert cli.main([*words.split(), "--out", str(folder)]) == 0

    return once(f"run-{architecture}", make)


@pytest.fixture(scope="session")
def images(once: Once) -> Path:
    def make(folder: Path) -> None:
        from PIL import Image
        from sklearn.datasets import load_digits

        folder.mkdir(parents=True)
        Image.fromarray((load_digits().images[0] * 15).astype("uint8")).save(folder / "0-0.png")

    return once("images", make)


Results = dict[tuple[str, str], str]


def documented() -> Results:
    """(command, architecture) -> WORKS or the sentence of the refusal, as docs/reference/networks.md has them."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    results = {(row[0], name): cell for row in rows[2:] for name, cell in zip(rows[0][1:], row[1:], strict=True)}
    for name, command, sentence in re.findall(r"^- \*\*([\w-]+)\*\*, (.+?): (.+)$", text, re.MULTILINE):
        results[command, name] = sentence
    return results


def write(results: Results) -> None:
    head, _, _ = PAGE.read_text(encoding="utf-8").partition("| command |")
    lines = ["| command | " + " | ".join(ARCHITECTURES) + " |", "|---" * (len(ARCHITECTURES) + 1) + "|"]
    refusals = []
    for command in COMMANDS:
        cells = [results.get((command, name), "?") for name in ARCHITECTURES]
        refusals += [
            f"- **{name}**, {command}: {cell}"
            for name, cell in zip(ARCHITECTURES, cells, strict=True)
            if cell not in (WORKS, "?")
        ]
        lines.append(f"| {command} | " + " | ".join(c if c in (WORKS, "?") else "refused" for c in cells) + " |")
    PAGE.write_text(head + "\n".join([*lines, "", *refusals]) + "\n", encoding="utf-8")


def try_command(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """WORKS, or the one line on standard error with which a command was refused (exit code 2)."""
    capsys.readouterr()
    code = cli.main(words.split())
    err = capsys.readouterr().err
    if code == 0:
        return WORKS
    assert code == 2, f"{words}: exit code {code}\n{err}"
    lines = [line for line in err.splitlines() if line.startswith("mlpmixer: ")]
    assert len(lines) == 1, err
    sentence = lines[0].removeprefix("mlpmixer: ")
    return re.sub(r"/\S*/", "", sentence)


@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in COMMANDS])
def test_a_command_works_or_is_refused_in_a_sentence(
    command: str,
    architecture: str,
    run: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / run.name  # what writes beside a run must not change the shared one
    shutil.copytree(run, own)
    model = f"{TINY[architecture]} {SIZES[architecture]}"
    result = try_command(COMMANDS[command].format(run=own, images=images, model=model, tmp=tmp_path), capsys)
    assert result == WORKS or architecture in result, result
    if os.environ.get("WRITE_DOCS"):
        write(documented() | {(command, architecture): result})
    assert documented()[command, architecture] == result


KILLED_AT_STEP_5 = """
    import json, os, signal, sys
    from mlpmixer.config import from_json
    from mlpmixer.training.recipe import Recipe
    from mlpmixer.training.run import train

    def report(line):
        if line["kind"] == "step" and line["step"] == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    train(from_json(Recipe, json.load(sys.stdin)), out=sys.argv[1], report=report)
"""


def test_a_killed_run_resumes_to_the_same_bits(run: Path, tmp_path: Path, forked: Forks) -> None:
    recipe = read_recipe(run)
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, steps=10, save_every_s=0, log_every=1))
    done = forked(KILLED_AT_STEP_5, tmp_path / "killed", input=json.dumps(to_json(recipe)))
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "summary.json").exists()
    for name in ("killed", "undisturbed"):
        train(recipe, out=tmp_path / name, resume=True)
    killed, undisturbed = (read_tensors(tmp_path / name / MODEL_FILE)[0] for name in ("killed", "undisturbed"))
    assert killed.keys() == undisturbed.keys()
    assert all(torch.equal(killed[name], undisturbed[name]) for name in killed)


def test_every_architecture_has_a_small_one() -> None:
    assert TINY.keys() == ARCHITECTURES.keys()


def test_the_service_answers_for_every_network(architecture: str, run: Path, images: Path) -> None:
    testclient = pytest.importorskip("fastapi.testclient", reason="the extra serve is not installed")
    from mlpmixer.inference.load import load
    from mlpmixer.models.architecture import has
    from mlpmixer.serve.app import make_app

    model = load(run)
    with testclient.TestClient(make_app(model)) as client:
        answer = client.post("/predict", files={"file": (images / "0-0.png").read_bytes()})
        assert answer.status_code == 200 and len(answer.json()["results"][0]["top"]) == 5
        assert client.get("/model").json()["evidence"] == has(model.network, "tokens")
