"""mlpmixer data check."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlpmixer.cli.arguments import Command
from mlpmixer.cli.options import DataArg, DataDir, DataLabels, DataLayout, DataMultiLabel, Json
from mlpmixer.cli.printing import MAX_ROWS, print_json, print_table
from mlpmixer.data.config import Data

if TYPE_CHECKING:
    from mlpmixer.data.check import CheckReport


@dataclass(frozen=True, kw_only=True)
class DataCheck(Command):
    """Find broken, duplicate and misplaced images in DATA.

    Also finds classes with few images, the same image in two splits, and whatever train would refuse. The exit code is
    1 when something is found.
    """

    data: DataArg
    json: Json = False
    data_dir: DataDir = ""
    layout: DataLayout = "auto"
    labels: DataLabels = ""
    multi_label: DataMultiLabel = "auto"

    def __call__(self) -> int:
        from mlpmixer.data.check import check_data

        report = check_data(
            Data(
                name=self.data,
                data_dir=self.data_dir or None,
                layout=self.layout,
                labels=self.labels,
                multi_label=self.multi_label,
            )
        )
        if self.json:
            print_json(report.to_json())
        else:
            print_check(report)
        return 0 if report.ok else 1


def print_check(report: "CheckReport") -> None:
    splits = list(report.counts)
    classes = list(dict.fromkeys(name for counts in report.counts.values() for name in counts))
    rows = [(name, *(f"{report.counts[split].get(name, 0):,}" for split in splits)) for name in classes]
    shown = rows if len(rows) <= MAX_ROWS else rows[: MAX_ROWS // 2]
    total = ("all", *(f"{n:,}" for n in report.images.values()))
    print_table(("class", *splits), [*shown, total])
    if len(shown) < len(rows):
        print(f"(the first {len(shown)} of {len(rows)} classes; all of them: --json)")
    print(f"\nsizes  {', '.join(f'{size} ({n:,})' for size, n in list(report.sizes.items())[:5])}")
    print(f"kinds  {', '.join(f'{mode} ({n:,})' for mode, n in report.modes.items())}")
    for note in report.notes:
        print(f"note   {note}")
    if report.refused:
        print(f"\ntrain refuses it: {report.refused}")
    findings = {
        "classes with few images": [f"{name}: {reason}" for name, reason in report.few],
        "cannot be read": [f"{name}: {reason}" for name, reason in report.broken],
        "have the same pixels as another": [f"{name} = {other}" for name, other in report.duplicates],
        "misplaced": [f"{name}: {reason}" for name, reason in report.misplaced],
    }
    for title, lines in findings.items():
        if lines:
            print("\n".join([f"\n{len(lines):,} {title}", *(f"  {line}" for line in lines[:10])]))
            if len(lines) > 10:
                print(f"  and {len(lines) - 10:,} more: --json")
    if report.ok:
        print("\nno problems found")
