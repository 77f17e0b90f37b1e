"""The curves of a run for TensorBoard: event files in the run's folder, written as it goes. Needs the extra
`tensorboard`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmixer.weights.run_folder import read_metrics

Report = Callable[[dict[str, Any]], None]

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
NO_CURVE = ("step", "epoch", "eta_s")


@contextmanager
def curves(run: str | os.PathLike[str], also: Report | None = None) -> Iterator[Report]:
    """A `report` for `train` that writes RUN/tensorboard, and tells `also` everything, too.

    `tensorboard --logdir RUN`, or on a folder of runs, shows the curves while they grow:

    train/loss, train/top1, val/top1, ... over the step. When the run starts or goes on, the event files are made anew
    from metrics.jsonl: so a resumed run has one history, and a run that began without them has its curves from its
    first step.

    Errors: ValueError when TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as e:
        raise ValueError(
            f'event files for TensorBoard need its package (no {e.name} here): pip install "mlpmixer[tensorboard]"'
        ) from None
    run, writer = Path(run), None

    def report(event: dict[str, Any]) -> None:
        nonlocal writer
        if writer is None and event["kind"] in ("start", "end"):
            for old in (run / FOLDER).glob("events.out.tfevents.*"):
                old.unlink()
            writer = SummaryWriter(
                str(run / FOLDER), purge_step=0
            )  # a TensorBoard that is open drops what it has read so far
            for line in read_metrics(run / "metrics.jsonl"):
                add(writer, line)
        if writer is not None:
            add(writer, event)
            writer.flush()
        if also is not None:
            also(event)

    try:
        yield report
    finally:
        if writer is not None:
            writer.close()


def add(writer: "SummaryWriter", event: dict[str, Any]) -> None:
    """The numbers of a step, of an evaluation, or of the test split at the end; other events have none."""
    if event["kind"] == "step":
        split, step, values = "train", event["step"], event
    elif event["kind"] == "eval":
        split, step, values = event["split"], event["step"], event
    elif event["kind"] == "end" and event["summary"].get("test"):
        summary = event["summary"]
        split, step, values = "test", summary["steps"], {name: summary["test"].get(name) for name in ("top1", "nll")}
    else:
        return
    for name, value in values.items():
        if isinstance(value, int | float) and name not in NO_CURVE:
            writer.add_scalar(f"{split}/{name}", value, step)
