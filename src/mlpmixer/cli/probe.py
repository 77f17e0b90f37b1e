"""mlpmixer probe."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from mlpmixer.cli.arguments import Arg
from mlpmixer.cli.options import EvaluationCommand, print_changes, print_unreadable, whole_numbers
from mlpmixer.cli.printing import percent, print_json, print_table

if TYPE_CHECKING:
    from mlpmixer.evaluation.probe import ProbeResult


@dataclass(frozen=True, kw_only=True)
class Probe(EvaluationCommand):
    """Measure how well the features of a model transfer to DATA.

    The features are frozen; measured on them: few-shot accuracy and, on request, nearest neighbours and a linear probe.
    The classes of DATA may differ from the model's. Few-shot accuracy is that of the official evaluation: ridge
    regression on a few training images of each class, drawn three times, measured on all test images.
    """

    shots: Annotated[str, Arg("K,K,...")] = "1,5,10,25"
    """Numbers of training images per class to learn from."""
    knn: Annotated[int, Arg("K")] = 0
    """Also classify by the K nearest of all training images; 20 is usual."""
    linear: bool = False
    """Also fit a logistic regression on all training images, with its L2 penalty chosen on validation images."""
    cache: Annotated[str, Arg("DIR")] = ""
    """Folder in which features are cached; default: features/ beside the model."""

    def __call__(self) -> int:
        shots = whole_numbers("--shots", self.shots)
        from mlpmixer.evaluation.data import resolve_data
        from mlpmixer.evaluation.probe import probe
        from mlpmixer.weights.own import OWN

        classifier = self.load()
        data = resolve_data(classifier, self.data or None, self.data_dir)
        assert classifier.path is not None
        beside = None if classifier.path.stem in OWN else classifier.path.with_name("features")
        result = probe(
            classifier,
            data,
            shots=shots,
            neighbours=self.knn or None,
            linear=self.linear,
            batch_size=self.batch_size,
            cache=self.cache or beside,
        )
        print_changes(result.scored)
        if self.json:
            print_json(result.to_json())
        else:
            print_probe(result)
        return 1 if result.bad else 0


def print_probe(p: "ProbeResult") -> None:
    images = f"{p.n_train:,} training and {p.n_test:,} test images of {len(p.classes)} classes"
    print(f"{images}, {p.num_features:,} features")
    if p.scored:
        print(f"scored {p.scored}")
    if p.trained_on:
        print(f"the model was trained on {p.trained_on:,} of the {p.scored.n if p.scored else p.n_test:,} test images")
    print()
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
    print_unreadable(p.bad)
