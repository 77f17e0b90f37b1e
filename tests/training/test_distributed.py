"""Several processes train as one does: the same batches, the same weights, exact after a death, and an end where a peer
is stuck."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import Forks
from PIL import Image

from mlpmixer.config import to_json
from mlpmixer.data.config import Data
from mlpmixer.models.architecture import build
from mlpmixer.models.configs import ASMLPConfig, NetworkConfig, RepMLPNetConfig
from mlpmixer.models.names import MIXERS, MODELS
from mlpmixer.training.augment import augment, mix
from mlpmixer.training.batches import row_range
from mlpmixer.training.distributed import ProcessGroup
from mlpmixer.training.recipe import Augment, Optim, Recipe, Run, read_recipe
from mlpmixer.training.start import require_one_part
from mlpmixer.training.stream import Order
from mlpmixer.weights import model_file, run_folder

SMALL = dataclasses.replace(MIXERS["Pico/2"], num_blocks=2, hidden_dim=24, tokens_mlp_dim=16, channels_mlp_dim=48)
EXACT = Recipe(  # nothing is drawn within the network; 130 images over 4 processes, two parts each, is uneven twice
    name="ranks",
    model=SMALL,
    data=Data(name="digits", val_fraction=0.3),
    augment=Augment(pad_crop_px=1, rotate_deg=5, mixup=0.2, cutmix=1.0, erasing=0.3),
    optim=Optim(
        name="sgd",
        lr=0.2,
        warmup_steps=3,
        ema_decay=0.9,
        clip_norm=0.5,
        label_smoothing=0.1,
        locality=3,
        sam_rho=0.05,
        head_steps=2,
    ),
    run=Run(steps=12, batch_size=130, accumulate=2, precision="float32", log_every=3, save_every_s=0, test=False),
)
MUON = dataclasses.replace(
    EXACT, optim=dataclasses.replace(EXACT.optim, name="muon", lr=1e-3, head_steps=0, mirror=True)
)
STREAMED = dataclasses.replace(EXACT, run=dataclasses.replace(EXACT.run, batch_size=20, progressive="4:0.5"))
RELATIVE = dataclasses.replace(
    EXACT,
    model=ASMLPConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, hidden_dims=(10, 20), depths=(1, 1)),
    optim=dataclasses.replace(EXACT.optim, locality=0),
)
NOISY = dataclasses.replace(MUON, model=dataclasses.replace(SMALL, dropout=0.1, drop_path=0.1))

LOST, STOPPED = 99, 100  # exit codes
JOB = (
    f"    LOST, STOPPED = {LOST}, {STOPPED}"
    + """
    import json, os, shutil, signal, sys, traceback
    from mlpmixer.training import finish, run, step
    from mlpmixer.training.recipe import Recipe
    from mlpmixer.config import from_json
    from mlpmixer.training.distributed import PeerLostError, ProcessGroup, connected
    from mlpmixer.training.loop import Interrupted

    update = step.TrainingStep.__call__

    def work(job, rank, meeting):
        def disturbed(self, batch, lr_factor):
            if [rank, batch.step] == job.get("at"):
                os.kill(os.getpid(), job["signal"])
            return update(self, batch, lr_factor)

        step.TrainingStep.__call__ = disturbed
        group = ProcessGroup(rank, job["ranks"], rank)
        try:
            with connected(group, 4.0, "file://" + meeting):
                run.train(from_json(Recipe, job["recipe"]), out=job["out"], resume=True, group=group)
        except Interrupted as stop:
            return STOPPED + stop.step
        except PeerLostError:
            return LOST
        return 0

    finish.write_report = lambda *_: None
    job = json.load(sys.stdin)
    if "after" in job:
        shutil.copytree(job["after"], job["out"])
    pids = []
    for rank in range(job["ranks"]):
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                os._exit(work(job, rank, job["out"] + ".meeting"))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])]
    for pid in pids[1:]:
        if job.get("signal") == signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    print(json.dumps(codes), flush=True)
