"""mlpmixer predict."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mlpmixer.cli.arguments import Arg
from mlpmixer.cli.options import BatchSize, ModelCommand, Threshold, require_writable, set_threshold
from mlpmixer.cli.printing import percent, print_error, visible

if TYPE_CHECKING:
    from mlpmixer.inference.prediction import Failure, Prediction


SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")  # of --out that say the format
PEEK = 32  # bytes: every format that Pillow reads safely has one within these


@dataclass(frozen=True, kw_only=True)
class Predict(ModelCommand):
    """Print the class probabilities of images.

    Unreadable files are named on standard error and skipped; the exit code is then 1.
    """

    sources: Annotated[tuple[str, ...], Arg("SRC...", positional=True)] = ()
    """image files, folders (searched recursively), patterns such as 'photos/*.jpg', or - for standard input: one image,
    or a list of names, one per line"""
    top_k: int = 5
    """Number of classes for each image. Where an image may have several, all at or above the threshold are given."""
    threshold: Threshold = None
    format: Literal["table", "csv", "json", "jsonl", "parquet"] | None = None
    """Format of the result; default: what the suffix of --out says, else table."""
    out: Annotated[str, Arg("FILE")] = ""
    """File for the result, instead of standard output. A .parquet is written whole or not at all."""
    features: Annotated[str, Arg("FILE")] = ""
    """Also write each image's feature vector (the input of the head) to FILE.npz or FILE.csv."""
    allow_urls: bool = False
    """Fetch images whose SRC is an address, http:// or https:// (at most 50 MiB each)."""
    batch_size: BatchSize = 64
    torch_free = True

    def __call__(self) -> int:
        if not self.sources:
            raise ValueError(
                f"which images? mlpmixer predict {self.run} FILE... (or folders, patterns, or - to read a list)"
            )
        form = self.result_format()
        for option, file, suffixes in (("--out", self.out, ()), ("--features", self.features, (".npz", ".csv"))):
            if file:
                require_writable(option, file, suffixes=suffixes)
                Path(file).parent.mkdir(parents=True, exist_ok=True)
        from mlpmixer.inference.files import predict_files
        from mlpmixer.inference.output import FeatureFile, csv_lines, json_lines, jsonl_lines, write_parquet
        from mlpmixer.inference.prediction import Failure

        if form == "parquet":
            from mlpmixer.data.readers.parquet import import_pyarrow

            import_pyarrow()
        classifier = self.load()
        set_threshold(classifier, self.threshold)
        how = {"features": bool(self.features), "allow_urls": self.allow_urls}
        predicted = predict_files(classifier, self.paths(), self.top_k, self.batch_size, **how)
        failed = 0

        def watched(rows: FeatureFile | None) -> "Iterator[Prediction | Failure]":
            nonlocal failed
            for result in predicted:
                if isinstance(result, Failure):
                    failed += 1
                    if form == "table":
                        print_error(f"{result.name}: {result.reason}")
                elif rows and result.features is not None:
                    rows.add(result.name, result.features)
                yield result

        top_k = min(self.top_k, len(classifier.classes))
        as_text = {
            "csv": lambda r: csv_lines(r, top_k, multi_label=classifier.multi_label),
            "json": json_lines,
            "jsonl": jsonl_lines,
            "table": table_lines,
        }
        with FeatureFile(self.features) if self.features else nullcontext() as rows:
            results = watched(rows)
            if form == "parquet":
                write_parquet(self.out, results, classifier.classes, top_k, multi_label=classifier.multi_label)
            elif self.out:
                with open(self.out, "w", encoding="utf-8") as f:
                    f.writelines(as_text[form](results))
            else:
                for line in as_text[form](results):
                    sys.stdout.write(line)
        if failed:
            print_error(f"{failed} of the images could not be read")
        return 1 if failed else 0

    def result_format(self) -> str:
        """--format, or what the suffix of --out says. ValueError where the two do not fit."""
        suffix = Path(self.out).suffix.lower()
        form = self.format or (suffix[1:] if suffix in SUFFIXES else "table")
        if (form == "parquet") != (suffix == ".parquet"):
            given = f"--format {form} and {f'--out {self.out}' if self.out else 'no --out'}"
            raise ValueError(f"{given}: Parquet is written to a file whose name ends in .parquet (--out FILE.parquet)")
        return form

    def paths(self) -> "Iterator[str | Failure | tuple[str, bytes]]":
        """The images behind SRC, with the image on standard input, or those that are listed there."""
        from mlpmixer.inference.files import find_images

        image = image_on_stdin() if "-" in self.sources else b""
        listed = [] if image else (line.rstrip("\n") for line in sys.stdin)
        sources = (source for given in self.sources for source in (listed if given == "-" else [given]) if source)
        return chain([("-", image)] if image else [], find_images(sources, allow_urls=self.allow_urls))


def image_on_stdin() -> bytes:
    """The image on standard input; nothing where it is a list of names. Only an image has a NUL byte near its start."""
    head = sys.stdin.buffer.peek(PEEK)[:PEEK] if sys.stdin else b""  # type: ignore[union-attr]
    if not head:
        raise ValueError("nothing on standard input: - expects an image, or a list of names, one per line")
    return sys.stdin.buffer.read() if b"\0" in head else b""


def table_lines(results: "Iterable[Prediction | Failure]") -> "Iterator[str]":
    from mlpmixer.inference.prediction import Prediction

    for result in results:
        if isinstance(result, Prediction):
            shown = result.top if result.threshold is None else result.top[: len(result.labels)]
            lines = [f"  {percent(p):>8}  {visible(label)}\n" for label, p in shown]
            if not shown:
                likeliest = f"likeliest: {visible(result.label)}, {percent(result.probability)}"
                lines = [f"  no class reaches {percent(result.threshold or 0)} ({likeliest})\n"]
            yield "".join([f"{visible(result.name)}\n", *lines])
