"""The command line: what it understands, what it prints, and how it ends."""

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlpmixer import cli
from mlpmixer.cli import arguments, printing, progress
from mlpmixer.config import pair
from mlpmixer.data.config import Data
from mlpmixer.models.names import MODELS
from mlpmixer.training.recipe import Recipe, Run
from mlpmixer.training.recipes import RECIPES

Line = Callable[..., tuple[int, str, str]]
QUICK = ["--steps", "2", "--batch-size", "16", "--model.num-blocks", "1", "--model.hidden-dim", "8", "--device", "cpu"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Line:
    """Run a command line; gives (exit code, stdout, stderr). tyro's boxes break lines, so runs of blanks are
    squeezed."""

    def call(*args: str) -> tuple[int, str, str]:
        code = cli.main(list(args))
        captured = capsys.readouterr()
        return code, captured.out, re.sub(r"[\s│]+", " ", captured.err)

    return call


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.main(["train", "digits", "--out", str(out), "--quiet", *QUICK]) == 0
    return out


def train_recipe(*args: str) -> Recipe:
    command = cli.parse(["train", *args])
    assert isinstance(command, cli.Train)
    return command.config


# --- options ------------------------------------------------------------------------------------------------------


def test_without_options_the_recipe_is_the_one_of_the_data() -> None:
    assert train_recipe("cifar10") == RECIPES["cifar10"]()


# DATA stands anywhere among the options, and is never taken for a value of one.


def leaves(config: Any, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """Each option of a config, as tyro names it, and its value."""
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), f"{prefix}{f.name.replace('_', '-')}"
        yield from leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else [(name, value)]


def words_of(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, tuple) else [str(value)]


OPTIONS = dict(leaves(Recipe()))
SWITCHES = [name for name, value in OPTIONS.items() if isinstance(value, bool)]
BOTH = [f"{owner}.{no}{leaf}" for owner, _, leaf in (name.rpartition(".") for name in SWITCHES) for no in ("", "no-")]
VALUES = {name: value for name, value in OPTIONS.items() if name not in (*SWITCHES, "--data.name")}
FROM_DATA = [["train"], ["lr-find"], ["data", "preview", "--out", "x.png"]]


@pytest.mark.parametrize("switch", BOTH)
def test_a_switch_before_data_takes_no_value(switch: str) -> None:
    start = ["--init", "S/16:gsam"] if "magnified" in switch else []
    command: Any = cli.parse(["train", *start, switch, "photos/"])
    assert command.data == command.config.data.name == "photos/"
    owner, _, leaf = switch.removeprefix("--").rpartition(".")
    assert getattr(getattr(command.config, owner), leaf.removeprefix("no-")) is not leaf.startswith("no-")
    with pytest.raises(ValueError, match=f"{switch} takes no value"):
        cli.parse(["train", f"{switch}=yes", "photos/"])


@pytest.mark.parametrize("command", FROM_DATA, ids=" ".join)
def test_all_that_starts_from_data_finds_it_behind_switches(command: list[str]) -> None:
    line = ["--optim.mirror", "--augment.no-flip", "photos/", "--no-compile", "--lr", "0.1"]
    found: Any = cli.parse([*command, *line])
    assert found.data == found.config.data.name == "photos/"
    assert (found.config.optim.mirror, found.config.optim.lr) == (True, 0.1)


@pytest.mark.parametrize("option", VALUES)
def test_an_option_before_data_keeps_to_its_values(option: str) -> None:
    value = words_of(VALUES[option])
    underscored = f"--{option[2:].replace('-', '_')}"
    for words in ([option, *value], [f"{option}={value[0]}", *value[1:]], [underscored, *value]):
        line = arguments.read(cli.Train, "mlpmixer train", [*words, "photos/", "--json"])
        assert (line.words, line.values(option)) == (("photos/",), tuple(value))


def test_all_options_at_once_stand_before_data() -> None:
    words = [word for option, value in VALUES.items() for word in (option, *words_of(value))]
    expected = dataclasses.replace(Recipe(), data=Data(name="photos/"), run=Run(test=False))
    assert train_recipe(*words, *BOTH[1::2], "photos/") == expected


@pytest.mark.parametrize(
    "line",
    [
        "--image-size 64 32 photos/",
        "--image-size=64 32 photos/",
        "--model.image_size 64 32 photos/ --epochs 3",
        "photos/ --image-size 64 32",
        "--no-compile photos/ --image-size 64 32",
        "--image-size 64 32 --data.name photos/",
        "--image-size 16 --image-size 64 32 photos/",
    ],
)
def test_sizes_of_two_numbers_stand_anywhere(line: str) -> None:
    config = train_recipe(*line.split())
    assert (config.data.name, config.model.image_size) == ("photos/", (64, 32))


def test_data_may_look_like_a_number() -> None:
    assert train_recipe("--epochs", "3", "5").data.name == "5"
    assert train_recipe("--epochs", "3", "--", "5").data.name == "5"
    assert train_recipe("5", "--image-size", "64").data.name == "5"
    config = train_recipe("--image-size", "64", "32", "5")
    assert (config.data.name, config.model.image_size) == ("5", (64, 32))
    with pytest.raises(ValueError, match="which DATA"):  # 5 is the width
        train_recipe("--image-size", "64", "5")


def test_options_given_twice_count_once_and_last() -> None:
    twice = train_recipe("cifar10", "--recipe", "mnist", "--recipe=digits", "--lr", "0.1", "--optim.lr=0.2")
    assert (twice.name, twice.optim.lr, twice.data.name) == ("digits", 0.2, "cifar10")


@pytest.mark.parametrize("command", [*FROM_DATA, ["data", "check"], ["data", "shards"]], ids=" ".join)
@pytest.mark.parametrize("empty", [[], [""]], ids=["none", "an unset variable"])
def test_without_data_nothing_starts(
    command: list[str], empty: list[str], run: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*command, *empty)
    name = " ".join(word for word in command[:2] if not word.startswith("-"))
    assert (code, out) == (2, "")
    assert err.startswith(f"mlpmixer: which DATA? mlpmixer {name} DATA") and "such as digits" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line", ["photos/ cifar10", "photos/ --data.name cifar10", "--optim.mirror photos/ --epochs 3 cifar10"]
)
def test_two_data_are_both_named(line: str, run: Line) -> None:
    code, _, err = run("train", *line.split())
    assert code == 2 and "photos/, cifar10" in err and "mlpmixer train DATA" in err


