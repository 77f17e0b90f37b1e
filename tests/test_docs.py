"""What the pages of the documentation say is so: commands parse, links lead somewhere, public names are described."""

import dataclasses
import itertools
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import mlpmixer
from mlpmixer import cli
from mlpmixer.cli.arguments import spellings_of
from mlpmixer.cli.printing import multiply_adds
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.models import asmlp, s2mlp
from mlpmixer.models.architecture import create_model
from mlpmixer.models.names import MODELS
from mlpmixer.training import recipes
from mlpmixer.weights import model_file, run_folder

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTES = DOCS / "lab"  # commands there are as they were
NETWORK_LINES = {
    line.strip()
    for file in (ROOT / "src/mlpmixer/models").glob("*.py")
    for line in file.read_text(encoding="utf-8").splitlines()
}


def commands(text: str) -> list[str]:
    """The lines of blocks of code and the words in backticks that begin with mlpmixer, without their comments."""
    text = re.sub(r" \\\n *", " ", text)
    found = re.findall(r"^(?:    )?(mlpmixer .*)$", text, re.M) + re.findall(
        r"`(mlpmixer [^`\n]+(?:\n[^`\n]+)?)`", text
    )
    return [re.sub(r"\s+", " ", line.split("  #")[0].split(" # ")[0]).strip() for line in found]


COMMANDS = sorted(
    {c for page in PAGES if NOTES not in page.parents for c in commands(page.read_text(encoding="utf-8"))}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the pages name: photos, runs, a table of labels."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("photos", "other-photos", "more", "shards", "parquet-folder", "runs/photos", "runs/other"):
        (folder / name).mkdir(parents=True)
    (folder / "photos/labels.csv").write_text("file,label\n", encoding="utf-8")
    recipe = recipes.photos()
    cfg = dataclasses.replace(recipe.model, num_classes=2)
    meta = model_file.ModelMeta(config=cfg, classes=("a", "b"), preprocess=Preprocess(image_size=(64, 64)))
    for run in ("photos", "other"):
        run_folder.write_recipe(folder / "runs" / run, recipe)
        model_file.save_model(folder / "runs" / run / run_folder.MODEL_FILE, create_model(cfg), meta)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = shlex.split(command)[1:]
    if words[0] in ("--help", "--version", "COMMAND"):
        return
    line = cli.parse(words)
    if line.words and not line.help:
        line.make()


def test_options_exist() -> None:
    known = {"--help", "--help-all", "--version"}
    known |= {"--nproc-per-node", "--nnodes", "--rdzv-endpoint", "--max-restarts"}  # torchrun's
    known |= {"--requeue", "--nodes", "--gpus-per-node"}  # sbatch's
    known |= {"--price", "--gpu-kw"}  # of examples/scale.py
    known |= {name for c in cli.COMMANDS for name in spellings_of(cli.command(c))}
    unknown = [
        f"{page.relative_to(ROOT)}: {option}"
        for page in PAGES
        if NOTES not in page.parents
        for words in re.findall(r"`(--[^`]+)`", page.read_text(encoding="utf-8"))
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", words)
        if option not in known
    ]
    assert unknown == []


def test_links_outside_the_site_lead_somewhere() -> None:
    """`make docs` checks those between pages, anchors too."""
    pages = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(
            r"\]\((?!\w+:|#)([^)\s#]+)", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
        )
        if not (page.parent / target).exists() and not target.endswith("cheat-sheet.md") and "/cli/" not in f"/{target}"
    ]
    assert dead == []


