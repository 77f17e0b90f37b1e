"""mlpmixer evaluate."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mlpmixer.cli.arguments import Arg
from mlpmixer.cli.options import (
    EvaluationCommand,
    Split,
    Threshold,
    print_changes,
    print_unreadable,
    require_writable,
    set_threshold,
)
from mlpmixer.cli.printing import MAX_ROWS, between, percent, print_json, print_table
from mlpmixer.cli.progress import reporter
from mlpmixer.durable import write_text

if TYPE_CHECKING:
    from mlpmixer.evaluation.metrics import CalibratedMetrics, ClassScore, Metrics, TTAMetrics
    from mlpmixer.evaluation.multi_label import LabelScore, MultiLabelMetrics


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluationCommand):
    """Measure accuracy and calibration of a model on DATA."""

    split: Split = None
    tta: Annotated[str, Arg("KIND,...")] = ""
    """Also average several views of each image (test-time augmentation). flip, shift (by 1/32 of the side), or
    flip,shift."""
    temperature: bool = False
    """Also fit a temperature on validation images, and report the calibration with logits divided by it. The model
    stays as it is."""
    real: Annotated[str, Arg("FILE")] = ""
    """Also report top-1 by ImageNet's ReaL labels. FILE is real.json of google-research/reassessed-imagenet; DATA must
    be ImageNet's validation images."""
    html: Annotated[str, Arg("FILE")] = ""
    """Also write a page with plots and the worst mistakes."""
    threshold: Threshold = None

    def __call__(self) -> int:
        from mlpmixer.data.real_labels import read_real
        from mlpmixer.evaluation.data import open_for
        from mlpmixer.evaluation.evaluate import evaluate, tta_views

        if self.html:
            require_writable("--html", self.html)
        kinds = self.tta.split(",") if self.tta else []
        tta_views(kinds)  # refuses a wrong one before anything is loaded
        if self.temperature and self.split in ("val", "all"):
            raise ValueError(
                f"--temperature is fitted on validation images: --split {self.split} cannot judge it; use test"
            )
        if self.real:
            read_real(self.real)
        classifier = self.load()
        set_threshold(classifier, self.threshold)
        opened = open_for(classifier, self.data or None, self.data_dir)
        chosen = opened.choose(self.split)
        with reporter() as report:
            metrics = evaluate(
                classifier,
                chosen,
                batch_size=self.batch_size,
                tta=kinds,
                validation=opened.choose("val").unseen().images if self.temperature else None,
                real=self.real or None,
                report=report,
            )
        print_changes(chosen.scored)
        if self.json:
            print_json(metrics.to_json())
        else:
            print_metrics(metrics)
        if self.html:
            from mlpmixer.evaluation.report import evaluation_html, pictured, thumbnails_of

            pictures = thumbnails_of(chosen.images, pictured(metrics))
            page = evaluation_html(metrics, pictures, model=self.run)
            write_text(Path(self.html), page)
            if not self.json:
                print(f"\npage    {self.html}")
        return 1 if metrics.bad else 0


