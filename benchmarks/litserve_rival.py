"""The same model behind LitServe, for load.py to measure beside `mlpmixer serve`: python benchmarks/litserve_rival.py
EXPORT --port 8001

Runs in an environment of its own, with LitServe, which is not a dependency of this package, and mlpmixer without torch:

    python -m venv .litserve && .litserve/bin/pip install litserve python-multipart onnxruntime numpy pillow
    .litserve/bin/pip install --no-deps .
    python benchmarks/load.py --litserve .litserve/bin/python

It is LitServe as its documentation has it: a form with a file in, its dynamic batching, JSON out. The engine's session,
the preprocessing and the shape of the answer are those of `mlpmixer serve`; what is refused there before a body is
parsed is not refused here.
"""

import argparse
from typing import Any

import litserve as ls
import numpy as np

from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.load import load
from mlpmixer.inference.output import to_record


class Mixer(ls.LitAPI):  # type: ignore[misc]
    """export, threads: of the model, opened by each worker."""

    def __init__(self, export: str, threads: int, **batching: Any) -> None:
        super().__init__(**batching)
        self.export, self.threads = export, threads

    def setup(self, device: str) -> None:
        self.classifier: Classifier = load(self.export, threads=self.threads)

    # an annotation would be taken for a schema
    def decode_request(self, request) -> np.ndarray:  # type: ignore[no-untyped-def]
        return self.classifier.preprocess_image(request["file"].file.read())

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        return self.classifier.probabilities(pixels if pixels.ndim == 4 else pixels[None])

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, row: np.ndarray) -> dict[str, Any]:
        return {"results": [to_record(self.classifier.prediction("file", row if row.ndim == 1 else row[0], 5))]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--batch-timeout-s", type=float, default=0.005, help="what a batch waits for more images")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    api = Mixer(args.export, args.threads, max_batch_size=args.max_batch, batch_timeout=args.batch_timeout_s)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=args.workers)
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
