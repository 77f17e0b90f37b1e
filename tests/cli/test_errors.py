"""A mistake gets one line that says what is right, exit code 2, and leaves nothing behind."""

import io
import os
import signal
import sys
from pathlib import Path

import pytest
from helpers.lines import RunLine

from mlpmixer import cli
from mlpmixer.cli import printing
from mlpmixer.cli.arguments import similar_options

FROM_DATA = [["train"], ["lr-find"], ["data", "preview", "--out", "x.png"], ["data", "check"], ["data", "shards"]]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian digits", "did you mean train? ("),
        ("data chek digits", "did you mean data check? ("),
        ("train digits --recipe cifar01", "cifar10"),
        ("train digits --model S/17", "S/16"),
        ("train digits --optim.lrr 3", "did you mean --optim.lr"),
        ("train digits --quite", "did you mean --quiet"),
        ("train digits --tech", "--teacher"),
        ("train digits --qqqq", "mlpmixer train --help-all"),
        ("train digits --quiet=1", "--quiet takes no value"),
        ("train digits -epochs 3", "--epochs"),
        ("train digits -1", "digits, -1"),
        ("train digits --lr --quiet", "--lr: expected a number"),
        ("train digits --image-size", "--image-size: expected a whole number or 2 whole numbers"),
        ("train digits --image-size 8 8 8", "digits, 8"),
        ("train digits --image-size -8", "positive"),
        ("train digits --image-size wide", "--image-size wide: expected a whole number"),
        ("train digits --optim.betas 0.9", "--optim.betas 0.9: expected 2 numbers"),
        ("summary", "which MODEL|RUN? mlpmixer summary MODEL|RUN"),
        ("convert runs/x", "which FILE? mlpmixer convert RUN FILE"),
        ("train digits --optim.name adam", "did you mean adamw?"),
        ("train digits --lr fast", "--lr fast: expected a number"),
        ("train digits --lr -1", "--lr must be positive"),
        ("train digits --model S/16 --image-size 100", "nearest that is: 96x96"),
        ("train digits mnist", "too many arguments: digits, mnist; expected mlpmixer train DATA"),
        ("train photos/ --data.name cifar10", "photos/, cifar10"),
        ("train --optim.mirror photos/ --epochs 3 cifar10", "photos/, cifar10"),
        ("train digits --teacher no/such/run --out x", "no/such/run does not exist"),
        ("train digits --run.repeats 3", "--run.repeats=3 must divide --batch-size=64"),
        ("train digits --distill.alpha 2 --teacher x", "--distill.alpha must be in (0, 1]"),
        ("train digits --steps 1000000000000000000", "--steps must be at most 1,000,000,000, got 1000000000000000000"),
        ("train digits --epochs 1e18", "--epochs must be at most 1,000,000, got 1e+18"),
        ("train digits --epochs 1e300", "--epochs must be at most 1,000,000"),
        ("train digits --batch-size 1000000000000", "--batch-size must be at most 1,048,576"),
        ("train digits --image-size 1000000000 --patch-size 1000000000", "--image-size must be at most"),
        ("train digits --patch-size 1000000000", "--patch-size"),
        ("train digits --time 999999999999h", "'999999999999h' is more than a year"),
        ("train digits --time 30x", "'30x' is not a time"),
        ("train digits --run.eval-every 1e300", "--run.eval-every must be at most 1,000,000"),
        ("train digits --data.workers 1000000000", "--data.workers must be in 0..1024"),
        ("train digits --data.train-scale 1e9", "--data.train-scale must be in [1, 16]"),
        ("train digits --augment.pad-crop-px 1000000000", "--augment.pad-crop-px must be at most 1,000"),
        ("serve x --workers 1000000000", "--workers must be 1 to 256"),
        ("train digits --progressive 4:0.5,4:0.6", "--progressive='4:0.5,4:0.6': images must grow up to --image-size"),
        ("train digits --image-size 9", "--image-size 9x9 px is not a multiple of --patch-size 2x2"),
        ("train digits --run.epochs 0", "--run.epochs must be positive"),
        ("train digits --magnified", "--magnified need --init"),
        ("train digits --init runs/nope", "runs/nope does not exist: expected a run folder"),
        (
            "train digits --init B/16:imagenet21",
            "does not exist; did you mean B/16:imagenet21k? Expected a run folder, ",
        ),
        ("train no/such/folder", "no/such/folder"),
        ("train digitz", "digits"),
        ("train digits --seed -3 --out x", "--seed must be in [0, 2^63), got -3"),
        ("train digits --data.split-seed -1", "--data.split-seed must not be negative"),
        ("train digits --model=", "--model: expected a value"),
        ("train digits --out=", "--out: expected a value"),
        ("train digits --resume no/such/run", "no/such/run"),
        ("train digits --device tpu --out x", "cpu"),
        ("evaluate no/such/run digits", "no/such/run"),
        ("evaluate no/such/run digits --tta flop", "did you mean flip?"),
        ("evaluate no/such/run digits --temperature --split val", "--split val cannot judge it"),
        ("evaluate no/such/run digits --real no/such.json", "no file no/such.json"),
        ("evaluate S/16 digits", "S/16 is an architecture: expected trained weights, S/16:gsam or a run"),
        (
            "predict vip-s/7 x.png",
            "expected trained weights, their file or a run (mlpmixer train DATA --model vip-s/7)",
        ),
        ("evaluate S/16 digits --resize nearest", "give image_size or patch_size, too"),
        ("compare no/such/run no/such/other digits", "no/such/run"),
        ("predict no/such/run x.png", "no/such/run"),
        ("predict no/such/run", "which images"),
        ("predict x.png y.png --features f.txt", "ends in .npz or .csv"),
        ("probe no/such/run digits", "no/such/run"),
        ("convert nope.npz out.npz", "nope.npz does not exist"),
        ("summary B/17", "B/16"),
        ("summary B/16 --image-size 100", "96x96"),
        ("data", "which command? mlpmixer data check, mlpmixer data preview or mlpmixer data shards"),
        ("list modles", "did you mean models?"),
        ("data check digitz", "digits"),
        ("data preview digits", "which FILE? mlpmixer data preview DATA --out FILE"),
        ("reproduce cifar10-transfr", "cifar10-transfer"),
        ("--trian", "train"),
    ],
)
def test_mistake(line: str, says: str, run: RunLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*line.split())
    assert (code, out) == (2, "")
    assert says in err and err.startswith("mlpmixer: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_a_misspelt_folder_is_named_with_or_without_its_slash(
    run: RunLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("fotos", "fotos/", f"{tmp_path}/fotos//"):
        assert "did you mean " in (err := run("train", name)[2]) and "photos?" in err


@pytest.mark.parametrize(("command", "name"), [("predict", "SRC"), ("explain", "IMAGE")])
def test_an_empty_name_among_images_is_refused(command: str, name: str, run: RunLine) -> None:
    assert run(command, "digits", "x.png", "") == (2, "", f"mlpmixer: {name}: expected a value\n")


@pytest.mark.parametrize("command", FROM_DATA, ids=" ".join)
@pytest.mark.parametrize("empty", [[], [""]], ids=["none", "an unset variable"])
def test_without_data_nothing_starts(
    command: list[str], empty: list[str], run: RunLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*command, *empty)
    name = " ".join(word for word in command[:2] if not word.startswith("-"))
    assert (code, out) == (2, "")
    assert err.startswith(f"mlpmixer: which DATA? mlpmixer {name} DATA") and "such as digits" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train digits --model resmlp-s12 --init RUN", "is not the network of --init"),
        ("train digits --model B/16 --init RUN", "instead of 768, tokens_mlp_dim"),
        ("predict RUN x.png --threads 1000000000", "at most 1,024 threads and streams, got 1,000,000,000"),
        ("train digits --epochs 999999 --recipe digits --batch-size 1 --out new", "--epochs=999999 are 1,"),
        ("evaluate RUN --image-size 9", "nearest that is: 8x8"),
        ("evaluate RUN --image-size 12 --resize blocks", "for any other grid use method='bicubic'"),
        ("evaluate RUN --in-channels 0", "--in-channels must be at least 1"),
        ("evaluate RUN --resize cubic", "did you mean bicubic?"),
        ("evaluate RUN --patch-sise 4", "--patch-size"),
        ("probe RUN --in-channels 2", "files hold 1 or 3 channels, the model has 2"),
        ("train digits --init RUN --patch-size 3 --image-size 16", "nearest that is: 15x15"),
        ("train digits --init RUN --image-size 16 --resize blocs", "blocks"),
        ("train digits --out RUN", "already holds a run: name another (--out), or go on with it (--resume "),
    ],
)
def test_mistake_about_a_run(line: str, says: str, digits_run: Path, run: RunLine) -> None:
    code, out, err = run(*line.replace("RUN", str(digits_run)).split())
    assert (code, out) == (2, "") and says in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("export RUN --out x.foo", "expected a file that ends in .onnx"),
        ("export RUN --out folder.onnx", "folder.onnx exists already: name another (--out)"),
        ("export RUN --to bundle --out file", "file exists already"),
        ("export RUN --out /proc/x.onnx", "--out /proc/x.onnx cannot be written: "),
        ("export RUN --out file/x.onnx", "--out file/x.onnx cannot be written: Not a directory"),
        ("evaluate RUN --html folder.onnx", "--html folder.onnx is a folder: name a file"),
        ("evaluate RUN --html /proc/x.html", "--html /proc/x.html cannot be written"),
        ("explain RUN x.png --out file", "--out file is a file: name a folder"),
        ("explain RUN x.png --out /proc/x", "--out /proc/x cannot be written"),
        ("predict RUN x.png --out folder.onnx", "--out folder.onnx is a folder"),
        (
            "predict RUN x.png --features folder.onnx",
            "folder.onnx: expected a name that ends in .npz or .csv",
        ),
        ("predict RUN x.png --features /proc/x.csv", "--features /proc/x.csv cannot be written"),
        ("bench RUN --csv folder.onnx", "--csv folder.onnx is a folder"),
        ("train digits --out file", "--out file is a file: name a folder"),
        ("train digits --out /proc/x", "--out /proc/x cannot be written"),
        ("lr-find digits --out x.jpg", "--out x.jpg: expected a name that ends in .png"),
        ("lr-find digits --out /proc/x.png", "--out /proc/x.png cannot be written"),
        ("data preview digits --out x.jpg", "--out x.jpg: expected a name that ends in .png"),
        ("data shards digits file", "OUT file is a file: name a folder"),
        ("data shards digits .", "OUT . is not an empty folder: name a new one"),
        ("data shards digits /proc/x", "OUT /proc/x cannot be written"),
        ("convert RUN /proc/x.npz", "FILE /proc/x.npz cannot be written"),
    ],
)
def test_place_that_cannot_be_written_is_refused_before_the_model_is_looked_for(
    line: str, says: str, run: RunLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.onnx").mkdir()
    Path("file").touch()
    code, out, err = run(*line.replace("RUN", "no/such/run").split())
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.onnx"]


@pytest.mark.parametrize(
    ("command", "word", "options"),
    [
        ("train", "--imagesize", "--image-size"),
        ("train", "--imgsz", "--image-size"),
        ("train", "--img-size", "--image-size"),
        ("train", "--batchsize", "--batch-size"),
        ("train", "-b", "--batch-size"),
        ("train", "--learning-rate", "--lr"),
        ("train", "--lr0", "--lr"),
        ("train", "--opt", "--optim.name"),
        ("train", "--weight-decay", "--optim.weight-decay"),
        ("train", "--wd", "--optim.weight-decay"),
        ("train", "--num-workers", "--data.workers --threads"),
        ("train", "--num-threads", "--threads"),
        ("train", "--num-classes", "--model.num-classes"),
        ("train", "--pretrained", "--init --resume"),
        ("train", "--amp", "--precision=bfloat16"),
        ("train", "--no-tst", "--no-test"),
        ("train", "--optim.no-mirrror", "--optim.no-mirror"),
        ("train", "--epcohs", "--epochs"),
        ("train", "--data", "DATA --data-dir"),
        ("train", "--qqqq", ""),
        ("predict", "--json", "--format=json"),
        ("predict", "--batch", "--batch-size"),
        ("export", "--format", "--to"),
        ("export", "--batch-size", "--batch"),
        ("export", "--int-8", "--int8"),
        ("serve", "-p", "--port"),
    ],
)
def test_option_of_another_program_or_spelling(command: str, word: str, options: str) -> None:
    assert similar_options(word, cli.command(command)) == options.split()


def test_message_about_a_file_keeps_the_names_in_it(
    run: RunLine, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (digits_run / "recipe.json").read_text().replace('"log_every": 10', '"log_every": "often"')
    (tmp_path / "recipe.json").write_text(recipe)
    assert "recipe.json: run.log_every='often': expected int" in run("train", "--resume", str(tmp_path))[2]


def test_no_message_is_longer_than_a_screen(run: RunLine) -> None:
    code, _, err = run("train", "digits", "--lr", "x" * 100_000)
    assert code == 2 and len(err) < 1100
    assert err.startswith("mlpmixer: --lr xxx") and err.endswith("xxx: expected a number\n")
    assert "... (99,0" in err
    long = printing.within_a_screen("\n".join(["what came"] + ["x"] * 1000 + ["what to type"]))
    assert long.count("\n") < 12 and long.startswith("what came\n") and long.endswith("\nwhat to type")


def test_system_error_names_the_file_without_its_number(run: RunLine, tmp_path: Path) -> None:
    assert run("train", "digits", "--resume", str(tmp_path / ("x" * 300)))[2].endswith(": File name too long\n")


@pytest.mark.parametrize("line", ["--help", "data --help", "train --help", "help train", "list models", "--version"])
def test_reader_that_has_had_enough_gets_no_traceback(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert cli.main(line.split()) == 1
    assert capsys.readouterr().err == ""


def test_standard_output_may_be_closed_or_lack_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["--version"]) == 0
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    monkeypatch.setattr(cli.command("list"), "__call__", lambda self: print("Käfer 猫") or 0)
    assert cli.main(["list", "models"]) == 0
    assert ascii_only.buffer.getvalue() == b"K\\xe4fer \\u732b\n"  # type: ignore[attr-defined]


def test_ctrl_c_is_one_line(run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.command("list"), "__call__", lambda self: signal.raise_signal(signal.SIGINT) or 0)
    assert run("list", "models") == (130, "", "mlpmixer: interrupted\n")


def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli.command("list"), "__call__", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["list", "models"])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory: you tried")])
def test_lack_of_memory_is_one_line(error: Exception, run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(self: object) -> int:
        raise error

    monkeypatch.setattr(cli.command("list"), "__call__", large)
    code, _, err = run("list", "models")
    assert code == 1 and err.startswith("mlpmixer: not enough memory: try") and err.count("\n") == 1


def test_full_disk_is_one_line_and_exit_code_1(run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object) -> int:
        raise OSError(28, "No space left on device", "runs/x/model.safetensors")

    monkeypatch.setattr(cli.command("list"), "__call__", full)
    code, _, err = run("list", "models")
    assert code == 1
    assert "No space left on device" in err and "runs/x/model.safetensors" in err


@pytest.mark.parametrize("line", ["train digits --epoch 3", "train digits --recipe digitz"])
def test_first_process_of_a_machine_reports(line: str, run: RunLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "SPEAKING_S", 0.0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run(*line.split()) == (2, "", "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert run(*line.split())[2].startswith("mlpmixer: ")
