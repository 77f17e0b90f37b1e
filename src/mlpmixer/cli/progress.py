"""What one sees while waiting for a training or a download: a live line on a terminal, plain lines elsewhere, or
JSON."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from mlpmixer.cli.printing import Event, duration, percent, print_error, print_json


@contextmanager
def reporter(*, quiet: bool = False, as_json: bool = False) -> Iterator[Callable[[Event], None]]:
    """What is told while one waits: JSON lines, or live on a terminal and plain lines elsewhere, or nothing.

    Training goes to standard output, a download to standard error: it never stands between results.
    """
    if as_json or quiet:
        yield print_json if as_json else lambda event: None
        return
    phase, show = "", None
    with ExitStack() as shown:

        def report(event: Event) -> None:
            nonlocal phase, show
            now = "fetch" if event["kind"] == "fetch" else "train"
            if show is None or now != phase:
                shown.close()
                stream, live, plain = (
                    (sys.stderr, live_fetch, plain_fetch)
                    if now == "fetch"
                    else (sys.stdout, live_training, plain_training)
                )
                phase, show = now, shown.enter_context(live()) if stream.isatty() else plain()
            show(event)

        yield report


def plain_fetch(every_s: float = 10.0) -> Callable[[Event], None]:
    url, last, last_bytes = "", 0.0, 0

    def report(event: Event) -> None:
        nonlocal url, last, last_bytes
        now, done, total = time.monotonic(), event["done_bytes"], event["total_bytes"]
        if event["url"] != url:
            url, last, last_bytes = event["url"], now, done
            print_error(
                f"fetching {url}"
                + (f", {megabytes(total)}" if total else "")
                + (f", {megabytes(done)} of it are here" if done else "")
            )
        elif now - last >= every_s:
            speed = max(done - last_bytes, 0) / (now - last)
            left = (
                f" of {megabytes(total)}, {duration((total - done) / speed if speed else None)} left" if total else ""
            )
            print_error(f"fetched {megabytes(done)}{left}")
            last, last_bytes = now, done

    return report


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextmanager
def live_fetch() -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def report(event: Event) -> None:
            name = escape(event["url"].rpartition("/")[2])
            progress.update(task, description=name, completed=event["done_bytes"], total=event["total_bytes"] or None)

        yield report


def plain_training(every_s: float = 10.0) -> Callable[[Event], None]:
    last, total = time.monotonic(), 0

    def report(event: Event) -> None:
        nonlocal last, total
        if event["kind"] == "start":
            total = event.get("steps", 0)
            print("\n".join(start_lines(event)), flush=True)
        elif event["kind"] == "eval":
            print(eval_line(event), flush=True)
        elif event["kind"] == "row":
            print(row_line(event), flush=True)
        elif event["kind"] == "step" and time.monotonic() - last >= every_s:
            last = time.monotonic()
            print(
                f"step {event['step']:,}/{total:,}  {step_text(event)}  {duration(event.get('eta_s'))} left", flush=True
            )

    return report


@contextmanager
def live_training() -> Iterator[Callable[[Event], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("step", total=None, now="")

        def report(event: Event) -> None:
            if event["kind"] == "start":
                progress.update(task, total=event.get("steps"), completed=event.get("step", 0))
                progress.console.print("\n".join(start_lines(event)), markup=False, highlight=False, soft_wrap=True)
            elif event["kind"] == "row":
                progress.console.print(row_line(event), markup=False, highlight=False, soft_wrap=True)
            elif event["kind"] == "step":
                progress.update(
                    task, completed=event["step"], now=f"{step_text(event)}  {duration(event.get('eta_s'))} left"
                )
            elif event["kind"] == "eval":
                progress.console.print(eval_line(event), markup=False, highlight=False, soft_wrap=True)

        yield report


def start_lines(e: Event) -> list[str]:
    return [
        f"{e['train_images']:,} training images, {e['val_images']:,} for validation, {e['classes']} classes",
        f"{e['params']:,} parameters, {e['steps']:,} steps, {e['precision']} on {e['device']}"
        + (f" in each of {e['processes']} processes" if e.get("processes", 1) > 1 else "")
        + f"; kernels: {e['kernels']}",
        f"run: {e['out']}",
        *(f"note: {note}" for note in e.get("notes", ())),
    ]


def row_line(e: Event) -> str:
    return f"row {e['number']} of {e['of']}: {e['row']}"


def step_text(e: Event) -> str:
    top1 = f"  train {percent(e['top1'])}" if e.get("top1") is not None else ""
    return f"loss {e['loss']:.4f}{top1}  {e['images_per_s']:,.0f} images/s{mib(e)}"


def mib(e: Event) -> str:
    """The most memory held so far; nothing where the system does not tell."""
    return f"  {e['peak_mib']:,.0f} MiB" if e.get("peak_mib") else ""


def eval_line(e: Event) -> str:
    return f"epoch {e['epoch']:.4g}  step {e['step']:,}  {e['split']}: top-1 {percent(e['top1'])}, loss {e['nll']:.4f}"
