"""Data sets of the Hugging Face Hub."""

import hashlib
import os
import re
from collections.abc import Sequence
from functools import partial

from mlpmixer.data.image_set import RawSplits
from mlpmixer.data.paths import find_files, split_from_path
from mlpmixer.data.readers.parquet import Table, raw_splits, read_parquet
from mlpmixer.download import first_line, import_hub


def download_parquet(repo: str, name: str, classes: Sequence[str], channels: int, otherwise: str) -> RawSplits:
    """The Parquet files of `repo`, from the Hub's cache or, once, from the Hub; compared with their sha256.

    otherwise: what to do without a network, for the error.
    """
    hub = import_hub(f"downloading {name}", f". Or {otherwise}")
    try:
        fetch = partial(hub.snapshot_download, repo, repo_type="dataset", allow_patterns="*.parquet")
        try:
            folder = fetch(local_files_only=True)
        except FileNotFoundError:  # not in the cache, or not all of it
            folder = fetch()
    except Exception as e:  # no network, refused, switched off: the Hub has many ways to say so
        raise ValueError(f"{name} could not be downloaded ({first_line(e)}). Without a network, {otherwise}") from e
    files = find_files(folder, ".parquet", depth=2)
    for path in files:
        _verify(path)
    raw = read_parquet(files, name, classes, channels)
    raw.notes.insert(0, f"{name} from hf.co/datasets/{repo}, revision {os.path.basename(folder)}")
    return raw


def _verify(path: str) -> None:
    """The Hub's cache names large files by their sha256."""
    file = os.path.realpath(path)
    expected = os.path.basename(file)
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        with open(file, "rb") as f:
            actual = hashlib.file_digest(f, "sha256").hexdigest()
        if actual != expected:
            raise ValueError(f"{path} has the sha256 {actual}, expected {expected}: delete {file} and try again")


def read_hub(repo: str) -> RawSplits:
    """hf:owner/name through the package `datasets`, images left encoded."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise ValueError(f"expected hf:owner/name, got 'hf:{repo}'")
    try:
        import datasets
    except ImportError as e:
        raise ValueError(f'hf:{repo} needs the package datasets: pip install "mlpmixer[hf]"') from e
    try:
        if not os.path.isdir(os.path.join(datasets.config.HF_DATASETS_CACHE, repo.replace("/", "___"))):
            # fails at once without a network; load_dataset takes half a minute
            import_hub(f"hf:{repo}").HfApi().dataset_info(repo, timeout=20)
        loaded = datasets.load_dataset(repo)
    except Exception as e:  # as above
        raise ValueError(
            f"hf:{repo} could not be loaded ({first_line(e)}). Without a network, download its Parquet files elsewhere "
            f"and pass their folder"
        ) from e
    tables: dict[str, list[Table]] = {}
    for split, part in loaded.items():
        for column, feature in part.features.items():
            if isinstance(feature, datasets.Image):
                part = part.cast_column(column, datasets.Image(decode=False))
        table = part.with_format("arrow")[:]
        schema = table.schema.with_metadata(part.features.arrow_schema.metadata)
        tables.setdefault(split_from_path(split) or "all", []).append(Table.of(table, schema, f"hf:{repo}/{split}"))
    if len(tables) > 1:
        tables.pop("all", None)
    return raw_splits(tables, repo.split("/")[-1], None, 3, [f"from hf.co/datasets/{repo}"])
