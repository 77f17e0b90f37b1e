"""The command train."""

import dataclasses
import re
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import (
    Flag,
    parse_line,
    ranks_here,
    read,
    restarts_by_itself,
    with_data,
)
from mlpmixer.cli.options import OnData, with_start
from mlpmixer.cli.printing import (
    between,
    duration,
    let_another_speak,
    percent,
    print_error,
)
from mlpmixer.cli.progress import reporter
from mlpmixer.evaluation.significance import wilson
from mlpmixer.training.recipe import Recipe

RUNS = Path("runs")
LATEST = "latest"


@dataclass(frozen=True, kw_only=True)
class Train(OnData):
    """Train a network on DATA. The recipe sets everything, options override it: `mlpmixer train cifar10 --epochs 5 --lr
    3e-4`."""

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """A data set's name (mlpmixer list datasets), a folder with a folder for each class, a Parquet file or folder, or
    hf:owner/name. Shards are streamed: a folder of WebDataset tars, https://HOST/FOLDER, 'DIR/train-{000..146}.tar',
    Parquet and hf: with --data.stream."""
    recipe: Annotated[str, arg(metavar="NAME")] = ""
    """Where to start from (mlpmixer list recipes); the default fits the data."""
    model: Annotated[str, arg(metavar="NAME")] = ""
    """An architecture (mlpmixer list models) instead of the recipe's."""
    augreg: Annotated[str, arg(metavar="LEVEL")] = ""
    """RandAugment and mixup of AugReg instead of the recipe's: none, light1, light2, medium1, medium2, strong1,
    strong2."""
    out: Annotated[str, arg(metavar="DIR")] = ""
    """The run's folder; default: a new one under runs/."""
    resume: Annotated[str, arg(metavar="[DIR]")] = ""
    """Go on with the run in DIR, or with the latest unfinished one. Beside --out: go on with that run if it is there,
    else start it."""
    peer_timeout: Annotated[str, arg(metavar="TIME")] = "10m"
    """Of several processes (torchrun): how long one waits for another before it gives up."""
    quiet: Flag = False
    """Print the result only."""
    json: Flag = False
    """Print one JSON object a line."""
    tensorboard: Flag = False
    """Write the curves for TensorBoard, too, into the run's folder. Beside --resume: of a run from its start, also of
    one that is over."""
    config: Annotated[Recipe, arg(name="")] = field(default_factory=Recipe)

    @classmethod
    def parse(cls, args: Sequence[str]) -> "Train":
        line = with_data(read(cls, "mlpmixer train", args, without_value={"--resume": LATEST}))
        if line.asks_for_help:
            return with_start(line)
        resume, out = line.value("--resume"), line.value("--out")
        if restarts_by_itself() and not resume:
            raise ValueError(
                "torchrun --max-restarts starts the command again after a failure; to go on then, it needs --out DIR "
                "--resume"
            )
        if resume == LATEST and out:
            resume = out
        in_out = bool(resume) and resume == out
        if not resume or (in_out and (line.words or not (Path(out) / "recipe.json").exists())):
            return dataclasses.replace(with_start(line), resume=resume)
        from mlpmixer.training.recipe import read_recipe

        run = latest_unfinished() if resume == LATEST else Path(resume)
        config = read_recipe(run)
        as_started = f"a run goes on as it was started; leave the other options out: mlpmixer train --resume {run}"
        if line.words not in ((), (config.data.name,)):
            raise ValueError(as_started)
        line = dataclasses.replace(line, words=(config.data.name,))
        parsed = parse_line(line, default=cls(data=config.data.name, config=config))
        start = parsed.recipe or parsed.model or parsed.augreg
        if parsed.config != config or start or parsed.out not in ("", str(run)):
            raise ValueError(as_started)
        return dataclasses.replace(parsed, resume=str(run), out="")

    def __call__(self) -> int:
        from mlpmixer.clock import parse_duration
        from mlpmixer.data.streaming.shards import ShardError
        from mlpmixer.training.distributed import FailedElsewhere, Lost, Ranks, joined
        from mlpmixer.training.run import Diverged, Interrupted, train
        from mlpmixer.training.tensorboard import curves
        from mlpmixer.weights.model_file import last_state
        from mlpmixer.weights.run_folder import free_directory

        ranks = Ranks(**ranks_here())
        out = self.resume or self.out
        try:
            with (
                joined(ranks, parse_duration(self.peer_timeout)),
                reporter(quiet=self.quiet or not ranks.leads, as_json=self.json and ranks.leads) as show,
                ExitStack() as stack,
            ):
                out = out or str(ranks.lead(lambda: free_directory(RUNS / run_name(self.config))))
                drawn = curves(out, show) if self.tensorboard and ranks.leads else nullcontext(show)
                report = ranks.together(lambda: stack.enter_context(drawn))
                result = train(self.config, out=out, resume=bool(self.resume), report=report, ranks=ranks)
        except (Interrupted, Diverged) as e:  # on all ranks alike
            if ranks.leads and isinstance(e, Interrupted):
                print_error(f"stopped after step {e.step:,}, saved; to go on: mlpmixer train --resume {e.path}")
            elif ranks.leads:
                print_error(str(e))
            return 130 if isinstance(e, Interrupted) else 1
        except ShardError as e:
            saved = last_state(Path(out)) is not None
            print_error(
                str(e) + (f"; the run is saved, and goes on with: mlpmixer train --resume {out}" if saved else "")
            )
            return 1
        except Lost as e:
            print_error(f"{e}; to go on from the last checkpoint: --resume {out}")
            return 1
        except FailedElsewhere:
            let_another_speak()
            return 2
        if ranks.leads and not self.json:
            print_result(result.path, result.summary)
            if self.tensorboard:
                print(f"curves  tensorboard --logdir {result.path}")
        return 0


def run_name(recipe: Recipe) -> str:
    data = Path(recipe.data.name).name.removeprefix("hf:") or "data"
    return re.sub(r"[^\w.-]+", "-", data if recipe.name == data else f"{data}-{recipe.name}")


def latest_unfinished() -> Path:
    runs = [p.parent for p in RUNS.glob("*/recipe.json") if not p.with_name("summary.json").exists()]
    if not runs:
        raise ValueError(
            f"nothing to resume: no unfinished run under {RUNS}/; name the run: mlpmixer train --resume DIR"
        )
    return max(runs, key=lambda run: run.stat().st_mtime)


def print_result(path: Path, summary: dict[str, Any]) -> None:
    measured = (("test", summary.get("test")), ("validation", summary.get("val")))
    scores = [
        f"{split} top-1 {percent(m['top1'])} {between(wilson(round(m['top1'] * m['n']), m['n']))}"
        for split, m in measured
        if m
    ]
    peak = f", at most {summary['peak_mib']:,.0f} MiB" if summary.get("peak_mib") else ""
    bad = summary.get("bad_images") or []
    print(f"{', '.join(scores)} after {summary['steps']:,} steps in {duration(summary['train_s'])}{peak}")
    if bad:
        print(f"{len(bad)} unreadable images were left out; they are named in {path / 'summary.json'}")
    print(f"model   {path / 'model.safetensors'}")
    print(f"report  {path / 'report.html'}")
    print(f"next    mlpmixer predict {path} IMAGE...")