def print_metrics(m: "Metrics | MultiLabelMetrics") -> None:
    from mlpmixer.evaluation.multi_label import MultiLabelMetrics

    if m.scored:
        unknown = "; the model does not say which images it was trained on" if m.trained_on is None else ""
        print(f"scored {m.scored}{unknown}")
    if isinstance(m, MultiLabelMetrics):
        print_multi_label(m)
        return
    print(f"{m.n:,} images  {score_text(m)}")
    if m.leak:
        print(m.leak)
    if t := m.tta:
        views = f"{', '.join(t.kinds)}: the mean of {t.views} views"
        print(f"with test-time augmentation ({views})  {score_text(t)}")
    if c := m.tempered:
        fitted = f"{c.temperature:.4g} (fitted on {c.n:,} validation images; the model is left as it is)"
        print(f"with all logits divided by the temperature {fitted}  {calibration_text(c)}")
    if r := m.real:
        top1 = f"{percent(r.top1)} {between(r.top1_interval)}"
        print(f"by ReaL labels  top-1 {top1} of {r.n:,} images; {r.skipped:,} have no label and are excluded")
    print("in brackets: 95 % intervals (Wilson), which reflect the number of images only\n")
    scored = [c for c in m.per_class if c.support]
    if empty := len(m.per_class) - len(scored):
        print(f"{empty:,} of the model's {len(m.per_class):,} classes have no image here")
    shown = scored if len(scored) <= MAX_ROWS else sorted(scored, key=lambda c: c.f1)[: MAX_ROWS // 2]
    rows = [(c.name, *class_cells(c)) for c in shown]
    print_table(("class", "precision", "recall", "", "f1", "images"), rows)
    if len(shown) < len(scored):
        print(f"(the {len(shown)} lowest f1 of {len(scored)} classes; all of them: --json)")
    if m.most_wrong:
        print("\nmost confident mistakes")
        mistakes = [(w.name, w.true, w.predicted, percent(w.probability)) for w in m.most_wrong[:5]]
        print_table(("image", "is", "predicted", "with"), mistakes)
    print_unreadable(m.bad)


def print_multi_label(m: "MultiLabelMetrics") -> None:
    print(f"{m.n:,} images  mAP {percent(m.map)}  nll {m.nll:.4f}")
    if m.leak:
        print(m.leak)
    if t := m.tta:
        print(f"with test-time augmentation ({', '.join(t.kinds)}: the mean of {t.views} views)  mAP {percent(t.map)}")
    exact = f"{percent(m.exact_match)} {between(m.exact_match_interval)}"
    print(
        f"at the threshold {m.threshold:g}: F1 {percent(m.f1_micro)} (micro) {percent(m.f1_macro)} (macro), precision "
        f"{percent(m.precision)}, recall {percent(m.recall)} (micro); exactly the true classes: {exact} of the images"
    )
    print("mAP and macro F1: the mean over the classes that have images; in brackets: 95 % intervals (Wilson)\n")
    scored = [c for c in m.per_class if c.support]
    if empty := len(m.per_class) - len(scored):
        print(f"{empty:,} of the model's {len(m.per_class):,} classes have no image here, and are left out")
    weakest_first = sorted(scored, key=lambda c: c.average_precision or 0)
    shown = scored if len(scored) <= MAX_ROWS else weakest_first[: MAX_ROWS // 2]
    rows = [(c.name, percent(c.average_precision or 0), *class_cells(c)) for c in shown]
    print_table(("class", "AP", "precision", "recall", "", "f1", "images"), rows)
    if len(shown) < len(scored):
        print(f"(the {len(shown)} lowest AP of {len(scored)} classes; all of them: --json)")
    if m.most_wrong:
        print("\nmost confident mistakes")
        kinds = ("predicted", "missed")
        mistakes = [
            (w.name, ", ".join(w.true) or "none", w.label, percent(w.probability), kinds[w.label in w.true])
            for w in m.most_wrong[:5]
        ]
        print_table(("image", "is", "class", "with", ""), mistakes)
    print_unreadable(m.bad)


def class_cells(c: "ClassScore | LabelScore") -> tuple[str, ...]:
    return percent(c.precision), percent(c.recall), between(c.recall_interval), percent(c.f1), f"{c.support:,}"


def score_text(m: "Metrics | TTAMetrics") -> str:
    top5 = f"  top-5 {percent(m.top5)} {between(m.top5_interval)}" if m.top5 is not None and m.top5_interval else ""
    return f"top-1 {percent(m.top1)} {between(m.top1_interval)}{top5}  {calibration_text(m)}"


def calibration_text(m: "Metrics | TTAMetrics | CalibratedMetrics") -> str:
    return f"nll {m.nll:.4f}  ece {m.ece:.4f}  brier {m.brier:.4f}"