"""
)


def job(recipe: Recipe, ranks: int, **more: Any) -> dict[str, Any]:
    """`ranks` processes that train. "signal" strikes a rank before a step, "at" = [rank, step]; "after": resumes a copy
    of the run of that name."""
    return {"recipe": to_json(recipe), "ranks": ranks, **more}


def shards(folder: Path) -> Data:
    """Three training shards of 20 images of noise, of which numbers 3, 10 and 17 are torn, and a sound one each for val
    and test."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    splits = {"train": ["train-0.tar", "train-1.tar", "train-2.tar"], "val": ["val-0.tar"], "test": ["test-0.tar"]}
    for name in (name for names in splits.values() for name in names):
        with tarfile.open(folder / name, "w") as tar:
            for i in range(20):
                image = io.BytesIO()
                Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(image, "PNG")
                torn = name.startswith("train") and i % 7 == 3
                for suffix, content in (("png", image.getvalue()[: 30 if torn else None]), ("cls", b"%d" % (i % 3))):
                    member = tarfile.TarInfo(f"{i:02}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    info = {split: {"filenames": names, "shard_lengths": [20] * len(names)} for split, names in splits.items()}
    (folder / "_info.json").write_text(json.dumps({"splits": info, "classes": ["a", "b", "c"]}))
    return Data(name=str(folder), lanes=4, buffer=32, workers=2, max_bad_share=0.2)


class Runs:
    """Runs by name, each trained when a test first asks for it."""

    def __init__(self, folder: Path, forked: Forks) -> None:
        self.folder, self.forked, self.done = folder, forked, dict[str, list[int]]()
        killed = {"at": [1, 7], "signal": int(signal.SIGKILL)}
        streamed = dataclasses.replace(STREAMED, data=shards(folder / "shards"))
        self.jobs: dict[str, dict[str, Any]] = {
            "one": job(EXACT, 1),
            "killed": job(EXACT, 2, **killed),
            "killed, then one": job(EXACT, 1, after="killed"),
            "killed, then four": job(EXACT, 4, after="killed"),
            "as-mlp, one": job(RELATIVE, 1),
            "as-mlp, two": job(RELATIVE, 2),
            "muon, one": job(MUON, 1),
            "muon, two": job(MUON, 2),
            "streamed, one": job(streamed, 1),
            "streamed, two": job(streamed, 2),
            "noisy": job(NOISY, 2),
            "noisy, killed": job(NOISY, 2, **killed),
            "noisy, killed, restarted": job(NOISY, 2, after="noisy, killed"),
            "noisy, told to stop": job(NOISY, 2, at=[1, 5], signal=int(signal.SIGTERM)),
            "noisy, told to stop, restarted": job(NOISY, 2, after="noisy, told to stop"),
            "measured": job(dataclasses.replace(EXACT, run=dataclasses.replace(EXACT.run, batch_size="auto")), 2),
            "stuck": job(EXACT, 2, at=[1, 5], signal=int(signal.SIGSTOP)),
        }

    def codes(self, name: str) -> list[int]:
        """The exit codes of its processes."""
        if name not in self.done:
            described = self.jobs[name] | {"out": str(self.folder / name)}
            if before := described.get("after"):
                described["after"] = str(self.path(before))
            done = self.forked(JOB, input=json.dumps(described))
            assert done.returncode == 0, done.stderr
            self.done[name] = json.loads(done.stdout)
        return self.done[name]

    def path(self, name: str) -> Path:
        self.codes(name)
        return self.folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, forked: Forks) -> Runs:
    return Runs(tmp_path_factory.mktemp("ranks"), forked)


def state(run: Path) -> dict[str, torch.Tensor]:
    """The last training state of a run: weights, their average, the optimizers'."""
    path = model_file.last_state(run)
    assert path is not None
    return model_file.read_tensors(path)[0]


def lines(run: Path, kind: str, key: str) -> list[float]:
    return [line[key] for line in run_folder.read_metrics(run / "metrics.jsonl") if line["kind"] == kind]


