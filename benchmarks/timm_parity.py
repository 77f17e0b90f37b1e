"""timm live against ours, the same weights and the same photos: python benchmarks/timm_parity.py --photos DATA [DATA
...]

Run it with a Python that has timm and torchvision beside mlpmixer. No weights are fetched: timm's models get random
values of the true shapes.

- catalogue: what our table of published weights says of timm's files, against timm's own configurations.
- weights: each Mixer of timm as .safetensors and .pth -> ours, and ours -> timm (strict): the same logits; there and
back bit for bit.
- preprocessing: timm's transforms against ours of that name, on photos of DATA (whatever `mlpmixer train` reads) as
  they are, and on cuts of them of any shape and size.
- end to end: a weight file where the name of `mlpmixer list weights` looks for it, photo files, and the probabilities
of both.

Writes README.md and parity.json into results/timm. `--fixture FILE.npz` writes what the tests compare with instead, and
needs no photos.
"""

import argparse
import dataclasses
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

try:
    import timm
    import torchvision
except ImportError as e:
    raise SystemExit(
        f"this compares with timm as it runs: pip install timm torchvision, in an environment beside mlpmixer's own "
        f"({e})"
    ) from e
from timm.models._hub import HF_SAFE_WEIGHTS_NAME
from timm.models.mlp_mixer import MlpMixer

import mlpmixer
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_images
from mlpmixer.data.preprocess import Preprocess, create_preprocess
from mlpmixer.download import cache_path
from mlpmixer.durable import write_json
from mlpmixer.hardware import device_name
from mlpmixer.models import names
from mlpmixer.models.mixer import EPS, Mixer
from mlpmixer.weights import published, run_folder
from mlpmixer.weights.formats import name_table, read_foreign, to_foreign, write_foreign
from mlpmixer.weights.load import load_weights

Figures = dict[str, Any]
SIZES = [(224, 224), (128, 128), (160, 256)]
"""Published is 224 only; the others are how timm and we carry the rule to a Mixer of another size."""
FIXTURE_SIZES = [(32, 32), (24, 40)]
FIXTURE_SHAPES = [(75, 100), (101, 33), (32, 32), (37, 41), (20, 18)]


def ours_of(model: str) -> str:
    """mixer_b16_224 -> B/16."""
    return f"{model[6].upper()}/{model[7:9]}"


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    """`model` in evaluation mode, every parameter moved, since biases and heads start at zero: matrices by about their
    own size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=generator) * (0.1 if p.ndim == 1 else p[0].numel() ** -0.5)
    return model.eval()


def theirs(model: str, num_classes: int = 1000) -> nn.Module:
    torch.manual_seed(0)
    return perturbed(timm.create_model(model, num_classes=num_classes), seed=1)


def difference(a: Tensor, b: Tensor) -> Figures:
    """Largest absolute difference of b from a, the same as a share of a's largest value, and how far a's values
    spread."""
    away = (a - b).abs().max().item()
    return {"max_abs": away, "relative": away / a.abs().max().item(), "logits_std": a.std().item()}


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    """The outputs in `dtype`; the model is float32 before and after."""
    out: Tensor = model.to(dtype)(images.to(dtype))
    model.float()
    return out.double()


def compare(a: nn.Module, b: nn.Module, images: Tensor) -> Figures:
    return {
        str(d).removeprefix("torch."): difference(logits(a, images, d), logits(b, images, d))
        for d in (torch.float32, torch.float64)
    }


def weights(model: str, batch: int, folder: Path) -> Figures:
    """Both ways between timm's `model` and ours, through files."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    live = theirs(model)
    save_file(live.state_dict(), folder / "timm.safetensors")
    torch.save(live.state_dict(), folder / "timm.pth")
    ours, _ = load_weights(folder / "timm.safetensors")
    from_pth, _ = load_weights(folder / "timm.pth")
    assert ours.cfg == from_pth.cfg and same(ours.state_dict(), from_pth.state_dict()), (
        f"{model}: .pth and .safetensors differ"
    )
    assert ours.cfg == dataclasses.replace(names.MIXERS[ours_of(model)], activation="gelu_erf"), (
        f"{model} became {ours.cfg}"
    )
    assert same(to_foreign(ours.cfg, ours.state_dict(), "timm"), live.state_dict()), (
        f"{model} -> ours -> timm changed a bit"
    )
    found: Figures = {
        "params": sum(p.numel() for p in live.parameters()),
        "images": batch,
        "timm_to_ours": compare(live, ours, images),
    }
    found["rounding_of_timm"] = difference(logits(live, images, torch.float64), logits(live, images, torch.float32))[
        "max_abs"
    ]
    with torch.device("meta"):
        other = Mixer(dataclasses.replace(ours.cfg, activation="gelu_tanh"))
    other.load_state_dict(ours.state_dict(), assign=True)
    found["with_gelu_tanh"] = difference(
        logits(live, images, torch.float32), logits(other.eval(), images, torch.float32)
    )["max_abs"]
    del ours, from_pth, other

    torch.manual_seed(3)
    mine = perturbed(mlpmixer.create_model(ours_of(model), activation="gelu_erf"), seed=4)
    assert isinstance(mine, Mixer)
    write_foreign(folder / "ours.safetensors", mine.cfg, mine.state_dict(), "timm")
    live.load_state_dict(load_file(folder / "ours.safetensors"), strict=True)
    found["ours_to_timm"] = compare(mine, live, images)
    save_file(live.state_dict(), folder / "back.safetensors")
    cfg, back, _ = read_foreign(folder / "back.safetensors")
    assert cfg == mine.cfg and same(back, mine.state_dict()), f"ours -> {model} -> ours changed a bit"
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------ what is said of the
# files


