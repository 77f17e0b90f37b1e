"""onnxruntime for browsers: the two files of the package onnxruntime-web that a page needs, and its licence."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

NAME, VERSION = "onnxruntime-web", "1.30.0"
# of the package's file
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, WASM = "ort.js", "ort.wasm"  # their names in a page: every server knows .js, and some do not know .mjs
FILES = {"ort.wasm.bundle.min.mjs": SCRIPT, "ort-wasm-simd-threaded.wasm": WASM}  # for the CPU, with no further files
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
TIMEOUT_S = 600  # npm itself gives up on a silent connection earlier
ELSEWHERE = f"Or elsewhere: npm pack {NAME}@{VERSION}, unpack it, and pass its folder here: --runtime FOLDER"


def require(source: Path | None) -> None:
    """ValueError when the files are not in `source`, or npm cannot fetch them (`place` then finds them in its
    cache)."""
    with _package(source) as folder:
        _find_files(folder)


def place(folder: Path, source: Path | None) -> None:
    """Write the runtime and its licences to `folder`, which is created.

    source: the unpacked package, or its dist; None: npm fetches the version that this was tested with.

    Errors: ValueError when npm is missing, fails or fetches another file, and when a file or the licence is missing.
    """
    folder.mkdir()
    with _package(source) as package:
        found, licences = _find_files(package)
        for name, called in FILES.items():
            shutil.copyfile(found / name, folder / called)
        for name in LICENCES:
            if (licences / name).is_file():
                shutil.copyfile(licences / name, folder / name)


def _find_files(source: Path) -> tuple[Path, Path]:
    """The folders, in `source` or elsewhere, with the two files and with the licences."""
    script = next(iter(FILES))
    places = (source, source / "dist", source / "package" / "dist")
    found = next((place for place in places if (place / script).is_file()), source)
    for name in FILES:
        if not (found / name).is_file():
            raise ValueError(
                f"there is no {name} in {source}: expected the folder of {NAME} (tested with {VERSION}) or its dist, "
                f"such as node_modules/{NAME}"
            )
    # the package for browsers has no licence file; that for Python, which checks the export, is of the same project
    spec = find_spec("onnxruntime")
    installed = map(Path, spec.submodule_search_locations or ()) if spec else ()
    licences = [place for place in (found, found.parent, *installed) if (place / LICENCES[0]).is_file()]
    if not licences:
        raise ValueError(
            f"no {LICENCES[0]} of onnxruntime in {source} or in the Python package here: put it beside {script}"
        )
    return found, licences[0]


@contextmanager
def _package(source: Path | None) -> Iterator[Path]:
    """`source`, or a folder with the files of the package from npm."""
    if source:
        yield source
        return
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"a page runs on {NAME} {VERSION}, which npm fetches, and npm is not installed. {ELSEWHERE}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        command = [npm, "pack", f"{NAME}@{VERSION}", "--prefer-offline", "--loglevel=error"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ValueError(f"npm did not fetch {NAME} {VERSION} within {TIMEOUT_S} s. {ELSEWHERE}") from None
        packages = list(folder.glob("*.tgz"))
        if done.returncode or len(packages) != 1:
            raise ValueError(f"npm could not fetch {NAME} {VERSION}: {_reason(done.stderr)}. {ELSEWHERE}")
        with open(packages[0], "rb") as f:
            found = "sha512-" + base64.b64encode(hashlib.file_digest(f, "sha512").digest()).decode()
        if found != INTEGRITY:
            raise ValueError(
                f"npm fetched another {NAME} {VERSION} than was tested: integrity {found}, expected {INTEGRITY}. "
                f"{ELSEWHERE}"
            )
        with tarfile.open(packages[0]) as archive:
            for name in FILES:
                content = archive.extractfile(f"package/dist/{name}")
                assert content
                (folder / name).write_bytes(content.read())
        yield folder


def _reason(said: str) -> str:
    """The first reason that npm gives, without its prefix, code and advice."""
    lines = [line.removeprefix("npm error").strip() for line in said.splitlines() if line.startswith("npm error")]
    told = [line for line in lines if line and not line.startswith(("code ", "errno ", "syscall ", "A complete log"))]
    return (told or [said.strip() or "it did not say why"])[0].rstrip(".")
