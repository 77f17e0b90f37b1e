"""What may be asked of the service, and how much at once. Plain numbers: the command line has them as options."""

import dataclasses
from dataclasses import dataclass

from mlpmixer.config import Config


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The limits of one worker. What is over one of them is refused with the status named there."""

    max_bytes: int = 16 * 2**20
    """Bytes in the body of a request; more: 413."""
    max_pixels: int = 50_000_000
    """Pixels of an image, by its header, before anything is decoded; more: 413."""
    max_images: int = 32
    """Images in a request; more: 413."""
    batch_s: float = 0.1
    """Seconds that the images should take which go through the network together, by what those before took; one goes in any case. No
    batch waits for more to come: the engine takes what is there."""
    max_batch: int = 32
    """Images that go through the network together at most, however fast it is."""
    queue: int = 256
    """Images that were let in and have no answer yet; more: 503."""
    requests: int = 64
    """Requests that are read or worked on; more: 503. Together they hold at most this times --max-bytes."""
    client_requests: int = 32
    """The same of one client, by its address; more: 429. 0: no limit, as when all come through one balancer."""
    upload_s: float = 30.0
    """Seconds for a body to arrive; longer: 408. A request's header has 10."""
    answer_s: float = 30.0
    """Seconds from there to the answer; longer: 503."""
    drain_s: float = 0.0
    """Seconds after SIGTERM in which /ready says 503 and requests are still taken, so that a balancer can turn elsewhere."""
    decoders: int = 2
    """Threads that decode images."""

    def validate(self) -> None:
        for field in dataclasses.fields(self):
            value, may_be_0 = getattr(self, field.name), field.name in ("client_requests", "drain_s")
            if not (value > 0 or (may_be_0 and value == 0)):
                raise ValueError(f"--{field.name.replace('_', '-')} must be {'at least' if may_be_0 else 'more than'} 0, got {value:g}")
        if self.queue < self.max_images:
            raise ValueError(f"--queue {self.queue} has no room for a request of --max-images {self.max_images}")