def test_a_command_and_its_recipe_name_the_same_data() -> None:
    with pytest.raises(ValueError, match="DATA is photos, and the recipe is for digits"):
        cli.Train(data="photos", config=RECIPES["digits"]())


@pytest.mark.parametrize("line", ["--image-size 384 B/16", "--image-size 384 384 B/16", "--json --image_size=384 B/16"])
def test_summary_takes_options_before_the_model(line: str) -> None:
    command: Any = cli.parse(["summary", *line.split()])
    assert command.model == "B/16"
    assert pair(command.config.image_size) == (384, 384)
    assert command.config.hidden_dim == MODELS["B/16"].hidden_dim


@pytest.mark.parametrize("size", ["--image-size 16", "--image-size 16 16", "--magnified --patch-size=4"])
@pytest.mark.parametrize("line", ["evaluate runs/x digits", "predict runs/x a.jpg -", "explain runs/x a.jpg b.jpg"])
def test_sizes_stand_anywhere(line: str, size: str) -> None:
    words, options = line.split(), size.split()
    expected = cli.parse([*words, *options])
    assert all(cli.parse([*words[:i], *options, *words[i:]]) == expected for i in range(1, len(words)))


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_the_options_read_are_those_of_the_help(command: str, run: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = run(*command.split(), "--help")[1].splitlines()
    rows = [row[1:].strip().split("  ")[0] for row in page if re.match("[ │] ?-", row)]
    shown = {name for row in rows for name in re.findall(r"--\w[\w.-]*", row)}
    assert shown == set(arguments.arguments_of(cli.COMMANDS[command]).options) | {"--help"}


def test_an_augreg_level_is_a_start_that_options_override() -> None:
    chosen = train_recipe("cifar10", "--augreg", "strong1", "--augment.mixup", "0.1").augment
    assert (chosen.randaugment_magnitude, chosen.mixup, chosen.cutmix, chosen.flip) == (20, 0.1, 0, True)
    with pytest.raises(ValueError, match="no AugReg level named 'strong'; did you mean strong"):
        train_recipe("cifar10", "--augreg", "strong")


@pytest.mark.parametrize("short", sorted(arguments.SHORT))
def test_a_short_option_is_the_long_one(short: str) -> None:
    value = {
        "device": "cpu",
        "precision": "float32",
        "time": "5m",
        "data-dir": "x",
        "fit": "pad",
        "image-size": "16",
    } | {
        "init": "S/16:gsam",
        "patch-size": "4",
        "resize": "nearest",
        "progressive": "4:0.5",
    }
    values = [] if short in ("compile", "test", "magnified") else [value.get(short, "3")]
    owner, leaf = arguments.SHORT[short].split(".")
    no = "no-" if short == "test" else ""  # it is on by default
    start = ["digits", "--init", "S/16:gsam"] if short in ("resize", "magnified") else ["digits"]
    short_form = train_recipe(*start, f"--{no}{short}", *values)
    assert short_form == train_recipe(*start, f"--{owner}.{no}{leaf}", *values) != train_recipe(*start)
    assert short_form == train_recipe(*start, f"--{no}{short.replace('-', '_')}", *values)


def test_options_override_the_recipe_and_leave_the_rest() -> None:
    base = RECIPES["cifar10"]()
    got = train_recipe("cifar10", "--optim.lr", "0.5", "--no-compile")
    assert got == dataclasses.replace(base, optim=dataclasses.replace(base.optim, lr=0.5))


def test_a_model_by_name_replaces_the_recipes_architecture() -> None:
    assert train_recipe("cifar10", "--model", "S/16").model == MODELS["S/16"]
    assert train_recipe("cifar10", "--model", "S/16", "--image-size", "64").model == dataclasses.replace(
        MODELS["S/16"], image_size=64
    )


def test_a_recipe_by_name_can_be_used_on_other_data() -> None:
    got = train_recipe("mnist", "--recipe", "cifar10")
    assert (got.name, got.data.name) == ("cifar10", "mnist")


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian digits", "train"),
        ("data chek digits", "data check"),
        ("train digits --recipe cifar01", "cifar10"),
        ("train digits --model S/17", "S/16"),
        ("train digits --optim.lrr 3", "--optim.lr"),
        ("train digits --quite", "--quiet"),
        ("train digits --tech", "--teacher"),
        ("train digits --qqqq", "mlpmixer train --help"),
        ("train digits --quiet=1", "--quiet takes no value"),
        ("train digits -epochs 3", "--epochs"),
        ("train digits -1", "digits, -1"),
        ("train digits --lr --quiet", "--optim.lr"),
        ("train digits --image-size", "--model.image-size"),
        ("train digits --image-size 8 8 8", "digits, 8"),
        ("train digits --image-size -8", "positive"),
        ("train digits --image-size wide", "--model.image-size"),
        ("train digits --optim.betas 0.9", "--optim.betas"),
        ("summary", "which MODEL|RUN? mlpmixer summary MODEL|RUN"),
        ("convert runs/x", "which FILE? mlpmixer convert RUN FILE"),
        ("train digits --optim.name adam", "adamw"),
        ("train digits --lr fast", "--optim.lr"),
        ("train digits --lr -1", "optim.lr must be positive"),
        ("train digits --model S/16 --image-size 100", "nearest that is: 96x96"),
        ("train digits mnist", "mnist"),
        ("train digits --teacher no/such/run --out x", "no/such/run does not exist"),
        ("train digits --run.repeats 3", "run.repeats=3 must divide run.batch_size"),
        ("train digits --distill.alpha 2", "distill.alpha must be in (0, 1]"),
        ("train no/such/folder", "no/such/folder"),
        ("train digitz", "digits"),
        ("train digits --resume no/such/run", "no/such/run"),
        ("train digits --device tpu --out x", "cpu"),
        ("evaluate no/such/run digits", "no/such/run"),
        ("evaluate no/such/run digits --tta flop", "did you mean flip?"),
        ("evaluate no/such/run digits --temperature --split val", "cannot be judged on them"),
        ("evaluate no/such/run digits --real no/such.json", "no file no/such.json"),
        ("compare no/such/run no/such/other digits", "no/such/run"),
        ("predict no/such/run x.png", "no/such/run"),
        ("predict no/such/run", "which images"),
        ("probe no/such/run digits", "no/such/run"),
        ("summary B/17", "B/16"),
        ("summary B/16 --image-size 100", "96x96"),
        ("list modles", "models"),
        ("data check digitz", "digits"),
        ("data preview digits", "--out"),
        ("reproduce cifar10-transfr", "cifar10-transfer"),
        ("--trian", "train"),
    ],
)
def test_a_mistake_is_answered_with_what_is_right_and_exit_code_2(
    line: str, says: str, run: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*line.split())
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli.List, "__call__", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["list", "models"])


