"""An environment in which torch is not installed: a bundle is classified with and served there as here."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from helpers.models import GREY, classifier_of, save_run
from PIL import Image

from mlpmixer.exporters.export import export
from mlpmixer.inference.load import load

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

pytestmark = pytest.mark.network

PACKAGES = ("onnxruntime", "numpy", "pillow", "jinja2", "fastapi", "uvicorn", "python-multipart", "prometheus-client")
REPOSITORY = Path(__file__).parents[2]
ENV = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the environment has its commands."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, env=ENV)
    install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, "-c", REPOSITORY / "constraints.txt", *PACKAGES], check=True, env=ENV)
    subprocess.run([*install, "--no-deps", REPOSITORY], check=True, env=ENV)
    return folder / "bin"


def test_a_bundle_without_torch(programs: Path, tmp_path: Path) -> None:
    run = save_run(classifier_of(GREY), tmp_path / "digits")
    bundle = export(run, "bundle", images=50).path
    picture = tmp_path / "grey.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)).save(picture)
    wanted = load(run).predict(picture)[0]

    tried = subprocess.run([programs / "python", "-c", "import torch"], capture_output=True, text=True, env=ENV)
    assert tried.returncode == 1 and "No module named 'torch'" in tried.stderr

    done = subprocess.run(
        [programs / "mlpmixer", "predict", bundle, picture, "--format", "json"], capture_output=True, text=True, env=ENV
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)

    served = subprocess.Popen(
        [programs / "mlpmixer", "serve", bundle, "--port", "0"], stdout=subprocess.PIPE, text=True, env=ENV
    )
    with served:
        try:
            assert served.stdout
            address = served.stdout.readline().partition(" at ")[2].split()[0]
            request = urllib.request.Request(f"{address}predict", picture.read_bytes(), {"content-type": "image/png"})
            for _ in range(100):  # the socket is there before the service is
                try:
                    with urllib.request.urlopen(request, timeout=30) as answer:
                        answers += json.load(answer)["results"]
                    break
                except urllib.error.URLError:
                    time.sleep(0.1)
        finally:
            served.terminate()
        assert served.wait(30) == 0
    assert len(answers) == 2
    for answer in answers:
        assert answer["label"] == wanted.label and answer["probability"] == pytest.approx(wanted.probability, abs=1e-5)
