"""mlpmixer explain."""

import dataclasses
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
    load_model,
    print_changes,
    require_writable,
)
from mlpmixer.cli.printing import STATUS, percent, print_error, print_json, print_table
from mlpmixer.cli.progress import reporter

if TYPE_CHECKING:
    from mlpmixer.explanation.attribution import Explanation
    from mlpmixer.explanation.faithfulness import Faithfulness

MIXING = "mixing"  # no map over the image, so no entry of explain.METHODS
MOST = 100  # a page of more images is too large to open


@dataclass(frozen=True, kw_only=True)
class Explain(Command):
    """Show which patches of an image contribute to its class.

    Writes pictures and a page, and measures on request which method is most faithful. Unreadable files are named on
    standard error and the rest is done; the exit code is then 1.
    """

    run: WeightsArg
    images: Annotated[tuple[str, ...], Arg("IMAGE...", positional=True)] = ()
    """image files, folders (searched recursively), or patterns such as 'photos/*.jpg'"""
    method: Annotated[str, Arg("NAME,...")] = ""
    """Methods; default: all that the network supports. Some of evidence, occlusion, gradient-x-input and
    integrated-gradients, and mixing: which patches each patch depends on (seconds per image)."""
    label: Annotated[str, Arg("NAME", name="class")] = ""
    """Class to explain; default: the most likely one of each image."""
    out: Annotated[str, Arg("DIR")] = "explained"
    """Folder for the pictures and the page."""
    faithfulness: Annotated[str, Arg("DATA")] = ""
    """Also measure how faithful each method is, on the test images of DATA (named as for train), or on all of a plain
    folder that RUN was not trained on."""
    faithfulness_images: int = 100
    """Number of these images, evenly spread."""
    json: Json = False
    data_dir: DataDir = ""
    device: Device = "auto"
    inputs: InputOptions = field(default_factory=InputOptions)

    def __call__(self) -> int:
        if not self.images and not self.faithfulness:
            raise ValueError(f"which images? mlpmixer explain {self.run} FILE... (or folders, or patterns)")
        from mlpmixer.evaluation.data import open_for
        from mlpmixer.explanation.attribution import METHODS, default_fill, explain
        from mlpmixer.explanation.faithfulness import faithfulness
        from mlpmixer.explanation.page import ExplanationFolder
        from mlpmixer.inference.classifier import Failure
        from mlpmixer.inference.files import find_images

        names = self.method.split(",") if self.method else []
        methods = [name for name in names if name != MIXING] if names else None
        for name in methods or []:
            METHODS[name]  # a wrong name is an error before anything is loaded
        if self.faithfulness and methods == []:
            raise ValueError(
                f"--faithfulness compares methods, and --method {self.method} names none of {', '.join(METHODS)}"
            )
        require_writable("--out", self.out, folder=True)
        paths = list(find_images(self.images))
        if len(paths) > MOST:
            raise ValueError(f"{len(paths):,} images are too many for one page: name at most {MOST}")
        classifier = load_model(self.run, self.device, self.inputs)
        chosen = None
        if self.faithfulness:
            chosen = open_for(classifier, self.faithfulness, self.data_dir).choose().unseen()
            print_changes(chosen.scored)
        out, found, failed, measured, stopped = ExplanationFolder(Path(self.out)), [], [], None, False
        with reporter() as report:
            report(progress := {"kind": "progress", "what": "image", "done": 0, "of": len(paths)})
            fill, fill_text = default_fill(classifier)
            try:
                for one in explain(classifier, paths, fill, methods=methods, label=self.label, mixing=MIXING in names):
                    if isinstance(one, Failure):
                        failed.append(one)
                        print_error(f"{one.name}: {one.reason}")
                    else:
                        out.add(one)
                        found.append(one.to_json())
                        if not self.json:
                            STATUS.clear()
                            print_explained(one)
                    report(progress | {"done": len(found) + len(failed)})
                if chosen:
                    measured = faithfulness(
                        classifier,
                        chosen.images,
                        fill,
                        methods=methods,
                        at_most=self.faithfulness_images,
                        report=report,
                    )
            except KeyboardInterrupt:
                stopped = True
        if measured and chosen and not self.json:
            print(f"\nof {chosen.scored}")
            print_faithfulness(measured)
        bad = measured.bad if measured else ()
        for name, reason in bad[:10]:
            print_error(f"{name}: {reason}")
        page = None
        if found or measured:
            data_text = str(chosen.scored) if chosen else ""
            page = out.write_page(failed, model=self.run, fill=fill_text, measured=measured, data=data_text)
        if self.json:
            print_json(
                {
                    "fill": fill_text,
                    "images": found,
                    "errors": [dataclasses.asdict(one) for one in failed],
                    "faithfulness": measured.to_json() if measured else None,
                    "scored": dataclasses.asdict(chosen.scored) if chosen else None,
                    "page": page and str(page),
                }
            )
        elif page:
            print(f"\nfilled  {fill_text}\npage    {page}")
        if stopped:
            where = f", which are on the page {page}" if page else ""
            print_error(f"stopped after {len(found) + len(failed)} of {len(paths)} images{where}")
            return 130
        return 1 if failed or bad else 0


def print_explained(one: "Explanation") -> None:
    c = one.target
    exact = c.bias is not None
    parts = (
        f"evidence for {c.evidence_for:+.3f}, against {c.evidence_against:+.3f}, bias {c.bias:+.3f}: " if exact else ""
    )
    print(f"{one.name}\n  {percent(c.probability):>8}  {c.label}\n  {parts}logit {c.logit:.3f}")


def print_faithfulness(f: "Faithfulness") -> None:
    curves = "the deletion curve (lower is more faithful) and the insertion curve (higher is)"
    print(f"\n{f.n:,} images: area under {curves}, against random order\n")
    print_table(("method", "deletion", "- random", "insertion", "- random"), f.table())