def timm_weights() -> dict[str, tuple[published.Weights, str]]:
    """Our name -> our entry, and timm's name (mixer_b16_224.goog_in21k) as our address has it."""
    return {name: (w, w.url.split("/")[1]) for name, w in published.WEIGHTS.items() if w.form == "timm" and ":" in name}


RULES = {w.preprocess: tag for w, tag in reversed(timm_weights().values())}
"""Name of ours -> one of timm's tags that use it; `disagreements` sees the others."""


def data_config(tag: str) -> dict[str, Any]:
    config: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(tag).to_dict())
    return config


def disagreements(w: published.Weights, tag: str) -> list[str]:
    """Where our entry and timm's configuration of `tag` say different things."""
    theirs, data = timm.get_pretrained_cfg(tag), data_config(tag)
    cfg, timms = w.config, names.MODELS[theirs.architecture]
    pre = create_preprocess(w.preprocess, image_size=cfg.image_size)
    with torch.device("meta"):
        live = timm.create_model(theirs.architecture, num_classes=theirs.num_classes)
    act, norm = live.blocks[0].mlp_channels.act, live.blocks[0].norm1
    pairs = {
        "file": (w.url, f"hf:{theirs.hf_hub_id}/{theirs.hf_hub_filename or HF_SAFE_WEIGHTS_NAME}"),
        "architecture": (cfg.differences(timms, {"num_classes", *cfg.weight_free}), []),
        "arrays": (
            {row.theirs: row.shape for row in name_table(cfg, "timm").rows(cfg)},
            {k: tuple(v.shape) for k, v in live.state_dict().items()},
        ),
        "activation": (
            getattr(cfg, "activation", "gelu_erf"),
            "gelu_erf" if isinstance(act, nn.GELU) and act.approximate == "none" else repr(act),
        ),
        "epsilon": (EPS, getattr(norm, "eps", EPS)),
        "num_classes": (w.num_classes, theirs.num_classes),
        "input": ((3, *pre.image_size), data["input_size"]),
        "mean": (pre.mean, data["mean"]),
        "std": (pre.std, data["std"]),
        "interpolation": (pre.interpolation, data["interpolation"]),
        "crop": (
            (pre.fit, 0.875),
            ("short_side_crop" if data["crop_mode"] == "center" else data["crop_mode"], data["crop_pct"]),
        ),
        "licence": (w.licence.split(",")[0].lower(), theirs.license),
    }
    return [f"{what}: {a} here, {b} there" for what, (a, b) in pairs.items() if a != b]


