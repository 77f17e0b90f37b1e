"""Progress of a training or a download: a live line on a terminal, plain lines elsewhere, or JSON."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from mlpmixer.cli.printing import Event, duration, percent, print_error, print_json


@contextmanager
def reporter(*, quiet: bool = False, as_json: bool = False) -> Iterator[Callable[[Event], None]]:
    """A function that shows events as they happen. Training goes to standard output, a download to standard error, so
    that it never stands between results."""
    if as_json or quiet:
        yield print_json if as_json else print_note
        return
    phase, show = "", None
    with ExitStack() as shown:

        def report(event: Event) -> None:
            nonlocal phase, show
            if event["kind"] == "note":
                return print_error(event["note"])
            now = "fetch" if event["kind"] == "fetch" else "train"
            if show is None or now != phase:
                shown.close()
                phase = now
                if now == "fetch":
                    show = shown.enter_context(live_fetch()) if sys.stderr.isatty() else plain_fetch()
                else:
                    show = shown.enter_context(live_training()) if sys.stdout.isatty() else plain_training()
            show(event)

        yield report


def print_note(event: Event) -> None:
    """What is said even if nothing else is."""
    if event["kind"] == "note":
        print_error(f"note: {event['note']}")


def plain_fetch(every_s: float = 10.0) -> Callable[[Event], None]:
    url, last, last_bytes = "", 0.0, 0

    def report(event: Event) -> None:
        nonlocal url, last, last_bytes
        now, done, total = time.monotonic(), event["done_bytes"], event["total_bytes"]
        if event["url"] != url:
            size = f", {megabytes(total)}" if total else ""
            print_error(f"fetching {event['url']}{size}" + (f", {megabytes(done)} of it are here" if done else ""))
        elif now - last >= every_s:
            speed = max(done - last_bytes, 0) / (now - last)
            left = duration((total - done) / speed if speed else None)
            print_error(f"fetched {megabytes(done)}" + (f" of {megabytes(total)}, {left} left" if total else ""))
        else:
            return
        url, last, last_bytes = event["url"], now, done

    return report


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@contextmanager
def live_fetch() -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    name, speed, left = TextColumn("{task.description}"), TransferSpeedColumn(), TimeRemainingColumn()
    columns = (name, BarColumn(), DownloadColumn(), speed, left)
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
        for line in lines_of(event):
            print(line, flush=True)
        if event["kind"] == "start":
            total = event.get("steps", 0)
        elif event["kind"] == "step" and time.monotonic() - last >= every_s:
            last = time.monotonic()
            print(f"step {event['step']:,}/{total:,}  {step_text(event)}", flush=True)

    return report


@contextmanager
def live_training() -> Iterator[Callable[[Event], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("step", total=None, now="")

        def report(event: Event) -> None:
            for line in lines_of(event):
                progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            if event["kind"] == "start":
                progress.update(task, total=event.get("steps"), completed=event.get("step", 0))
            elif event["kind"] == "step":
                progress.update(task, completed=event["step"], now=step_text(event))

        yield report


def lines_of(e: Event) -> list[str]:
    """What stays on the screen."""
    if e["kind"] == "row":
        return [f"row {e['number']} of {e['of']}: {e['row']}"]
    if e["kind"] == "eval":
        scores = f"{e['split']}: top-1 {percent(e['top1'])}, loss {e['nll']:.4f}"
        return [f"epoch {e['epoch']:.4g}  step {e['step']:,}  {scores}"]
    if e["kind"] == "note":
        return [f"note: {e['note']}"]
    if e["kind"] != "start":
        return []
    each = f" in each of {e['processes']} processes" if e.get("processes", 1) > 1 else ""
    return [
        f"{e['train_images']:,} training images, {e['val_images']:,} for validation, {e['classes']} classes",
        f"{e['params']:,} parameters, {e['steps']:,} steps, {e['precision']} on {e['device']}{each}; "
        f"kernels: {e['kernels']}",
        f"run: {e['out']}",
        *(f"note: {note}" for note in e.get("notes", ())),
    ]


def step_text(e: Event) -> str:
    """The state of a training in a line; without the memory where the system does not tell."""
    top1 = f"  train {percent(e['top1'])}" if e.get("top1") is not None else ""
    memory = f"  {e['peak_mib']:,.0f} MiB" if e.get("peak_mib") else ""
    return f"loss {e['loss']:.4f}{top1}  {e['images_per_s']:,.0f} images/s{memory}  {duration(e.get('eta_s'))} left"
