"""State dicts as training scripts save them: wrapped, averaged, beside much else, and by people who mean harm."""

import argparse
import collections
import datetime
import enum
import pathlib
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from mlpmixer import cli
from mlpmixer.config import pair
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.models.architecture import build, create_model
from mlpmixer.models.configs import MixerConfig, NetworkConfig, ResMLPConfig
from mlpmixer.weights import state_dicts
from mlpmixer.weights.formats import WeightsError, read_foreign, to_foreign
from mlpmixer.weights.load import load_weights
from mlpmixer.weights.state_dicts import Inert

TINY = MixerConfig(
    image_size=8,
    patch_size=4,
    num_classes=3,
    num_blocks=2,
    hidden_dim=6,
    tokens_mlp_dim=5,
    channels_mlp_dim=7,
)
RESMLP = ResMLPConfig(image_size=8, patch_size=4, num_classes=3, num_blocks=2, hidden_dim=6, channels_mlp_dim=24)
StateDict = dict[str, torch.Tensor]


class AttributeDict(dict[str, Any]):
    """As Lightning stores its hyperparameters."""


class Settings:
    def __init__(self) -> None:
        self.lr, self.folder = 0.1, pathlib.Path("/data")


class Colour(enum.Enum):
    RED = 1


def network(cfg: NetworkConfig = TINY) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p))
    return model


MODEL = network()
STATE: StateDict = MODEL.state_dict()
AVERAGE = {name: tensor + 1 for name, tensor in STATE.items()}
TIMM = to_foreign(TINY, STATE, "timm")


def below(prefix: str, state: StateDict = STATE) -> StateDict:
    return {prefix + name: tensor for name, tensor in state.items()}