# ------------------------------------------------------------------------------------------------ photos


def photos(data: list[str], count: int) -> dict[str, list[bytes]]:
    """`count` of each of `data`, drawn with seed 0, as they are; and a cut of each, any shape, any size of 40 to 1,200
    px."""
    rng = np.random.default_rng(0)
    found: dict[str, list[bytes]] = {"as they are": [], "cut and resized": []}
    for name in data:
        images = open_images(Data(name=name), "all")
        for i in rng.permutation(len(images))[:count]:
            source = images.source(int(i))
            whole = source if isinstance(source, bytes) else Path(str(source)).read_bytes()
            found["as they are"].append(whole)
            photo = Image.open(io.BytesIO(whole)).convert("RGB")
            w, h = (int(rng.integers(min(32, n), n + 1)) for n in photo.size)
            x, y = int(rng.integers(photo.width - w + 1)), int(rng.integers(photo.height - h + 1))
            size = tuple(int(n) for n in np.exp(rng.uniform(np.log(40), np.log(1200), 2)))
            out = io.BytesIO()
            photo.resize(size, Image.Resampling.LANCZOS, box=(x, y, x + w, y + h)).save(out, "JPEG", quality=90)
            found["cut and resized"].append(out.getvalue())
    return found


def pixels(tag: str, pre: Preprocess, sources: list[bytes]) -> Figures:
    """Ours against timm's transform of `tag` at the size of `pre`: in levels of 0..255, and as the network gets
    them."""
    config = data_config(tag) | {"input_size": (3, *pre.image_size)}
    to_levels, to_floats = timm.data.create_transform(**config, normalize=False), timm.data.create_transform(**config)
    levels, floats, shapes = [], [], set()
    for source in sources:
        photo = Image.open(io.BytesIO(source)).convert("RGB")
        mine = pre.array(source)
        levels.append(np.abs(mine.astype(np.int16).transpose(2, 0, 1) - to_levels(photo).numpy().astype(np.int16)))
        floats.append(float(np.abs(pre.normalise(mine[None])[0] - to_floats(photo).numpy()).max()))
        shapes.add(photo.size)
    away = np.stack(levels)
    return {
        "photos": len(sources), "shapes": len(shapes), "max_levels": int(away.max()), "mean_levels": float(away.mean()),
        "share_of_pixels_that_differ": float((away > 0).any(axis=1).mean()), "max_abs_normalised": max(floats),
    }  # fmt: skip


def preprocessing(found: dict[str, list[bytes]]) -> Iterator[Figures]:
    for name, tag in RULES.items():
        for size in SIZES:
            for kind, sources in found.items():
                yield {"preprocess": name, "timm": tag, "size": size, "kind": kind} | pixels(
                    tag, create_preprocess(name, image_size=size), sources
                )


@torch.no_grad()
def with_answers(model: nn.Module, images: Tensor) -> nn.Module:
    """`model` with a head that tells the images apart, as a trained one does: logits of mean 0 over the images and a
    spread of 3."""
    given = model(images)
    model.head.bias -= given.mean(0)
    gain = 3 / (given - given.mean(0)).std()
    model.head.weight *= gain
    model.head.bias *= gain
    return model