def test_a_full_disk_is_one_line_and_exit_code_1(run: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object) -> int:
        raise OSError(28, "No space left on device", "runs/x/model.safetensors")

    monkeypatch.setattr(cli.List, "__call__", full)
    code, _, err = run("list", "models")
    assert code == 1
    assert "No space left on device" in err and "runs/x/model.safetensors" in err


# --- commands -----------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_no_arguments_is_a_mistake(run: Line) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert run()[0] == 2
    assert run("--version")[1].startswith("mlpmixer 0.")


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command: str, run: Line) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"usage: mlpmixer {command}" in out


@pytest.mark.parametrize("what", ["models", "weights", "datasets", "recipes"])
def test_list_prints_a_line_for_each_name(what: str, run: Line) -> None:
    code, out, _ = run("list", what)
    assert code == 0
    assert {"models": "S/16", "weights": "B/16:imagenet21k", "datasets": "cifar10", "recipes": "digits"}[what] in out


def test_summary_of_a_model_ends_with_the_papers_parameter_count(run: Line) -> None:
    assert "59,880,472 parameters" in run("summary", "B/16")[1]
    assert json.loads(run("summary", "B/16", "--json")[1])["params"] == 59_880_472


def test_doctor_finds_a_broken_torchvision(run: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from mlpmixer.cli import doctor

    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.28.0" if name == "torchvision" else installed(name))
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: 1 / 0)
    code, out, _ = run("doctor")
    assert code == 1
    assert "torchvision" in out and "pip uninstall torchvision" in out
    assert "torch " in out and "cpu features" in out


