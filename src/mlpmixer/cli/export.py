"""mlpmixer export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import DataDir, InputOptions, Json, WeightsArg, WeightsDir, load_model, require_writable
from mlpmixer.cli.printing import between, percent, print_error, print_json
from mlpmixer.cli.progress import megabytes
from mlpmixer.data.paths import count

if TYPE_CHECKING:
    from mlpmixer.exporters.export import Int8, Written


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Export a model to ONNX, OpenVINO, PT2, a bundle or a web page.

    Preprocessing is included. The export is compared with torch on the same pixels of real images: unless the top class
    is the same for all of them and probabilities agree within 1e-4, nothing is written (exit code 1); --int8 has a rule
    of its own. `mlpmixer predict`, `evaluate`, `probe`, `compare` and `serve` take an export like a run, without torch;
    only a .pt2 needs it.
    """

    run: WeightsArg
    to: Literal["onnx", "openvino", "pt2", "bundle", "web"] = "onnx"
    """onnx, openvino, pt2, bundle or web. onnx: one file; openvino: an .xml and a .bin; pt2: a file for torch; bundle:
    a folder that needs only onnxruntime, numpy and pillow, with a program, a Dockerfile and a README; web: a folder
    with a page that classifies in the browser, for any static file server."""
    out: Annotated[str, Arg("PATH")] = ""
    """File or folder to write; default: model.onnx, .xml, .pt2, bundle/ or web/ in the run's folder, or in the current
    one for a model that is not in a run."""
    int8: bool = False
    """Compute layers in 8-bit integers: as many as cost at most half a point of top-1 on validation images. The model
    is smaller and, on most CPUs, faster; the gain on this machine is measured and printed."""
    batch: Annotated[str, Arg("N")] = "dynamic"
    """Batch size of the graph. dynamic: any."""
    any_size: bool = False
    """Let the graph resize and crop images of any size, too. It is compared with Pillow, from which a pixel may differ
    by at most 2 of 255."""
    evidence: bool = False
    """Let the graph also return what each patch adds to each class. `mlpmixer serve` shows it; --to web always has it.
    For networks with exact patch evidence, such as Mixers."""
    top_k: int = 5
    """Number of top classes that the graph returns beside all probabilities."""
    runtime: Annotated[str, Arg("FOLDER")] = ""
    """For --to web: path to onnxruntime-web, such as node_modules/onnxruntime-web; default: npm fetches it."""
    licence: Annotated[str, Arg("NAME")] = ""
    """The model's licence, such as apache-2.0 or mit; default: what its own file says."""
    data: Annotated[str, Arg("DATA")] = ""
    """Data to check on, named as for train; default: the data RUN was trained on."""
    images: int = 1000
    """Number of images to check on."""
    json: Json = False
    data_dir: DataDir = ""
    weights_dir: WeightsDir = ""
    inputs: InputOptions = field(default_factory=InputOptions)

    def __call__(self) -> int:
        if not (self.batch == "dynamic" or (self.batch.isdecimal() and int(self.batch))):
            raise ValueError(f"--batch {self.batch}: expected a number of images, or dynamic for any number")
        if self.runtime and self.to != "web":
            raise ValueError(f"--runtime {self.runtime} is for --to web only; add --to web or leave --runtime out")
        from mlpmixer.evaluation.data import resolve_data
        from mlpmixer.exporters.export import TARGETS, ExportMismatch, export, require_free
        from mlpmixer.inference.exported import export_at

        if export_at(self.run):
            raise ValueError(f"{self.run} is an export already: export the run that it was made from")
        if self.out:
            require_free(Path(self.out), TARGETS[self.to])
            require_writable("--out", self.out, folder=self.to in ("bundle", "web"))
        classifier = load_model(self.run, "cpu", self.inputs)
        if self.int8 and not self.json:
            print(
                "calibrating and measuring int8 on validation images: minutes for a large model",
                flush=True,
            )
        try:
            written = export(
                classifier,
                self.to,
                out=self.out or None,
                data=resolve_data(classifier, self.data or None, self.data_dir),
                batch=None if self.batch == "dynamic" else int(self.batch),
                any_size=self.any_size,
                evidence=self.evidence,
                page_runtime=self.runtime or None,
                int8=self.int8,
                top_k=self.top_k,
                images=self.images,
                licence=self.licence,
            )
        except ExportMismatch as e:
            print_error(str(e))
            return 1
        if self.json:
            print_json({"path": str(written.path), "num_bytes": written.num_bytes, **written.made})
        else:
            print_written(written)
            if self.to == "web":
                server = f"python -m http.server --bind 127.0.0.1 --directory {written.path}"
                print(f"look at it   {server}   and open http://127.0.0.1:8000/")
        return 0


def print_written(w: "Written") -> None:
    from mlpmixer.evaluation.significance import wilson

    c = w.checked
    if w.int8:
        print_int8(w.int8)
    same = (
        f"{'the likeliest class is' if c.threshold is None else 'the classes are'} the same for {percent(c.agreement)}"
    )
    largest = f"the largest difference of a probability is {c.probability_max_diff:.1e}"
    print(f"compared on {c.n:,} images of {c.data}, by {c.runtime}: {same}, {largest}")
    if f := c.fit:
        off = f"{percent(f.pixels_different)} of the values differ, by at most {f.pixel_max_diff} of 255"
        print(f"resized like Pillow, {f.n:,} images: {off}, and probabilities by at most {f.probability_max_diff:.1e}")
    if c.right is not None and c.n_test:
        metric = "top-1" if c.threshold is None else f"exactly the true classes (threshold {percent(c.threshold)}):"
        share = f"{percent(c.right / c.n_test)} {between(wilson(c.right, c.n_test))}"
        print(f"{metric} {share} on the {c.n_test:,} test images among them")
    if c.unreadable:
        print_error(f"{count(c.unreadable, 'image')} could not be read (excluded from the numbers above)")
    print(f"written  {' and '.join(map(str, (w.path, *w.beside)))}, {megabytes(w.num_bytes)}")
    print(f"use it   mlpmixer predict {w.path} IMAGE...")


def print_int8(q: "Int8") -> None:
    from mlpmixer.evaluation.significance import wilson

    left = f"; left in float32, the worst first: {', '.join(q.float_layers)}" if q.float_layers else ""
    layers = f"{q.layers} of {q.layers + len(q.float_layers)} layers"
    print(f"int8 in {layers}, calibrated on {q.calibrated_on:,} training images{left}")
    before, after = (f"{percent(right / q.n)} {between(wilson(right, q.n))}" for right in (q.right_float, q.right))
    print(f"top-1 on {q.n:,} validation images: float32 {before}, int8 {after}")
    speeds = f"float32 {q.images_per_s_float:,.1f}, int8 {q.images_per_s:,.1f}: {q.speed:.2f} times"
    sizes = f"{megabytes(q.num_bytes_float)} in float32, {megabytes(q.num_bytes)} in int8"
    print(f"images/s on one thread, {q.batch} at a time: {speeds}; model {sizes}")
    if not q.pays:
        slow = "slower than" if q.speed < 1 else "hardly faster than"
        print(f"int8 brings no speed-up here: it is {slow} float32. Only the file is smaller")
