"""The command data shards."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mlpmixer.cli.printing import print_error
from mlpmixer.data.config import Data


@dataclass(frozen=True, kw_only=True)
class DataShards:
    """Write the images of DATA as shards in OUT, each split in a random order: what `train` streams when data outgrows
    a machine."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name, a folder with a folder for each class, a Parquet file or folder, or hf:owner/name."""
    out: Annotated[Positional[str], arg(metavar="OUT")]
    """A new folder."""
    format: Literal["tar", "parquet"] = "tar"
    """WebDataset tar files, or Parquet files as on the Hugging Face Hub."""
    per_shard: int = 1000
    """Images in a file; 100 MB to 1 GB a file serve well."""
    seed: int = 0
    """Of the order."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""

    def __call__(self) -> int:
        from mlpmixer.data.datasets import open_data
        from mlpmixer.data.streaming.write import write_shards

        splits = open_data(Data(name=self.data, data_dir=self.data_dir or None))
        sets = {"train": splits.train, "val": splits.val} | ({"test": splits.test} if splits.test is not None else {})
        counts, bad = write_shards(sets, self.out, kind=self.format, per_shard=self.per_shard, seed=self.seed)
        for name, reason in bad[:10]:
            print_error(f"left out: {name}: {reason}")
        if bad:
            print_error(f"{len(bad)} images could not be opened and are left out")
        for split, shards in counts.items():
            print(f"{split:5}  {sum(shards):,} images in {len(shards)} shards")
        print(f"next   mlpmixer train {self.out}")
        return 1 if bad else 0