def test_training_prints_the_result_and_where_it_is(digits_run: Path, run: Line, tmp_path: Path) -> None:
    code, out, err = run("train", "digits", "--out", str(tmp_path / "run"), *QUICK)
    assert (code, err) == (0, "")
    assert "test top-1" in out and "2 steps" in out
    assert (tmp_path / "run" / "report.html").exists()
    assert str(tmp_path / "run" / "report.html") in out


def test_json_is_one_object_a_line(run: Line, tmp_path: Path) -> None:
    _, out, _ = run("train", "digits", "--out", str(tmp_path / "run"), "--json", *QUICK)
    kinds = [json.loads(line)["kind"] for line in out.splitlines()]
    assert (kinds[0], kinds[-1]) == ("start", "end") and "eval" in kinds


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_json({"loss": float("nan"), "rows": [float("inf"), 1.0]})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rows": [None, 1.0]}


def test_a_finished_run_is_not_overwritten(digits_run: Path, run: Line) -> None:
    code, _, err = run("train", "digits", "--out", str(digits_run), *QUICK)
    assert code == 2
    assert "already" in err


def test_a_default_run_directory_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Line) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "digits", "--quiet", *QUICK)[0] == run("train", "digits", "--quiet", *QUICK)[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["digits", "digits-2"]


def test_a_run_goes_on_as_it_was_started(digits_run: Path, run: Line) -> None:
    code, _, err = run("train", "--resume", str(digits_run), "--lr", "0.5")
    assert code == 2
    assert f"mlpmixer train --resume {digits_run}" in err
    assert run("train", "--resume", str(digits_run))[0] == 0


def test_ctrl_c_tells_how_to_go_on(monkeypatch: pytest.MonkeyPatch, run: Line, tmp_path: Path) -> None:
    from mlpmixer.training import run as training

    def stopped(recipe: Recipe, **kwargs: Any) -> None:
        raise training.Interrupted(1234, kwargs["out"])

    monkeypatch.setattr(training, "train", stopped)
    code, _, err = run("train", "digits", "--out", str(tmp_path / "run"))
    assert code == 130
    assert f"mlpmixer train --resume {tmp_path / 'run'}" in err and "1,234" in err


def test_a_diverged_run_is_a_failure_and_no_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, run: Line, tmp_path: Path
) -> None:
    from mlpmixer.training import run as training

    def diverged(recipe: Recipe, **kwargs: Any) -> None:
        raise training.Diverged("the loss is nan at step 7")

    monkeypatch.setattr(training, "train", diverged)
    code, _, err = run("train", "digits", "--out", str(tmp_path / "run"))
    assert code == 1
    assert "the loss is nan at step 7" in err


