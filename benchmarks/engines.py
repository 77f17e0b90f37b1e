"""What computes a model on a CPU, side by side, from uint8 pixels to probabilities: python benchmarks/engines.py
[--timm-python PATH]

Each row is a process of its own; all of one table stay alive and take turns, so that a busy machine slows them alike.
`ours` are `mlpmixer.load` and `open_export` as a user calls them: pixels (B,H,W,3) uint8 -> `probabilities`,
normalisation and softmax included. The rivals get normalised float32 images and stop at the logits: `bare` is the
engine by itself on a plain export of the same network (torch.onnx, images -> logits), without this package's graph and
layer around it; `timm` is timm's own network with the same weights, in the Python of --timm-python (no row without), in
eager torch, bfloat16 by autocast. Its float32 is the yardstick of `ratio`; without timm that is `plain torch`, our
network on torch's operations.

Weights are random, moved off their initial values. `max_abs_diff_vs_reference` is the largest difference of a
probability from the plain network's in float32; a row beyond its precision's TOLERANCE is `void`. int8: the package's
own quantiser, every layer, calibrated on smoothed noise; random weights have no accuracy to choose layers by, so that
difference is rounding, not what a trained model loses. Engines that are not installed, and bfloat16 where the processor
has none, give no row. Writes benchmarks/engines_<torch>_<cpu>.csv.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "int8": 2e-1}
"""Largest differences of a probability; the first is what `mlpmixer export` requires of its forms."""
TIMM = {
    "S/32": "mixer_s32_224",
    "S/16": "mixer_s16_224",
    "B/32": "mixer_b32_224",
    "B/16": "mixer_b16_224",
    "L/16": "mixer_l16_224",
    "resmlp-s12": "resmlp_12_224",
}
CALIBRATION = 32  # images
WARM_UP = 2  # turns


# ------------------------------------------------------------------------------------------------ a row, in its process


def work() -> None:
    """Answer each "turn" with its seconds and "check" with probabilities, through the socket whose address is the last
    argument."""
    _, _, kind, precision, threads, folder, address = sys.argv
    with Client(address, "AF_UNIX") as pipe:
        pixels = np.load(Path(folder) / "pixels.npy")
        compute = {"ours": ours, "bare": bare, "torch": plain_torch, "timm": of_timm}[kind.split(":")[0]](
            kind, precision, int(threads), Path(folder)
        )
        given = pixels if kind.startswith("ours") else np.load(Path(folder) / "normalised.npy")
        pipe.send("ready")
        while (order := pipe.recv()) != "stop":
            start = time.perf_counter()
            answer = compute(given)
            seconds = time.perf_counter() - start
            pipe.send(seconds if order == "turn" else answer if kind.startswith("ours") else softmax(answer))


def softmax(logits: Any) -> Any:
    exp = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def ours(kind: str, precision: str, threads: int, folder: Path) -> Any:
    from mlpmixer.inference.load import load

    engine = kind.split(":")[1]
    file = "model.safetensors" if engine in ("torch", "compiled") else "model.onnx"
    how: Any = "float32"
    if precision in ("int8", "int8 + bfloat16"):
        file = f"int8-{engine}.onnx"
    if "bfloat16" in precision:
        how = "bfloat16"
    if engine != "torch":
        return load(folder / file, engine=engine, precision=how, threads=threads).probabilities
    import torch

    torch.set_num_threads(threads)
    return load(folder / file, precision=how, threads=threads).probabilities


def bare(kind: str, precision: str, threads: int, folder: Path) -> Any:
    file = str(folder / "plain.onnx")
    if kind == "bare:onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"images": x})[0]
    from mlpmixer.inference.engines.openvino import import_openvino

    openvino = import_openvino()
    config = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads,
    }
    request = openvino.Core().compile_model(file, "CPU", config).create_infer_request()
    return lambda x: request.infer([x])[0]


def in_torch(network: Any, precision: str, threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)

    def compute(x: Any) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return network(torch.from_numpy(x)).float().numpy()

    return compute


def plain_torch(kind: str, precision: str, threads: int, folder: Path) -> Any:
    from mlpmixer.inference.load import load

    return in_torch(load(folder / "model.safetensors").network, precision, threads)


def of_timm(kind: str, precision: str, threads: int, folder: Path) -> Any:
    """Nothing of ours is imported: this runs in another Python."""
    import json

    import timm
    from safetensors.torch import load_file
    from timm.models.mlp_mixer import MlpMixer

    name = kind.partition(":")[2]
    network = timm.create_model(name) if name else MlpMixer(**json.loads((folder / "timm.json").read_text()))
    network.load_state_dict(load_file(folder / "timm.safetensors"), strict=True)
    return in_torch(network.eval(), precision, threads)


# ------------------------------------------------------------------------------------------------ what the rows are
# given


def prepare(model: str, batch: int, folder: Path, **changes: int) -> None:
    """One network with random weights in every form, and the images. changes: fields of its config."""
    import json
    import logging
    import warnings

    import torch
    from torch import nn

    from mlpmixer.config import pair
    from mlpmixer.data.preprocess import Preprocess
    from mlpmixer.exporters.export import write_unchecked
    from mlpmixer.exporters.int8 import Quantiser
    from mlpmixer.exporters.targets import onnx
    from mlpmixer.inference.torch_classifier import from_network
    from mlpmixer.models.architecture import create_model
    from mlpmixer.models.configs import MixerConfig
    from mlpmixer.models.names import MODELS
    from mlpmixer.weights.formats import write_foreign
    from mlpmixer.weights.model_file import ModelMeta, save_model

    torch.manual_seed(0)
    mixer = isinstance(MODELS[model], MixerConfig)
    gelu = {"activation": "gelu_erf"} if mixer else {}  # timm's
    network = create_model(model, **gelu, **changes).eval()
    with torch.no_grad():
        for p in network.parameters():
            p += torch.randn(p.shape) * (0.1 if p.ndim == 1 else 0.1 * p[0].numel() ** -0.5)
        assert isinstance(network.head, nn.Linear)
        network.head.weight.normal_(
            std=4 * network.cfg.num_features**-0.5
        )  # logits that spread, so that probabilities tell
    cfg = network.cfg
    size, channels = pair(cfg.image_size), cfg.in_channels
    pre = Preprocess(image_size=size, in_channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    meta = ModelMeta(config=cfg, classes=tuple(f"class {k}" for k in range(cfg.num_classes)), preprocess=pre)
    save_model(folder / "model.safetensors", network, meta)
    write_foreign(folder / "timm.safetensors", cfg, network.state_dict(), "timm")
    if mixer:
        ratios = (cfg.tokens_mlp_dim / cfg.hidden_dim, cfg.channels_mlp_dim / cfg.hidden_dim)
        shape = {
            "img_size": list(size),
            "patch_size": list(pair(cfg.patch_size)),
            "in_chans": channels,
            "num_classes": cfg.num_classes,
        }
        blocks = {"num_blocks": cfg.num_blocks, "embed_dim": cfg.hidden_dim, "mlp_ratio": ratios}
        (folder / "timm.json").write_text(json.dumps(shape | blocks))
    rng = np.random.default_rng(0)
    pixels = smoothed(rng, batch, (*size, channels))
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "normalised.npy", pre.normalise(pixels))

    if not (find_spec("onnx") and find_spec("onnxscript")):
        return
    logging.disable(logging.WARNING)
    classifier = from_network(network, meta)
    write_unchecked(classifier, "onnx", folder / "model.onnx")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        free = ({0: torch.export.Dim("batch")},)
        example = (torch.zeros(2, channels, *size),)
        torch.onnx.export(
            network, example, folder / "plain.onnx", dynamo=True, dynamic_shapes=free, input_names=["images"],
            output_names=["logits"],
            opset_version=onnx.OPSET, verbose=False, external_data=False,
        )  # fmt: skip
    for engine in ("onnxruntime", "openvino"):
        if find_spec(engine) and find_spec("onnxruntime"):
            (scratch := folder / f"scratch-{engine}").mkdir()
            quantiser = Quantiser(folder / "model.onnx", scratch, smoothed(rng, CALIBRATION, (*size, channels)), engine)
            quantiser.write(folder / f"int8-{engine}.onnx", list(quantiser.layers))
    logging.disable(logging.NOTSET)


def smoothed(rng: Any, n: int, shape: tuple[int, int, int]) -> Any:
    """(n, H, W, C) uint8: noise of a few pixels across, magnified, as uneven in brightness as photos are."""
    h, w, c = shape
    coarse = rng.integers(0, 256, (n, -(-h // 4), -(-w // 4), c)).repeat(4, 1).repeat(4, 2)[:, :h, :w]
    return np.clip(coarse * rng.uniform(0.3, 1, (n, 1, 1, 1)) + rng.normal(0, 8, (n, *shape)), 0, 255).astype(np.uint8)


def kinds_of(model: str, timm_python: str, bf16: bool) -> list[tuple[str, str]]:
    """(kind, precision) of each row; the reference first, then timm's float32."""
    from mlpmixer.models.configs import MixerConfig
    from mlpmixer.models.kernels import missing
    from mlpmixer.models.names import MODELS

    precisions = ["float32", *["bfloat16"] * bf16]
    rows = [("torch", p) for p in precisions]
    if timm_python:
        rows[1:1] = [(f"timm:{TIMM.get(model, '')}", p) for p in precisions]
    rows += [("ours:torch", p) for p in precisions]
    if isinstance(MODELS[model], MixerConfig) and not missing():
        rows.append(("ours:compiled", "float32"))
    exports = find_spec("onnx") and find_spec("onnxscript")
    if exports and find_spec("onnxruntime"):
        rows += [("bare:onnxruntime", "float32"), ("ours:onnxruntime", "float32"), ("ours:onnxruntime", "int8")]
    if exports and find_spec("openvino"):
        rows += [("bare:openvino", p) for p in precisions] + [("ours:openvino", p) for p in precisions]
        if find_spec("onnxruntime"):
            rows += [("ours:openvino", p) for p in ["int8", *["int8 + bfloat16"] * bf16]]
    return rows


