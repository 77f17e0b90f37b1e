"""Mixer weights of other homes: the official Flax .npz and timm's state dict, read and written, one explicit name table
each.

Official: google-research/vision_transformer (vit_jax/models_mixer.py) and google-research/big_vision
(models/mlp_mixer.py). Letters as in mixer.py: S patches, C hidden_dim, DS and DC the widths of the MLPs, P patch_size,
K classes.

Files come from strangers: nothing is unpickled, nothing is extracted, and nothing is allocated before the sizes that a
file claims are compared with the sizes it has. Every missing, extra or mis-shaped array is named in one WeightsError.
"""

import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from mlpmixer.config import pair
from mlpmixer.models.configs import Activation, MixerConfig

Form = Literal["same", "transposed", "stem_hwio", "stem_oihw"]
Arrays = Mapping[str, np.ndarray]
DEFLATE_AT_MOST = 1032  # bytes that one byte of deflate can stand for (zlib's technical notes)


class WeightsError(ValueError):
    """A weight file that is damaged, hostile, or not of a Mixer; the message says what is wrong with it."""


@dataclass(frozen=True)
class Row:
    """One line of a name table: a parameter of ours, its name and shape over there, and how the two are stored."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    form: Form = "same"


def official_table(cfg: MixerConfig) -> list[Row]:
    """The official file of an architecture: 12 arrays a block and 6 more (4 without a head)."""
    c, (p, q) = cfg.hidden_dim, pair(cfg.patch_size)
    rows = [
        Row("stem.weight", "stem/kernel", (p, q, cfg.in_channels, c), "stem_hwio"),
        Row("stem.bias", "stem/bias", (c,)),
    ]
    for i in range(cfg.num_blocks):
        theirs = f"MixerBlock_{i}"
        for ours, norm in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_1")):
            rows += [
                Row(f"blocks.{i}.{ours}.{a}", f"{theirs}/{norm}/{b}", (c,))
                for a, b in (("weight", "scale"), ("bias", "bias"))
            ]
        for mlp, dim, width in (
            ("token_mixing", cfg.num_patches, cfg.tokens_mlp_dim),
            ("channel_mixing", c, cfg.channels_mlp_dim),
        ):
            for ours, dense, shape in (("fc1", "Dense_0", (dim, width)), ("fc2", "Dense_1", (width, dim))):
                rows.append(
                    Row(f"blocks.{i}.{mlp}.{ours}.weight", f"{theirs}/{mlp}/{dense}/kernel", shape, "transposed")
                )
                rows.append(Row(f"blocks.{i}.{mlp}.{ours}.bias", f"{theirs}/{mlp}/{dense}/bias", shape[1:]))
    rows += [Row("norm.weight", "pre_head_layer_norm/scale", (c,)), Row("norm.bias", "pre_head_layer_norm/bias", (c,))]
    if cfg.num_classes:
        k = cfg.num_classes
        rows += [Row("head.weight", "head/kernel", (c, k), "transposed"), Row("head.bias", "head/bias", (k,))]
    return rows


def timm_table(cfg: MixerConfig) -> list[Row]:
    """timm's MlpMixer: a convolution as stem, mlp_tokens and mlp_channels as names; everything else as here."""
    rows = []
    for row in official_table(cfg):
        theirs = (
            row.ours.replace("token_mixing", "mlp_tokens")
            .replace("channel_mixing", "mlp_channels")
            .replace("stem.", "stem.proj.")
        )
        if row.form == "stem_hwio":
            p, q, channels, c = row.shape
            rows.append(Row(row.ours, theirs, (c, channels, p, q), "stem_oihw"))
        else:
            rows.append(Row(row.ours, theirs, row.shape[::-1]))
    return rows


