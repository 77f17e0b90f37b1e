"""Limits of the service. The command line exposes each as an option."""

import dataclasses
from dataclasses import dataclass

from mlpmixer.config import Config


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """Limits of one worker process. A request beyond a limit is refused with the status in brackets."""

    max_bytes: int = 16 * 2**20
    """Maximum request body in bytes (413)."""
    max_pixels: int = 50_000_000
    """Maximum pixels per image, read from the file header before decoding (413)."""
    max_request_pixels: int = 200_000_000
    """Maximum pixels of all images of a request together (413)."""
    max_images: int = 32
    """Maximum images per request (413)."""
    batch_s: float = 0.1
    """Target time per batch in seconds, estimated from previous batches. A batch never waits for more images."""
    max_batch: int = 32
    """Maximum images per batch."""
    queue: int = 256
    """Maximum images queued or being computed (503)."""
    requests: int = 64
    """Maximum concurrent requests (503). Request bodies use at most this times --max-bytes of memory."""
    client_requests: int = 32
    """Maximum concurrent requests per client address (429). 0 means no limit, for example behind a load balancer."""
    upload_s: float = 30.0
    """Timeout for receiving a request body, in seconds (408). Headers must arrive within 10 s."""
    answer_s: float = 30.0
    """Timeout from a received body to the response, in seconds (503)."""
    drain_s: float = 0.0
    """Grace period after SIGTERM in seconds: /ready returns 503, but requests are still accepted."""
    decoders: int = 2
    """Number of image-decoding threads. Of two or more, one is left for images that decode fast."""

    def validate(self) -> None:
        for field in dataclasses.fields(self):
            value, may_be_0 = getattr(self, field.name), field.name in ("client_requests", "drain_s")
            if not (value > 0 or (may_be_0 and value == 0)):
                raise ValueError(
                    f"--{field.name.replace('_', '-')} must be {'at least' if may_be_0 else 'more than'} 0, got "
                    f"{value:g}"
                )
        if self.max_request_pixels < self.max_pixels:
            raise ValueError(
                f"--max-request-pixels {self.max_request_pixels} is too small for one image of --max-pixels "
                f"{self.max_pixels}"
            )
        if self.queue < self.max_images:
            raise ValueError(f"--queue {self.queue} is too small for one request of --max-images {self.max_images}")
