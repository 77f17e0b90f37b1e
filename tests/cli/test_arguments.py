"""Each word of a line goes to its argument, and becomes what the argument's type says."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from mlpmixer import cli
from mlpmixer.cli import recipe_options
from mlpmixer.cli.arguments import converted, read
from mlpmixer.cli.recipe_options import SHORT
from mlpmixer.cli.train import Train
from mlpmixer.config import pair
from mlpmixer.data.config import Data
from mlpmixer.models.configs import Method, MixerConfig
from mlpmixer.models.names import MODELS
from mlpmixer.training.recipe import Distill, Recipe, Run, variant


def train(*args: str) -> Recipe:
    command = cli.parse(["train", *args]).make()
    assert isinstance(command, Train)
    return command.config


def leaves(config: Any, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    """Each option of a config and its value."""
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), f"{prefix}{f.name.replace('_', '-')}"
        yield from leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else [(name, value)]


def words_of(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, tuple) else [str(value)]


OPTIONS = dict(leaves(Recipe()))
SWITCHES = [name for name, value in OPTIONS.items() if isinstance(value, bool)]
BOTH = [f"{owner}.{no}{leaf}" for owner, _, leaf in (name.rpartition(".") for name in SWITCHES) for no in ("", "no-")]
VALUES = {
    name: value for name, value in OPTIONS.items() if name not in (*SWITCHES, "--data.name", "--model.num-classes")
}
FROM_DATA = [["train"], ["lr-find"], ["data", "preview", "--out", "x.png"]]


@pytest.mark.parametrize("switch", BOTH)
def test_switch_before_data(switch: str) -> None:
    needs = {"magnified": ["--init", "S/16:gsam"], "hard": ["--teacher", "teacher.onnx"]}
    start = next((words for name, words in needs.items() if switch.endswith(name)), [])
    command: Any = cli.parse(["train", *start, switch, "photos/"]).make()
    assert command.data == command.config.data.name == "photos/"
    owner, _, leaf = switch.removeprefix("--").rpartition(".")
    field = leaf.removeprefix("no-").replace("-", "_")
    assert getattr(getattr(command.config, owner), field) is not leaf.startswith("no-")
    with pytest.raises(ValueError, match=f"{switch} takes no value"):
        cli.parse(["train", f"{switch}=yes", "photos/"]).make()


@pytest.mark.parametrize("command", FROM_DATA, ids=" ".join)
def test_data_behind_switches(command: list[str]) -> None:
    line = ["--optim.mirror", "--augment.no-flip", "photos/", "--no-compile", "--lr", "0.1"]
    found: Any = cli.parse([*command, *line]).make()
    assert found.data == found.config.data.name == "photos/"
    assert (found.config.optim.mirror, found.config.optim.lr) == (True, 0.1)


@pytest.mark.parametrize("option", VALUES)
def test_option_before_data_takes_its_values_only(option: str) -> None:
    value = words_of(VALUES[option])
    underscored = f"--{option[2:].replace('-', '_')}"
    for words in ([option, *value], [f"{option}={value[0]}", *value[1:]], [underscored, *value]):
        line = read(Train, "mlpmixer train", [*words, "photos/", "--json"])
        assert (line.words, line.options[option][1:]) == (("photos/",), tuple(value))


def test_all_options_at_once_before_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_options, "INEFFECTIVE", ())  # which some of them are
    given = {k: v for k, v in VALUES.items() if v != "" and k != "--run.steps"} | {"--distill.teacher": "teacher.onnx"}
    words = [word for option, value in given.items() for word in (option, *words_of(value))]
    expected = dataclasses.replace(
        Recipe(), data=Data(name="photos/"), run=Run(test=False), distill=Distill(teacher="teacher.onnx")
    )
    expected = variant(expected, model={"num_classes": MODELS["Nano/8"].num_classes})  # of the recipe, until it trains
    assert train(*words, *BOTH[1::2], "photos/") == expected


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
def test_size_of_two_numbers(line: str) -> None:
    config = train(*line.split())
    assert (config.data.name, config.model.image_size) == ("photos/", (64, 32))


def test_data_may_look_like_a_number() -> None:
    assert train("--epochs", "3", "5").data.name == "5"
    assert train("--epochs", "3", "--", "5").data.name == "5"
    assert train("5", "--image-size", "64").data.name == "5"
    config = train("--image-size", "64", "32", "5")
    assert (config.data.name, config.model.image_size) == ("5", (64, 32))
    with pytest.raises(ValueError, match="which DATA"):  # 5 is the width
        train("--image-size", "64", "5")


def test_the_last_of_two_values_counts() -> None:
    twice = train("cifar10", "--recipe", "mnist", "--recipe=digits", "--lr", "0.1", "--optim.lr=0.2")
    assert (twice.name, twice.optim.lr, twice.data.name) == ("digits", 0.2, "cifar10")


def test_repeated_option_collects_its_values() -> None:
    command: Any = cli.parse(["reproduce", "cifar10-transfer", "--row", "B/16:imagenet21k", "--row", "S/16"]).make()
    assert command.row == ("B/16:imagenet21k", "S/16")


@pytest.mark.parametrize("line", ["--image-size 384 B/16", "--image-size 384 384 B/16", "--json --image_size=384 B/16"])
def test_option_before_model(line: str) -> None:
    command: Any = cli.parse(["summary", *line.split()]).make()
    assert command.model == "B/16"
    assert pair(command.config.image_size) == (384, 384)
    assert command.config.hidden_dim == MODELS["B/16"].hidden_dim


@pytest.mark.parametrize("size", ["--image-size 16", "--image-size 16 16", "--magnified --patch-size=4"])
@pytest.mark.parametrize("line", ["evaluate runs/x digits", "predict runs/x a.jpg -", "explain runs/x a.jpg b.jpg"])
def test_size_anywhere_on_a_line(line: str, size: str) -> None:
    words, options = line.split(), size.split()
    expected = cli.parse([*words, *options]).make()
    assert all(cli.parse([*words[:i], *options, *words[i:]]).make() == expected for i in range(1, len(words)))


@pytest.mark.parametrize("short", sorted(SHORT))
def test_short_option_is_the_long_one(short: str) -> None:
    values = {"device": "cpu", "precision": "float32", "time": "5m", "data-dir": "x", "fit": "pad"}
    values |= {"image-size": "16", "patch-size": "4", "resize": "nearest", "init": "S/16:gsam", "progressive": "4:0.5"}
    value = [] if short in ("compile", "test", "magnified") else [values.get(short, "3")]
    owner, leaf = SHORT[short].option.split(".")
    no = "no-" if short == "test" else ""  # it is on by default
    start = ["digits", "--init", "S/16:gsam"] if short in ("resize", "magnified") else ["digits"]
    recipe = train(*start, f"--{no}{short}", *value)
    assert recipe == train(*start, f"--{owner}.{no}{leaf}", *value) != train(*start)
    assert recipe == train(*start, f"--{no}{short.replace('-', '_')}", *value)


@dataclass(frozen=True, kw_only=True)
class ConvMixerConfig(MixerConfig):
    """An architecture with a field of its own."""

    kernel_size: int = 7
    gated: bool = False


def test_options_of_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "conv", ConvMixerConfig(num_blocks=3))
    options = ["--model.kernel-size", "9", "--model.gated", "photos/", "--model.hidden-dim", "64"]
    model = train("--model", "conv", *options).model
    assert model == ConvMixerConfig(num_blocks=3, kernel_size=9, gated=True, hidden_dim=64)
    assert train(*options[:0:-1][:2][::-1], "photos/", "--model=conv").model.hidden_dim == 64
    summary: Any = cli.parse(["summary", "--kernel-size", "5", "conv"]).make()
    assert summary.config == ConvMixerConfig(num_blocks=3, kernel_size=5)


def test_option_that_the_architecture_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "conv", ConvMixerConfig())
    with pytest.raises(ValueError, match=r"--model.kernel-size is not an option of MixerConfig; it has --model\."):
        train("photos/", "--model", "S/16", "--model.kernel-size", "9")
    with pytest.raises(ValueError, match=r"--kernel-size is not an option of MixerConfig; it has --image-size, "):
        cli.parse(["summary", "S/16", "--kernel-size", "9"]).make()


@pytest.mark.parametrize(
    ("hint", "words", "value"),
    [
        (int, "5", 5),
        (float, "5", 5.0),
        (float, "3e-4", 3e-4),
        (str, "5", "5"),
        (str, "None", "None"),
        (str | None, "None", None),
        (str | None, "x", "x"),
        (int | tuple[int, int], "5", 5),
        (int | tuple[int, int], "5 6", (5, 6)),
        (tuple[float, float], "1 2", (1.0, 2.0)),
        (tuple[str, ...], "a", ("a",)),
        (tuple[int, ...], "1 2 3", (1, 2, 3)),
        (Method, "nearest", "nearest"),
    ],
)
def test_words_become_the_type_of_the_field(hint: Any, words: str, value: Any) -> None:
    got = converted(hint, ("--x", *words.split()))
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("hint", "words", "says"),
    [
        (int, "5.5", "--x 5.5: expected a whole number"),
        (float, "fast", "--x fast: expected a number"),
        (float, "nan", "--x nan: expected a number"),
        (float, "", "--x: expected a number"),
        (int | tuple[int, int] | None, "wide", "--x wide: expected a whole number or 2 whole numbers"),
        (tuple[float, float], "0.9", "--x 0.9: expected 2 numbers"),
        (Method, "blocs", "--x blocs: expected bicubic, bilinear, nearest, blocks or parts; did you mean blocks?"),
    ],
)
def test_wrong_value_says_what_was_expected(hint: Any, words: str, says: str) -> None:
    with pytest.raises(ValueError) as error:
        converted(hint, ("--x", *words.split()))
    assert str(error.value) == says
