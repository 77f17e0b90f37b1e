"""Weights of other homes, read and written: .npz, .safetensors and what torch.save wrote, by the name tables of the
networks.

Files come from strangers: nothing is unpickled, nothing is extracted, and nothing is allocated before the sizes that a
file claims are compared with the sizes it has. Every missing, extra or mis-shaped array is named in one WeightsError.
"""

import dataclasses
import math
import os
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlpmixer.config import pair
from mlpmixer.durable import replacing
from mlpmixer.models.architecture import build, name_tables
from mlpmixer.models.configs import NetworkConfig
from mlpmixer.models.name_table import (
    Arrays,
    Known,
    NameTable,
    Row,
    WeightsError,
    classes_of,
    printable,
    renamed_rows,
    to_ours,
    to_theirs,
)
from mlpmixer.registry import shortened, shown
from mlpmixer.weights.state_dicts import StateDict, choose, find_networks, listed, read_torch_file, state_dicts

MOST_NAMED = 12  # arrays in one error
STEPS = ".num_batches_tracked"  # of batch norm, the one integer of a network
MAX_EXPANSION, SPARE_BYTES = 20, 1 << 26  # of an archive: weights hardly compress, but a fresh head is all zeros


def from_arrays(arrays: dict[str, np.ndarray], rows: list[Row], where: str) -> dict[str, Tensor]:
    """Our state dict, float32, from foreign arrays, which are used up: each is gone before the next is copied.

    WeightsError naming every array that is missing, extra or mis-shaped.
    """
    wanted = {row.theirs: row for row in rows}
    problems = [f"missing {name} {wanted[name].shape}" for name in wanted if name not in arrays]
    problems += [f"extra {printable(name)} {arrays[name].shape}" for name in arrays if name not in wanted]
    problems += [
        f"{name} has shape {arrays[name].shape} instead of {row.shape}"
        for name, row in wanted.items()
        if name in arrays and arrays[name].shape != row.shape
    ]
    problems += [
        f"{printable(name)} has dtype {a.dtype}"
        for name, a in arrays.items()
        if not _is_float(a.dtype) and not (name.endswith(STEPS) and a.dtype == np.int64)
    ]
    if problems:
        more = [f"and {len(problems) - MOST_NAMED:,} more"] if len(problems) > MOST_NAMED else []
        raise WeightsError(f"{where} does not hold just these weights: " + "; ".join(problems[:MOST_NAMED] + more))
    state = {row.ours: _tensor(to_ours(arrays.pop(row.theirs), row)) for row in rows}
    if bad := next((row.theirs for row in rows if not state[row.ours].isfinite().all()), None):
        raise WeightsError(f"{where}: {bad} is not finite: its training diverged, or the file is damaged")
    return state


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype == np.dtype("V2")


