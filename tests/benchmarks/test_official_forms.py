"""benchmarks/official_forms.py: what our networks are timed against computes the same, forward and backward."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mlpmixer.models.architecture import build
from mlpmixer.reproduce.family.recipes import RELATIVES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", [name for name in RELATIVES if name != "Mixer"])
def test_official_form_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from official_forms import named, official_form

    torch.manual_seed(0)
    ours = build(RELATIVES[name]).double()
    for p in ours.parameters():
        p.data += 0.02 * torch.randn_like(p)  # no head of zeros, no gate that is only open
    theirs = official_form(ours)
    images, labels = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 2])
    for model in (ours, theirs):
        F.cross_entropy(model(images), labels).backward()
    grads = {key: p.grad for key, p in ours.named_parameters()}
    got = named(ours.cfg, ours.state_dict() | grads)
    for key, p in theirs.named_parameters():
        torch.testing.assert_close(got[key].view_as(p), p.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-10, atol=1e-10)
