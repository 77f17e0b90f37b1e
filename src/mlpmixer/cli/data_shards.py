"""mlpmixer data shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import DataArg, DataDir, DataLabels, DataLayout, require_writable
from mlpmixer.cli.printing import print_error
from mlpmixer.data.config import Data
from mlpmixer.data.paths import count


@dataclass(frozen=True, kw_only=True)
class DataShards(Command):
    """Write DATA as shards for streaming.

    Each split is written in random order, for `mlpmixer train` to stream."""

    data: DataArg
    out: Annotated[str, Arg("OUT", positional=True)]
    """a new folder"""
    format: Literal["tar", "parquet"] = "tar"
    """WebDataset tar files, or Parquet files as on the Hugging Face Hub."""
    per_shard: int = 1000
    """Images per file. Files of 100 MB to 1 GB work well."""
    seed: int = 0
    """Random seed of the order."""
    data_dir: DataDir = ""
    layout: DataLayout = "auto"
    labels: DataLabels = ""

    def __call__(self) -> int:
        require_writable("OUT", self.out, folder=True)
        if Path(self.out).is_dir() and any(Path(self.out).iterdir()):
            raise ValueError(f"OUT {self.out} is not an empty folder: name a new one")
        from mlpmixer.data.datasets import open_data
        from mlpmixer.data.streaming.write import write_shards

        splits = open_data(Data(name=self.data, data_dir=self.data_dir or None, layout=self.layout, labels=self.labels))
        sets = {"train": splits.train, "val": splits.val} | ({"test": splits.test} if splits.test is not None else {})
        counts, bad = write_shards(sets, self.out, kind=self.format, per_shard=self.per_shard, seed=self.seed)
        for name, reason in bad[:10]:
            print_error(f"left out: {name}: {reason}")
        if bad:
            print_error(f"{count(len(bad), 'image')} could not be read (left out)")
        for split, shards in counts.items():
            print(f"{split:5}  {count(sum(shards), 'image')} in {count(len(shards), 'shard')}")
        print(f"next   mlpmixer train {self.out}")
        return 1 if bad else 0
