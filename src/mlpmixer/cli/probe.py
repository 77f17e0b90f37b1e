"""The command probe."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mlpmixer.cli.arguments import (
    Flag,
    whole_numbers,
)
from mlpmixer.cli.options import Computing, Sizes, print_bad
from mlpmixer.cli.printing import (
    percent,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from mlpmixer.evaluation.probe import ProbeResult


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How good the frozen features of the model in RUN are for DATA: few-shot accuracy, nearest neighbours, a linear
    probe.

    The classes of DATA may be others than the model's. The few-shot numbers are those of the official evaluation: ridge
    regression on a few training images of each class, drawn three times, measured on all test images.
    """

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run, a weight file (.safetensors, .npz, .pth), hf:owner/name, a name of `mlpmixer list weights`, or an export
    (file or bundle)."""
    data: Annotated[Positional[str], arg(metavar="DATA")] = ""
    """A data set's name, a path, or hf:owner/name; default: the data the run was trained on."""
    shots: Annotated[str, arg(metavar="K,K,...")] = "1,5,10,25"
    """How many training images of each class to learn from."""
    knn: Annotated[int, arg(metavar="K")] = 0
    """Also let the K nearest of all training images vote, such as 20."""
    linear: Flag = False
    """Also fit a logistic regression on all training images; its strength is chosen on validation images."""
    data_dir: Annotated[str, arg(metavar="DIR")] = ""
    """Where the files of a named data set are."""
    cache: Annotated[str, arg(metavar="DIR")] = ""
    """Where features are kept for the next time; default: features/ beside the model."""
    batch_size: int = 256
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: Flag = False
    """Print all numbers as JSON."""
    computing: Annotated[Computing, arg(name="")] = field(default_factory=Computing)
    sizes: Annotated[Sizes, arg(name="")] = field(default_factory=Sizes)

    def __call__(self) -> int:
        shots = whole_numbers("--shots", self.shots)
        from mlpmixer.evaluation.data import resolve_data
        from mlpmixer.evaluation.probe import probe

        classifier = self.sizes.load(self.run, self.device, self.computing)
        data = resolve_data(classifier, self.data or None, self.data_dir)
        assert classifier.path is not None
        result = probe(
            classifier,
            data,
            shots=shots,
            neighbours=self.knn or None,
            linear=self.linear,
            batch_size=self.batch_size,
            cache=self.cache or classifier.path.with_name("features"),
        )
        if self.json:
            print_json(result.to_json())
        else:
            print_probe(result)
        return 1 if result.bad else 0


def print_probe(p: "ProbeResult") -> None:
    print(
        f"{p.n_train:,} training and {p.n_test:,} test images of {len(p.classes)} classes, {p.num_features:,} "
        f"features\n"
    )
    rows = []
    for row in p.few_shot:
        low, high = row.range
        name = f"{row.shots} image{'s' if row.shots > 1 else ''} of each class"
        rows.append((name, percent(row.mean), f"{percent(low)} to {percent(high)} over {len(p.seeds)} draws"))
    if p.neighbours:
        rows.append((f"{p.neighbours.k} nearest neighbours", percent(p.neighbours.top1), ""))
    if p.linear:
        settled = "" if p.linear.converged else ", not converged"
        rows.append(("linear probe", percent(p.linear.top1), f"l2 {p.linear.l2:g}, chosen on validation{settled}"))
    print_table(("", "top-1", ""), rows)
    print_bad(p.bad)