def test_pages_that_the_code_names_exist() -> None:
    files = [p for d in ("src", "tests", "examples", "benchmarks") for p in (ROOT / d).rglob("*.py")]
    named = {name for p in files for name in re.findall(r"\bdocs/[\w/-]+\.md", p.read_text(encoding="utf-8"))}
    assert named and [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_public_name_has_a_place_in_the_reference() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference/api").glob("*.md"))
    described = re.findall(r"^::: mlpmixer\.(\w+)$", text, re.M)
    assert sorted(described) == sorted(mlpmixer.__all__)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert [str(p) for page in PAGES if (p := page.relative_to(DOCS)).as_posix() not in navigation] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_python_compiles_and_imports_what_there_is(page: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
        if page.parent.name == "concepts":
            assert [line for line in code.splitlines() if line not in NETWORK_LINES] == []
        else:
            compile(code, str(page), "exec")
        for line in re.findall(r"^(?:from mlpmixer\S* import .*|import mlpmixer\S*)$", code, re.M):
            exec(line, {})
        for name in re.findall(r"\bmlpmixer\.(\w+)\(", code):
            assert name in mlpmixer.__all__


def hook(name: str) -> dict[str, Any]:
    pytest.importorskip("mkdocstrings_handlers.python", reason='pip install "mlpmixer[docs]"')
    return runpy.run_path(str(DOCS / "hooks" / f"{name}.py"))


def test_docstrings_become_parameters_and_errors() -> None:
    text = "Do it.\n\na: (B,C)\n    and on.\nb, c (pixels): sizes. d: <x>\n\nSee [i][j].\n\nErrors: ValueError."
    assert hook("docstrings")["rewritten"](text, {"a", "b", "c", "d"}, "Args").split("\n\n", 1)[1].strip() == (
        "See [i]\\[j].\n\n**Errors:** ValueError.\n\n"
        "Args:\n    a: (B,C) and on.\n    b: sizes.\n    d: &lt;x>\n    c: as `b`."
    )


def test_pages_of_the_commands_hold_what_help_prints() -> None:
    page = hook("commands")["_page"]("train")
    assert "`--epochs, --run.epochs X`\n:   Passes over the training images." in page and "{crop,pad" in page
    sheet = hook("commands")["_cheat_sheet"]()
    assert all(usage in sheet for usage in ("mlpmixer train DATA", "mlpmixer data check DATA", "--epochs X"))


def test_tables_of_models_and_weights_have_every_name() -> None:
    networks, weights = hook("commands")["_networks"](), hook("commands")["_weights"]()
    assert [name for name in MODELS if f"| `{name}` |" not in networks] == []
    assert "| `S/16` | `mixer_s16_224` | mixer | 224\xa0x\xa0224 | 14\xa0x\xa014 | 18,528,264 | 3.78\xa0G |" in networks
    assert re.search(r"\| `digits` \| 1,221.images.* \| CC.BY.4.0 \| 98.89.% \|.* 304,796 \|", weights)
    assert "`B/16:sam`" in weights and "`mixer_b16_224.miil_in21k_ft_in1k`" in weights


FAMILY = runpy.run_path(str(DOCS / "images/draw_family.py"))


def test_drawings_of_the_family_are_those_of_their_script() -> None:
    drawings = {file.stem: file.read_text(encoding="utf-8") for file in FAMILY["OUT"].glob("*.svg")}
    assert drawings == {name: draw() for name, draw in FAMILY["DRAWINGS"].items()}
    page = (DOCS / "concepts/family.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"images/family/([\w-]+)\.svg", page)) == sorted(drawings)


def test_drawings_of_shifts_show_where_the_code_takes_values_from() -> None:
    n = FAMILY["N"]
    places = torch.arange(1.0, n * n + 1).view(1, n, n, 1)
    for axes, order in (((1, 2), FAMILY["S2"]), ((2, 1), FAMILY["S2_EXCHANGED"])):
        moved = s2mlp.shift(places.repeat(1, 1, 1, 4), *axes)
        for i, j, g in itertools.product(range(n), range(n), range(4)):
            assert moved[0, i, j, g] == places[0, *FAMILY["s2_source"](g, (i, j), order), 0]
    padded = torch.nn.functional.pad(places, (0, 0, 2, 2, 2, 2))
    for axis in (0, 1):
        moved = asmlp.shift(places.repeat(1, 1, 1, 5), 5, axis + 1)
        for i, j, g in itertools.product(range(n), range(n), range(5)):
            row, column = FAMILY["as_source"](g, (i, j), axis)
            assert moved[0, i, j, g] == padded[0, row + 2, column + 2, 0]


def test_sizes_on_the_page_of_the_family_are_those_of_the_configs() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| (.+)$", (DOCS / "concepts/family.md").read_text("utf-8"), re.M)
    relatives = {name for name, cfg in MODELS.items() if cfg.architecture not in ("mixer", "vit", "resnet")}
    assert {MODELS[name] for name, *_ in rows} >= {MODELS[name] for name in relatives if not name.endswith("_224")}
    for name, params, rest in rows:
        cfg, amount = MODELS[name], multiply_adds(sum(layer.flops for layer in MODELS[name].layers()))
        assert f"{cfg.num_params:,}" == params and f"{amount} |" in rest, name
        if cfg.deployed() != cfg:
            assert f"{cfg.deployed().num_params:,} | " in rest
