"""Weights of other homes: read, written, and refused."""

import copy
import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpmixer.models.architecture import create_model
from mlpmixer.models.configs import MixerConfig
from mlpmixer.models.mixer import Mixer
from mlpmixer.weights import formats
from mlpmixer.weights.formats import WeightsError, read_foreign, read_npz, to_foreign, write_foreign

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "tiny_weights.npz"


@pytest.fixture(scope="module")
def tiny() -> dict[str, np.ndarray]:
    return dict(np.load(TINY))


def logits_of(path: Path, activation: str = "gelu_tanh") -> torch.Tensor:
    cfg, state, _ = read_foreign(path)
    assert cfg.activation == activation
    model = Mixer(cfg).eval()
    model.load_state_dict(state)
    expected = np.load(FIXTURES / "tiny_expected.npz")
    with torch.no_grad():
        return model(torch.from_numpy(expected["images"]).permute(0, 3, 1, 2))


EXPECTED = np.load(FIXTURES / "tiny_expected.npz")["logits"]


def assert_official_logits(path: Path) -> None:
    np.testing.assert_allclose(logits_of(path).numpy(), EXPECTED, rtol=0, atol=1e-5)


def test_the_architecture_and_the_logits_come_from_the_official_file_alone() -> None:
    cfg, state, _ = read_foreign(TINY)
    assert (cfg.image_size, cfg.patch_size, cfg.num_blocks, cfg.hidden_dim) == (32, 8, 2, 48)
    assert (cfg.tokens_mlp_dim, cfg.channels_mlp_dim, cfg.num_classes, cfg.in_channels) == (24, 96, 10, 3)
    assert sum(t.numel() for t in state.values()) == 30_570
    assert_official_logits(TINY)


