"""Token mixing made visible."""

import pytest
import torch
from helpers.models import OBLONG, OBLONG_PARTS, random_images, random_mixer

from mlpmixer.models import locality, mixing


@pytest.mark.parametrize("cfg", [OBLONG, OBLONG_PARTS])
def test_mixing_maps_are_jacobians(cfg):
    model, images = random_mixer(cfg), random_images(cfg, n=2)
    maps = mixing.mixing_maps(model, images)
    assert maps.shape == (2, 2, 12, 12)
    x = model.stem(model.patches(images)).detach()
    for i, block in enumerate(model.blocks):
        for b in range(2):
            jacobian = torch.func.jacrev(lambda x, block=block: block.mix_tokens(x[None])[0] - x)(x[b])  # (S, C, S, C)
            torch.testing.assert_close(maps[b, i], jacobian.square().sum(dim=(1, 3)).detach(), rtol=1e-4, atol=1e-5)
        x = block(x).detach()


def test_parts_are_independent():
    maps = mixing.mixing_maps(random_mixer(OBLONG_PARTS), random_images(OBLONG_PARTS))[0, 0]
    part = torch.arange(12) % 6 // 2
    assert ((maps > 0) == (part[:, None] == part)).all()


def test_dependence_is_the_jacobian_of_the_tokens():
    model, image = random_mixer(), random_images()[0]
    exact, none = mixing.dependence(model, image)
    jacobian = torch.func.jacrev(lambda p: model.blocks[1](model.blocks[0](model.stem(p))))(model.patches(image[None]))[
        0
    ]
    assert exact.shape == (2, 12, 12) and not none.any()
    torch.testing.assert_close(exact[1], jacobian.square().sum(dim=(1, 2, 4)).detach(), rtol=1e-4, atol=1e-5)
    estimate, error = mixing.dependence(model, image, directions=200)
    away = (estimate - exact) / error
    assert abs(away.mean()) < 0.5 and 0.5 < away.std() < 1.5
    with pytest.raises(ValueError, match="at least 2"):
        mixing.dependence(model, image, directions=1)


def test_spread_of_identity_and_uniform_maps():
    for maps, expected in ((torch.eye(6), (1, 0, 1)), (torch.ones(6, 6), (1 / 6, None, 6))):
        own, distance, matter = mixing.spread(maps, (2, 3))
        assert own == pytest.approx(expected[0]) and matter == pytest.approx(expected[2])
        assert distance == pytest.approx(expected[1]) if expected[1] is not None else 1 < distance < 2


def test_hidden_units_are_the_rows_of_w1():
    model = random_mixer()
    units = mixing.hidden_units(model, 1)
    assert units.shape == (7, 2, 6)
    assert torch.equal(units[3].flatten(), model.blocks[1].token_mixing.fc1.weight[3])
    assert mixing.hidden_units(random_mixer(OBLONG_PARTS), 0).shape == (7, 2, 2)
    locality.inject(model, 3)
    with torch.no_grad():
        model.blocks[1].token_mixing.fc1.kernel += 1
    local = mixing.hidden_units(model, 1)
    assert not torch.equal(local, units)
    assert torch.equal(local, mixing.hidden_units(locality.folded(model), 1))
    images = random_images()
    torch.testing.assert_close(mixing.mixing_maps(model, images), mixing.mixing_maps(locality.folded(model), images))
    with pytest.raises(ValueError, match="no block 2"):
        mixing.hidden_units(model, 2)


def test_stem_filters_are_patches():
    model = random_mixer()
    filters = mixing.stem_filters(model)
    assert filters.shape == (10, 3, 4, 2)
    patch = random_images()[:1, :, :4, :2]
    torch.testing.assert_close(
        (filters * patch).sum(dim=(1, 2, 3)), model.stem(model.patches(random_images()[:1]))[0, 0] - model.stem.bias
    )


def wave(cycles_down, cycles_across, phase=0.0, size=(6, 8)):
    y, x = torch.arange(size[0])[:, None] / size[0], torch.arange(size[1]) / size[1]
    return torch.cos(2 * torch.pi * (cycles_down * y + cycles_across * x) + phase)


def test_frequency_of_a_wave():
    found = mixing.frequency(torch.stack([torch.ones(6, 8), wave(0, 1), wave(2, 0), wave(3, 4), torch.zeros(6, 8)]))
    torch.testing.assert_close(found, torch.tensor([0, 1 / 8, 1 / 3, 0.5**0.5, torch.inf]), atol=1e-5, rtol=0)


def test_opposite_pairs_start_at_low_frequencies():
    units = torch.stack(
        [wave(2, 1), wave(0, 1), -3 * wave(1, 0), wave(1, 0), -0.5 * wave(2, 1), wave(0, 1, torch.pi), wave(0, 4)]
    )
    order, cosines = mixing.opposite_pairs(units)
    pairs = [set(pair) for pair in order[:6].reshape(3, 2).tolist()]
    assert pairs == [{1, 5}, {2, 3}, {0, 4}] and order[6] == 6
    torch.testing.assert_close(cosines, -torch.ones(3))