def test_progress_lines_off_a_terminal_and_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    start = {
        "kind": "start",
        "out": "runs/x",
        "device": "cpu",
        "precision": "float32",
        "params": 1000,
        "train_images": 10,
        "val_images": 2,
    }
    events = [
        start | {"classes": 3, "steps": 20, "kernels": "torch", "notes": ["val was cut from train"]},
        {
            "kind": "step",
            "step": 10,
            "epoch": 1.0,
            "loss": 1.5,
            "top1": 0.25,
            "lr": 0.1,
            "images_per_s": 2000.0,
            "peak_mib": 1234.5,
            "eta_s": 75.0,
        },
        {"kind": "eval", "step": 10, "epoch": 1.0, "split": "val", "top1": 0.5, "nll": 1.25},
        {"kind": "save", "step": 10},
        {"kind": "end", "summary": {}},
    ]
    report = progress.plain_training(every_s=0)
    for event in events:
        report(event)
    out = capsys.readouterr().out
    assert "float32 on cpu; kernels: torch\n" in out and "note: val was cut from train" in out
    assert "step 10/20  loss 1.5000  train 25.00 %  2,000 images/s  1,234 MiB  1 min 15 s left" in out
    assert "epoch 1  step 10  val: top-1 50.00 %, loss 1.2500" in out
    with progress.live_training() as live:
        for event in events:
            live(event)
    assert "val: top-1 50.00 %" in capsys.readouterr().out


def test_evaluate_prints_numbers_or_json_and_writes_a_page(digits_run: Path, run: Line, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, _ = run("evaluate", str(digits_run), "digits", "--html", str(page))
    assert code == 0
    assert "top-1" in out and "f1" in out and page.exists()
    assert "augmentation" not in out
    code, out, _ = run("evaluate", str(digits_run), "--tta", "flip,shift")
    first, second = out.splitlines()[:2]
    assert code == 0 and re.match(
        r"360 images  top-1 +[\d.]+ % \([\d.]+-[\d.]+\)  top-5 .* nll [\d.]+  ece [\d.]+  brier [\d.]+$", first
    )
    assert second.startswith("with test-time augmentation (flip, shift: the mean over 10 views)  top-1 ")
    numbers = json.loads(run("evaluate", str(digits_run), "--json")[1])
    assert numbers["n"] == json.loads((digits_run / "summary.json").read_text())["test"]["n"]


def test_evaluate_fits_a_temperature_on_validation_images(digits_run: Path, run: Line, tmp_path: Path) -> None:
    code, _, err = run("evaluate", str(digits_run), "--temperature")
    assert code == 2 and "on these 72 validation images the answers are no better than chance" in err  # after two steps
    assert run("train", "digits", "--out", str(tmp_path / "run"), "--steps", "50", *QUICK[2:])[0] == 0
    code, out, _ = run("evaluate", str(tmp_path / "run"), "--temperature")
    assert code == 0 and re.search(r"divided by the temperature [\d.]+ \(fitted on 72 validation images\)  nll", out)
    tempered = json.loads(run("evaluate", str(tmp_path / "run"), "--temperature", "--json")[1])["tempered"]
    assert tempered["n"] == 72 and tempered["temperature"] > 0 and len(tempered["reliability"]) == 15


def test_compare_says_which_model_is_better_or_that_it_is_a_draw(digits_run: Path, run: Line, tmp_path: Path) -> None:
    assert run("train", "digits", "--out", str(tmp_path / "b"), *QUICK, "--seed", "1")[0] == 0
    code, out, _ = run("compare", str(digits_run), str(tmp_path / "b"))
    assert code == 0
    assert f"A  {digits_run}" in out and re.search(r"(A|B) is better than (A|B) \(|a draw: ", out)
    assert "one recipe with two seeds" in out and "largest differences" in out
    numbers = json.loads(run("compare", str(digits_run), str(tmp_path / "b"), "digits", "--json")[1])
    assert numbers["n"] == 360 == sum(numbers[k] for k in ("both_right", "only_a", "only_b", "both_wrong"))
    assert numbers["verdict"] in out and (numbers["a"], numbers["b"]) == (str(digits_run), str(tmp_path / "b"))
    code, out, _ = run("compare", str(digits_run), str(digits_run))
    assert code == 0 and "a draw: both have the same" in out and "two seeds" not in out


def images(folder: Path, n: int = 2) -> list[str]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(n)]


