"""Labels as files hold them, numbers or names, and the classes that they mean."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Label = int | str | None
"""None and -1 mean that there is no label."""


def used_labels(labels: Iterable[Label]) -> tuple[int | str, ...]:
    """The different labels, sorted, numbers first; without None and -1."""
    different = {v for v in labels if v is not None and v != -1}
    return tuple(sorted(different, key=lambda v: (isinstance(v, str), v)))


@dataclass(frozen=True)
class LabelEncoder:
    """The names of the classes, and the class of each label."""

    classes: tuple[str, ...]
    indices: dict[int | str, int]

    @classmethod
    def of_classes(cls, names: Sequence[str]) -> "LabelEncoder":
        """Labels are these names, or their positions from 0 on."""
        return cls(tuple(names), {n: i for i, n in enumerate(names)} | {i: i for i in range(len(names))})

    @classmethod
    def of_labels(cls, labels: Iterable[Label]) -> "LabelEncoder":
        """The labels that occur are the classes, in their order."""
        used = used_labels(labels)
        return cls(tuple(map(str, used)), {v: i for i, v in enumerate(used)})

    def encode(self, label: Label, where: str) -> int:
        """The index of the class, -1 without a label. ValueError, which names `where`, for an unknown one."""
        if label is None or label == -1:
            return -1
        if label not in self.indices:
            names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
            raise ValueError(
                f"{where} has the label {label!r}, which is none of the {len(self.classes)} classes: {names}"
            )
        return self.indices[label]
