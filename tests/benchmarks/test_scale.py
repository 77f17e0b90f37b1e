"""docs/how-to/scale.md: its tables are what examples/scale.py prints, its formulas count what torch does, and its Slurm
script runs."""

import dataclasses
import importlib.util
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlpmixer import cli
from mlpmixer.config import pair
from mlpmixer.models import kernels
from mlpmixer.models.architecture import create_model
from mlpmixer.models.mixer import Mixer
from mlpmixer.models.names import MIXERS
from mlpmixer.reproduce.cost import LiveMemory

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "how-to" / "scale.md").read_text(encoding="utf-8")
SCRIPT = re.search(r"```bash\n(#!/bin/bash\n.*?)```", DOC, re.S)[1]  # type: ignore[index]
COMMAND = shlex.split(re.search(r"^srun (.*?) &$", SCRIPT.replace("\\\n", " "), re.M | re.S)[1])  # type: ignore[index]
MODEL = dataclasses.replace(MIXERS["Nano/4"], num_blocks=2, activation="gelu_tanh")


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "examples" / "scale.py")
    assert spec and spec.loader
    module = sys.modules["scale"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_has_the_printed_tables(scale: ModuleType) -> None:
    wanted = {f"**{name}**\n\n{text}\n" for name, text in scale.tables(scale.Plan()).items()} | {scale.published()}
    assert len(wanted) == 8 and all(text in DOC for text in wanted), "paste what `python examples/scale.py` prints"


@pytest.mark.parametrize("name", MIXERS)
def test_formula_counts_the_flops_of_summary(scale: ModuleType, name: str) -> None:
    assert scale.forward_flops(MIXERS[name]) == sum(layer.flops for layer in MIXERS[name].layers())


class NormInFloat32(nn.LayerNorm):
    """As autocast computes it on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)


def network(kind: str) -> Mixer:
    model = create_model(MODEL).train()
    model.checkpointing = kind.startswith("checkpointing")
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm) and kind.endswith("float32 norms"):
            layer.__class__ = NormInFloat32
    return model


def logits_of(model: Mixer, n: int) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(torch.randn(n, MODEL.in_channels, *pair(MODEL.image_size))).float()


def for_an_image(count: Callable[[int], int]) -> float:
    """What one more image adds."""
    return (count(6) - count(2)) / 4


def saved_bytes(model: Mixer, n: int) -> int:
    """What autograd keeps of a batch, each memory counted once; parameters are there anyway."""
    here = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage()._cdata] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = logits_of(model, n).logsumexp(1)  # keeps its argument, as a loss does, and its value
    return sum(s.nbytes() for key, s in kept.items() if key not in here) - out.nbytes


@pytest.mark.parametrize("kind", ["plain", "plain, float32 norms", "checkpointing", "checkpointing, float32 norms"])
def test_formula_counts_saved_activations(scale: ModuleType, kind: str) -> None:
    formula = scale.kept_bytes(MODEL, 4 if kind.endswith("float32 norms") else 2, kind.startswith("checkpointing"))
    assert for_an_image(lambda n: saved_bytes(network(kind), n)) == formula


@pytest.mark.skipif(bool(kernels.missing()), reason="no compiled kernels here")
def test_compiled_kernels_save_hidden_layers_once(scale: ModuleType) -> None:
    model = network("plain")
    kernels.install(model)
    hidden = MODEL.hidden_dim * MODEL.tokens_mlp_dim + MODEL.num_patches * MODEL.channels_mlp_dim
    assert for_an_image(lambda n: saved_bytes(model, n)) == scale.kept_bytes(MODEL, 2) - 2 * MODEL.num_blocks * hidden


@pytest.mark.parametrize("checkpointing", [False, True])
def test_formula_bounds_the_memory_of_a_step(scale: ModuleType, checkpointing: bool) -> None:
    def peak(n: int) -> int:
        model = network("checkpointing, float32 norms" if checkpointing else "plain, float32 norms")
        with LiveMemory() as memory:
            logits_of(model, n).logsumexp(1).sum().backward()
        return memory.peak

    assert 0.7 < for_an_image(peak) / scale.image_bytes(MODEL, checkpointing) < 1


def test_impossible_plan_is_refused(
    scale: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="gpus must be positive"):
        scale.Plan(gpus=(8, 0))
    with pytest.raises(ValueError, match="did you mean"):
        scale.tables(scale.Plan(model="H/15"))
    assert "does not fit" in scale.tables(scale.Plan(gpu_gb=(12,)))["Memory of a GPU"]


# --- the Slurm script
# -----------------------------------------------------------------------------------------------------


def test_slurm_command_parses() -> None:
    from torch.distributed.run import get_args_parser

    at = COMMAND.index("torchrun")
    asked = get_args_parser().parse_args(
        ["--nproc-per-node=8" if a == "--nproc-per-node=gpu" else a for a in COMMAND[at + 1 :]]
    )
    assert asked.module and asked.training_script == "mlpmixer" and asked.max_restarts == 3
    train: Any = cli.parse(asked.training_script_args).make()
    plan = train.config
    assert plan.run.steps == 0 and plan.run.epochs == 14 and plan.run.batch_size == 4096 and plan.run.accumulate == 1
    assert (
        plan.model == dataclasses.replace(MIXERS["H/14"]) and plan.optim.lr == 1e-3 and plan.optim.weight_decay == 0.03
    )
    assert (
        not plan.augment.randaugment_layers
        and not plan.augment.mixup
        and plan.augment.flip
        and plan.augment.inception_crop
    )


STUBS = {
    "srun": 'while [ "$1" != torchrun ]; do shift; done; "$@"',
    "torchrun": 'echo "$@" > args; echo $$ > pid; trap "exit 1" TERM; for i in $(seq 100); do sleep 0.1; done',
    "scancel": 'echo "$@" > signalled; kill -TERM "$(cat pid)"',
    "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "$@" >> queued; fi',
}


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("warned", [True, False])
def test_slurm_script_requeues_unless_it_fails(warned: bool, tmp_path: Path) -> None:
    (programs := tmp_path / "bin").mkdir()
    for name, text in STUBS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(stat.S_IRWXU)
    (tmp_path / "job").write_text(SCRIPT.replace("run=/shared/", f"run={tmp_path}/"))
    env = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
    }
    with subprocess.Popen(["bash", "job"], cwd=tmp_path, env=env) as job:
        end = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.3)
        if warned:
            job.send_signal(signal.SIGUSR1)
        else:
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        assert job.wait(30) == 1
    assert (
        "--nnodes=2" in (tmp_path / "args").read_text() and "--rdzv-endpoint=node1:" in (tmp_path / "args").read_text()
    )
    assert (tmp_path / "queued").exists() == (tmp_path / "signalled").exists() == warned
    if warned:
        assert (tmp_path / "queued").read_text().split() == ["requeue", "7"]
        assert (tmp_path / "signalled").read_text().split() == ["--signal=TERM", "7"]