def end_to_end(name: str, sources: list[bytes], folder: Path) -> Figures:
    """The file of `name` where the cache has it, photo files, and the probabilities of timm and of
    `mlpmixer.load(name)`."""
    w, tag = timm_weights()[name]
    transform = timm.data.create_transform(**data_config(tag))
    images = torch.stack([transform(Image.open(io.BytesIO(source)).convert("RGB")) for source in sources])
    live = with_answers(theirs(tag.split(".")[0], w.num_classes), images)
    files = [folder / f"{i}.jpg" for i in range(len(sources))]
    for file, source in zip(files, sources, strict=True):
        file.write_bytes(source)
    with mock.patch.dict(os.environ, {"HOME": str(folder), "USERPROFILE": str(folder)}):
        cache_path(w.url).parent.mkdir(parents=True)
        save_file(live.state_dict(), cache_path(w.url))
        ours = mlpmixer.load(name)
    there = torch.softmax(logits(live, images, torch.float32), 1).numpy()
    here = np.concatenate([ours.probabilities(ours.preprocess_image(file)[None]) for file in files])
    answers = [ours.classes.index(prediction.label) for prediction in ours.predict(files, top_k=1)]
    return {
        "weights": name, "timm": tag, "photos": len(files), "max_abs": float(np.abs(there - here).max()),
        "mean_top_probability": float(there.max(1).mean()), "different_answers": len(set(answers)),
        "same_answer": int((there.argmax(1) == answers).sum()),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ what is kept


def fixture(path: Path) -> None:
    """A small network of timm's with its logits, and timm's transforms of the images of tests/fixtures/seeded.py, for
    the default tests."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from fixtures.seeded import preprocessing_image

    torch.manual_seed(0)
    live = perturbed(MlpMixer(num_classes=7, img_size=12, patch_size=4, num_blocks=2, embed_dim=24), seed=1)
    images = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    arrays = {f"state/{k}": v.numpy() for k, v in live.state_dict().items()}
    arrays |= {"images": images.numpy(), "logits": logits(live, images, torch.float32).float().numpy()}
    for name, tag in RULES.items():
        for h, w in FIXTURE_SIZES:
            config = data_config(tag) | {"input_size": (3, h, w)}
            to_levels, to_floats = (
                timm.data.create_transform(**config, normalize=False),
                timm.data.create_transform(**config),
            )
            for shape in FIXTURE_SHAPES:
                photo, case = Image.fromarray(preprocessing_image(*shape)), f"{name}/{h}x{w}/{shape[0]}x{shape[1]}"
                arrays[f"pixels/{case}"] = to_levels(photo).numpy()
            arrays[f"floats/{case}"] = to_floats(photo).numpy()
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    print(f"{path}: {path.stat().st_size:,} bytes")


def readme(f: Figures) -> str:
    env, pack = f["env"], f["env"]["packages"]
    rounds = [m[way]["float32"]["relative"] for m in f["weights"].values() for way in ("timm_to_ours", "ours_to_timm")]
    worst = max(p["max_levels"] for p in f["preprocessing"])
    wrong = [f"{name}: {what}" for name, entry in f["catalogue"].items() for what in entry["disagreements"]]
    lines = [
        f"# The same answers as timm {pack['timm']} for the same weights",
        "",
        f"{len(f['weights'])} Mixers of timm, random weights: logits within {max(rounds):.0e} of their largest in "
        f"float32, both ways; timm -> ours -> timm and ours -> timm -> ours bit for bit. "
        f"Preprocessing: {f'at most {worst} levels of 255 away' if worst else 'the same pixels'} (photos that EXIF "
        f"turns, transparency and 16 bits left out: there we differ from timm on purpose). "
        f"Table of weights: {'; '.join(wrong) or 'all ' + str(len(f['catalogue'])) + ' entries agree with timm'}.",
        f"timm {pack['timm']}, torchvision {pack['torchvision']}, torch {pack['torch']}, Pillow {pack['pillow']}, "
        f"Python {env['python']}, "
        f"{env['device']}; {env['date'][:10]}, commit {env['commit']}. Every figure: [parity.json](parity.json).",
        "",
        f"    {f['command']}",
        "",
        "| model | max abs, float32 | float64 | of ours in timm, float32 | spread of logits | timm's own rounding | "
        "with tanh GELU |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, m in f["weights"].items():
        a, b = m["timm_to_ours"], m["ours_to_timm"]
        lines.append(
            f"| {model} | {a['float32']['max_abs']:.1e} | {a['float64']['max_abs']:.1e} | "
            f"{b['float32']['max_abs']:.1e} "
            f"| {a['float32']['logits_std']:.2f} | {m['rounding_of_timm']:.1e} | {m['with_gelu_tanh']:.1e} |"
        )
    lines += [
        "",
        "| preprocessing | photos | max levels | pixels that differ | after normalisation |",
        "|---|---|---|---|---|",
    ]
    sizes = ", ".join("x".join(map(str, size)) for size in SIZES)
    for name, kind in dict.fromkeys((p["preprocess"], p["kind"]) for p in f["preprocessing"]):
        rows = [p for p in f["preprocessing"] if (p["preprocess"], p["kind"]) == (name, kind)]
        lines.append(
            f"| {name}, to {sizes} px | {rows[0]['photos']} {kind}, {rows[0]['shapes']} shapes | "
            f"{max(p['max_levels'] for p in rows)} "
            f"| {100 * max(p['share_of_pixels_that_differ'] for p in rows):.2f} % | "
            f"{max(p['max_abs_normalised'] for p in rows):.1e} |"
        )
    lines += ["", "| end to end | photos | max abs of the probabilities | mean top probability | same answer |"]
    lines += ["|---|---|---|---|---|"]
    for e in f["end_to_end"]:
        lines.append(
            f"| {e['weights']} | {e['photos']} | {e['max_abs']:.1e} | {e['mean_top_probability']:.2f} "
            f"| {e['same_answer']} of {e['photos']}, {e['different_answers']} classes |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    mixers = timm.list_models("mixer_*")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos", nargs="+", metavar="DATA", help="folders or Parquet files of photos, as `mlpmixer train` reads them"
    )
    parser.add_argument("--count", type=int, default=100, help="photos of each DATA")
    parser.add_argument(
        "--models", nargs="+", choices=mixers, default=mixers, metavar="MODEL", help=f"of {', '.join(mixers)}"
    )
    parser.add_argument("--batch", type=int, default=2, help="images for the logits of each model")
    parser.add_argument(
        "--end-to-end",
        nargs="*",
        choices=timm_weights(),
        default=["B/16:timm-imagenet1k", "B/16:timm-miil"],
        metavar="NAME",
    )
    parser.add_argument("--end-to-end-photos", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "timm")
    parser.add_argument(
        "--fixture", type=Path, metavar="FILE.npz", help="write the stored numbers of the tests, and nothing else"
    )
    args = parser.parse_args()
    if args.fixture:
        return fixture(args.fixture)
    if not args.photos:
        parser.error("--photos DATA is needed: a folder or Parquet files of photos")
    try:
        found = photos(args.photos, args.count)
    except ValueError as e:
        parser.error(str(e))
    env = run_folder.environment(device_name(torch.device("cpu")), "float32 and float64", kernels="")
    env["packages"] |= {
        "mlpmixer": mlpmixer.__version__,
        "timm": timm.__version__,
        "torchvision": torchvision.__version__,
    }
    del env["command"]
    env["packages"].pop("scikit-learn", None)
    figures: Figures = {
        "command": f"python benchmarks/timm_parity.py --photos {' '.join(f'DIR/{Path(p).name}' for p in args.photos)}",
        "env": env,
        "catalogue": {
            name: {"timm": tag, "disagreements": disagreements(w, tag)} for name, (w, tag) in timm_weights().items()
        },
        "weights": {},
        "preprocessing": [],
        "end_to_end": [],
    }
    unlisted = set(timm.list_pretrained("mixer_*")) - {tag for _, tag in timm_weights().values()}
    figures["catalogue"] |= {tag: {"timm": tag, "disagreements": ["missing in our table"]} for tag in sorted(unlisted)}
    print(json.dumps(figures["catalogue"], indent=1))
    for row in preprocessing(found):
        figures["preprocessing"].append(row)
        print(json.dumps(row), flush=True)
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            figures["weights"][model] = weights(model, args.batch, Path(folder))
        print(model, json.dumps(figures["weights"][model]), flush=True)
    for name in args.end_to_end:
        share = found["as they are"][:: max(len(found["as they are"]) // args.end_to_end_photos, 1)][
            : args.end_to_end_photos
        ]
        with tempfile.TemporaryDirectory() as folder:
            figures["end_to_end"].append(end_to_end(name, share, Path(folder)))
        print(json.dumps(figures["end_to_end"][-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "parity.json", figures)
    (args.out / "README.md").write_text(readme(figures), encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