def test_predict_writes_every_format(digits_run: Path, run: Line, tmp_path: Path) -> None:
    files = images(tmp_path / "pictures")
    for form, count in (("table", 2), ("csv", 1 + 2), ("json", 2 + 2), ("jsonl", 2)):
        code, out, _ = run("predict", str(digits_run), str(tmp_path / "pictures"), "--format", form, "--top-k", "1")
        assert code == 0
        assert all(f in out for f in files)
        assert len(out.splitlines()) == (2 * count if form == "table" else count)
    file = tmp_path / "out.jsonl"
    assert run("predict", str(digits_run), *files, "--format", "jsonl", "--out", str(file))[1] == ""
    assert [json.loads(line)["image"] for line in file.read_text().splitlines()] == files


def test_predict_names_bad_files_does_the_rest_and_ends_with_1(digits_run: Path, run: Line, tmp_path: Path) -> None:
    good = images(tmp_path / "pictures", 1)[0]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    code, out, err = run("predict", str(digits_run), str(bad), good)
    assert code == 1
    assert good in out and str(bad) in err


def test_predict_reads_a_list_from_standard_input(
    digits_run: Path, run: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = images(tmp_path / "pictures")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(files) + "\n"))
    code, out, _ = run("predict", str(digits_run), "-", "--format", "jsonl")
    assert code == 0
    assert [json.loads(line)["image"] for line in out.splitlines()] == files


def test_predict_writes_features(digits_run: Path, run: Line, tmp_path: Path) -> None:
    images(tmp_path / "pictures")
    assert run("predict", str(digits_run), str(tmp_path / "pictures"), "--features", str(tmp_path / "f.npz"))[0] == 0
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["features"].shape == (2, 8) and len(stored["names"]) == 2
        features = stored["features"]
    assert run("predict", str(digits_run), str(tmp_path / "pictures"), "--features", str(tmp_path / "f.csv"))[0] == 0
    table = (tmp_path / "f.csv").read_text().splitlines()
    np.testing.assert_allclose(np.array(table[1].split(",")[1:], float), features[0], rtol=1e-6)
    assert run("predict", str(digits_run), "x.png", "--features", "f.txt")[0] == 2


def test_summary_of_a_run_is_its_architecture(digits_run: Path, run: Line) -> None:
    stored = json.loads((digits_run / "summary.json").read_text())
    assert json.loads(run("summary", str(digits_run), "--json")[1])["params"] == stored["params"]


