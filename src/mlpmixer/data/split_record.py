"""Which images a run trained, validated and tested on, so that any copy of its model knows them again by content."""

import base64
import hashlib
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mlpmixer.config import Config, require
from mlpmixer.data.paths import TEST, TRAIN, VAL

PARTS = (TRAIN, VAL, TEST, "unused")
SHOWN = 10  # names in a message
MAX_LZMA_BYTES = 1 << 26  # of memory to unpack names; what is written here needs a seventh of it
MAX_TRAIN = 4_000_000  # images recorded one by one: 60 MB of a header that may have 100
MAX_NAME_BYTES = 1024  # of a name, on average: a damaged record must not fill the memory

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class SplitRecord(Config, owner="splits"):
    """Names and content of the images of a run, by part: PARTS. Packed, since it travels with the weights."""

    counts: tuple[int, int, int, int]
    """Images of each part; those that data.train_fraction leaves out are unused. Streamed ones are not counted."""
    hashes: str
    """Base64 of the `content_hash` of each, in this order, 8 bytes each, little-endian."""
    names: str = ""
    """Base64 of their names, compressed; empty where the model has left its machine. No name begins above the data."""
    shards: str = ""
    """A hash of the names and sizes of the shards that training images were streamed from, or of the content of more
    images than MAX_TRAIN; they are not recorded one by one then."""
    earlier: str = ""
    """Hashes of what the initial weights and the teacher were trained on, as far as they say."""

    @classmethod
    def of(
        cls, parts: Mapping[str, tuple[Iterable[str], Hashes]], *, shards: str = "", earlier: Hashes | None = None
    ) -> "SplitRecord":
        """From the names and hashes of each part that there is. Too many training images are known as a whole only."""
        parts = dict(parts)
        if TRAIN in parts and sum(len(hashes) for _, hashes in parts.values()) > MAX_TRAIN:
            of_train = [*parts.pop(TRAIN)[1].tolist(), *parts.pop("unused", ((), np.zeros(0, np.uint64)))[1].tolist()]
            shards = hashlib.blake2b(np.array(of_train, "<u8").tobytes(), digest_size=8).hexdigest()
        found = [parts.get(part, ((), np.zeros(0, np.uint64))) for part in PARTS]
        names = "\0".join(name for of_part, _ in found for name in of_part)
        train, val, test, unused = (len(hashes) for _, hashes in found)
        return cls(
            counts=(train, val, test, unused),
            hashes=_packed(np.concatenate([hashes for _, hashes in found])),
            names=base64.b64encode(lzma.compress(names.encode(errors="replace"), preset=0)).decode(),
            shards=shards,
            earlier=_packed(earlier) if earlier is not None else "",
        )

    def validate(self) -> None:
        require(min(self.counts) >= 0, f"splits.counts must not be negative, got {self.counts}")
        stated, found = sum(self.counts), len(self.all_hashes)
        require(found == stated, f"splits.hashes: expected {stated} hashes, got {found}")
        _ = self.earlier_hashes

    @cached_property
    def all_hashes(self) -> Hashes:
        """(N,) of all parts, one after the other."""
        return _unpacked(self.hashes, "hashes")

    @cached_property
    def earlier_hashes(self) -> Hashes:
        return _unpacked(self.earlier, "earlier")

    @cached_property
    def all_names(self) -> tuple[str, ...]:
        """The N names, or none where they are not recorded. ValueError when they are damaged."""
        total = sum(self.counts)
        if not self.names or not total:
            return ()
        limit = total * MAX_NAME_BYTES
        try:
            unpacker = lzma.LZMADecompressor(memlimit=MAX_LZMA_BYTES)
            names = unpacker.decompress(base64.b64decode(self.names, validate=True), limit).decode().split("\0")
        except (ValueError, lzma.LZMAError) as e:
            raise ValueError(f"splits.names cannot be read: {e}") from e
        require(unpacker.eof and len(names) == total, f"splits.names: expected {total} names, got {len(names)}")
        return tuple(names)

    @cached_property
    def all_parts(self) -> NDArray[np.int64]:
        """(N,) the part of each, as an index of PARTS."""
        parts: NDArray[np.int64] = np.repeat(np.arange(len(PARTS)), self.counts)
        return parts

    def hashes_of(self, part: str) -> Hashes:
        """The hashes of those images of a part that could be read."""
        hashes = self.all_hashes[self.all_parts == PARTS.index(part)]
        readable: Hashes = hashes[hashes != 0]
        return readable

    @property
    def trained(self) -> Hashes:
        """All that the weights have learned from, as far as it is known."""
        return np.concatenate([self.hashes_of(TRAIN), self.earlier_hashes])

    def after(self, before: "Sequence[SplitRecord]") -> "SplitRecord":
        """This record for a run that began with networks of these records: its initial weights, its teacher."""
        earlier = np.concatenate([np.zeros(0, np.uint64), *(record.trained for record in before)])
        return replace(self, earlier=_packed(np.setdiff1d(earlier, self.hashes_of(TRAIN))[:MAX_TRAIN]))

    def without_names(self) -> "SplitRecord":
        return replace(self, names="")

    def assign(self, names: Sequence[str], hashes: Hashes) -> NDArray[np.int64]:
        """The place (N,) of each of these images in the record; -1 for one that the run did not have.

        An image is known by its content. Where several have the same, their names decide, then their order; one that
        cannot be read is known by its name alone.
        """
        own, own_names = self.all_hashes.tolist(), self.all_names
        places: dict[int, list[int]] = {}
        for place in range(len(own) - 1, -1, -1):
            places.setdefault(own[place], []).append(place)
        found = np.full(len(hashes), -1)
        left = []
        for i, of_hash in enumerate(hashes.tolist()):
            candidates = places.get(of_hash, [])
            same = next((place for place in candidates if own_names and own_names[place] == names[i]), None)
            if same is not None:
                candidates.remove(same)
                found[i] = same
            elif of_hash:
                left.append((i, candidates))
        for i, candidates in left:
            if candidates:
                found[i] = candidates.pop()
        return found

    def difference(self, now: "SplitRecord") -> str:
        """How the images of `now` differ from these, with some of their names; empty when they do not."""
        if self.shards != now.shards:
            return "the training images or their shards are others"
        before, after = self._by_name(), now._by_name()
        changed = [name for name, one in before.items() if name in after and after[name][1] != one[1]]
        moved = [name for name, one in before.items() if name in after and after[name][0] != one[0]]
        lists = {
            "changed": changed,
            "missing": [name for name in before if name not in after],
            "new": [name for name in after if name not in before],
            "in another split": [name for name in moved if name not in set(changed)],
        }
        return "; ".join(f"{len(names):,} {what}: {listed(names)}" for what, names in lists.items() if names)

    def _by_name(self) -> dict[str, tuple[int, int]]:
        return dict(
            zip(self.all_names, zip(self.all_parts.tolist(), self.all_hashes.tolist(), strict=True), strict=True)
        )


def leaks(*records: SplitRecord) -> list[str]:
    """Sentences about images of val and test that are less unseen than they should be; those of several runs add up."""
    found = []
    for part in (VAL, TEST):
        held_out = [(record, record.hashes_of(part)) for record in records]
        total = sum(len(hashes) for _, hashes in held_out)
        copies = sum(int(np.isin(hashes, record.hashes_of(TRAIN)).sum()) for record, hashes in held_out)
        earlier = sum(int(np.isin(hashes, record.earlier_hashes).sum()) for record, hashes in held_out)
        for n, where in (
            (copies, "also in train, byte for byte"),
            (earlier, "among those that the initial weights or the teacher were trained on"),
        ):
            if n:
                found.append(f"{part}: {n:,} of its {total:,} images {'is' if n == 1 else 'are'} {where}")
    return found


def listed(names: Sequence[str]) -> str:
    """The first SHOWN names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _packed(hashes: Hashes) -> str:
    return base64.b64encode(hashes.astype("<u8").tobytes()).decode()


def _unpacked(text: str, field: str) -> Hashes:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<u8").astype(np.uint64)
    except ValueError as e:
        raise ValueError(f"splits.{field} cannot be read: {e}") from e
