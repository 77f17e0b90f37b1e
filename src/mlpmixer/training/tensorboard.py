"""The curves of a run for TensorBoard: event files in the run's folder, written as it goes. Needs the extra
`tensorboard`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpmixer.download import Report
from mlpmixer.weights.run_folder import metric_of, read_metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
NO_CURVE = ("step", "epoch", "eta_s")


@contextmanager
def curves(run: str | os.PathLike[str], also: Report | None = None) -> Iterator[Report]:
    """A `report` for `train` that writes RUN/tensorboard, and passes every event on to `also`.

    `tensorboard --logdir RUN`, or a folder of runs, shows the curves while they grow: train/loss, train/top1, val/top1,
    ... over the step. When the run starts or is resumed, the event files are rebuilt from metrics.jsonl: so a resumed
    run has one history, and a run that began without them has its curves from its first step.

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
            # purge_step: an open TensorBoard drops what it has read so far
            writer = SummaryWriter(str(run / FOLDER), purge_step=0)
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
    if event["kind"] == "end" and event["summary"].get("test"):
        test = event["summary"]["test"]
        event = {"split": "test", "step": event["summary"]["steps"], "nll": test["nll"]}
        event |= {metric_of(test): test[metric_of(test)]}
    elif event["kind"] not in ("step", "eval"):
        return
    for name, value in event.items():
        if isinstance(value, int | float) and name not in NO_CURVE:
            writer.add_scalar(f"{event.get('split', 'train')}/{name}", value, event["step"])
