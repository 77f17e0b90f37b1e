"""mlpmixer train."""

import dataclasses
import os
import re
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from mlpmixer.cli.arguments import Arg, Line, build
from mlpmixer.cli.options import DATA, JsonLines, Quiet, require_writable
from mlpmixer.cli.printing import between, duration, let_another_speak, percent, print_error, print_table
from mlpmixer.cli.progress import reporter, unreadable
from mlpmixer.cli.recipe_options import RecipeCommand, require_effect, start_from
from mlpmixer.evaluation.significance import wilson
from mlpmixer.training.recipe import Recipe, read_recipe
from mlpmixer.weights.run_folder import (
    FOLDS_FILE,
    OUT_OF_FOLD_FILE,
    is_cross_validation,
    is_run,
    new_directory,
    read_cross_validation,
    read_summary,
    remove_if_empty,
)

RUNS = Path("runs")
LATEST = "latest"
MOST_SUSPICIOUS = 10  # labels that are printed
FREE = ("tensorboard", "quiet", "json", "peer_timeout", "weights_dir")  # what may be given beside --resume
STREAMED = (
    ". Also shards, which are streamed: a folder of WebDataset tars, https://HOST/FOLDER or "
    "'DIR/train-{000..146}.tar'. With --data.stream, Parquet and hf: are streamed too"
)


@dataclass(frozen=True, kw_only=True)
class Train(RecipeCommand):
    """Train a network on DATA.

    Options override the recipe: `mlpmixer train cifar10 --epochs 5 --lr 3e-4`
    """

    data: Annotated[str, Arg("DATA", DATA + STREAMED, positional=True, name="data.name")]
    out: Annotated[str, Arg("DIR")] = ""
    """Folder of the run; default: a new one under runs/."""
    resume: Annotated[str, Arg("DIR", bare=LATEST)] = ""
    """Resume the run in DIR, or the latest unfinished one. With --out: resume that run if it exists, else start it."""
    tensorboard: bool = False
    """Also write curves for TensorBoard. They go into the run's folder; with --resume, they include the run's history,
    even if it has finished."""
    quiet: Quiet = False
    json: JsonLines = False
    peer_timeout: Annotated[str, Arg("TIME")] = "10m"
    """Timeout between processes (torchrun)."""

    @classmethod
    def of(cls, line: Line) -> Self:
        resume, out = line.value("--resume"), line.value("--out")
        if restarts_by_itself() and not resume:
            raise ValueError("torchrun --max-restarts repeats the command after a failure: give --out DIR --resume")
        if resume == LATEST and out:
            resume = out
        started = bool(out) and resume == out and (is_run(Path(out)) or is_cross_validation(Path(out)))
        if not resume or (resume == out and (line.words or not started)):
            recipe = start_from(line, read_recipe(Path(out)) if started else None)
            command = build(cls, line, config=recipe)
            if not started:  # as an older run may have been
                require_effect(line, command.config)
            return dataclasses.replace(command, resume=resume)
        run = latest_unfinished() if resume == LATEST else Path(resume)
        recipe = read_recipe(run)
        command = build(cls, dataclasses.replace(line, words=line.words or (recipe.data.name,)), config=recipe)
        command = dataclasses.replace(command, resume=str(run), out="" if command.out == resume else command.out)
        free = {name: getattr(command, name) for name in FREE}
        if command != cls(data=recipe.data.name, config=recipe, resume=str(run), **free):
            raise ValueError(
                f"a run resumes as it was started; leave the other options out: mlpmixer train --resume {run}"
            )
        return command

    def __call__(self) -> int:
        from mlpmixer.clock import parse_duration
        from mlpmixer.data.streaming.shards import ShardError
        from mlpmixer.training.cross_validation import cross_validate
        from mlpmixer.training.distributed import PeerFailedError, PeerLostError, ProcessGroup, connected
        from mlpmixer.training.loop import Diverged, Interrupted
        from mlpmixer.training.run import train
        from mlpmixer.training.tensorboard import curves
        from mlpmixer.weights.model_file import last_state

        group = ProcessGroup(**ranks_here())
        out, all_folds = self.resume or self.out, is_all_folds(self.config)
        if all_folds and group.size > 1:
            raise ValueError("data.folds trains one fold after the other in one process: start it without torchrun")
        if all_folds and self.tensorboard:
            raise ValueError(
                "--tensorboard is for a single run: leave it out, and draw a fold when it is finished (mlpmixer train "
                "--resume DIR/fold-1 --tensorboard)"
            )
        if group.size == 1:
            require_writable("--out", out or str(RUNS), folder=True)
        try:
            with (
                connected(group, parse_duration(self.peer_timeout)),
                reporter(quiet=self.quiet or not group.is_main, as_json=self.json and group.is_main) as show,
                ExitStack() as stack,
            ):
                if not out and group.is_main and not RUNS.exists():
                    stack.callback(remove_if_empty, RUNS)
                out = out or str(group.on_main(lambda: new_directory(RUNS / run_name(self.config))))
                drawn = curves(out, show) if self.tensorboard and group.is_main else nullcontext(show)
                report = group.on_all(lambda: stack.enter_context(drawn))
                if all_folds:
                    result = cross_validate(self.config, out=out, resume=bool(self.resume), report=report)
                else:
                    result = train(self.config, out=out, resume=bool(self.resume), report=report, group=group)
        except (Interrupted, Diverged) as e:  # on all processes alike
            if group.is_main and isinstance(e, Interrupted):
                print_error(f"stopped after step {e.step:,}, saved; to resume: mlpmixer train --resume {e.path}")
            elif group.is_main:
                print_error(str(e))
            return 130 if isinstance(e, Interrupted) else 1
        except ShardError as e:
            saved = last_state(Path(out)) is not None
            print_error(str(e) + (f"; the run is saved; to resume: mlpmixer train --resume {out}" if saved else ""))
            return 1
        except PeerLostError as e:
            print_error(f"{e}; to resume from the last checkpoint: --resume {out}")
            return 1
        except PeerFailedError:
            let_another_speak()
            return 2
        if all_folds and not self.json:
            print_folds(result.path, result.summary, self.config)
        elif group.is_main and not self.json:
            print_result(result.path, result.summary)
            if self.tensorboard:
                print(f"curves  tensorboard --logdir {result.path}")
        return 0


