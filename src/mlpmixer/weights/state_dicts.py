"""State dicts in what training scripts save: wrapped, averaged, and beside much that is not weights."""

import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from mlpmixer.config import did_you_mean
from mlpmixer.data.bounded import operations
from mlpmixer.models.name_table import WeightsError, printable
from mlpmixer.registry import shortened

StateDict = dict[str, Tensor]
AVERAGE = re.compile(r"ema|swa|avg|average|teacher")  # in the key of weights that another network was averaged to
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # anywhere in a name
LEGACY_PICKLES = 5  # of a file from before torch 1.6: a number, a version, the system, the object, and keys of values
MAX_PLACE = 1000  # characters of the keys that lead to a network
MAX_PICKLE_BYTES = 2**23  # of what describes the tensors, whose values lie elsewhere


class _Settable(type):
    """Equal to dict, which is what torch's unpickler asks the type of an object before it sets items of it."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is dict

    __hash__ = type.__hash__


class Inert(dict[Any, Any], metaclass=_Settable):
    """Stands for any class or function that a file names: it ignores what it is called with, and keeps set items."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __hash__(self) -> int:  # type: ignore[override]  # it may be a key
        return id(self)


def _empty_list(*args: Any) -> list[Any]:
    """A deque, to which the unpickler appends only if it is a list."""
    return []


def read_torch_file(path: Path) -> Any:
    """Unpickle what torch.save wrote: tensors, containers and numbers; every other object is `Inert`.

    torch's weights_only unpickler reads it: it imports nothing and calls nothing but what rebuilds tensors, and Inert.

    WeightsError for anything else, such as a file that names a function of the operating system.
    """
    try:
        names = _global_names(path)
        if "builtins.bytearray" in names:  # torch lets a file call it, with any size
            raise ValueError("it calls bytearray, which can fill the memory")
        stand_ins: list[Any] = [(_empty_list if name == "collections.deque" else Inert, name) for name in names]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols and tensors that are then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # on garbage the unpickler of weights_only raises whatever its stack machine runs into
        if isinstance(e, OSError) and e.filename:  # not there, not ours to read
            raise
        reason = (_reasons(str(e)) or [type(e).__name__])[-1]
        raise WeightsError(
            f"{path} is not a file of plain tensors, and nothing else is unpickled: {shortened(reason)}"
        ) from e


def _reasons(said: str) -> list[str]:
    """The lines of an error, less where torch says what else it could do."""
    lines = (line.strip().removeprefix("WeightsUnpickler error: ") for line in said.splitlines())
    return [line for line in lines if line and not line.startswith(("Check the doc", "Weights only load failed"))]


def _global_names(path: Path) -> set[str]:
    """The classes and functions that a file of torch.save names, whether or not they exist."""
    names: set[str] = set()
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                names |= _names_in(file)
        else:
            with zipfile.ZipFile(file) as archive:
                if any(member.file_size > member.compress_size for member in archive.infolist()):
                    raise ValueError("it is compressed, which torch.save never does")
                for member in archive.infolist():
                    if member.orig_filename.lower().endswith("/data.pkl"):  # torch finds it in any case
                        with archive.open(member) as pickled:
                            names |= _names_in(pickled)
    return names


def _names_in(file: IO[bytes]) -> set[str]:
    """Names in a pickle, as torch spells them: those of Python 2, which its protocol has, with the names of today."""
    names, start = set(), file.tell()
    for opcode, argument, place in operations(file):
        if place - start > MAX_PICKLE_BYTES:
            raise ValueError(f"its description of the tensors is longer than {MAX_PICKLE_BYTES:,} bytes")
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            names.add(f"{module}.{name}")
    return names


def state_dicts(loaded: Any) -> Iterator[tuple[str, StateDict]]:
    """(place, tensors) of every dict in `loaded` that holds tensors by name; the keys that lead to it are its place."""
    waiting, seen = [("", loaded)], set()
    while waiting:
        place, value = waiting.pop()
        if not isinstance(value, dict) or id(value) in seen or len(place) > MAX_PLACE:
            continue
        seen.add(id(value))
        named = {key: inner for key, inner in value.items() if isinstance(key, str)}
        if tensors := {name: inner.detach() for name, inner in named.items() if isinstance(inner, Tensor)}:
            yield place, tensors
        waiting += [(f"{place}.{key}" if place else key, inner) for key, inner in reversed(named.items())]


def find_networks(loaded: Any, markers: Sequence[str]) -> dict[str, StateDict]:
    """The networks in `loaded`, by where they are: below which keys, and, of several in one dict, below which prefix.

    markers: names of which every known network has one. What wrappers put before all names of a network, such as
    module. or _orig_mod., is cut off, whatever it is. Names without it stay: whoever wants the network finds them
    extra.
    """
    found = {}
    for place, tensors in state_dicts(loaded):
        tensors = _unwrapped(tensors)
        ends = [(name, marker) for name in tensors for marker in markers if f".{name}".endswith(f".{marker}")]
        prefixes = sorted({name.removesuffix(marker) for name, marker in ends}, key=len, reverse=True)
        networks: dict[str, StateDict] = {prefix: {} for prefix in reversed(prefixes)}
        for name, tensor in tensors.items():
            owner = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
            for prefix in prefixes if owner is None else [owner]:
                networks[prefix][name.removeprefix(prefix)] = tensor
        for prefix, network in networks.items():
            network.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
            inside = prefix.rstrip(".") if len(networks) > 1 else ""
            found[".".join(filter(None, [place, inside]))] = network
    return found


def _unwrapped(tensors: StateDict) -> StateDict:
    """The tensors without the parts of their names that torch's wrappers add, unless another has that name."""
    found: StateDict = {}
    for name, tensor in tensors.items():
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        found[name if plain in found or (plain != name and plain in tensors) else plain] = tensor
    return found


def choose(found: dict[str, StateDict], place: str, where: str) -> str:
    """The place that is asked for, or the only one below it; else the first that is not an average of another.

    WeightsError when it is not there.
    """
    if not place or place in found:
        return place or min(found, key=lambda key: bool(AVERAGE.search(key)))
    below = [key for key in found if key.startswith(f"{place}.")]
    if len(below) == 1:
        return below[0]
    raise WeightsError(f"{where} holds no network at {printable(place)}: {listed(found)}{did_you_mean(place, found)}")


def listed(found: dict[str, StateDict]) -> str:
    """The places of a file, for errors and notes."""
    return "it holds " + ", ".join(printable(key) if key else "one without a key" for key in list(found)[:10])
