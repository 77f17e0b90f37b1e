"""Commands about models and their weights: convert, push, reproduce, summary, list, doctor."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from mlpmixer.cli.arguments import Flag, architecture_of, parse_line, read
from mlpmixer.cli.printing import first_line, percent, print_error, print_json, print_table
from mlpmixer.cli.progress import reporter
from mlpmixer.config import pair
from mlpmixer.models.configs import MixerConfig

if TYPE_CHECKING:
    from mlpmixer.reproduce.tables import Outcome, Plan


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model in another form: official .npz, timm's state dict, or a file of this package, which keeps all that
    belongs to it."""

    model: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, or a name of `mlpmixer list weights`."""
    out: Annotated[Positional[str], arg(metavar="FILE")]
    """What to write: FILE.npz is official, FILE.safetensors is of this package unless --timm is given."""
    timm: Flag = False
    """Write FILE.safetensors with timm's names."""

    def __call__(self) -> int:
        from mlpmixer.weights.load import convert

        with reporter() as report:
            notes = convert(self.model, self.out, timm=self.timm, report=report)
        for note in notes:
            print_error(f"note: {note}")
        print(self.out)
        return 0


@dataclass(frozen=True, kw_only=True)
class Push:
    """Publish the model in RUN, with a model card, as a repository of the Hugging Face Hub or as a folder of that
    form."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's folder, or its model.safetensors."""
    target: Annotated[Positional[str], arg(metavar="TARGET")]
    """A new folder, or hf:owner/name; for the Hub, log in before: hf auth login."""
    licence: Annotated[str, arg(metavar="NAME")] = ""
    """The model's licence as the Hub writes it: apache-2.0, mit, cc-by-4.0, ...; without it the card says that none is
    stated."""
    private: Flag = False
    """If the repository is new, make it private."""

    def __call__(self) -> int:
        from mlpmixer.weights.hub import push

        print(push(self.run, self.target, licence=self.licence, private=self.private))
        return 0


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Try a claim of the paper, and put our figures beside the published ones; without NAME, list what there is.

    An experiment such as table1 writes a page with tables and plots; a table such as cifar10-transfer runs published
    rows again from published weights. Given again, the command goes on where it stopped.
    """

    name: Annotated[Positional[str], arg(metavar="NAME")] = ""
    """An experiment or a table; without one they are listed."""
    scale: Literal["small", "long", "full"] = "small"
    """Of an experiment: small takes minutes on two CPU cores, long hours, full is for one GPU."""
    max_minutes: float = 0.0
    """Of an experiment: stop cleanly by then, to go on with the same command (exit code 3); 0: when everything is
    done."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of the data set are; default: the Hugging Face Hub."""
    weights_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the published weight files are (DIR/imagenet21k/Mixer-B_16.npz); default: they are fetched into the
    cache."""
    out: Annotated[str, arg(metavar="DIR")] = ""
    """Where everything goes; default: results/NAME/SCALE, of a table runs/NAME or runs/NAME-reduced."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Of weights, order and augmentation."""
    row: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Of a table: only this row, by the name of its weights, such as B/16:imagenet21k; can be given several times."""
    steps: int = 0
    """Of a table: fewer steps; 0: as published. With fewer steps or smaller batches it is a trial, marked as
    reduced."""
    batch_size: int = 0
    """Of a table: fewer images a step; 0: as published."""
    accumulate: int = 0
    """Of a table: parts a batch is computed in, to save memory; 0: parts no larger than published. The result is the
    same."""
    check: Flag = False
    """Of a table: only say what it takes and what is lacking (then the exit code is 1)."""
    quiet: Flag = False
    """Print the result only."""
    json: Flag = False
    """Print one JSON object a line."""

    def __call__(self) -> int:
        from mlpmixer.registry import Registry
        from mlpmixer.reproduce import EXPERIMENTS, TABLES

        if not self.name:
            return print_reproducible(as_json=self.json)
        known: Registry[object] = Registry("experiment or table")
        known |= {**EXPERIMENTS, **TABLES}
        known[self.name]  # an unknown one is answered
        is_table = self.name in TABLES
        others = ("scale", "max_minutes") if is_table else ("row", "steps", "batch_size", "accumulate", "check")
        given = [f"--{o.replace('_', '-')}" for o in others if getattr(self, o) != getattr(Reproduce(), o)]
        if given:
            kinds = ("a table", "experiments") if is_table else ("an experiment", "tables")
            raise ValueError(
                f"{self.name} is {kinds[0]}, and {', '.join(given)} is of {kinds[1]}: mlpmixer reproduce lists both"
            )

        from mlpmixer.reproduce import OutOfTime
        from mlpmixer.training.run import Diverged, Interrupted

        try:
            return self._table() if is_table else self._experiment()
        except OutOfTime as stop:
            print_error(f"{stop}; to go on: the same command")
            return 3
        except Interrupted as stop:
            print_error(f"stopped after step {stop.step:,}, saved in {stop.path}; to go on: the same command")
            return 130
        except Diverged as e:
            print_error(str(e))
            return 1

    def _experiment(self) -> int:
        from mlpmixer.reproduce import run

        with reporter(quiet=self.quiet, as_json=self.json) as report:
            page, path = run(
                self.name,
                self.scale,
                out=self.out or None,
                data_dir=self.data_dir or None,
                weights_dir=self.weights_dir or None,
                device=self.device,
                seed=self.seed,
                max_minutes=self.max_minutes,
                report=report,
            )
        if self.json:
            print_json({"kind": "page", "path": str(path), "findings": page.findings, "figures": page.figures})
            return 0
        for cells in page.tables:
            print(f"{cells.title}\n")
            print_table(cells.header, cells.rows)
            print()
        print("\n".join([*page.findings, f"page    {path}"]))
        return 0

    def _table(self) -> int:
        from mlpmixer.reproduce.tables import Settings, plan, reproduce

        settings = Settings(
            data_dir=self.data_dir or None,
            weights_dir=self.weights_dir or None,
            steps=self.steps,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            device=self.device,
            seed=self.seed,
        )
        if self.check:
            return print_plan(plan(self.name, self.row, settings, self.out or None), as_json=self.json)
        with reporter(quiet=self.quiet, as_json=self.json) as report:
            outcome = reproduce(self.name, self.row, settings, self.out or None, report)
        if self.json:
            print_json({"kind": "table", **outcome.to_json()})
        else:
            print_outcome(outcome)
        return 0


def print_reproducible(*, as_json: bool) -> int:
    from mlpmixer.reproduce import EXPERIMENTS, TABLES

    if as_json:
        tables = [
            {"table": name, "title": t.title, "rows": [row.weights for row in t.rows]} for name, t in TABLES.items()
        ]
        experiments = [
            {"experiment": name, "title": e.title, "source": e.source, "scales": e.scales}
            for name, e in EXPERIMENTS.items()
        ]
        print_json([*tables, *experiments])
        return 0
    rows = []
    for name, e in EXPERIMENTS.items():
        needs = [*(["--data-dir"] if e.data else []), *(['".[rivals]"'] if e.rivals else [])]
        rows.append(
            (name, e.title, "; ".join(f"{scale}: {text}" for scale, text in e.scales.items()), ", ".join(needs))
        )
    print_table(("experiment", "what it shows", "scales", "needs"), rows)
    print()
    print_table(
        ("table", "", "rows"), [(name, t.title, ", ".join(row.weights for row in t.rows)) for name, t in TABLES.items()]
    )
    return 0


def print_plan(p: "Plan", *, as_json: bool) -> int:
    lacking = p.lacking()
    rows = []
    for job in p.jobs:
        state = "finished" if job.done else "started" if job.run.exists() else "to do"
        weights = "finished" if job.done else "absent" if job in p.absent else "there"
        pflops, gib = f"{job.flops / 1e15:,.4g}", f"{job.num_bytes / 2**30:.1f}"
        rows.append((job.row.weights, state, weights, f"{job.recipe.run.steps:,}", pflops, gib))
    if as_json:
        keys = ("row", "state", "weights", "steps", "pflops", "memory_gib")
        print_json(
            {
                "table": p.name,
                "out": str(p.out),
                "rows": [dict(zip(keys, r, strict=True)) for r in rows],
                "lacking": lacking,
            }
        )
    else:
        print_table(("row", "state", "weights", "steps", "PFLOPs", "memory, GiB"), rows)
        print(
            f"\nPFLOPs: of the whole training; 36 are an hour at 10 TFLOP/s. Memory: of the training, roughly. Runs: "
            f"{p.out}"
        )
    if lacking:
        print_error(lacking)
    return 1 if lacking else 0


def print_outcome(o: "Outcome") -> None:
    header, rows = o.cells()
    print(f"{o.name}: {o.table.title}\n")
    print_table(header, rows)
    print("\n".join(["", *o.notes]))
    print(f"table   {o.out / 'table.md'}")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A network line by line: shapes, parameters, FLOPs. Options change it: `mlpmixer summary B/16 --image-size
    384`."""

    model: Annotated[Positional[str], arg(metavar="MODEL|RUN")]
    """An architecture's name (mlpmixer list models), a run's folder, or its model.safetensors."""
    json: Flag = False
    """Print as JSON."""
    config: Annotated[MixerConfig, arg(name="")] = field(default_factory=MixerConfig)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "Summary":
        line = read(cls, "mlpmixer summary", args)
        if line.asks_for_help:
            return parse_line(line)
        line.require_words()
        name = line.words[0]
        return parse_line(line, default=cls(model=name, config=architecture_of(name)))

    def __call__(self) -> int:
        from mlpmixer.models.names import summary

        layers = summary(self.config)
        params, flops = sum(layer.params for layer in layers), sum(layer.flops for layer in layers)
        if self.json:
            print_json(
                {
                    "model": self.model,
                    "params": params,
                    "flops": flops,
                    "layers": [dataclasses.asdict(layer) for layer in layers],
                }
            )
            return 0
        rows = [(x.name, " x ".join(map(str, x.output)), f"{x.params:,}", f"{x.flops:,}") for x in layers]
        print_table(("layer", "output", "params", "FLOPs"), rows)
        print(f"\n{params:,} parameters, {flops / 1e9:.4g} GFLOPs an image (2 for each multiply-add)")
        return 0