def test_data_check_and_preview(run: Line, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data").mkdir(exist_ok=True)
        rng = np.random.default_rng(len(name) + ord(name[0]))
        (tmp_path / "data" / name).mkdir()
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(
                tmp_path / "data" / name / f"{i}.png"
            )
    data = str(tmp_path / "data")
    assert run("data", "check", data)[0] == 0
    (tmp_path / "data" / "cat" / "broken.png").write_bytes(b"no image")
    code, out, _ = run("data", "check", data)
    assert code == 1
    assert "broken.png" in out
    assert any("broken.png" in name for name, _ in json.loads(run("data", "check", data, "--json")[1])["broken"])
    assert run("data", "preview", data, "--out", str(tmp_path / "p.png"), "--rows", "2", "--augment.flip")[0] == 0
    assert (tmp_path / "p.png").exists()


# --- trained weights ----------------------------------------------------------------------------------------------


def test_init_takes_the_architecture_from_the_weights_and_options_change_its_sizes(digits_run: Path) -> None:
    recipe = train_recipe("digits", "--init", str(digits_run), "--image-size", "16")
    assert recipe.init.weights == str(digits_run) and recipe.name == "retune" and recipe.run.epochs == 25
    assert train_recipe("mnist", "--init", str(digits_run), "--image-size", "16").name == "finetune"
    assert recipe.model == dataclasses.replace(MODELS["Pico/2"], num_blocks=1, hidden_dim=8, image_size=16)
    named = train_recipe("cifar10", "--init=B/16:imagenet21k").model
    assert named == dataclasses.replace(MODELS["B/16"], num_classes=21843)
    assert train_recipe("cifar10", "--init=B/16:imagenet21k").name == "finetune-published"
    assert train_recipe("cifar10", "--init=B/16:imagenet21k", "--recipe", "cifar10").optim.name == "muon"


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ("--patch-size 3", {"patch_size": 3, "image_size": 12}),
        ("--patch-size=4 --resize blocks", {"patch_size": 4, "image_size": 16}),
        ("--model.patch-size 3 2", {"patch_size": (3, 2), "image_size": (12, 8)}),
        ("--patch-size 4 --image-size 8", {"patch_size": 4}),
        ("--image-size 16 8 --resize parts", {"image_size": (16, 8), "parts": (2, 1)}),
        ("--image-size 16 --resize blocks", {"image_size": 16, "tokens_mlp_dim": 128}),
        ("--in-channels 3", {"in_channels": 3}),
    ],
)
def test_with_trained_weights_the_rest_of_the_architecture_follows_the_sizes(
    options: str, changes: dict[str, Any], digits_run: Path
) -> None:
    trained = dataclasses.replace(MODELS["Pico/2"], num_blocks=1, hidden_dim=8)
    recipe = train_recipe("digits", *options.split(), "--init", str(digits_run))
    assert recipe.model == dataclasses.replace(trained, **changes)


def test_the_sizes_of_train_are_those_of_evaluate_predict_and_probe(
    digits_run: Path, run: Line, tmp_path: Path
) -> None:
    sizes = ["--patch-size", "4", "--in-channels", "3", "--resize", "bilinear"]
    code, printed, err = run("evaluate", str(digits_run), "--json", *sizes)
    assert (code, err) == (0, "") and json.loads(printed)["n"] == 360
    picture = images(tmp_path / "pictures", 1)[0]
    answers = []
    for options in ([], ["--image-size", "16"], sizes):
        code, printed, err = run("predict", str(digits_run), picture, "--format", "json", *options)
        assert (code, err) == (0, "")
        answers.append(json.loads(printed)[0]["probability"])
    assert len(set(answers)) == 3
    code, printed, _ = run(
        "probe", str(digits_run), "--shots", "1", "--cache", str(tmp_path / "kept"), "--json", *sizes
    )
    assert code == 0 and json.loads(printed)["num_features"] == 8
    out = str(tmp_path / "tuned")
    assert run("train", "digits", "--init", str(digits_run), "--steps", "1", "--out", out, "--quiet", *sizes)[0] == 0
    tuned = json.loads((Path(out) / "recipe.json").read_text())
    assert (
        tuned["model"]["image_size"] == 16
        and tuned["model"]["in_channels"] == 3
        and tuned["init"]["resize"] == "bilinear"
    )


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("evaluate", "--image-size 9", "nearest that is: 8x8"),
        ("evaluate", "--image-size 12 --resize blocks", "for any other grid use method='bicubic'"),
        ("evaluate", "--in-channels 0", "in_channels must be at least 1"),
        ("evaluate", "--resize cubic", "bicubic"),
        ("evaluate", "--patch-sise 4", "--patch-size"),
        ("probe", "--in-channels 2", "files hold 1 or 3 channels, the model has 2"),
        ("train digits --init", "--patch-size 3 --image-size 16", "nearest that is: 15x15"),
        ("train digits --init", "--image-size 16 --resize blocs", "blocks"),
    ],
)
def test_sizes_that_do_not_fit_are_answered_with_what_does(
    command: str, options: str, says: str, digits_run: Path, run: Line
) -> None:
    code, out, err = run(*command.split(), str(digits_run), *options.split())
    assert code == 2 and says in err and out == "" and "Traceback" not in err


