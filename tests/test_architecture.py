"""The rooms of the house: imports point down, some rooms do without torch, and only the edges print.

The table is the one in CONTRIBUTING.md.
"""

import ast
import functools
import importlib.util
import re
import types
from pathlib import Path

import pytest
from helpers.processes import SOURCES, python

import mlpmixer

ROOT = SOURCES / "mlpmixer"
TESTS = Path(__file__).parent

ROOMS: list[set[str]] = [  # each row may import the rows above it, and itself
    {"registry", "config", "hardware", "clock", "durable", "download", "templates"},
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
UPWARD = {"models.network": {"weights"}}  # from_pretrained, save_pretrained and push_to_hub, which users expect there
READS_THE_ENVIRONMENT = {"weights.own"}  # the one variable that also holds for what is called from Python
TORCH_FREE = [  # rooms and modules that are imported without torch and other large libraries
    *("__init__", "registry", "config", "hardware", "clock", "durable", "download"),
    *("models.__init__", "models.configs", "models.names"),
    "data",
    *("weights.model_file", "weights.run_folder", "weights.load", "weights.create", "weights.hub", "weights.own"),
    "inference",
    "evaluation",
    *("training.recipe", "training.recipes"),
    *("exporters.export", "exporters.benchmark", "explanation.page"),
    "serve",
    "cli",
]
LARGE = {"torch", "torchvision", "transformers", "datasets", "matplotlib.pyplot"} | {
    *("onnx", "onnxruntime", "onnxscript", "openvino"),
}
LIGHT_COMMANDS = [  # that need none of them, either
    *("--help", "train --help", "probe --help", "explain --help", "export --help", "bench --help", "reproduce --help"),
    *("list recipes", "runs .", "summary S/32", "reproduce", "data check digits"),
]
VERBS = (
    "bench",
    "compare",
    "create_model",
    "cross_validate",
    "evaluate",
    "export",
    "from_pretrained",
    "list_models",
    "load",
    "probe",
    "train",
)
ANYONE_MAY_IMPORT = {"__version__"}
USES = (ast.Call, ast.Attribute)


def files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.parent.name != "bundled")  # a program of its own


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    """ "data.readers.folder"; that of a package ends with __init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room_of(path: Path) -> str:
    return module_of(path).partition(".")[0]


def runtime_nodes(node: ast.AST) -> list[ast.AST]:
    """All nodes that run: what stands under `if TYPE_CHECKING` does not."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return []
    return [node, *(inner for child in ast.iter_child_nodes(node) for inner in runtime_nodes(child))]


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, anywhere in it."""
    names: set[str] = set()
    for node in runtime_nodes(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the full name"
            parts = (node.module or "").split(".")
            if parts[0] == "mlpmixer":
                names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mlpmixer.")}
    return names - ANYONE_MAY_IMPORT


def test_imports_point_down() -> None:
    level = {room: i for i, row in enumerate(ROOMS) for room in row}
    assert level.keys() == set(map(room_of, files()))
    wrong = [
        f"{module_of(path)} imports {room}"
        for path in files()
        for room in sorted(imported_rooms(path) - UPWARD.get(module_of(path), set()))
        if level[room] > level[room_of(path)]
    ]
    assert not wrong, "\n".join(wrong)


def test_only_edges_print_and_read_the_environment() -> None:
    wrong = []
    for path in files():
        if room_of(path) in ("cli", "serve", "__main__"):
            continue
        for node in ast.walk(tree_of(path)):
            used = ast.unparse(node.func if isinstance(node, ast.Call) else node) if isinstance(node, USES) else ""
            if (used == "os.environ" and module_of(path) not in READS_THE_ENVIRONMENT) or (
                isinstance(node, ast.Call) and used in ("print", "input", "sys.exit", "os.getenv")
            ):
                wrong.append(f"{module_of(path)}:{node.lineno} uses {used}")
    assert not wrong, "\n".join(wrong)


def test_torch_free_rooms_import_no_large_library() -> None:
    modules = [
        f"mlpmixer.{name}".removesuffix(".__init__")
        for name in map(module_of, files())
        if any(f"{name}.".startswith(f"{room}.") for room in TORCH_FREE)
    ]
    assert len(modules) > 60
    done = python(
        f"import importlib, sys\nfor name in {modules}:\n    importlib.import_module(name)\n"
        f"    large = {LARGE} & set(sys.modules)\n    assert not large, f'{{name}} imports {{large}}'"
    )
    assert done.returncode == 0, done.stderr


def test_light_commands_import_no_large_library(tmp_path: Path) -> None:
    done = python(
        f"import sys\nfrom mlpmixer.cli import main\nfor command in {LIGHT_COMMANDS}:\n"
        f"    assert main(command.split()) in (0, 1), command\n"
        f"    large = {LARGE} & set(sys.modules)\n    assert not large, f'{{command}} imports {{large}}'",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_public_verbs_are_plain_functions() -> None:
    assert type(mlpmixer) is types.ModuleType
    for name in VERBS:
        assert isinstance(getattr(mlpmixer, name), types.FunctionType), name


def test_public_names_exist() -> None:
    for name in mlpmixer.__all__:
        assert getattr(mlpmixer, name) is not None
        assert name in dir(mlpmixer)
    assert all(name in mlpmixer.__all__ or name.startswith("__") for name in dir(mlpmixer))


def test_unknown_public_name_gets_suggestion() -> None:
    with pytest.raises(AttributeError, match="create_model"):
        mlpmixer.creat_model  # noqa: B018


def test_test_modules_do_not_import_each_other() -> None:
    shared = {"helpers", "fixtures"}
    local = {path.stem for path in TESTS.rglob("*.py")} | {path.name for path in TESTS.iterdir() if path.is_dir()}
    wrong = [
        f"{path.relative_to(TESTS)}: {line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in re.findall(r"^\s*(?:from|import) .*", path.read_text(encoding="utf-8"), re.MULTILINE)
        if (name := re.split(r"[. ]", line.split()[1])[0]) in local - shared and name.startswith(("test_", "conftest"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "results", "weights"])
def test_scripts_import_names_that_exist(folder: str) -> None:
    """Most scripts are started by hand, some only on a GPU: a name that has moved would not be missed otherwise."""
    asked = {
        (file.name, node.module, alias.name)
        for file in (SOURCES.parent / folder).glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlpmixer"
        for alias in node.names
    }
    assert asked
    missing = []
    for file, module, name in sorted(asked):
        found = importlib.import_module(module)
        is_module = hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None
        if not hasattr(found, name) and not is_module:
            missing.append(f"{file}: from {module} import {name}")
    assert missing == []