def ranks_here() -> dict[str, int]:
    """The fields of `distributed.ProcessGroup`, as torchrun passes them to each process that it starts; none without
    it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return {}
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        size = os.environ["WORLD_SIZE"]
        raise ValueError(
            f"WORLD_SIZE={size}, but {', '.join(missing)} is not set; start several processes with torchrun"
        )
    return {
        field: int(os.environ[name])
        for field, name in (("rank", "RANK"), ("size", "WORLD_SIZE"), ("local_rank", "LOCAL_RANK"))
    }


def restarts_by_itself() -> bool:
    """Whether torchrun repeats this command when it fails."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def run_name(recipe: Recipe) -> str:
    data = Path(recipe.data.name).name.removeprefix("hf:") or "data"
    name = re.sub(r"[^\w.-]+", "-", data if recipe.name == data else f"{data}-{recipe.name}")
    return f"{name}-{recipe.data.folds}-folds" if is_all_folds(recipe) else name


def is_all_folds(recipe: Recipe) -> bool:
    """Whether a recipe stands for a run for each fold."""
    return bool(recipe.data.folds and not recipe.data.fold)


def is_finished(run: Path) -> bool:
    try:
        summary = read_cross_validation(run).get("summary") if is_cross_validation(run) else read_summary(run)
        return summary is not None
    except ValueError:  # damaged: resuming makes it again
        return False