def _tensor(array: np.ndarray) -> Tensor:
    """float32, but for the steps of batch norm; copied only where it must be. Two bytes of void are bfloat16, as
    big_vision stores it: the upper half of a float32."""
    if array.dtype.kind == "V":
        array = (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return torch.from_numpy(np.require(array, np.int64 if array.dtype == np.int64 else np.float32, ["C", "W"]))


# ------------------------------------------------------------------------------------------------------- official .npz


def read_npz(path: str | os.PathLike[str], only: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name: all, or those of these names that are there.

    WeightsError for anything that is not a sound archive of plain arrays; nothing in it is executed or written to disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({m.filename for m in members}) != len(members):
                raise WeightsError(f"{path} holds two arrays of the same name")
            held, unpacked = os.path.getsize(path), sum(m.file_size for m in members)
            if unpacked > SPARE_BYTES + MAX_EXPANSION * held:
                raise WeightsError(f"{path} has {held:,} bytes and claims to unpack to {unpacked:,}")
            wanted = [m for m in members if not only or m.filename.removesuffix(".npy") in only]
            return {m.filename.removesuffix(".npy"): _read_member(archive, m, str(path)) for m in wanted}
    except Exception as e:  # zipfile raises whatever its headers run into
        if isinstance(e, WeightsError) or (isinstance(e, OSError) and e.filename):  # not there, not ours to read
            raise
        raise WeightsError(f"{path} is not an .npz file, or it is cut off or damaged: {shortened(e)}") from e


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> np.ndarray:
    name = printable(member.filename)
    if not member.filename.endswith(".npy"):
        raise WeightsError(f"{path} holds {name}, which is not an array (.npy)")
    with archive.open(member) as f:
        try:
            version = np.lib.format.read_magic(f)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
                version
            ]
            shape, fortran, dtype = read_header(f)
        except (ValueError, KeyError) as e:
            raise WeightsError(f"{path}: {name} has no readable array header: {shortened(e)}") from e
        if dtype.hasobject or dtype.names:
            raise WeightsError(f"{path}: {name} holds Python objects, not numbers; it is not read")
        wanted, claimed = math.prod(shape) * dtype.itemsize, member.file_size - f.tell()
        if min(shape, default=0) < 0 or claimed != wanted:
            raise WeightsError(f"{path}: {name} claims {wanted:,} bytes as {dtype}{shape}, but has {max(claimed, 0):,}")
        flat, filled = np.empty(wanted, np.uint8), 0
        while piece := f.read(1 << 20):  # to the end, where zipfile compares the checksum
            flat[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        if filled < wanted:
            raise WeightsError(f"{path}: {name} is cut off")
    array = flat.view(dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def read_foreign(
    path: str | os.PathLike[str],
    image_size: int | tuple[int, int] | None = None,
    place: str = "",
    note: Callable[[str], None] = lambda text: None,
    like: NetworkConfig | None = None,
) -> tuple[NetworkConfig, dict[str, Tensor], NameTable]:
    """Architecture, our state dict and the form of a file of other code: an .npz, .safetensors, or what torch.save
    wrote, of which nothing but tensors is unpickled. The names in it tell which network it is of.

    place: which of several networks in the file, by its key such as state_dict_ema; "": see `state_dicts.choose`.
    note: receives what was assumed, in a sentence.
    like: the config that the weights are for, which has what a file leaves open, such as AS-MLP's shift_size. With it
        the plain state dict of any network here is known, too.

    WeightsError for what is damaged, hostile, or not of a known network.
    """
    npz = str(path).endswith(".npz")
    tables = {table: architecture for architecture, table in name_tables() if (table.suffix == ".npz") == npz}
    if like is not None and not npz:
        tables[_own_names(like)] = like.architecture
    if npz:
        arrays = read_npz(path)
        choose({"": {}}, place, str(path))
    else:
        tensors = _state_dict(path, [table.marker for table in tables], place, note)
        arrays = _arrays(tensors, path)
    for table, architecture in tables.items():
        if table.marker in (current := table.current(arrays)):
            try:
                cfg = _config(table, architecture, current, image_size, like, str(path))
                state = from_arrays(dict(current), table.rows(cfg), str(path))
            except WeightsError:
                if like is not None and like.architecture == architecture:  # then against what is expected
                    from_arrays(current, table.rows(like), str(path))
                raise
            if table.form == "own":
                note(_assumed(path, cfg))
            if like is None and (left := [n for n in table.left_open if n != "image_size" or image_size is None]):
                taken = " and ".join(f"{name} {getattr(cfg, name)}" for name in left)
                note(f"{path} leaves this open: {taken} assumed; for another, create_model(config, weights=FILE)")
            return cfg, state, table
    for table in sorted(tables, key=lambda table: like is None or tables[table] != like.architecture):
        module = table.marker.rpartition(".")[0]
        if module and any(module in name for name in arrays):
            raise WeightsError(f"{path} does not hold just the weights of a network: missing {table.marker}")
    some = ", ".join(printable(n) for n in sorted(arrays)[:5])
    raise WeightsError(
        f"{path} does not hold weights of a known network; it has: "
        + (some or "no tensors by name, as torch.save(model.state_dict(), FILE) stores them")
    )


def _own_names(like: NetworkConfig) -> NameTable:
    """The plain state dict of the network of a config, with a head for any number of classes."""

    def rows(cfg: NetworkConfig) -> list[Row]:
        with torch.device("meta"):
            return renamed_rows(build(cfg).state_dict(), (), {})

    def config(arrays: Arrays, known: Known, where: str) -> NetworkConfig:
        return dataclasses.replace(like, num_classes=classes_of(arrays, where))

    return NameTable(form="own", suffix=".safetensors", marker="stem.weight", rows=rows, config=config, preprocess="")


def _config(
    table: NameTable,
    architecture: str,
    arrays: dict[str, np.ndarray],
    image_size: int | tuple[int, int] | None,
    like: NetworkConfig | None,
    path: str,
) -> NetworkConfig:
    """The architecture that arrays under the names of a table are of. WeightsError when there cannot be such a one."""
    known = vars(like) if like is not None and like.architecture == architecture else {}
    try:
        cfg: NetworkConfig = table.config(arrays, known | ({"image_size": image_size} if image_size else {}), path)
    except WeightsError:
        raise
    except (ValueError, ArithmeticError) as e:
        hint = (
            "; of images of another size, say image_size"
            if "image_size" in str(e) and not (image_size or known)
            else ""
        )
        raise WeightsError(f"{path} has the names of {architecture}, but cannot be one: {e}{hint}") from e
    if image_size and pair(cfg.image_size) != pair(image_size):
        raise WeightsError(f"{path} is of images of {shown(cfg.image_size)} px, not {shown(image_size)}")
    return cfg


def name_table(cfg: NetworkConfig, form: str) -> NameTable:
    """How a form names the weights of this architecture. ValueError when there is no such form."""
    tables = {table.form: table for _, table in name_tables(cfg.architecture) if table.form != "own"}
    if form not in tables:
        raise ValueError(
            f"{cfg.architecture} has no {form} form; its weights are written as FILE.safetensors of this package"
            + "".join(f" or in {other} form" for other in tables)
        )
    return tables[form]


def write_foreign(path: str | os.PathLike[str], cfg: NetworkConfig, state: Mapping[str, Tensor], form: str) -> None:
    """Write our weights in another form: as the official code does (np.savez, float32, today's names in order), or as
    safetensors with the other code's names. Atomic; OSError when the file cannot be written."""
    table = name_table(cfg, form)
    with replacing(Path(path)) as part:
        if table.suffix == ".npz":
            rows = sorted(table.rows(cfg), key=lambda row: row.theirs.split("/"))
            arrays = {
                r.theirs: np.ascontiguousarray(to_theirs(state[r.ours].detach().float().cpu().numpy(), r)) for r in rows
            }
            with open(part, "wb") as f:
                np.savez(f, **arrays)  # type: ignore[arg-type]
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            save_file({name: tensor.cpu() for name, tensor in to_foreign(cfg, state, form).items()}, part)
        except SafetensorError as e:
            raise OSError(f"cannot write {path}: {e}") from e


def to_foreign(cfg: NetworkConfig, state: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Our weights under the names and in the shapes of another form."""
    rows = name_table(cfg, form).rows(cfg)
    return {row.theirs: state[row.ours].detach().reshape(row.shape).contiguous() for row in rows}


def _arrays(tensors: StateDict, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """WeightsError for what is not plain numbers, and for views that are larger than the file."""
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = tensor.numpy() if tensor.dtype != torch.bfloat16 else tensor.view(torch.int16).numpy()
        except (TypeError, RuntimeError, NotImplementedError):
            raise WeightsError(
                f"{path}: {printable(name)} is {tensor.dtype} ({tensor.layout}, on {tensor.device}); expected plain "
                "arrays of float16, bfloat16, float32 or float64"
            ) from None
    claimed, held = sum(array.nbytes for array in arrays.values()), os.path.getsize(path)
    if claimed > 2 * held:
        raise WeightsError(f"{path} has {held:,} bytes, and describes arrays of {claimed:,}")
    return {
        name: tensors[name].float().numpy() if tensors[name].dtype == torch.bfloat16 else array
        for name, array in arrays.items()
    }


def _state_dict(
    path: str | os.PathLike[str], markers: Sequence[str], place: str, note: Callable[[str], None]
) -> StateDict:
    """The network in a file, or, where none is known, the first tensors in it."""
    loaded = _read_safetensors(path) if str(path).endswith(".safetensors") else read_torch_file(Path(path))
    networks = find_networks(loaded, markers)
    if not networks:
        return next(iter(state_dicts(loaded)), ("", {}))[1]
    chosen = choose(networks, place, str(path))
    if len(networks) > 1 and not place:
        note(f"{path}: {listed(networks)}; {chosen or 'the first'} is taken. For another: {path}:KEY")
    return networks[chosen]


def _read_safetensors(path: str | os.PathLike[str]) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as e:
        raise WeightsError(f"{path} is damaged: {shortened(e)}") from e


def _assumed(path: str | os.PathLike[str], cfg: NetworkConfig) -> str:
    """Assumptions about what a state dict of our own leaves open."""
    (h, w), (p, q), activation = pair(cfg.image_size), cfg.cell, getattr(cfg, "activation", "")
    return (
        f"{path} is taken for a {cfg.architecture} of {h}x{w} px, {cfg.in_channels} channels and patches of {p}x{q} px"
        f"{f', with {activation}' if activation else ''}; it names no classes, and images are scaled to -1..1"
    )
