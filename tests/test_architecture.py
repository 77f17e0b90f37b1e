"""Imports point down. The table is the picture in CONTRIBUTING.md: a module may import what stands in its row, and no more."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "mlpmixer"

FLOOR = {"config", "registry", "machine"}  # imports nothing of ours
DATA = FLOOR | {"data"}
BELOW_VERBS = DATA | {"zoo", "device", "clock", "model", "kernels", "optim", "loss", "init", "checkpoint", "runlog", "recipes", "report"}
BELOW_VERBS |= {"locality", "symmetry", "progressive", "transfer", "interop", "fetch", "hub", "weights", "network"}
BELOW_VERBS |= {"significance", "calibration", "metrics", "engines", "exported", "choices"}
VERBS = {"evaluate", "predict"}  # the other verbs import these two of each other
ALLOWED: dict[str, set[str] | None] = {
    "config": set(),
    "registry": set(),
    "machine": set(),
    "significance": set(),
    "calibration": {"significance"},
    "metrics": {"significance", "calibration"},
    "fetch": {"machine"},
    "zoo": FLOOR,
    "device": FLOOR,
    "clock": FLOOR,
    "model": FLOOR | {"zoo"},
    "network": FLOOR,
    "rivals": FLOOR,
    "kernels": FLOOR | {"model", "locality", "device"},
    "data": FLOOR | {"fetch"},
    "optim": FLOOR | {"model", "device"},
    "loss": FLOOR,
    "init": FLOOR | {"model"},
    "locality": FLOOR | {"model"},
    "symmetry": FLOOR | {"model"},
    "progressive": FLOOR | {"model", "locality", "transfer"},
    "checkpoint": DATA | {"model", "network", "kernels"},
    "runlog": FLOOR,
    "recipes": FLOOR | {"zoo"},
    "transfer": DATA | {"zoo", "model", "kernels", "checkpoint"},
    "weights": DATA | {"zoo", "model", "checkpoint", "interop", "transfer", "fetch", "hub", "runlog"},
    "interop": DATA | {"zoo", "model", "kernels", "checkpoint"},
    "hub": DATA | {"zoo", "checkpoint", "runlog", "fetch"},
    "report": DATA | {"runlog", "significance"},
    "onnx_model": DATA | {"checkpoint"},
    "engines": DATA | {"onnx_model"},
    "exported": DATA | {"checkpoint", "onnx_model", "engines"},
    "choices": FLOOR | {"engines", "exported", "runlog"},
    "tensorboard": FLOOR | {"runlog"},
    "predict": BELOW_VERBS,
    "evaluate": BELOW_VERBS | {"predict"},
    "distill": BELOW_VERBS | VERBS | {"onnx_model"},
    "distributed": DATA | {"device"},
    "step": BELOW_VERBS | {"distill", "distributed"},
    "train": BELOW_VERBS | VERBS | {"distill", "distributed", "step"},
    "lr_finder": BELOW_VERBS | VERBS | {"distill", "train"},
    "probe": BELOW_VERBS | VERBS,
    "compare": BELOW_VERBS | VERBS,
    "mixing": FLOOR | {"model", "locality"},
    "explain": BELOW_VERBS | VERBS | {"mixing"},
    "faithfulness": BELOW_VERBS | VERBS | {"explain"},
    "pictures": FLOOR | {"report"},
    "page": set(),
    "export": BELOW_VERBS | VERBS | {"explain", "onnx_model", "page", "__version__"},
    "bench": BELOW_VERBS | VERBS | {"export", "onnx_model", "__version__"},
    "reproduce": BELOW_VERBS | VERBS | {"step", "train", "probe", "rivals", "mixing", "pictures"},
    "doctor": FLOOR | {"device", "kernels", "__version__"},
    "cli": None,  # the edges may import everything
    "serve": None,
    "__init__": None,
    "__main__": {"cli"},
}


def python(code: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env)


def owner(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def runtime_nodes(node: ast.AST) -> list[ast.AST]:
    """All nodes that run: what stands under `if TYPE_CHECKING` does not."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return []
    return [node, *(inner for child in ast.iter_child_nodes(node) for inner in runtime_nodes(child))]


def imported(path: Path) -> set[str]:
    """First names under mlpmixer of everything that the file imports, anywhere in it."""
    names: set[str] = set()
    for node in runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the full name"
            parts = (node.module or "").split(".")
            if parts[0] == "mlpmixer":
                names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mlpmixer.")}
    return names


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        if (allowed := ALLOWED[owner(path)]) is not None
        for name in sorted(imported(path) - allowed - {owner(path)})
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_edges_print_and_read_the_environment() -> None:
    wrong = []
    for path in files():
        if owner(path) in ("cli", "serve", "__main__") or path.parent.name == "bundled":  # a program that an export takes along
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if call in ("print", "input", "sys.exit", "os.getenv", "os.environ"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} uses {call}")  # type: ignore[attr-defined]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "import mlpmixer; mlpmixer.MixerConfig",
        "from mlpmixer.cli import main; assert main(['--help']) == 0",
        "from mlpmixer.cli import main; assert main(['train', '--help']) == 0",
        "from mlpmixer.cli import main; assert main(['probe', '--help']) == 0",
        "from mlpmixer.cli import main; assert main(['explain', '--help']) == 0",
        "from mlpmixer.cli import main; assert main(['export', '--help']) == main(['bench', '--help']) == 0",
        "from mlpmixer.cli import main; assert main(['list', 'recipes']) == 0",
        "from mlpmixer.cli import main; assert main(['reproduce']) == main(['reproduce', '--help']) == 0",
        "from mlpmixer.cli import main; assert main(['summary', 'S/32']) == 0",
        "from mlpmixer.cli import main; assert main(['data', 'check', 'digits']) in (0, 1)",
        "import mlpmixer.predict, mlpmixer.probe, mlpmixer.onnx_model, mlpmixer.checkpoint, mlpmixer.runlog, mlpmixer.report",
        "import mlpmixer.recipes, mlpmixer.data.datasets, mlpmixer.pictures, mlpmixer.exported, mlpmixer.export, mlpmixer.bench",
    ],
)
def test_torch_is_imported_only_where_it_is_needed(code: str, tmp_path: Path) -> None:
    code += "; import sys; heavy = {'torch', 'datasets', 'matplotlib.pyplot', 'torchvision', 'onnxruntime', 'openvino'} & set(sys.modules)"
    code += "; assert not heavy, heavy"
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["import mlpmixer.train", "from mlpmixer.train import train", "import mlpmixer; mlpmixer.train", "pass"])
def test_the_verbs_can_be_called_in_whatever_order_things_are_imported(first: str) -> None:
    code = f"""{first}
import inspect, mlpmixer, mlpmixer.evaluate, mlpmixer.train as module
from mlpmixer.train import train, Diverged
from mlpmixer import evaluate
assert module.train is train and mlpmixer.train.Diverged is Diverged
assert inspect.signature(mlpmixer.train) == inspect.signature(train)
for verb, argument in ((mlpmixer.train, 'recipe'), (mlpmixer.evaluate, 'model'), (evaluate, 'model'), (mlpmixer.probe, 'model')):
    try:
        verb()
    except TypeError as e:
        assert argument in str(e), e
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_an_unknown_one_is_answered_with_the_list() -> None:
    import mlpmixer

    for name in mlpmixer.__all__:
        assert getattr(mlpmixer, name) is not None
        assert name in dir(mlpmixer)
    with pytest.raises(AttributeError, match="create_model"):
        mlpmixer.creat_model  # noqa: B018
