"""Time: the clock of a run, and durations as people write them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

MOST_S = 366 * 24 * 3600.0


class Clock:
    """Seconds of training over all resumes, and images per second without evaluations."""

    def __init__(self, before_s: float) -> None:
        self._start = time.monotonic() - before_s
        self._saved = time.monotonic()
        self._images, self._window_images = 0, 0
        self._busy_start = self._window_start = time.monotonic()

    def count(self, images: int) -> None:
        self._images += images
        self._window_images += images

    def images_per_s(self) -> float:
        """Images per second since the last call."""
        now = time.monotonic()
        rate = self._window_images / max(now - self._window_start, 1e-9)
        self._window_images, self._window_start = 0, now
        return rate

    def overall_images_per_s(self) -> float:
        return self._images / max(time.monotonic() - self._busy_start, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        gone = time.monotonic() - start
        self._busy_start += gone
        self._window_start += gone

    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def since_save(self) -> float:
        return time.monotonic() - self._saved

    def saved(self) -> None:
        self._saved = time.monotonic()


def parse_duration(text: str) -> float:
    """Seconds of "45s", "30m", "2h", "1h30m" or plain seconds. ValueError otherwise."""
    units = {"s": 1, "m": 60, "h": 3600}
    total, digits = 0.0, ""
    for char in text.strip().lower():
        if char in units and digits:
            total, digits = total + float(digits) * units[char], ""
        elif char.isdigit() or (char == "." and "." not in digits):
            digits += char
        else:
            raise ValueError(f"{text!r} is not a time; write 45s, 30m, 2h or 1h30m")
    total += float(digits) if digits not in ("", ".") else 0
    if total <= 0:
        raise ValueError(f"{text!r} is not a time; write 45s, 30m, 2h or 1h30m")
    if total > MOST_S:
        raise ValueError(f"{text!r} is more than a year; write 45s, 30m, 2h or 1h30m")
    return total