def pre_linen(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of before Linen; LayerNorms are counted among all layers of a block."""
    out = {}
    for name, a in arrays.items():
        parts = name.split("/")
        if parts[0] == "stem":
            name = f"embedding/{parts[1]}"
        elif parts[0] == "pre_head_layer_norm":
            name = f"Mixer/encoder_norm/{parts[1]}"
        elif parts[0].startswith("MixerBlock_"):
            block = f"Mixer/encoderblock_{parts[0][11:]}"
            if parts[1].startswith("LayerNorm"):
                name = f"{block}/LayerNorm_{2 * int(parts[1][-1])}/{parts[2]}"
            else:
                name, a = f"{block}/{parts[1]}_phase_0/{parts[3]}{int(parts[2][-1]) + 1}", a[None]
        out[name] = a
    return out


VARIANTS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "params": lambda w: {f"params/{k}": v for k, v in w.items()} | {"opt/0/mu/stem/bias": w["stem/bias"]},
    "opt-target": lambda w: {f"opt/target/{k}": v for k, v in w.items()} | {"opt/state/step": np.array(3)},
    "pre-linen": pre_linen,
    "pre-linen below opt/target": lambda w: {f"opt/target/{k}": v for k, v in pre_linen(w).items()},
    "reversed order": lambda w: dict(reversed(w.items())),
    "float64": lambda w: {k: v.astype(np.float64) for k, v in w.items()},
    "fortran order": lambda w: {k: np.asfortranarray(v) for k, v in w.items()},
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_public_variant_gives_the_official_logits(
    variant: str, save: Callable[..., None], tiny: dict[str, np.ndarray], tmp_path: Path
) -> None:
    save(tmp_path / "w.npz", **VARIANTS[variant](tiny))
    assert_official_logits(tmp_path / "w.npz")


def test_bfloat16_stored_as_void_is_the_upper_half_of_float32(tiny: dict[str, np.ndarray], tmp_path: Path) -> None:
    stored = {k: (v.view(np.uint32) >> 16).astype(np.uint16).view("V2") for k, v in tiny.items()}
    np.savez(tmp_path / "w.npz", **stored)
    _, state, _ = read_foreign(tmp_path / "w.npz")
    cut = (tiny["head/kernel"].view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.array_equal(state["head.weight"].numpy(), cut.T)
    assert abs(logits_of(tmp_path / "w.npz").numpy() - EXPECTED).max() < 0.1


def test_official_to_ours_to_official_is_the_same_file(tmp_path: Path, tiny: dict[str, np.ndarray]) -> None:
    cfg, state, _ = read_foreign(TINY)
    write_foreign(tmp_path / "back.npz", cfg, state, "official")
    back = np.load(tmp_path / "back.npz")
    assert back.files == list(tiny)
    assert all(np.array_equal(back[k], tiny[k]) and back[k].dtype == tiny[k].dtype for k in tiny)
    with zipfile.ZipFile(TINY) as a, zipfile.ZipFile(tmp_path / "back.npz") as b:
        assert all(a.read(name) == b.read(name) for name in a.namelist())


@pytest.mark.parametrize(
    "fields", [{}, {"num_classes": 0}, {"image_size": (32, 48), "patch_size": (4, 8)}, {"in_channels": 5}]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".wrapped.pth"])
def test_ours_to_timm_to_ours_is_bit_exact(fields: dict[str, object], suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = create_model("Nano/4", num_blocks=2, **fields)
    state, path = model.state_dict(), tmp_path / f"w{suffix}"
    theirs = to_foreign(model.cfg, state, "timm")
    if suffix == ".safetensors":
        save_file(theirs, path)
    else:
        torch.save({"state_dict": theirs, "epoch": 3} if "wrapped" in suffix else theirs, path)
    cfg, back, _ = read_foreign(path, model.cfg.image_size)
    assert cfg == model.cfg  # the small sizes have timm's activation
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_timm_stores_the_stem_as_the_convolution_that_it_is() -> None:
    model = create_model("Nano/4", num_blocks=1)
    images = torch.randn(2, 3, 32, 32)
    theirs = to_foreign(model.cfg, model.state_dict(), "timm")
    conv = torch.nn.functional.conv2d(images, theirs["stem.proj.weight"], theirs["stem.proj.bias"], stride=4)
    torch.testing.assert_close(conv.flatten(2).transpose(1, 2), model.stem(model.patches(images)))


def test_timms_own_network_gives_the_same_logits_as_ours(tmp_path: Path) -> None:
    """timm.npz: written by benchmarks/timm_parity.py --fixture with timm 1.0.31, its network perturbed in every
    parameter."""
    from safetensors.torch import save_file

    with np.load(FIXTURES / "timm.npz") as stored:
        theirs = {name[6:]: torch.from_numpy(stored[name]) for name in stored.files if name.startswith("state/")}
        images, expected = torch.from_numpy(stored["images"]), stored["logits"]
    save_file(theirs, tmp_path / "w.safetensors")
    cfg, state, _ = read_foreign(tmp_path / "w.safetensors")
    assert cfg == MixerConfig(
        image_size=12,
        patch_size=4,
        num_classes=7,
        num_blocks=2,
        hidden_dim=24,
        tokens_mlp_dim=12,
        channels_mlp_dim=96,
        activation="gelu_erf",
    )
    model = Mixer(cfg).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), expected, rtol=0, atol=1e-5)
    back = to_foreign(cfg, model.state_dict(), "timm")
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], theirs[name]) for name in theirs)
    assert np.ptp(expected, axis=0).min() > 0.01  # the images are told apart


def test_one_error_names_all_that_is_missing_extra_or_misshaped(tiny: dict[str, np.ndarray], tmp_path: Path) -> None:
    wrong = {k: v for k, v in tiny.items() if k != "MixerBlock_1/LayerNorm_0/bias"}
    wrong |= {"MixerBlock_0/gate": np.zeros(3), "stem/bias": np.zeros((1, 48), np.float32), "head/bias": np.arange(10)}
    np.savez(tmp_path / "w.npz", **wrong)
    with pytest.raises(WeightsError) as e:
        read_foreign(tmp_path / "w.npz")
    for part in (
        "missing MixerBlock_1/LayerNorm_0/bias (48,)",
        "extra MixerBlock_0/gate (3,)",
        "head/bias has dtype int64",
    ):
        assert part in str(e.value)
    assert "stem/bias has shape (1, 48) instead of (48,)" in str(e.value)


def test_patches_that_fill_no_square_need_an_image_size(tmp_path: Path) -> None:
    model = create_model("Nano/4", num_blocks=1, image_size=(16, 48))
    write_foreign(tmp_path / "w.npz", model.cfg, model.state_dict(), "official")
    assert read_foreign(tmp_path / "w.npz", (16, 48))[0].grid == (4, 12)
    with pytest.raises(WeightsError, match=r"48 patches, which is not a square: say image_size"):
        read_foreign(tmp_path / "w.npz")
    with pytest.raises(WeightsError, match=r"48 patches of 4x4 px; image_size 32 would have 64"):
        read_foreign(tmp_path / "w.npz", 32)


# ---------------------------------------------------------------------------------------------------- hostile files


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("something in the file was executed",))


def member(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr(name, content)
    return out.getvalue()


def npy(shape: tuple[int, ...], descr: str = "<f4", data: bytes = b"") -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def bomb() -> bytes:
    out = io.BytesIO()
    objects = np.empty(1, object)
    objects[0] = Bomb()
    np.savez(out, **{"stem/kernel": objects})
    return out.getvalue()


def hostile(whole: bytes) -> Iterator[tuple[str, bytes, str]]:
    yield "empty", b"", "not an .npz file"
    yield "text", b"no weights here\n" * 100, "not an .npz file"
    yield "cut in the middle", whole[: len(whole) // 2], "not an .npz file"
    yield "without its last bytes", whole[:-10], "not an .npz file"
    yield (
        "a flipped byte",
        whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
        "checksum differs|cut off or damaged|no readable",
    )
    yield "pickled objects", bomb(), "Python objects"
    yield "a structured type", member("stem/kernel.npy", npy((1,), "O")), "Python objects|no readable array header"
    yield (
        "ten gigabytes claimed",
        member("stem/kernel.npy", npy((50_000, 50_000))),
        r"claims 10,000,000,000 bytes .* but has 0",
    )
    yield "a negative size", member("stem/kernel.npy", npy((-1, 4), data=b"\0" * 16)), "claims"
    yield (
        "a path out of the archive",
        member("../../etc/evil.npy", npy((1,), data=b"\0" * 4)),
        "not hold weights of a known network",
    )
    yield "an absolute path", member("/etc/evil.npy", npy((1,), data=b"\0" * 4)), "not hold weights of a known network"
    yield "a file that is no array", member("run.sh", b"rm -rf"), "not an array"
    yield (
        "a header that is code",
        member("stem/kernel.npy", npy((1,)).replace(b"(1,)", b"f(1)")),
        "no readable array header",
    )
    yield "integers", member("stem/kernel.npy", npy((2, 2), "<i8", b"\0" * 32)), "no weights of this network"


CASES = {name: (content, match) for name, content, match in hostile(TINY.read_bytes())}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_file_is_one_clear_error(case: str, tmp_path: Path) -> None:
    content, match = CASES[case]
    path = tmp_path / "w.npz"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(WeightsError, match=match):
        read_foreign(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert [p.name for p in tmp_path.iterdir()] == ["w.npz"]


def test_a_compressed_claim_of_gigabytes_is_refused_before_it_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z, z.open("stem/kernel.npy", "w") as f:
        f.write(npy((16, 16, 3, 1 << 20)))
        for _ in range(64):
            f.write(b"\0" * (1 << 20))
    with pytest.raises(WeightsError, match="claims"):
        read_foreign(path)


def test_an_archive_that_unpacks_to_far_more_than_weights_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "SPARE_BYTES", 10**6)
    path = tmp_path / "w.npz"
    np.savez_compressed(path, **{"stem/kernel": np.zeros((16, 16, 3, 5000), np.float32)})
    with pytest.raises(WeightsError, match="claims to unpack to 15,360,128"):
        read_foreign(path)
    stored = path.stat().st_size
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a.npy", npy((5000,), data=bytes(20_000)))
        for i in range(200):  # all of them the same bytes
            z.filelist.append(copy.copy(z.filelist[0]))
            z.filelist[-1].filename = f"{i}.npy"
    with pytest.raises(WeightsError, match="claims to unpack"):
        read_foreign(path)
    assert stored < 10**5


def quantised(x: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


ODD: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "sparse": (lambda x: x.to_sparse(), r"is torch\.float32 \(torch\.sparse_coo"),
    "sparse rows": (lambda x: x.to_sparse_csr(), r"is torch\.float32 \(torch\.sparse_csr"),
    "quantised": (quantised, r"is torch\.qint8"),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), r"is torch\.float8_e4m3fn"),
    "complex": (lambda x: x.to(torch.complex64), "has dtype complex64"),
    "meta": (lambda x: x.to("meta"), "on meta"),
    "whole numbers": (lambda x: x.long(), "has dtype int64"),
    "negative view": (torch._neg_view, "expected plain arrays"),
    "a view of terabytes": (lambda x: torch.zeros(1).expand(10**6, 10**6), "describes arrays of 4,000,"),
    "bfloat16 of terabytes": (lambda x: torch.zeros(1, dtype=torch.bfloat16).expand(10**6, 10**6), "describes arrays"),
    "NaN": (lambda x: x * torch.nan, r"blocks\.0\.mlp_tokens\.fc1\.weight is not finite"),
}


@pytest.mark.filterwarnings("ignore")  # of torch, as these are made
@pytest.mark.parametrize("case", ODD)
def test_tensors_that_are_not_plain_finite_numbers_are_refused(case: str, tmp_path: Path) -> None:
    change, says = ODD[case]
    model = create_model("Pico/2", num_blocks=1)
    theirs, name = to_foreign(model.cfg, model.state_dict(), "timm"), "blocks.0.mlp_tokens.fc1.weight"
    torch.save(theirs | {name: change(theirs[name])}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=says) as e:
        read_foreign(tmp_path / "w.pth")
    assert "\n" not in str(e.value) and len(str(e.value)) < 700


def test_a_pth_with_numbers_for_names_or_compressed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({1: torch.zeros(2), (2, 3): torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="no tensors by name"):
        read_foreign(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(WeightsError, match="it is compressed"):
        read_foreign(path)


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as z:
        for _ in range(2):
            z.writestr("stem/kernel.npy", npy((1,), data=b"\0" * 4))
    with pytest.raises(WeightsError, match="two arrays of the same name"):
        read_npz(path)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Bomb(), 2), b"", b"PK\x03\x04 no archive", b"text"],
    ids=["pickled code", "empty", "no archive", "text"],
)
def test_a_hostile_pth_is_one_clear_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        read_foreign(path)
    torch.save({"model": Bomb()}, path)
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        read_foreign(path)


def test_a_pth_that_is_no_mixer_says_what_it_is(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"not hold weights of a known network; it has: conv1\.weight"):
        read_foreign(tmp_path / "w.pth")


def test_damage_at_any_place_never_gives_other_weights(tmp_path: Path) -> None:
    whole, path = TINY.read_bytes(), tmp_path / "w.npz"
    _, state, _ = read_foreign(TINY)
    for place in range(0, len(whole), 977):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        try:
            _, loaded, _ = read_foreign(path)
        except WeightsError:
            continue
        assert all(torch.equal(loaded[k], state[k]) for k in state), place
