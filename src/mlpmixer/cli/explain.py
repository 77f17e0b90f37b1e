"""The command that shows what a model saw: explain."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import Flag
from mlpmixer.cli.options import Sizes
from mlpmixer.cli.printing import percent, print_error, print_json, print_table

if TYPE_CHECKING:
    from mlpmixer.explanation.attribution import Explanation
    from mlpmixer.explanation.faithfulness import Faithfulness

MIXING = "mixing"  # no map over the image, so no entry of explain.METHODS
MOST = 100  # a page of more images is too large to open


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Which patches of an image speak for its class, as pictures and a page; and how far each method is to be believed.

    Unreadable files are named, the rest is done; then the exit code is 1.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, or a name of `mlpmixer list weights`."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE...")] = ()
    """Image files, folders (searched to the bottom) or patterns such as 'photos/*.jpg'."""
    method: Annotated[str, arg(metavar="NAME,...")] = ""
    """Some of evidence, occlusion, gradient-x-input and integrated-gradients (default: all that the network supports),
    and mixing: which patches each patch depends on, seconds per image."""
    label: Annotated[str, arg(name="class", metavar="NAME")] = ""
    """The class to explain; default: the likeliest one of each image."""
    out: Annotated[str, arg(metavar="DIR")] = "explained"
    """Where the pictures and the page go."""
    faithfulness: Annotated[str, arg(metavar="DATA")] = ""
    """Also measure on the test images of DATA (a data set's name, a path, or hf:owner/name) which method is
    faithful."""
    faithfulness_images: int = 100
    """On so many of them, spread evenly."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: Flag = False
    """Print all numbers as JSON."""
    sizes: Annotated[Sizes, arg(name="")] = field(default_factory=Sizes)

    def __call__(self) -> int:
        if not self.images and not self.faithfulness:
            raise ValueError(f"which images? mlpmixer explain {self.run} FILE... (or folders, or patterns)")
        from mlpmixer.data.datasets import open_images
        from mlpmixer.evaluation.data import resolve_data
        from mlpmixer.explanation.attribution import METHODS, Explanation, default_fill, explain
        from mlpmixer.explanation.faithfulness import faithfulness
        from mlpmixer.explanation.page import write_explanations
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
        paths = list(find_images(self.images))
        if len(paths) > MOST:
            raise ValueError(f"{len(paths):,} images are too many for one page: name at most {MOST}")
        classifier = self.sizes.load(self.run, self.device)
        images = None
        if self.faithfulness:
            images = open_images(resolve_data(classifier, self.faithfulness, self.data_dir), "test")
        fill, fill_text = default_fill(classifier)
        found: list[Explanation] = []
        failed: list[Failure] = []
        for one in explain(classifier, paths, fill, methods=methods, label=self.label, mixing=MIXING in names):
            if isinstance(one, Failure):
                failed.append(one)
                print_error(f"{one.name}: {one.reason}")
            else:
                found.append(one)
                if not self.json:
                    print_explained(one)
        measured = None
        if images:
            measured = faithfulness(classifier, images, fill, methods=methods, at_most=self.faithfulness_images)
            if not self.json:
                print_faithfulness(measured)
        bad = measured.bad if measured else ()
        for name, reason in bad[:10]:
            print_error(f"{name}: {reason}")
        page = None
        if found or measured:
            data_text = f"{self.faithfulness}, test"
            page = write_explanations(
                Path(self.out), found, failed, model=self.run, fill=fill_text, measured=measured, data=data_text
            )
        if self.json:
            print_json(
                {
                    "fill": fill_text,
                    "images": [one.to_json() for one in found],
                    "errors": [dataclasses.asdict(one) for one in failed],
                    "faithfulness": measured.to_json() if measured else None,
                    "page": page and str(page),
                }
            )
        elif page:
            print(f"\nfilled  {fill_text}\npage    {page}")
        return 1 if failed or bad else 0


def print_explained(one: "Explanation") -> None:
    c = one.target
    exact = c.bias is not None
    parts = (
        f"evidence for {c.evidence_for:+.3f}, against {c.evidence_against:+.3f}, bias {c.bias:+.3f}: " if exact else ""
    )
    print(f"{one.name}\n  {percent(c.probability):>8}  {c.label}\n  {parts}logit {c.logit:.3f}")


def print_faithfulness(f: "Faithfulness") -> None:
    print(
        f"\n{f.n:,} images: area under the deletion curve (low is faithful) and the insertion curve (high is), against "
        f"random order\n"
    )
    print_table(("method", "deletion", "- random", "insertion", "- random"), f.table())