NAMES = {"torch": "plain torch", "timm": "timm in torch", "bare": "bare", "ours": "ours in"}


def name_of(kind: str) -> str:
    what, _, engine = kind.partition(":")
    return f"{NAMES[what]} {engine}".strip() if what in ("bare", "ours") else NAMES[what]


# ------------------------------------------------------------------------------------------------ the turns


class Worker:
    """A row's process and the pipe to it."""

    def __init__(self, kind: str, precision: str, threads: int, folder: Path, python: str) -> None:
        address = str(folder / f"{abs(hash((kind, precision, threads)))}.sock")
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "10000", "OMP_WAIT_POLICY": "PASSIVE"}
        with Listener(address, "AF_UNIX") as listener:
            command = [python, __file__, "--work", kind, precision, str(threads), str(folder), address]
            self.process = subprocess.Popen(command, env=env)
            # who cannot start must not be waited for
            listener._listener._socket.settimeout(300)  # type: ignore[attr-defined]
            self.pipe: Connection = listener.accept()
        assert self.ask() == "ready"

    def ask(self, order: str = "") -> Any:
        if order:
            self.pipe.send(order)
        if not self.pipe.poll(300):
            raise SystemExit("a row does not answer")
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send("stop")
        self.process.wait(30)


def measure(
    model: str,
    batch: int,
    threads: int,
    seconds: float,
    timm_python: str,
    folder: Path,
    wanted: list[tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """wanted: the rows, all by default; "timm" is timm's network of this model."""
    import torch

    from mlpmixer.hardware import has_bf16

    kinds = kinds_of(model, timm_python, has_bf16(torch.device("cpu")))
    if wanted:
        kinds = [(kind, p) for kind, p in kinds if (kind, p) in wanted or (kind.split(":")[0], p) in wanted]
    workers = {
        row: Worker(*row, threads, folder, timm_python if row[0].startswith("timm") else sys.executable)
        for row in kinds
    }
    try:
        answers = {row: worker.ask("check") for row, worker in workers.items()}
        times: dict[tuple[str, str], list[float]] = {row: [] for row in kinds}
        turn, spent = 0, 0.0
        while turn < WARM_UP + 3 or spent < seconds * len(kinds):
            for row, worker in workers.items():
                took = worker.ask("turn")
                if turn >= WARM_UP:
                    times[row].append(took)
                    spent += took
            turn += 1
    finally:
        for worker in workers.values():
            worker.close()
    yardstick = statistics.median(times[kinds[1] if timm_python else kinds[0]])
    rows = []
    for row in kinds:
        kind, precision = row
        median = statistics.median(times[row])
        off = float(np.abs(answers[row] - answers[kinds[0]]).max())
        void = not off <= TOLERANCE[precision.split(" ")[0]]
        rows.append(
            {
                "model": model, "engine": name_of(kind), "precision": precision, "batch": batch, "threads": threads,
                "images_per_s": "void" if void else round(batch / median, 1), "median_ms": round(1000 * median, 2),
                "p90_ms": round(1000 * float(np.quantile(times[row], 0.9)), 2),
                f"ratio_to_{'timm' if timm_python else 'plain_torch'}_float32": "void" if void else round(yardstick / median, 2),  # noqa: E501
                "turns": len(times[row]), "max_abs_diff_vs_reference": f"{off:.1e}",
            }
        )  # fmt: skip
        print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["S/16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[4], help="images at a time")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=8.0, help="time for a row of a table, at least five turns")
    parser.add_argument("--timm-python", default="", metavar="PATH", help="a Python that has timm beside torch")
    args = parser.parse_args()
    import torch
    from table import path_of, write

    if args.timm_python and not shutil.which(args.timm_python):
        parser.error(f"--timm-python {args.timm_python} is not a program")
    rows: list[dict[str, Any]] = []
    for model in args.models:
        for batch in args.batch:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                prepare(model, batch, folder)
                for threads in args.threads:
                    rows += measure(model, batch, threads, args.seconds, args.timm_python, folder)
    torch.set_num_threads(max(args.threads))
    write(path_of("engines", torch.device("cpu")), rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work()
    else:
        main()