def test_a_run_is_fine_tuned_used_at_another_size_and_converted(run: Line, digits_run: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "tuned")
    code, _, _ = run(
        "train", "digits", "--init", str(digits_run), "--image-size", "12", "--steps", "2", "--out", out, "--quiet"
    )
    assert code == 0
    code, printed, _ = run("evaluate", out, "--image-size", "16")
    assert code == 0 and printed.startswith("360 images")
    npz = str(tmp_path / "w.npz")
    code, printed, noted = run("convert", out, npz)
    assert code == 0 and printed.strip() == npz and "class names and preprocessing are not part of this form" in noted
    code, printed, _ = run("evaluate", npz, "digits")
    assert code == 0 and printed.startswith("360 images")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["train", "digits", "--init", "runs/nope"], "runs/nope does not exist: expected a run folder"),
        (["train", "digits", "--init", "B/16:imagenet21"], "did you mean B/16:imagenet21k?"),
        (["evaluate", "S/16", "digits"], "S/16 does not exist: expected a run folder"),
        (["evaluate", "S/16", "digits", "--resize", "nearest"], "give --image-size or --patch-size, too"),
        (["train", "digits", "--magnified"], "are about init.weights (--init), and there are none"),
        (["convert", "nope.npz", "out.npz"], "nope.npz does not exist"),
    ],
)
def test_weights_that_are_not_there_get_help_and_exit_2(run: Line, line: list[str], says: str) -> None:
    code, _, err = run(*line)
    assert code == 2 and says in err and "Traceback" not in err


def test_resume_beside_out_starts_a_run_or_goes_on_with_it(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    for args in (
        ["train", "digits", "--lr", "0.1", "--out", out, "--resume"],
        ["train", "digits", "--resume", "--out", out, "--lr", "0.1"],
    ):
        command: Any = cli.parse(args)
        assert (command.out, command.resume, command.config.optim.lr) == (out, out, 0.1)
    spelt: Any = cli.parse(["train", "digits", "--resume", "latest", "--out", out])
    assert spelt.resume == out
    with pytest.raises(ValueError, match="which DATA"):
        cli.parse(["train", "--resume", "--out", out])


def test_resume_needs_no_data(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    for line in ("--resume RUN", "--out RUN --resume", "--resume=RUN --quiet", "--resume RUN digits"):
        command: Any = cli.parse(["train", *line.replace("RUN", str(digits_run)).split()])
        assert (command.resume, command.data) == (str(digits_run), "digits")
        assert command.config.model.hidden_dim == 8
    for line in ("mnist", "--data.name mnist", "--optim.mirror", "--recipe digits", "--out other"):
        with pytest.raises(ValueError, match="a run goes on as it was started"):
            cli.parse(["train", "--resume", str(digits_run), *line.split()])


def test_one_of_several_processes_knows_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert arguments.ranks_here() == {}
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(
        ValueError, match=r"WORLD_SIZE=4, but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set; .* torchrun"
    ):
        arguments.ranks_here()
    for name, value in (("LOCAL_RANK", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert arguments.ranks_here() == {"rank": 3, "size": 4, "local_rank": 1}
    monkeypatch.setattr(printing, "SPEAKING_S", 0.0)
    for args in (
        ["train", "digits", "--epoch", "3"],
        ["train", "digits", "--recipe", "digitz"],
    ):  # the first of its machine says it
        assert cli.main(args) == 2
        assert capsys.readouterr() == ("", "")


def test_a_command_that_torchrun_may_start_again_must_be_able_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ValueError, match="needs --out DIR --resume"):
        cli.parse(["train", "digits", "--out", "runs/x"])