def to_ours(array: np.ndarray, form: Form) -> np.ndarray:
    """A view of a foreign array in our shape; our stem is a matrix over patches in (channel, row, column) order."""
    if form == "transposed":
        return array.T
    if form == "stem_hwio":
        array = array.transpose(3, 2, 0, 1)
    return array.reshape(len(array), -1) if form != "same" else array


def to_theirs(array: np.ndarray, row: Row) -> np.ndarray:
    """The reverse of `to_ours`."""
    if row.form == "transposed":
        return array.T
    if row.form == "stem_hwio":
        p, q, channels, c = row.shape
        return array.reshape(c, channels, p, q).transpose(2, 3, 1, 0)
    return array.reshape(row.shape)


def from_arrays(arrays: dict[str, np.ndarray], rows: list[Row], where: str) -> dict[str, Tensor]:
    """Our state dict, float32, from foreign arrays, which are used up: each is gone before the next is copied.

    WeightsError naming every array that is missing, extra or mis-shaped.
    """
    wanted = {row.theirs: row for row in rows}
    problems = [f"missing {name} {wanted[name].shape}" for name in wanted if name not in arrays]
    problems += [f"extra {_printable(name)} {arrays[name].shape}" for name in arrays if name not in wanted]
    problems += [
        f"{name} has shape {arrays[name].shape} instead of {row.shape}"
        for name, row in wanted.items()
        if name in arrays and arrays[name].shape != row.shape
    ]
    problems += [f"{_printable(name)} has dtype {a.dtype}" for name, a in arrays.items() if not _is_float(a.dtype)]
    if problems:
        raise WeightsError(f"{where} does not hold these Mixer weights: " + "; ".join(problems))
    return {row.ours: _tensor(to_ours(arrays.pop(row.theirs), row.form)) for row in rows}


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype == np.dtype("V2")