def trained() -> dict[str, Any]:
    """What scripts put beside the weights."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return {
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("/out"), settings=Settings()),
        "optimizer": optimizer.state_dict(),
        "best": np.float64(0.5),
        "random": (np.random.default_rng(0).random(3), torch.get_rng_state()),
        "when": datetime.datetime(2024, 1, 1),
        "colour": Colour.RED,
        "losses": collections.defaultdict(list, {"train": [1.0]}),
        "last": collections.deque([1.0], maxlen=3),
        "by colour": {Colour.RED: 1, pathlib.Path("/a"): 2},
        "epoch": 3,
    }


FILES: dict[str, Callable[[], Any]] = {
    "plain": lambda: STATE,
    "parameters that take gradients": lambda: dict(MODEL.named_parameters()),
    "DataParallel": lambda: torch.nn.DataParallel(MODEL).state_dict(),
    "torch.compile": lambda: torch.compile(MODEL, backend="eager").state_dict(),
    "AveragedModel": lambda: AveragedModel(torch.nn.DataParallel(MODEL)).state_dict(),
    "a stack of wrappers": lambda: below("module._orig_mod.model.state_dict."),
    "timm's": lambda: {"state_dict": below("module.", TIMM), "arch": "mixer"},
    "with all the rest": lambda: {"model": STATE} | trained(),
    "Lightning": lambda: {
        "state_dict": below("model."),
        "hyper_parameters": AttributeDict(lr=0.1, settings=Settings()),
        "callbacks": {"Checkpoint": {"best": torch.tensor(0.3), "path": pathlib.Path("/out")}},
        "optimizer_states": [trained()["optimizer"]],
    },
    "wrapped in layers, too": lambda: {
        name.replace("blocks.0.", "blocks.0._orig_mod.").replace(
            "blocks.1.", "blocks.1._checkpoint_wrapped_module."
        ): tensor
        for name, tensor in below("_fsdp_wrapped_module.").items()
    },
    "in a dict of its own kind": lambda: AttributeDict(net=STATE, settings=Settings()),
    "double precision": lambda: {name: tensor.double() for name, tensor in STATE.items()},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case == "torch.compile" else []) for case in FILES]
)
def test_what_a_script_saves_gives_the_same_weights(case: str, zipped: bool, tmp_path: Path) -> None:
    torch.save(FILES[case](), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    cfg, state, table = read_foreign(tmp_path / "w.pth")
    assert cfg == (MixerConfig(**{**vars(TINY), "activation": "gelu_erf"}) if table.form == "timm" else TINY)
    assert state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize(
    "cfg",
    [
        TINY,
        RESMLP,
        create_model("Pico/2", num_blocks=4).cfg,
        MixerConfig(**{**vars(TINY), "in_channels": 1, "num_classes": 0}),
    ],
    ids=lambda cfg: f"{cfg.architecture}-{cfg.in_channels}-{cfg.num_classes}",
)
def test_a_state_dict_of_our_own_loads(cfg: NetworkConfig, suffix: str, tmp_path: Path) -> None:
    model, path = network(cfg), tmp_path / f"w{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    told: list[dict[str, Any]] = []
    found, meta = load_weights(path, report=told.append)
    assert found.cfg == cfg and meta.provenance == {"weights": path.name, "form": "own"}
    assert meta.preprocess == Preprocess(image_size=pair(cfg.image_size), in_channels=cfg.in_channels)
    images = torch.randn(2, cfg.in_channels, *([cfg.image_size] * 2))  # type: ignore[list-item]
    assert torch.equal(found(images), model.eval()(images))
    assert len(told) == 1 and f"is taken for a {cfg.architecture} of " in told[0]["note"]


def test_a_resmlp_loads_by_each_of_its_names(tmp_path: Path) -> None:
    model = network(RESMLP)
    for form in ("official", "timm"):
        theirs = to_foreign(RESMLP, model.state_dict(), form)
        torch.save({"model": below("module.", theirs)} | trained(), tmp_path / "w.pth")
        cfg, state, table = read_foreign(tmp_path / "w.pth")
        assert (cfg, table.form) == (RESMLP, form)
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_stem_that_may_read_several_kinds_of_patches_is_refused(tmp_path: Path) -> None:
    torch.save(network(MixerConfig(**{**vars(TINY), "in_channels": 5})).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="a stem of 80 inputs reads no square patch of 1 or 3 channels"):
        read_foreign(tmp_path / "w.pth")


# --- several networks in a file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "taken", "others"),
    [
        ({"state_dict_ema": below("module.", AVERAGE), "state_dict": STATE}, "state_dict", ["state_dict_ema"]),
        ({"model": STATE, "model_ema": AVERAGE}, "model", ["model_ema"]),
        ({"ema": {"decay": 0.9, "module": AVERAGE}, "net": STATE}, "net", ["ema", "ema.module"]),
        (below("teacher.", AVERAGE) | below("student."), "student", ["teacher"]),
        (
            {"state_dict": below("model.") | below("ema_model.module.", AVERAGE)},
            "state_dict.model",
            ["state_dict.ema_model"],
        ),
    ],
)
def test_of_several_networks_one_is_taken_and_said(content: Any, taken: str, others: list[str], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    notes: list[str] = []
    _, state, _ = read_foreign(path, note=notes.append)
    assert torch.equal(state["norm.bias"], STATE["norm.bias"])
    assert "it holds " in notes[0] and f"; {taken} is taken. For another: {path}:KEY" in notes[0]
    for other in others:
        notes.clear()
        model, meta = load_weights(f"{path}:{other}")
        assert torch.equal(model.norm.bias, AVERAGE["norm.bias"]) and meta.provenance["weights"] == f"w.pth:{other}"
    with pytest.raises(WeightsError, match=rf"holds no network at nothing: it holds .*{taken}"):
        load_weights(f"{path}:nothing")


def test_a_key_of_a_file_with_one_network_is_refused(tmp_path: Path, digits_run: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no network at ema: it holds one without a key"):
        load_weights(f"{tmp_path / 'w.pth'}:ema")
    with pytest.raises(ValueError, match="is a model file, which holds one network: leave :ema out"):
        load_weights(f"{digits_run / 'model.safetensors'}:ema")
    fixture = Path(__file__).parents[1] / "fixtures" / "tiny_weights.npz"
    with pytest.raises(WeightsError, match="holds no network at ema"):
        load_weights(f"{fixture}:ema")


def test_a_file_whose_own_name_has_a_colon_is_found(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "epoch:3.pth")
    assert load_weights(tmp_path / "epoch:3.pth")[1].provenance["weights"] == "epoch:3.pth"


def test_the_command_says_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": STATE, "state_dict_ema": AVERAGE}, path)
    assert cli.main(["convert", str(path), str(tmp_path / "w.safetensors")]) == 0
    assert "it holds state_dict, state_dict_ema; state_dict is taken" in capsys.readouterr().err
    assert cli.main(["summary", f"{path}:state_dict_ema"]) == 0


# --- what does not fit --------------------------------------------------------------------------------------------


def test_a_missing_or_extra_name_is_told(tmp_path: Path) -> None:
    wrong = below("module.") | {"module.gate": torch.zeros(3), "criterion.weight": torch.zeros(2)}
    del wrong["module.norm.bias"]
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"missing norm\.bias \(6,\); extra gate \(3,\); extra criterion\.weight"):
        read_foreign(tmp_path / "w.pth")


def test_an_error_does_not_fill_the_screen(tmp_path: Path) -> None:
    torch.save(below("module.") | {f"module.gate{i}": torch.zeros(1) for i in range(1000)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="and 988 more") as e:
        read_foreign(tmp_path / "w.pth")
    assert len(str(e.value)) < 1000


def test_a_description_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_dicts, "MAX_PICKLE_BYTES", 10_000)
    torch.save({"model": STATE, "losses": [0.5] * 10_000}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="its description of the tensors is longer than 10,000 bytes"):
        read_foreign(tmp_path / "w.pth")


def test_a_file_of_another_pickle_protocol_is_refused_without_a_warning(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(WeightsError, match=r"not a file of plain tensors.*Unsupported operand"):
        read_foreign(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content", [{0: torch.zeros(1)}, [torch.zeros(1)], MODEL, 3], ids=["numbers", "list", "module", "3"]
)
def test_a_file_without_a_state_dict_says_so(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"no tensors by name, as torch\.save\(model\.state_dict\(\), FILE\)"):
        read_foreign(tmp_path / "w.pth")


# --- code in a file -----------------------------------------------------------------------------------------------

EXECUTED: list[str] = []


def execute(*arguments: Any) -> None:
    EXECUTED.append(str(arguments))


class Hostile:
    """Has any function called with any arguments when it is unpickled by others."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class OnSetState:
    def __setstate__(self, state: Any) -> None:
        EXECUTED.append("setstate")

    def __getstate__(self) -> Any:
        return {"x": 1}

    def __new__(cls) -> "OnSetState":
        EXECUTED.append("new")
        return super().__new__(cls)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_nothing_beside_the_weights_is_executed_or_imported(zipped: bool, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    code = f"open({str(mark)!r}, 'w')"
    hostile = [
        Hostile(execute, 1),
        Hostile(eval, code),
        Hostile(exec, code),
        Hostile(__import__, "antigravity"),
        Hostile(getattr, execute, "__call__"),
        Hostile(print, "executed"),
        OnSetState(),
        {"args": argparse.Namespace(x=Hostile(eval, code))},
    ]
    torch.save({"model": STATE, "args": hostile}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    EXECUTED.clear()
    _, state, _ = read_foreign(tmp_path / "w.pth")
    assert torch.equal(state["norm.bias"], STATE["norm.bias"])
    assert not EXECUTED and not mark.exists() and "antigravity" not in sys.modules


def test_a_function_of_the_system_is_refused(tmp_path: Path) -> None:
    import os

    mark = tmp_path / "executed"
    torch.save({"model": STATE, "args": Hostile(os.system, f"touch {mark}")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"not a file of plain tensors.*posix\.system.*is blocked"):
        read_foreign(tmp_path / "w.pth")
    assert not mark.exists()


def test_a_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    torch.save({"model": STATE, "x": Hostile(bytearray, 2**36)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="it calls bytearray, which can fill the memory"):
        read_foreign(tmp_path / "w.pth")


@pytest.mark.parametrize("names", [["DATA.PKL"], ["data.pkl", "data.pkl"]], ids=["in capitals", "twice"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_every_pickle_that_torch_may_read_is_searched(tmp_path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name, content in zip(
            names, (b"\x80\x02cbuiltins\nbytearray\nM\x00\x10\x85R.", b"\x80\x02}."), strict=False
        ):
            archive.writestr(f"a/{name}", content)
    with pytest.raises(WeightsError, match="it calls bytearray"):
        read_foreign(tmp_path / "w.pth")


def test_the_fifth_pickle_of_an_old_file_is_searched(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    keys = pickle.dumps([], 2)
    assert content.endswith(keys)
    (tmp_path / "w.pth").write_bytes(content.removesuffix(keys) + b"\x80\x02cbuiltins\nbytearray\nM\x00\x10\x85R.")
    with pytest.raises(WeightsError, match="it calls bytearray"):
        read_foreign(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("key", "says"),
    [(b")" + b"q\x00h\x00\x86" * 40, "same tuples again"), (b")" + b"\x85" * 10**6, "100 tuples nested in each other")],
)
def test_a_key_that_would_be_hashed_for_ever_is_refused(tmp_path: Path, key: bytes, says: str) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}" + key + b"Ns.")
    with pytest.raises(WeightsError, match=says):
        read_foreign(tmp_path / "w.pth")


def test_tuples_of_classes_and_settings_are_read(tmp_path: Path) -> None:
    betas, names = (0.9, 0.999), tuple(map(str, range(20_000)))
    torch.save({"model": STATE, "classes": names, "again": names, "groups": [betas] * 2000}, tmp_path / "w.pth")
    assert torch.equal(read_foreign(tmp_path / "w.pth")[1]["norm.bias"], STATE["norm.bias"])


def test_what_the_reader_lets_pass_it_lets_pass_once(tmp_path: Path) -> None:
    torch.save({"model": STATE} | trained(), tmp_path / "w.pth")
    read_foreign(tmp_path / "w.pth")
    assert Inert not in [one[0] if isinstance(one, tuple) else one for one in torch.serialization.get_safe_globals()]
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "w.pth", weights_only=True)
