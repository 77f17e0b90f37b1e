"""onnxruntime for browsers: the two files of the package onnxruntime-web that a page needs, and its licence."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

NAME, VERSION = "onnxruntime-web", "1.30.0"
# of the package's file
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, WASM = "ort.js", "ort.wasm"  # what a page calls them; servers know what .js is, and not all of them .mjs
FILES = {
    "ort.wasm.bundle.min.mjs": SCRIPT,
    "ort-wasm-simd-threaded.wasm": WASM,
}  # on the CPU, with nothing else to load
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
TIMEOUT_S = 600  # npm itself gives up a silent connection earlier
ELSEWHERE = f"Or elsewhere: npm pack {NAME}@{VERSION}, unpack it, and name its folder here: --runtime FOLDER"


def require(source: Path | None) -> None:
    """ValueError when the files are not in `source`, or npm cannot fetch them. It is asked for them: `place` finds them
    in its cache."""
    if source is None:
        with tempfile.TemporaryDirectory() as scratch:
            _fetched(Path(scratch))
    else:
        _whole(source)


def place(folder: Path, source: Path | None) -> None:
    """Write the runtime and its licences to `folder`, which is made.

    source: the package, unpacked, or its dist; None: npm fetches it, of the version that this was tested with.

    Errors: ValueError when npm is missing, fails or brings another file, when `source` has not both files, and when no
    licence is found.
    """
    folder.mkdir()
    if source is None:
        with tempfile.TemporaryDirectory() as scratch:
            _copy(_fetched(Path(scratch)), folder)
    else:
        _copy(source, folder)


def _copy(source: Path, folder: Path) -> None:
    found, licences = _whole(source)
    for name, called in FILES.items():
        shutil.copyfile(found / name, folder / called)
    for name in LICENCES:
        if (licences / name).is_file():
            shutil.copyfile(licences / name, folder / name)


def _whole(source: Path) -> tuple[Path, Path]:
    """The folders, in `source` or elsewhere, that hold the two files and the licences."""
    script = next(iter(FILES))
    found = next(
        (place for place in (source, source / "dist", source / "package" / "dist") if (place / script).is_file()),
        source,
    )
    for name in FILES:
        if not (found / name).is_file():
            raise ValueError(
                f"there is no {name} in {source}: expected the folder of {NAME} (tested with {VERSION}) or its dist, "
                f"such as node_modules/{NAME}"
            )
    licences = [place for place in (found, found.parent, *_installed()) if (place / LICENCES[0]).is_file()]
    if not licences:
        raise ValueError(
            f"no {LICENCES[0]} of onnxruntime in {source} or in the Python package here: put it beside {script}"
        )
    return found, licences[0]


def _installed() -> list[Path]:
    """Of the same project in Python, which checks the export: the package for browsers carries no licence file."""
    spec = find_spec("onnxruntime")
    return list(map(Path, spec.submodule_search_locations or ())) if spec else []


def _fetched(scratch: Path) -> Path:
    """The package by npm, unpacked as far as it is needed; its dist."""
    command = [_npm(), "pack", f"{NAME}@{VERSION}", "--prefer-offline", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ValueError(f"npm did not bring {NAME} {VERSION} within {TIMEOUT_S} s. {ELSEWHERE}") from None
    packages = list(scratch.glob("*.tgz"))
    if done.returncode or len(packages) != 1:
        raise ValueError(f"npm could not bring {NAME} {VERSION}: {_reason(done.stderr)}. {ELSEWHERE}")
    with open(packages[0], "rb") as f:
        found = "sha512-" + base64.b64encode(hashlib.file_digest(f, "sha512").digest()).decode()
    if found != INTEGRITY:
        raise ValueError(
            f"npm brought another {NAME} {VERSION} than was tested: integrity {found}, expected {INTEGRITY}. "
            f"{ELSEWHERE}"
        )
    with tarfile.open(packages[0]) as package:
        for name in FILES:
            content = package.extractfile(f"package/dist/{name}")
            assert content
            (scratch / name).write_bytes(content.read())
    return scratch


def _npm() -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(
            f"a page computes with {NAME} {VERSION}, and npm, which fetches it, is not installed. {ELSEWHERE}"
        )
    return npm


def _reason(said: str) -> str:
    """What npm gives as its first reason, without its prefix, code and advice."""
    lines = [line.removeprefix("npm error").strip() for line in said.splitlines() if line.startswith("npm error")]
    told = [line for line in lines if line and not line.startswith(("code ", "errno ", "syscall ", "A complete log"))]
    return (told or [said.strip() or "it did not say why"])[0].rstrip(".")