def _tensor(array: np.ndarray) -> Tensor:
    """float32, copied only where it must be. Two bytes of void are bfloat16, as big_vision stores it: the upper half of
    a float32."""
    if array.dtype.kind == "V":
        array = (np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return torch.from_numpy(np.require(array, np.float32, ["C", "W"]))


def _printable(name: str) -> str:
    return name if re.fullmatch(r"[\w./-]{1,200}", name) else repr(name[:200])


# ------------------------------------------------------------------------------------------------------- official .npz


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name.

    WeightsError for anything that is not a sound archive of plain arrays; nothing in it is executed or written to disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({m.filename for m in members}) != len(members):
                raise WeightsError(f"{path} holds two arrays of the same name")
            return {m.filename.removesuffix(".npy"): _read_member(archive, m, str(path)) for m in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as e:
        raise WeightsError(f"{path} is not an .npz file, or it is cut off or damaged: {e}") from e


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> np.ndarray:
    name = _printable(member.filename)
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
            raise WeightsError(f"{path}: {name} has no readable array header: {e}") from e
        if dtype.hasobject or dtype.names:
            raise WeightsError(f"{path}: {name} holds Python objects, not numbers; it is not read")
        wanted, claimed = math.prod(shape) * dtype.itemsize, member.file_size - f.tell()
        if min(shape, default=0) < 0 or claimed != wanted:
            raise WeightsError(f"{path}: {name} claims {wanted:,} bytes as {dtype}{shape}, but has {max(claimed, 0):,}")
        if wanted > DEFLATE_AT_MOST * member.compress_size:
            raise WeightsError(
                f"{path}: {name} claims {wanted:,} bytes, which cannot come from the {member.compress_size:,} stored"
            )
        flat, filled = np.empty(wanted, np.uint8), 0
        while piece := f.read(1 << 20):  # to the end, where zipfile compares the checksum
            flat[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        if filled < wanted:
            raise WeightsError(f"{path}: {name} is cut off")
    array = flat.view(dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def current_names(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays under today's official names, from any public variant: below params/ or opt/target/, or named as before
    Linen.

    Before Linen (big_vision's mlp_mixer.py, `load`): embedding, Mixer/encoder_norm,
    Mixer/encoderblock_i/*_mixing_phase_0 with kernel1, bias1, kernel2, bias2, and LayerNorms counted among all layers
    of the block.
    """
    for prefix in ("params/", "opt/target/"):
        if any(name.startswith(prefix) for name in arrays):  # what else is there is the state of an optimizer
            arrays = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
    out: dict[str, np.ndarray] = {}
    norms: dict[str, set[int]] = {}
    for name in arrays:
        if found := re.fullmatch(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/\w+", name):
            norms.setdefault(found[1], set()).add(int(found[2]))
    for name, array in arrays.items():
        if found := re.fullmatch(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/(\w+)", name):
            rank = sorted(norms[found[1]]).index(int(found[2]))
            name, array = f"MixerBlock_{found[1]}/LayerNorm_{rank}/{found[3]}", array.squeeze()
        elif found := re.fullmatch(
            r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(kernel|bias)([12])", name
        ):
            name, array = (
                f"MixerBlock_{found[1]}/{found[2]}_mixing/Dense_{int(found[4]) - 1}/{found[3]}",
                array.squeeze(),
            )
        elif found := re.fullmatch(r"Mixer/encoder_norm/(\w+)", name):
            name, array = f"pre_head_layer_norm/{found[1]}", array.squeeze()
        elif found := re.fullmatch(r"embedding/(\w+)", name):
            name = f"stem/{found[1]}"
        out[name] = array
    return out


def official_config(
    arrays: Arrays, image_size: int | tuple[int, int] | None = None, where: str = "the file"
) -> MixerConfig:
    """The architecture that these arrays (today's names) are of. `image_size` is needed where the number of patches is
    no square."""
    return _config(
        {
            "stem": _shape(arrays, "stem/kernel", 4, where),
            "tokens": _shape(arrays, "MixerBlock_0/token_mixing/Dense_0/kernel", 2, where),
            "channels": _shape(arrays, "MixerBlock_0/channel_mixing/Dense_0/kernel", 2, where),
        },
        num_blocks=len({m[1] for name in arrays if (m := re.match(r"MixerBlock_(\d+)/", name))}),
        num_classes=_shape(arrays, "head/kernel", 2, where)[1] if "head/kernel" in arrays else 0,
        activation="gelu_tanh",
        image_size=image_size,
        where=where,
    )


def timm_config(
    arrays: Arrays, image_size: int | tuple[int, int] | None = None, where: str = "the file"
) -> MixerConfig:
    """The architecture that timm's state dict is of."""
    c, channels, p, q = _shape(arrays, "stem.proj.weight", 4, where)
    return _config(
        {
            "stem": (p, q, channels, c),
            "tokens": _shape(arrays, "blocks.0.mlp_tokens.fc1.weight", 2, where)[::-1],
            "channels": _shape(arrays, "blocks.0.mlp_channels.fc1.weight", 2, where)[::-1],
        },
        num_blocks=len({m[1] for name in arrays if (m := re.match(r"blocks\.(\d+)\.", name))}),
        num_classes=_shape(arrays, "head.weight", 2, where)[0] if "head.weight" in arrays else 0,
        activation="gelu_erf",
        image_size=image_size,
        where=where,
    )


def _shape(arrays: Arrays, name: str, ndim: int, where: str) -> tuple[int, ...]:
    shape = arrays[name].shape if name in arrays else None
    if shape is None or len(shape) != ndim:
        found = "is missing" if shape is None else f"has shape {shape}"
        some = ", ".join(_printable(n) for n in sorted(arrays)[:5])
        raise WeightsError(f"{where} holds no Mixer weights: {name} {found}; it has: {some or 'nothing'}")
    return cast(tuple[int, ...], shape)


def _config(
    shapes: dict[str, tuple[int, ...]],
    *,
    num_blocks: int,
    num_classes: int,
    activation: Activation,
    image_size: int | tuple[int, int] | None,
    where: str,
) -> MixerConfig:
    p, q, in_channels, c = shapes["stem"]
    s, tokens_mlp_dim = shapes["tokens"]
    if image_size is None:
        side = math.isqrt(s)
        if side * side != s:
            raise WeightsError(f"{where} has {s} patches, which is no square: say image_size=(height, width)")
        image_size = side * p if p == q else (side * p, side * q)
    try:
        cfg = MixerConfig(
            image_size=image_size,
            patch_size=p if p == q else (p, q),
            in_channels=in_channels,
            num_classes=num_classes,
            num_blocks=num_blocks,
            hidden_dim=c,
            tokens_mlp_dim=tokens_mlp_dim,
            channels_mlp_dim=shapes["channels"][1],
            activation=activation,
        )
    except ValueError as e:
        raise WeightsError(f"{where} holds no Mixer that can be built: {e}") from e
    if cfg.num_patches != s:
        raise WeightsError(
            f"{where} has {s} patches of {p}x{q} px; image_size {image_size} would have {cfg.num_patches}"
        )
    return cfg


def read_official(
    path: str | os.PathLike[str], image_size: int | tuple[int, int] | None = None
) -> tuple[MixerConfig, dict[str, Tensor]]:
    """Architecture and our state dict of an official .npz, in any of its public variants."""
    arrays = current_names(read_npz(path))
    cfg = official_config(arrays, image_size, str(path))
    return cfg, from_arrays(arrays, official_table(cfg), str(path))


def write_official(path: str | os.PathLike[str], cfg: MixerConfig, state: Mapping[str, Tensor]) -> None:
    """Write our weights as the official code does: np.savez, float32, today's names in order. Atomic; OSError when it
    cannot be written."""
    rows = sorted(official_table(cfg), key=lambda row: row.theirs.split("/"))
    arrays = {
        row.theirs: np.ascontiguousarray(to_theirs(state[row.ours].detach().float().cpu().numpy(), row)) for row in rows
    }
    with _atomically(Path(path)) as part, open(part, "wb") as f:
        np.savez(f, **arrays)  # type: ignore[arg-type]


@contextmanager
def _atomically(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place in the end or vanishes."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------- timm


def read_timm(
    path: str | os.PathLike[str], image_size: int | tuple[int, int] | None = None
) -> tuple[MixerConfig, dict[str, Tensor]]:
    """Architecture and our state dict of timm's weights: .safetensors, or .pth read without unpickling anything but
    tensors."""
    arrays = {name: _array(tensor) for name, tensor in _read_tensors(path).items()}
    cfg = timm_config(arrays, image_size, str(path))
    return cfg, from_arrays(arrays, timm_table(cfg), str(path))


def to_timm(cfg: MixerConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's state dict of our weights."""
    return {row.theirs: state[row.ours].detach().reshape(row.shape).contiguous() for row in timm_table(cfg)}


def write_timm(path: str | os.PathLike[str], cfg: MixerConfig, state: Mapping[str, Tensor]) -> None:
    """Write our weights as safetensors with timm's names. Atomic; OSError when it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with _atomically(Path(path)) as part:
        try:
            save_file({name: tensor.cpu() for name, tensor in to_timm(cfg, state).items()}, part)
        except SafetensorError as e:
            raise OSError(f"cannot write {path}: {e}") from e


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    if str(path).endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as e:
            raise WeightsError(f"{path} is damaged: {e}") from e
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as e:  # on garbage the unpickler of weights_only raises whatever its stack machine runs into
        reason = str(e).partition("\n")[0] or type(e).__name__
        raise WeightsError(f"{path} is no file of plain tensors, and nothing else is unpickled: {reason}") from e
    for key in ("state_dict", "model"):  # as training scripts wrap it
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"{path} holds no state dict of tensors")
    return cast(dict[str, Tensor], loaded)
