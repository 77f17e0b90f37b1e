"""mlpmixer list."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.printing import first_line, percent, print_table
from mlpmixer.config import pair


@dataclass(frozen=True, kw_only=True)
class List(Command):
    """List the names of models, weights, datasets or recipes."""

    what: Annotated[Literal["models", "weights", "datasets", "recipes"], Arg("WHAT", positional=True)]
    """models, weights, datasets or recipes"""

    def __call__(self) -> int:
        if self.what == "models":
            from mlpmixer.models.names import MODELS

            models = [
                (
                    name,
                    c.architecture,
                    *("x".join(map(str, pair(size))) for size in (c.image_size, c.grid)),
                    f"{c.num_params:,}",
                )
                for name, c in MODELS.items()
            ]
            print_table(("model", "architecture", "image px", "grid", "params"), models)
            print("\nmlpmixer summary MODEL lists its layers")
        elif self.what == "weights":
            from mlpmixer.weights.published import WEIGHTS

            rows = []
            for name, w in WEIGHTS.items():
                size, top1 = f"{w.num_bytes:,}" if w.num_bytes else "", percent(w.top1) if w.top1 else ""
                rows.append((name, f"{w.num_classes:,}", top1, size, w.preprocess, w.url))
            print_table(("weights", "classes", "top-1", "bytes", "preprocess", "address"), rows)
            print(
                "\ntop-1: on ImageNet-1k, as others report it; weights.published says who, and under which licence the "
                "weights are"
            )
        elif self.what == "datasets":
            from mlpmixer.data.catalog import DATASETS

            known = [
                (name, named.title, "x".join(map(str, named.image_size)), str(len(named.classes)))
                for name, named in DATASETS.items()
            ]
            print_table(("dataset", "", "image px", "classes"), known)
            print("\nor a folder with a folder for each class, a Parquet file or folder, or hf:owner/name")
        else:
            from mlpmixer.training.recipes import RECIPES

            print_table(("recipe", ""), [(name, first_line(recipe)) for name, recipe in RECIPES.items()])
        return 0