@dataclass(frozen=True, kw_only=True)
class List:
    """The names that can be used: models, weights, datasets or recipes."""

    what: Positional[Literal["models", "weights", "datasets", "recipes"]]
    """Which names."""

    def __call__(self) -> int:
        if self.what == "models":
            from mlpmixer.models.names import MODELS, count_params

            rows = []
            for name, c in MODELS.items():
                sizes = (c.num_patches, c.num_blocks, c.hidden_dim, c.tokens_mlp_dim, c.channels_mlp_dim)
                rows.append((name, "x".join(map(str, pair(c.image_size))), *map(str, sizes), f"{count_params(c):,}"))
            print_table(
                (
                    "model",
                    "image px",
                    "patches",
                    "blocks",
                    "hidden_dim",
                    "tokens_mlp_dim",
                    "channels_mlp_dim",
                    "params",
                ),
                rows,
            )
        elif self.what == "weights":
            from mlpmixer.models.names import WEIGHTS

            rows = []
            for name, w in WEIGHTS.items():
                size, top1 = f"{w.num_bytes:,}" if w.num_bytes else "", percent(w.top1) if w.top1 else ""
                rows.append((name, f"{w.num_classes:,}", top1, size, w.preprocess, w.url))
            print_table(("weights", "classes", "top-1", "bytes", "preprocess", "address"), rows)
            print(
                "\ntop-1: on ImageNet-1k, as others report it; zoo.WEIGHTS says who, and under which licence the "
                "weights are"
            )
        elif self.what == "datasets":
            from mlpmixer.data.datasets import DATASETS

            rows = [
                (name, named.title, "x".join(map(str, named.image_size)), str(len(named.classes)))
                for name, named in DATASETS.items()
            ]
            print_table(("dataset", "", "image px", "classes"), rows)
            print("\nor a folder with a folder for each class, a Parquet file or folder, or hf:owner/name")
        else:
            from mlpmixer.training.recipes import RECIPES

            print_table(("recipe", ""), [(name, first_line(recipe)) for name, recipe in RECIPES.items()])
        return 0


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What this machine and this installation are, and what is wrong with them."""

    def __call__(self) -> int:
        from mlpmixer.cli.doctor import diagnose

        findings = diagnose()
        width = max(len(f.name) for f in findings)
        for f in findings:
            print(f"{'!!' if f.problem else '  '} {f.name:{width}}  {f.value}")
        problems = [f for f in findings if f.problem]
        for f in problems:
            print(f"\n!! {f.name}: {f.problem}")
        return 1 if problems else 0
