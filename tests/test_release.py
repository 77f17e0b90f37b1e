"""What a release needs agrees with itself: versions, workflows, and what the distributions hold."""

import re
import runpy
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlpmixer

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_versions_agree() -> None:
    assert yaml.safe_load(text("CITATION.cff"))["version"] == mlpmixer.__version__
    heading = re.search(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", text("CHANGELOG.md"), re.MULTILINE)
    assert heading and heading[1] == mlpmixer.__version__


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_what_is_there(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), "pinned to a commit"
            continue
        program, *words = step["run"].split()
        assert program in ("make", ".ci/run", "test", "pip", "python", "mlpmixer")
        assert program != "make" or set(words) <= targets
        assert program != ".ci/run" or (ROOT / ".ci" / "run").stat().st_mode & 0o100
        assert all((ROOT / word).is_file() for word in words if word.startswith("examples/"))


def test_release_is_tested_and_tried_before_it_is_published_without_a_secret() -> None:
    release = yaml.safe_load(text(".github/workflows/release.yml"))
    assert release[True] == {"push": {"tags": ["v*"]}}, "`on` is true in YAML 1.1"
    ran = [step.get("run") for step in release["jobs"]["build"]["steps"]]
    assert ran.index(".ci/run") < ran.index("make dist")
    publish = release["jobs"]["publish"]
    assert publish["needs"] == "build" and publish["permissions"] == {"id-token": "write"}
    assert not any("secrets." in workflow.read_text() for workflow in WORKFLOWS)


def test_package_names_no_address_that_nobody_has_registered() -> None:
    assert "urls" not in tomllib.loads(text("pyproject.toml"))["project"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not in a checkout")
@pytest.mark.parametrize(
    ("without", "more", "says"),
    [
        ("", "", ""),
        ("mlpmixer/py.typed", "", "the wheel lacks: mlpmixer/py.typed"),
        ("mlpmixer/weights/bundled/digits.safetensors", "", "the wheel lacks: mlpmixer/weights/bundled/digits.safet"),
        ("", "mlpmixer/serve/__pycache__/app.pyc", "the wheel has what is not under version control: mlpmixer/serve/"),
        ("mlpmixer-1.dist-info/licenses/LICENSE", "", "the wheel lacks: licenses/LICENSE"),
    ],
)
def test_contents_of_the_distributions_are_checked(without: str, more: str, says: str, tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as sdist:
        for name in (*filter(None, tracked), "PKG-INFO"):
            sdist.addfile(tarfile.TarInfo(f"mlpmixer-1/{name}"))
    about = [f"mlpmixer-1.dist-info/{name}" for name in ("METADATA", "entry_points.txt", "licenses/LICENSE")]
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        for name in {*(n.removeprefix("src/") for n in tracked if n.startswith("src/")), *about, more} - {without, ""}:
            wheel.writestr(name, "")
    check = runpy.run_path(str(ROOT / ".ci" / "dist.py"))["check_contents"]
    if not says:
        return check(tmp_path / "a.tar.gz", tmp_path / "a.whl")
    with pytest.raises(SystemExit, match=re.escape(says)):
        check(tmp_path / "a.tar.gz", tmp_path / "a.whl")
