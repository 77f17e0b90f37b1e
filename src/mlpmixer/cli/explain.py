"""mlpmixer explain."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mlpmixer.cli.arguments import Arg, Command
from mlpmixer.cli.options import (
    DataDir,
    Device,
    InputOptions,
    Json,
    WeightsArg,
    WeightsDir,
    load_model,
    print_changes,
    require_writable,
)
from mlpmixer.cli.printing import STATUS, percent, print_error, print_json, print_table
from mlpmixer.cli.progress import reporter

if TYPE_CHECKING:
    from torch import Tensor

    from mlpmixer.download import Report
    from mlpmixer.evaluation.data import Chosen
    from mlpmixer.explanation.attribution import Explanation
    from mlpmixer.explanation.faithfulness import Faithfulness
    from mlpmixer.explanation.page import ExplanationFolder
    from mlpmixer.inference.classifier import Classifier
    from mlpmixer.inference.prediction import Failure

MIXING = "mixing"  # no map over the image, so no entry of explain.METHODS
MOST = 100  # a page of more images is too large to open


@dataclass(frozen=True, kw_only=True)
class Explain(Command):
    """Show which patches of an image contribute to its class.

    Writes pictures and a page and, on request, measures which method is most faithful. Unreadable files are named on
    standard error and skipped; the exit code is then 1.
    """

    run: WeightsArg
    images: Annotated[tuple[str, ...], Arg("IMAGE...", positional=True)] = ()
    """image files, folders (searched recursively), or patterns such as 'photos/*.jpg'"""
    method: Annotated[str, Arg("NAME,...")] = ""
    """Methods; default: all that the network supports, but for mixing. Any of evidence, occlusion, gradient-x-input,
    integrated-gradients, and mixing: which patches each patch depends on (seconds per image)."""
    label: Annotated[str, Arg("NAME", name="class")] = ""
    """Class to explain; default: the most likely one of each image."""
    out: Annotated[str, Arg("DIR")] = "explained"
    """Folder for the pictures and the page."""
    faithfulness: Annotated[str, Arg("DATA")] = ""
    """Also measure how faithful each method is, on the test images of DATA (named as for train), or on all of a plain
    folder that RUN was not trained on."""
    faithfulness_images: int = 100
    """Number of images for --faithfulness, evenly spread over its DATA."""
    json: Json = False
    data_dir: DataDir = ""
    device: Device = "auto"
    weights_dir: WeightsDir = ""
    inputs: InputOptions = field(default_factory=InputOptions)

    def __call__(self) -> int:
        from mlpmixer.explanation.attribution import default_fill
        from mlpmixer.explanation.page import ExplanationFolder

        methods, mixing = self._methods()
        paths = self._paths()
        require_writable("--out", self.out, folder=True)
        classifier = load_model(self.run, self.device, self.inputs)
        chosen = self._images_to_measure(classifier)
        folder, measured, stopped = ExplanationFolder(Path(self.out)), None, False
        with reporter() as report:
            report({"kind": "progress", "what": "image", "done": 0, "of": len(paths)})
            fill, fill_text = default_fill(classifier)
            try:
                self._explain(classifier, paths, fill, methods, mixing, folder, report)
                if chosen:
                    measured = self._measure(classifier, chosen, fill, methods, report)
            except KeyboardInterrupt:
                stopped = True
        page = None
        if folder.explained or measured:
            data_text = str(chosen.scored) if chosen else ""
            page = folder.write_page(model=self.run, fill=fill_text, measured=measured, data=data_text)
        if self.json:
            found = {
                "fill": fill_text,
                "images": [one.to_json() for one in folder.explained],
                "errors": [dataclasses.asdict(one) for one in folder.failures],
                "faithfulness": measured.to_json() if measured else None,
                "scored": dataclasses.asdict(chosen.scored) if chosen else None,
                "page": page and str(page),
            }
            print_json(found)
        elif page:
            print(f"\npage    {page}")
        if stopped:
            done = len(folder.explained) + len(folder.failures)
            where = f", which are on the page {page}" if page else ""
            print_error(f"stopped after {done} of {len(paths)} images{where}")
            return 130
        return 1 if folder.failures or (measured and measured.bad) else 0

    def _paths(self) -> "list[str | Failure]":
        """The images to explain; none where only faithfulness is asked for."""
        from mlpmixer.inference.files import find_images

        if not self.images and not self.faithfulness:
            raise ValueError(f"which images? mlpmixer explain {self.run} FILE... (or folders, or patterns)")
        paths = list(find_images(self.images))
        if len(paths) > MOST:
            raise ValueError(f"{len(paths):,} images are too many for one page: name at most {MOST}")
        return paths

    def _images_to_measure(self, classifier: "Classifier") -> "Chosen | None":
        """The images for faithfulness that the model was not trained on, if it is asked for."""
        from mlpmixer.evaluation.data import open_for

        if not self.faithfulness:
            return None
        chosen = open_for(classifier, self.faithfulness, self.data_dir).choose().unseen()
        print_changes(chosen.scored)
        return chosen

    def _methods(self) -> tuple[list[str] | None, bool]:
        """The methods that --method names, None for all; and whether mixing is among them."""
        from mlpmixer.explanation.attribution import METHODS

        if not self.method:
            return None, False
        names = self.method.split(",")
        methods = [name for name in names if name != MIXING]
        for name in methods:
            METHODS[name]  # a wrong name is an error before anything is loaded
        if self.faithfulness and not methods:
            raise ValueError(
                f"--faithfulness compares methods, and --method {self.method} names none of {', '.join(METHODS)}"
            )
        return methods, MIXING in names

    def _explain(
        self,
        classifier: "Classifier",
        paths: "Sequence[str | Failure]",
        fill: "Tensor",
        methods: Sequence[str] | None,
        mixing: bool,
        folder: "ExplanationFolder",
        report: "Report",
    ) -> None:
        """Add every image to the folder, and print its answer."""
        from mlpmixer.explanation.attribution import explain
        from mlpmixer.inference.prediction import Failure

        found = explain(classifier, paths, fill, methods=methods, label=self.label, mixing=mixing)
        for done, one in enumerate(found, 1):
            folder.add(one)
            if isinstance(one, Failure):
                print_error(f"{one.name}: {one.reason}")
            elif not self.json:
                STATUS.clear()
                print(answer(one))
            report({"kind": "progress", "what": "image", "done": done, "of": len(paths)})

    def _measure(
        self,
        classifier: "Classifier",
        chosen: "Chosen",
        fill: "Tensor",
        methods: Sequence[str] | None,
        report: "Report",
    ) -> "Faithfulness":
        from mlpmixer.explanation.faithfulness import faithfulness

        images, n = chosen.images, self.faithfulness_images
        measured = faithfulness(classifier, images, fill, methods=methods, at_most=n, report=report)
        if not self.json:
            STATUS.clear()
            print(f"\nof {chosen.scored}")
            print_faithfulness(measured)
        for name, reason in measured.bad[:10]:
            print_error(f"{name}: {reason}")
        return measured


def answer(one: "Explanation") -> str:
    """The answer in words: the class, the runner-up, and what spoke for it; one line, or two for a long name."""
    text = f"{one.name}: {one.target.label} ({percent(one.target.probability)})"
    if one.threshold is not None:
        is_given = one.target.probability >= one.threshold
        text += f" {'given' if is_given else 'not given'}, as its threshold is {percent(one.threshold)}"
    elif one.rival:
        text += f" {'before' if one.lead >= 0 else 'behind'} {one.rival.label} ({percent(one.rival.probability)})"
    if "evidence" in one.maps and one.lead_bias is not None:
        values = one.lead_map("evidence")
        above, below = (float(values.clip(*ends).sum()) for ends in ((0, None), (None, 0)))
        name = "lead" if one.rival else "logit"
        sums = f"for {above:+.2f}, against {below:+.2f}, bias {one.lead_bias:+z.2f}: {name} {one.lead:+.2f}"
        text += f"\n  in logits: {sums}"
    return text


def print_faithfulness(f: "Faithfulness") -> None:
    curves = "the deletion curve (lower is more faithful) and the insertion curve (higher is)"
    print(f"\n{f.n:,} images: area under {curves}, against random order\n")
    print_table(("method", "deletion", "- random", "insertion", "- random"), f.table())