@pytest.mark.parametrize(
    ("alone", "several", "atol"),
    [
        ("one", "killed, then one", 1e-6),
        pytest.param("one", "killed, then four", 1e-6, marks=pytest.mark.slow),
        ("as-mlp, one", "as-mlp, two", 1e-6),
        ("streamed, one", "streamed, two", 1e-6),
        # Muon makes its matrices orthogonal in bfloat16: what rounds the other way is seen
        pytest.param("muon, one", "muon, two", 5e-4, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_trains_the_same_weights(alone: str, several: str, atol: float, runs: Runs) -> None:
    assert runs.codes(alone) == [0] and set(runs.codes(several)) == {0}
    one, others = runs.path(alone), runs.path(several)
    wanted, got = state(one), state(others)
    assert wanted.keys() == got.keys()
    for key in wanted:
        torch.testing.assert_close(got[key], wanted[key], atol=atol, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
    for key in ("loss", "top1"):  # several processes save, and so write a line, where they meet: every third step
        single = np.reshape(lines(one, "step", key), (4, 3)).mean(1)
        np.testing.assert_allclose(lines(others, "step", key)[:2], single[:2], atol=1e-5)
    for key in ("top1", "nll"):
        np.testing.assert_allclose(lines(others, "eval", key), lines(one, "eval", key), atol=1e-4)


@pytest.mark.parametrize("cfg", [RepMLPNetConfig(image_size=32, num_classes=2), MODELS["resnet-18"]])
def test_statistics_of_a_batch_are_not_those_of_its_parts(cfg: NetworkConfig) -> None:
    if cfg.architecture == "resnet":
        pytest.importorskip("transformers", reason='pip install "mlpmixer[rivals]"')
    with torch.device("meta"):
        model = build(cfg)
    require_one_part(model, 1, "run.accumulate")
    for option in ("run.accumulate", "training with several processes"):
        with pytest.raises(
            ValueError, match=rf"^{cfg.architecture} normalises with .*\(BatchNorm\), so {option} would"
        ):
            require_one_part(model, 2, option)


def test_processes_agree_on_a_measured_batch_size(runs: Runs) -> None:
    assert runs.codes("measured") == [0, 0]
    batch_size = read_recipe(runs.path("measured")).run.batch_size
    assert batch_size in (64, 128, 256) and isinstance(batch_size, int)  # of 1,005 images; 2 parts on 2 processes


def test_all_processes_know_unreadable_images(runs: Runs) -> None:
    torn = np.arange(60)[np.arange(60) % 20 % 7 == 3]
    order = Order(samples=(20, 20, 20), rows=20, lanes=4, block=4, seed=0)
    read = [
        np.isin(torn, np.concatenate([order.numbers(step)[half] for step in range(1, 13)]))
        for half in (slice(10), slice(10, 20))
    ]
    assert (read[0] & ~read[1]).any() and (read[1] & ~read[0]).any(), "by either process alone"
    for run in ("streamed, one", "streamed, two"):
        bad = json.loads((runs.path(run) / "summary.json").read_text())["bad_images"]
        assert sorted(name for name, _ in bad) == [f"train-{n // 20}.tar/{n % 20:02}" for n in torn]
        path = model_file.last_state(runs.path(run))
        assert path is not None and sorted(map(tuple, model_file.read_tensors(path)[1]["bad"])) == sorted(
            map(tuple, bad)
        )


def test_dead_process_ends_the_others(runs: Runs) -> None:
    assert runs.codes("killed") == runs.codes("noisy, killed") == [LOST, -signal.SIGKILL]


def test_stuck_process_ends_the_others(runs: Runs) -> None:
    assert runs.codes("stuck") == [LOST, -signal.SIGKILL]


def test_signal_to_one_process_stops_all(runs: Runs) -> None:
    assert runs.codes("noisy, told to stop") == [STOPPED + 6, STOPPED + 6]


@pytest.mark.parametrize(
    "name", ["noisy, killed, restarted", pytest.param("noisy, told to stop, restarted", marks=pytest.mark.slow)]
)
def test_two_processes_resume_bit_for_bit(name: str, runs: Runs) -> None:
    assert runs.codes("noisy") == runs.codes(name) == [0, 0]
    whole, restarted = state(runs.path("noisy")), state(runs.path(name))
    assert whole.keys() == restarted.keys() and all(torch.equal(whole[k], restarted[k]) for k in whole)
    assert lines(runs.path("noisy"), "eval", "nll") == lines(runs.path(name), "eval", "nll")


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_part_of_a_batch_is_augmented_as_in_the_whole(parts: int) -> None:
    everything = Augment(
        inception_crop=0.5, pad_crop_px=1, flip=True, randaugment_layers=1, trivialaugment=True, rotate_deg=10,
        zoom=0.1, zoom_out=0.2, shear=0.1, invert=0.5,
        color_jitter=0.2, noise=0.05, erasing=0.5, mixup=0.4, cutmix=1.0, mix_probability=0.8,
    )  # fmt: skip
    images = torch.randint(256, (10, 14, 14, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    targets = torch.eye(10)
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        whole = mix(augment(images, everything, (12, 12), generator), targets, everything, generator)
        pieces = []
        for part in range(parts):
            rows, generator = row_range(10, part, parts, overlap=1), torch.Generator().manual_seed(seed)
            here = torch.from_numpy(rows.indices)
            altered = augment(images[here], everything, (12, 12), generator, rows)
            pieces.append(mix(altered, targets[here], everything, generator, rows))
        for got, wanted in zip(map(torch.cat, zip(*pieces, strict=True)), whole, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("n", "parts"), [(7, 1), (7, 2), (8, 4), (130, 4), (5, 5)])
def test_rows_belong_to_one_part_and_overlap_by_one(n: int, parts: int) -> None:
    pieces = [row_range(n, part, parts, overlap=1) for part in range(parts)]
    assert [i for p in pieces for i in p.indices[: p.num_local]] == list(range(n))
    assert all(p.batch_size == n for p in pieces)
    assert max(p.num_local for p in pieces) - min(p.num_local for p in pieces) <= 1
    for p in pieces:
        following = [] if parts == 1 else [(p.indices[p.num_local - 1] + 1) % n]
        assert p.indices[p.num_local :].tolist() == following


def test_gloo_holds_no_tensor_after_an_exchange(forked: Forks, tmp_path: Path) -> None:
    code = """
    import os, sys
    import torch
    from mlpmixer.training.distributed import ProcessGroup, connected, sum_over_processes
    sys.setswitchinterval(5)  # gloo's thread gets the GIL only when it is let go
    other = os.fork()
    total = torch.ones(3)
    with connected(ProcessGroup(int(other == 0), 2), 60, "file://" + sys.argv[1]):
        references = sys.getrefcount(total)
        for _ in range(20):
            sum_over_processes(total)
            assert sys.getrefcount(total) == references
    if other == 0:
        os._exit(0)
    assert os.waitpid(other, 0)[1] == 0 and total.tolist() == [2**20] * 3
    """
    done = forked(code, tmp_path / "meeting")
    assert done.returncode == 0, done.stderr


def test_single_process_exchanges_nothing() -> None:
    alone = ProcessGroup()
    assert alone.is_main and alone.all_reduce([1.5]) == [1.5] and alone.broadcast("x") == "x"
    assert alone.gather(2) == [2] and alone.on_main(lambda: 3) == 3 and alone.any(True, False) == (True, False)


def torchrun(*args: str, ranks: int = 2, restarts: int = 0) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
    ]
    return subprocess.Popen(
        [*command, "-m", "mlpmixer", *args], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for_a_checkpoint(running: "subprocess.Popen[str]", run: Path) -> None:
    while not model_file.states(run):
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)


COMMAND = (
    "train",
    "digits",
    "--steps",
    "100",
    "--run.save-every-s",
    "0",
    "--run.log-every",
    "10",
    "--no-test",
    "--resume",
    "--out",
)


@pytest.mark.slow
@pytest.mark.timeout(900)  # each process takes as long to import torch as all the rest
def test_torchrun_restart_ends_with_the_same_bits(tmp_path: Path) -> None:
    with torchrun(*COMMAND, str(tmp_path / "whole")) as whole:
        out, _ = whole.communicate()
    assert whole.returncode == 0 and out.count("validation top-1") == 1
    with torchrun(*COMMAND, str(tmp_path / "struck"), restarts=1) as struck:
        wait_for_a_checkpoint(struck, tmp_path / "struck")
        children = Path(f"/proc/{struck.pid}/task/{struck.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        out, err = struck.communicate()
    assert struck.returncode == 0 and "has lost another" in err and out.count("validation top-1") == 1, err
    first, second = state(tmp_path / "whole"), state(tmp_path / "struck")
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
@pytest.mark.timeout(900)  # each process takes as long to import torch as all the rest
def test_torchrun_ctrl_c_saves_and_four_processes_resume(tmp_path: Path) -> None:
    with torchrun(*COMMAND, str(tmp_path / "run")) as running:
        wait_for_a_checkpoint(running, tmp_path / "run")
        running.send_signal(signal.SIGINT)
        _, err = running.communicate()
    assert err.count("saved; to resume: mlpmixer train --resume") == 1
    with torchrun(*COMMAND, str(tmp_path / "run"), ranks=4) as resumed:
        _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 100
    assert json.loads((tmp_path / "run" / "env.json").read_text())["processes"] == 4


@pytest.mark.slow
@pytest.mark.timeout(900)  # each process takes as long to import torch as all the rest
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("train", "digits", "--epoch", "3"), "no option --epoch; did you mean --epochs"),
        (("train", "digitz"), "did you mean digits"),
        (("train", "digits", "--batch-size", "1"), "2 processes cannot share a batch of 1"),
    ],
)
def test_errors_are_printed_once(args: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with torchrun(*args, "--out", str(tmp_path / "run")) as failed:
        _, err = failed.communicate()
    assert failed.returncode and err.count(words) == 1, err
    assert not (tmp_path / "run").exists()
