"""Which engine `mlpmixer bench` has found to be the fastest for an export on this machine: engines.json in the user's
cache.

A choice holds for a file's content, a processor and its number of cores, and for the versions of the engines it was
made among. Only the command line asks for it: `mlpmixer.load` answers the same on every machine.
"""

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlpmixer import hardware
from mlpmixer.inference.engines import ENGINES, engines_for, installed
from mlpmixer.inference.exported import MANIFEST, MODEL, digest

FORMAT = 1
KEPT = 100  # choices, the newest


@dataclass(frozen=True)
class Recalled:
    """What is known of an export. engine: None where nothing holds. word: what there is to say of it; "": nothing."""

    engine: str | None = None
    word: str = ""


def kept_at() -> Path:
    return hardware.cache_folder() / "engines.json"


def recall(file: Path) -> Recalled:
    """The engine chosen for the export in `file`. Whatever is wrong with what is kept is said in `word`, never
    raised."""
    if len(engines_for(file)) < 2:
        return Recalled()
    try:
        num_bytes = file.stat().st_size
        entries = [e for e in _read(kept_at()) if e["num_bytes"] == num_bytes]
        own = (_identity(file), *_machine()) if entries else ()  # a large file is read only when it may be one of them
        found = next((e for e in entries if (e["file"], *_machine(e)) == own), None)
        if found is None:
            return Recalled()
        engine, versions, day = str(found["engine"]), dict(found["versions"]), str(found["date"])
        chosen = f"{engine}, which mlpmixer bench chose on {day}"
        if engine not in engines_for(file):
            return Recalled(word=f"{chosen}, does not open such files")
        if installed(engine) is None:
            return Recalled(word=f'{chosen}, is no longer installed: pip install "{ENGINES[engine].package}"')
        if any(versions.get(name) != version for name, version in _versions(file).items()):
            return Recalled(word=f"what mlpmixer bench chose on {day} was among other versions: run it again")
        return Recalled(engine, f"chosen by mlpmixer bench on {day}")
    except (
        FileNotFoundError
    ):  # of either file: nothing was chosen, or whoever opens the export says that it is not there
        return Recalled()
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        return Recalled(word=f"what mlpmixer bench has chosen cannot be read and is ignored ({type(e).__name__}: {e})")


def remember(file: Path, engine: str) -> Path:
    """From now on `engine` is what `recall` says of the export in `file`; gives where that is kept. Errors: OSError."""
    entry = {
        "file": _identity(file),
        "num_bytes": file.stat().st_size,
        "cpu": hardware.cpu_name(),
        "cores": hardware.cores(),
        "engine": engine,
        "versions": _versions(file),
        "date": datetime.now(UTC).date().isoformat(),
    }
    return _write([*_others(file), entry])


def forget(file: Path) -> Path:
    """Nothing is chosen any more for the export in `file` on this machine; gives where it was kept. Errors: OSError."""
    return _write(_others(file))


def _others(file: Path) -> list[dict[str, Any]]:
    """All that is kept but for this file on this machine; none, where it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        own = (_identity(file), *_machine())
        return [e for e in _read(kept_at()) if (e["file"], *_machine(e)) != own]
    return []


def _read(path: Path) -> list[dict[str, Any]]:
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["format"] != FORMAT:
        raise ValueError(f"format {stored['format']!r}; this version reads format {FORMAT}")
    return list(stored["choices"])


def _write(entries: list[dict[str, Any]]) -> Path:
    """Atomic, whoever else writes: one of the two is kept whole."""
    from mlpmixer.weights.run_folder import write_json  # slow to import, and whoever only asks needs none of it

    path = kept_at()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        write_json(Path(scratch) / path.name, {"format": FORMAT, "choices": entries[-KEPT:]})
        os.replace(Path(scratch) / path.name, path)
    return path


def _identity(file: Path) -> str:
    """SHA-256 of the content; of a bundle, as its manifest has it, by which it is checked when it is opened."""
    manifest = file.parent / MANIFEST
    if file.name == MODEL and manifest.is_file():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["files"][MODEL])
    return digest(file)


def _machine(entry: dict[str, Any] | None = None) -> tuple[str, int]:
    """Processor and cores: those of this machine, or of what is kept."""
    return (entry["cpu"], entry["cores"]) if entry else (hardware.cpu_name(), hardware.cores())


def _versions(file: Path) -> dict[str, str]:
    """Of the engines that are installed and open such a file."""
    return {name: version for name in engines_for(file) if (version := installed(name)) is not None}
