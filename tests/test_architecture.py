"""Imports point down. The table is the picture in CONTRIBUTING.md: a module may import what stands in its row, and no
more."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "mlpmixer"

ROOMS: list[set[str]] = [  # each row may import the rows above it, and itself
    {"registry", "config", "hardware", "device", "clock", "download", "templates"},
    {"models"},
    {"data"},
    {"weights"},
    {"inference"},
    {"evaluation"},
    {"training"},
    {"explanation"},
    {"exporters"},
    {"serve"},
    {"reproduce"},
    {"cli", "__init__", "__main__"},
]
VERSION = {"__version__"}  # anyone may ask for it


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
    level = {room: i for i, row in enumerate(ROOMS) for room in row}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        for name in sorted(imported(path) - VERSION)
        if level[name] > level[owner(path)]
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_edges_print_and_read_the_environment() -> None:
    wrong = []
    for path in files():
        if (
            owner(path) in ("cli", "serve", "__main__") or path.parent.name == "bundled"
        ):  # a program that an export takes along
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = (
                ast.unparse(node.func)
                if isinstance(node, ast.Call)
                else ast.unparse(node)
                if isinstance(node, ast.Attribute)
                else ""
            )
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
        "import mlpmixer.inference.classifier, mlpmixer.evaluation.probe, mlpmixer.inference.onnx_model, "
        "mlpmixer.weights.model_file, mlpmixer.weights.run_folder, mlpmixer.evaluation.report",
        "import mlpmixer.training.recipes, mlpmixer.data.datasets, mlpmixer.explanation.page, "
        "mlpmixer.inference.exported, mlpmixer.exporters.export, mlpmixer.exporters.benchmark",
    ],
)
def test_torch_is_imported_only_where_it_is_needed(code: str, tmp_path: Path) -> None:
    code += "; import sys; heavy = {'torch', 'datasets', 'matplotlib.pyplot', 'torchvision', 'onnxruntime', 'openvino'} & set(sys.modules)"
    code += "; assert not heavy, heavy"
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_public_verbs_are_plain_functions() -> None:
    code = """
import mlpmixer, mlpmixer.exporters.export, mlpmixer.evaluation.evaluate, mlpmixer.training.run, types
for name in ("bench", "compare", "evaluate", "export", "load", "probe", "train", "create_model"):
    assert isinstance(getattr(mlpmixer, name), types.FunctionType), name
assert type(mlpmixer) is types.ModuleType
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
