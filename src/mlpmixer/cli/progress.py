"""Progress of a training, a download or any other long work: a live line on a terminal, plain lines elsewhere, or JSON.

What stays is on standard output. The live line is on standard error, so that it never stands between results.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlpmixer.cli.printing import STATUS, Event, duration, percent, print_error, print_json

if TYPE_CHECKING:
    from mlpmixer.download import Report

EVERY_S = 10.0  # between plain lines


@contextmanager
def reporter(*, quiet: bool = False, as_json: bool = False) -> "Iterator[Report]":
    """A function that shows events as they happen."""
    if as_json or quiet:
        yield print_json if as_json else print_note
        return
    try:
        yield shown()
    finally:
        STATUS.clear()


def print_note(event: Event) -> None:
    """Print a note: even --quiet keeps these."""
    if event["kind"] == "note":
        print_error(f"note: {event['note']}")


def shown(every_s: float = EVERY_S) -> "Report":
    """Show events: lines that stay, and the state of what goes on, live or as a plain line now and then."""
    total_steps, last, pace = 0, time.monotonic(), Pace()

    def report(event: Event) -> None:
        nonlocal total_steps, last
        kind, now = event["kind"], time.monotonic()
        if lines := lines_of(event):
            STATUS.clear()
            print(*lines, sep="\n", flush=True)
        print_note(event)
        if kind == "start":
            total_steps, last = event.get("steps", 0), now
        if kind == "step":
            parts = [f"step {event['step']:,}/{total_steps:,}", *step_texts(event)]
            live = STATUS.is_live and sys.stdout.isatty()
        elif kind == "fetch":
            url, live = event["url"], STATUS.is_live
            if pace.count(url, event["done_bytes"]) and not live:
                last = now
                sizes = ((event["total_bytes"], ""), (event["done_bytes"], " already here"))
                print_error(", ".join([f"fetching {url}", *(megabytes(size) + text for size, text in sizes if size)]))
                return
            parts = [url.rpartition("/")[2] if live else "fetched", *fetch_texts(event, pace)]
        elif kind == "progress":
            live, last = STATUS.is_live, now if pace.count(event["what"], event["done"]) else last
            parts = [
                f"{event['what']} {event['done']:,}/{event['of']:,}",
                *event.get("now", ()),
                *pace.left(event["of"]),
            ]
        else:
            return
        if live:
            STATUS.show(parts)
        elif now - last >= every_s:
            last = now
            text = "  ".join(parts)
            print(text, flush=True) if kind == "step" else print_error(text)

    return report


class Pace:
    """How fast a piece of work goes, and how long it takes at that."""

    def __init__(self) -> None:
        self.work, self.began_s, self.first, self.done = "", 0.0, 0, 0

    def count(self, work: str, done: int) -> bool:
        """So much of it is done. True where it is new."""
        is_new = work != self.work or done < self.done
        if is_new:
            self.work, self.began_s, self.first = work, time.monotonic(), done
        self.done = done
        return is_new

    @property
    def per_s(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.began_s, 1e-9)

    def left(self, total: int) -> list[str]:
        return [f"{duration((total - self.done) / self.per_s)} left"] if self.per_s and total else []


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def fetch_texts(e: Event, pace: Pace) -> list[str]:
    """The state of a download."""
    done, total = e["done_bytes"], e["total_bytes"]
    size = f"{megabytes(done)} of {megabytes(total)}" if total else megabytes(done)
    return [size, f"{megabytes(pace.per_s)}/s", *pace.left(total)]


def unreadable(images: Sequence[tuple[str, str]]) -> list[str]:
    """The first ten images that cannot be read, each with the reason, and how many more there are."""
    more = [f"and {len(images) - 10:,} more images"] if len(images) > 10 else []
    return [*(f"{name}: {reason}" for name, reason in images[:10]), *more]


def lines_of(e: Event) -> list[str]:
    """Lines for an event that stay on the screen."""
    if e["kind"] == "row":
        return [f"row {e['number']} of {e['of']}: {e['row']}"]
    if e["kind"] == "doing":
        return [e["what"]]
    if e["kind"] == "eval":
        from mlpmixer.weights.run_folder import METRICS, metric_of

        metric = metric_of(e)
        scores = f"{e['split']}: {METRICS[metric]} {percent(e[metric])}, loss {e['nll']:.4f}"
        if f"train_{metric}" in e:
            scores += f"; training images {percent(e[f'train_{metric}'])}"
        return [f"epoch {e['epoch']:.4g}  step {e['step']:,}  {scores}"]
    if e["kind"] != "start":
        return []
    each = f" in each of {e['processes']} processes" if e.get("processes", 1) > 1 else ""
    return [
        f"{e['train_images']:,} training images, {e['val_images']:,} for validation, {e['classes']} classes",
        f"{e['params']:,} parameters, {e['steps']:,} step{'s' * (e['steps'] != 1)}, "
        f"{e['precision']} on {e['device']}{each}; kernels: {e['kernels']}",
        f"run: {e['out']}" + (f", resumed at step {e['step']:,}" if e.get("step") else ""),
        *(f"note: {note}" for note in e.get("notes", ())),
        *(f"cannot be read: {line}" for line in unreadable(e.get("bad_images", ()))),
    ]


def step_texts(e: Event) -> list[str]:
    """The state of a training; without the memory where the system does not tell."""
    top1 = [f"train {percent(e['top1'])}"] if e.get("top1") is not None else []
    memory = [f"{e['peak_mib']:,.0f} MiB"] if e.get("peak_mib") else []
    speed = f"{e['images_per_s']:,.0f} images/s"
    return [f"loss {e['loss']:.4f}", *top1, speed, *memory, f"{duration(e.get('eta_s'))} left"]