def latest_unfinished() -> Path:
    found = [p.parent for name in ("recipe.json", FOLDS_FILE) for p in RUNS.glob(f"*/{name}")]
    runs = [run for run in found if not is_finished(run)]
    if not runs:
        raise ValueError(
            f"nothing to resume: no unfinished run under {RUNS}/; name the run: mlpmixer train --resume DIR"
        )
    return max(runs, key=lambda run: run.stat().st_mtime)


def score_text(m: dict[str, Any]) -> str:
    """The metric of stored scores."""
    if "map" in m:
        return f"mAP {percent(m['map'])}, F1 {percent(m['f1_micro'])} (micro, threshold {m['threshold']:g})"
    return f"top-1 {percent(m['top1'])} {between(wilson(round(m['top1'] * m['n']), m['n']))}"


def print_result(path: Path, summary: dict[str, Any]) -> None:
    """Notes, then five lines: how good it is, which weights these are, how long it took, where it is, what to type."""
    print_advice(summary)
    if bad := summary.get("bad_images") or []:
        print("\n".join(f"left out  {line}" for line in unreadable(bad)))
        print(f"{len(bad)} unreadable images were left out, listed in {path / 'summary.json'}")
    measured = (("test", summary.get("test")), ("validation", summary.get("val")))
    scores = [f"{split} {score_text(m)} of {m['n']:,} images" for split, m in measured if m]
    steps, best = summary["steps"], summary.get("best_step", summary["steps"])
    which = "the best on validation" if summary.get("kept") == "best" else "the last"
    speed = f", {summary['images_per_s']:,.0f} images/s" if summary.get("images_per_s") else ""
    peak = f", peak memory {summary['peak_mib']:,.0f} MiB" if summary.get("peak_mib") else ""
    print(f"result  {', '.join(scores)}")
    print(f"weights {which}: step {best:,} of {steps:,}")
    print(f"time    {duration(summary['train_s'])}{speed}{peak}")
    print(f"files   {path / 'model.safetensors'} {path / 'report.html'}")
    print(f"next    mlpmixer predict {path} IMAGE...")


def print_advice(summary: dict[str, Any]) -> None:
    for sentence in summary.get("advice") or ():
        print(f"note    {sentence}")


def print_folds(path: Path, summary: dict[str, Any], recipe: Recipe) -> None:
    """Notes, the folds, the labels to look at, and five lines as after a single run."""
    print_advice(summary)
    rows = [
        (str(k), percent(f["top1"]), between(f["top1_interval"]), f"{f['n']:,}", percent(f["val_top1"]))
        for k, f in enumerate(summary["per_fold"], 1)
    ]
    print_table(("fold", "top-1", "95 %", "images", "validation"), rows)
    if first := summary["suspicious"][:MOST_SUSPICIOUS]:
        print("\nmost suspicious labels")
        cells = [
            (r["name"], r["label"], percent(r["label_probability"]), r["prediction"], percent(r["probability"]))
            for r in first
        ]
        print_table(("image", "labelled", "with", "looks like", "with"), cells)
    whole, spread = summary["metrics"], f"({100 * summary['lowest']:.2f}-{100 * summary['highest']:.2f})"
    together = f"{percent(whole['top1'])} {between(whole['top1_interval'])} of all {whole['n']:,} images"
    deviation = f"{100 * summary['deviation']:.2f}"
    print(
        f"\nresult  top-1 {percent(summary['top1'])} +- {deviation} {spread} over {summary['folds']} folds; {together}"
    )
    print(f"labels  {summary['num_wrong']:,} contradict the prediction; most suspicious first: {OUT_OF_FOLD_FILE}")
    print(f"time    {duration(summary['train_s'])}, {summary['images_per_s']:,.0f} images/s")
    print(f"files   {path / OUT_OF_FOLD_FILE} {path / 'report.html'}")
    print(f"next    mlpmixer train {recipe.data.name}   (trains the network to use; the folds only measure)")
