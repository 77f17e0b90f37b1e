"""Frozen features: few shots as the official evaluator measures them, nearest neighbours, a linear probe, and the
features on disk."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixtures import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from mlpmixer import cli
from mlpmixer.data.config import Data
from mlpmixer.data.datasets import open_data
from mlpmixer.evaluation import few_shot as few_shots
from mlpmixer.evaluation import linear, neighbours
from mlpmixer.evaluation.features import mean_std
from mlpmixer.evaluation.few_shot import draw_shots, few_shot, ridge_dual, ridge_primal
from mlpmixer.evaluation.linear import fit_linear, linear_probe
from mlpmixer.evaluation.neighbours import knn
from mlpmixer.evaluation.probe import probe
from mlpmixer.inference.classifier import Classifier

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "fewshot.json").read_text())
CASES = [(case, l2) for case, values in FIXTURE.items() for l2 in values["acc"]]


def official(case):
    """(x_train, y_train, x_test, y_test) of a case that the official evaluator was run on."""
    return seeded.fewshot_features(case, *(FIXTURE[case][key] for key in ("n", "d", "classes", "n_test")))


# --- few shots ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [ridge_primal, ridge_dual])
@pytest.mark.parametrize(("case", "l2"), CASES)
def test_ridge_equals_the_official_weights(case, l2, ridge):
    x, y, x_test, y_test = official(case)
    want = FIXTURE[case]["acc"][l2]
    mean, std = mean_std(x)
    w = ridge(few_shots._with_constant(x, mean, std), few_shots._targets(y, FIXTURE[case]["classes"]), float(l2))
    assert w.dtype == np.float64
    np.testing.assert_allclose(seeded.probe("fewshot_w", w), want["w_probe"], rtol=0, atol=1e-6)
    np.testing.assert_allclose([w[0, 0], w[-1, 0]], [want["w00"], want["w_last00"]], rtol=0, atol=1e-6)
    assert ((few_shots._with_constant(x_test, mean, std) @ w).argmax(axis=1) == y_test).mean() == want["acc"]


@pytest.mark.parametrize(("case", "l2"), CASES)
def test_few_shot_equals_the_official_accuracy(case, l2):
    shots = FIXTURE[case]["n"] // FIXTURE[case]["classes"]  # then every training image is drawn
    (row,) = few_shot(*official(case), shots=(shots,), seeds=(0, 7), l2=float(l2))
    assert row.top1 == (FIXTURE[case]["acc"][l2]["acc"],) * 2


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 12), d=st.integers(1, 12), l2=st.sampled_from([0.1, 1.0, 1024.0]), seed=st.integers(0, 99))
def test_primal_equals_dual(n, d, l2, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, 3))
    np.testing.assert_allclose(ridge_primal(x, y, l2), ridge_dual(x, y, l2), rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        ridge_primal(x, y, l2), np.linalg.solve(x.T @ x + l2 * np.eye(d), x.T @ y), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(("shots", "cheaper"), [(1, "ridge_dual"), (3, "ridge_primal")])
def test_the_smaller_eigenproblem_is_solved(shots, cheaper, monkeypatch):
    x, y = np.random.default_rng(0).normal(size=(9, 8)), np.arange(9) % 3  # 3 or 9 images, 8 features and the constant
    other = {"ridge_dual": "ridge_primal", "ridge_primal": "ridge_dual"}[cheaper]
    monkeypatch.setattr(few_shots, other, lambda *args: pytest.fail(f"{other} was called"))
    few_shot(x, y, x, y, shots=(shots,), seeds=(0,))


def test_shots_equal_the_official_draws():
    labels = np.array([0, 1, 2, 1, 0, 2, 2, 1, 0, 0])
    for seed in (0, 1, 2):
        rng = np.random.default_rng(seed)
        want = [rng.permutation(np.where(labels == c)[0])[:2] for c in range(3)]
        assert draw_shots(labels, 2, seed).tolist() == np.concatenate(want).tolist()


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(3, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_fewer_shots_are_a_subset_of_more(counts, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    drawn = draw_shots(labels, 3, seed)
    assert np.bincount(labels[drawn]).tolist() == [3] * len(counts)
    assert len(set(drawn.tolist())) == len(drawn)
    assert drawn.tolist() == draw_shots(labels, 3, seed).tolist()
    assert set(draw_shots(labels, 2, seed).tolist()) < set(drawn.tolist())


def test_other_seeds_draw_other_images():
    labels = np.zeros(50, int)
    assert len({tuple(draw_shots(labels, 5, seed).tolist()) for seed in range(3)}) == 3


def test_too_few_images_name_what_is_possible():
    x, labels = np.zeros((7, 2)), np.array([0, 0, 0, 0, 0, 1, 1])
    with pytest.raises(
        ValueError,
        match=r"5-shot needs 5 training images of every class, and class 1 has 2; possible here: --shots 1,2$",
    ):
        few_shot(x, labels, x, labels, shots=(1, 2, 5))
    with pytest.raises(ValueError, match="class 1 has 2"):
        draw_shots(labels, 3, 0)
    with pytest.raises(ValueError, match=r"1-shot needs 1 training image of every class, and class 2 has 0$"):
        few_shot(x, labels, x, labels + 1, shots=(1,))  # a class that is in test only


def test_mean_and_range_are_over_seeds():
    row = few_shots.FewShot(shots=5, top1=(0.5, 0.25, 0.75))
    assert (row.mean, row.range) == (0.5, (0.25, 0.75))


# --- nearest neighbours -------------------------------------------------------------------------------------------

TRAIN = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]])
OF = np.array([0, 1, 1, 2])


def test_neighbours_go_by_cosine():
    test = np.array([[100.0, 1.0], [0.003, 0.004], [-0.1, 5.0]])
    assert knn(TRAIN, OF, test, np.array([0, 1, 2]), k=1).top1 == 1.0


def test_votes_are_weighted_by_similarity():
    near_0 = np.array([[0.9, 0.1]])  # cosines: 0.994 to class 0, 0.684 to both of class 1, 0.110 to class 2
    assert (
        knn(TRAIN, OF, near_0, np.array([0]), k=3).top1 == 1.0
    )  # exp(0.994 / 0.07) is more than twice exp(0.684 / 0.07)
    assert knn(TRAIN, OF, near_0, np.array([1]), k=3, temperature=10.0).top1 == 1.0  # all alike: two votes against one
    c0, c1 = 0.9 / math.hypot(0.9, 0.1), (0.6 * 0.9 + 0.8 * 0.1) / math.hypot(0.9, 0.1)
    even = (c0 - c1) / math.log(2)  # here one vote weighs as much as two
    assert knn(TRAIN, OF, near_0, np.array([0]), k=3, temperature=even * 0.99).top1 == 1.0
    assert knn(TRAIN, OF, near_0, np.array([1]), k=3, temperature=even * 1.01).top1 == 1.0


def test_chunks_do_not_change_knn(monkeypatch):
    rng = np.random.default_rng(0)
    train, of, test, labels = (
        rng.normal(size=(40, 5)),
        rng.integers(0, 4, 40),
        rng.normal(size=(33, 5)),
        rng.integers(0, 4, 33),
    )
    whole = knn(train, of, test, labels, k=7)
    monkeypatch.setattr(neighbours, "CHUNK", 10)
    assert knn(train, of, test, labels, k=7) == whole
    assert round(whole.top1 * 33, 9) == round(whole.top1 * 33)


def test_zero_features_are_allowed():
    assert knn(np.zeros((3, 2)), np.array([1, 1, 0]), np.zeros((2, 2)), np.array([1, 1]), k=3).top1 == 1.0


@pytest.mark.parametrize("k", [0, -1, 5])
def test_too_many_neighbours_are_refused(k):
    with pytest.raises(ValueError, match=rf"must be in 1\.\.4, the number of training images; got {k}"):
        knn(TRAIN, OF, TRAIN, OF, k=k)


# --- linear probe -------------------------------------------------------------------------------------------------


def clouds(n, seed, classes=3, d=6):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return rng.normal(size=(n, d)) * 1.5 + 3 * np.eye(classes, d)[labels] + 100, labels


def test_l2_is_chosen_on_validation():
    train, val, test = clouds(60, 0), clouds(45, 1), clouds(300, 2)
    got = linear_probe(*train, *val, *test)
    mean, std = mean_std(train[0])
    fits = {
        l2: LogisticRegression(C=1 / l2, max_iter=1000).fit((train[0] - mean) / std, train[1])
        for l2 in linear.LINEAR_L2S
    }
    on_val = {l2: fit.score((val[0] - mean) / std, val[1]) for l2, fit in fits.items()}
    assert got.val_top1 == max(on_val.values()) > min(on_val.values())
    assert got.l2 == max(l2 for l2, share in on_val.items() if share == got.val_top1)
    assert got.top1 == pytest.approx(fits[got.l2].score((test[0] - mean) / std, test[1]), abs=0.01)
    assert got.converged and got.top1 > 0.8


@pytest.mark.parametrize("classes", [2, 3])
def test_head_gives_the_probabilities_of_scikit_learn(classes):
    (x, labels), val = clouds(60, 0, classes), clouds(45, 1, classes)
    mean, std = mean_std(x)
    head = fit_linear(x, labels, *val, l2s=(1.0,))
    wanted = LogisticRegression(C=1.0, max_iter=1000).fit((x - mean) / std, labels).predict_proba((val[0] - mean) / std)
    np.testing.assert_allclose(softmax(head.logits(val[0]), axis=1), wanted, atol=1e-9)
    assert (head.l2, head.converged) == (1.0, True)


def test_class_without_training_images_is_never_predicted():
    x, labels = clouds(60, 0)
    logits = fit_linear(x, labels * 2, x, labels * 2).logits(x)
    assert logits.shape == (60, 5) and np.isneginf(logits[:, [1, 3]]).all() and np.isfinite(logits[:, ::2]).all()


def test_test_images_choose_nothing():
    train, val, (x, labels) = clouds(60, 0), clouds(45, 1), clouds(300, 2)
    one, other = linear_probe(*train, *val, x, labels), linear_probe(*train, *val, x, (labels + 1) % 3)
    assert (one.l2, one.val_top1) == (other.l2, other.val_top1) and one.top1 > other.top1


def test_an_unconverged_fit_says_so(monkeypatch):
    monkeypatch.setattr(linear, "LINEAR_MAX_STEPS", 1)
    assert not linear_probe(*clouds(60, 0), *clouds(45, 1), *clouds(30, 2), l2s=(1e-2,)).converged


# --- what is refused ----------------------------------------------------------------------------------------------

X, Y = np.zeros((4, 2)), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: few_shot(X, Y[:3], X, Y), r"train: expected features \(N,D\) and labels \(N,\)"),
        (lambda: few_shot(X, Y, X[:0], Y[:0]), r"test: expected .* N >= 1"),
        (lambda: few_shot(X, Y, np.zeros((4, 3)), Y), "the same number of features, got 2, 3"),
        (lambda: few_shot(X, Y - 1, X, Y), "train: labels must be integers from 0 on, got int64 from -1"),
        (lambda: few_shot(X, Y * 1.0, X, Y), "train: labels must be integers"),
        (lambda: linear_probe(X, Y * 0 + 1, X, Y, X, Y), "images of at least two classes, got only class 1"),
        (lambda: few_shot(X, Y, X * np.nan, Y), "test: the features contain NaN"),
        (
            lambda: few_shot(X, Y, X, Y, shots=()),
            "shots must be positive numbers of images, such as 1,5,10,25; got none",
        ),
        (lambda: few_shot(X, Y, X, Y, shots=(1, 0)), "got 1,0"),
        (lambda: few_shot(X, Y, X, Y, shots=(1,), seeds=()), "at least one seed"),
        (lambda: few_shot(X, Y, X, Y, shots=(1,), l2=0), "l2 must be positive, got 0"),
        (lambda: knn(X, Y, X, Y, k=1, temperature=0), "temperature must be positive"),
        (lambda: linear_probe(X, Y, X, Y, X, Y, l2s=(1.0, 0.0)), "l2s must be positive"),
        (lambda: linear_probe(X, Y, X, Y[:1], X, Y), "val: expected features"),
    ],
)
def test_wrong_arguments_name_what_is_expected(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# --- probe --------------------------------------------------------------------------------------------------------


def test_probe_works_with_other_classes(model, photos, network):
    result = probe(model, str(photos), shots=(1, 5), neighbours=3, linear=True)
    assert (result.n_train, result.n_test, result.num_features) == (36, 9, 3)
    assert result.classes == ("blue", "green", "red") and result.bad == ()
    assert [row.shots for row in result.few_shot] == [1, 5] and all(len(row.top1) == 3 for row in result.few_shot)
    assert result.few_shot[1].mean == 1.0
    assert result.neighbours == neighbours.Neighbours(k=3, top1=1.0)
    assert result.linear is not None and result.linear.top1 == 1.0
    assert network.seen == 36 + 9 + 9
    given = probe(model, open_data(Data(name=str(photos))), shots=(1, 5), neighbours=3, linear=True)
    assert given == dataclasses.replace(result, scored=None) and str(result.scored).startswith(
        "9 of 54 images of photos"
    )


def test_only_the_linear_probe_sees_validation_images(model, photos, network):
    result = probe(model, str(photos), shots=(1,))
    assert result.neighbours is None and result.linear is None
    assert network.seen == 36 + 9


def test_results_round_trip_through_json(model, photos):
    plain = probe(model, str(photos), shots=(1, 5), neighbours=3, linear=True).to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["few_shot"][1] == {
        "shots": 5,
        "top1": {"mean": 1.0, "range": [1.0, 1.0], "n": 3},
        "top1_by_seed": [1.0] * 3,
    }
    assert plain["neighbours"] == {"k": 3, "top1": 1.0}
    assert set(plain["linear"]) == {"l2", "val_top1", "top1", "converged"}


def test_unreadable_images_are_named(model, photos):
    broken = photos / "train" / "red" / "7.png"
    broken.write_bytes(b"no image")
    for cache in (None, photos.parent / "cache", photos.parent / "cache"):
        result = probe(model, str(photos), shots=(11,), cache=cache)
        assert result.n_train == 35
        assert len(result.bad) == 1 and result.bad[0][0].endswith("red/7.png")
        assert result.bad[0][1]
    with pytest.raises(ValueError, match=r"class 'red' has 11; possible here: --shots 5"):
        probe(model, str(photos), shots=(5, 12))


def test_impossible_requests_fail_early(model, photos, network):
    with pytest.raises(
        ValueError, match=r"25-shot needs 25 training images of every class, and class 'blue' has 12; .* --shots 1,5,10"
    ):
        probe(model, str(photos))
    with pytest.raises(ValueError, match=r"must be in 1\.\.36"):
        probe(model, str(photos), shots=(1,), neighbours=37)
    with pytest.raises(ValueError, match="no data set"):
        probe(model, str(photos / "nowhere"))
    assert network.seen == 0


def test_a_split_without_readable_images_is_an_error(model, photos):
    for file in (photos / "test").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of the 9 images could be read \(.*\.png: "):
        probe(model, str(photos), shots=(1,))


def test_cached_features_run_the_network_once(model, photos, network, tmp_path):
    fresh = probe(model, str(photos), shots=(1, 5), neighbours=3, linear=True)
    network.seen = 0
    first = probe(model, str(photos), shots=(1, 5), neighbours=3, linear=True, cache=tmp_path / "cache")
    assert network.seen == 54
    assert (
        probe(model, str(photos), shots=(1, 5), neighbours=3, linear=True, cache=tmp_path / "cache") == first == fresh
    )
    assert network.seen == 54
    assert sorted(f.name.rpartition("-")[0] for f in (tmp_path / "cache").iterdir()) == [
        "photos-test",
        "photos-train",
        "photos-val",
    ]


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_or_json(digits_run, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(digits_run, tmp_path / "run")
    line = ["probe", str(run), "digits", "--shots", "1,5", "--knn", "20", "--linear", "--device", "cpu"]
    assert cli.main(line) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "16 features" in out and "over 3 draws" in out and "chosen on validation" in out
    names = ("1 image of each class", "5 images of each class", "20 nearest neighbours", "linear probe")
    assert [text for text in names if text in out] == list(names)
    assert len(list((run / "features").iterdir())) == 3

    monkeypatch.setattr(Classifier, "features", lambda *args: pytest.fail("the network ran again"))
    assert cli.main([*line, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert f"{100 * numbers['few_shot'][1]['top1']['mean']:.2f} %" in out
    assert f"{100 * numbers['linear']['top1']:.2f} %" in out
    assert numbers["seeds"] == [0, 1, 2] and numbers["classes"] == list("0123456789")


def test_the_command_defaults_to_the_runs_own_split(digits_run, capsys, tmp_path):
    line = ["probe", str(digits_run), "--shots", "2", "--cache", str(tmp_path / "kept"), "--json", "--device", "cpu"]
    assert cli.main(line) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["n_test"] == json.loads((digits_run / "summary.json").read_text())["test"]["n"]
    assert numbers["neighbours"] is None and numbers["linear"] is None
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_the_command_names_unreadable_images(digits_run, photos, capsys, tmp_path):
    (photos / "test" / "red" / "2.png").write_bytes(b"no image")
    line = ["probe", str(digits_run), str(photos), "--shots", "1", "--cache", str(tmp_path / "kept"), "--device", "cpu"]
    assert cli.main(line) == 1
    out, err = capsys.readouterr()
    assert "36 training and 8 test images of 3 classes" in out
    assert "2.png" in err and "1 image could not be read (excluded" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--shots", "1,five"],
            "--shots 1,five: expected whole numbers separated by commas, such as --shots 1,5,10,25",
        ),
        (["--shots", "0"], "shots must be positive"),
        (["--shots", "1,500"], "possible here: --shots 1"),
        (["--knn", "-1"], "must be in 1.."),
        (["--data-dir", "no/such/folder", "cifar10"], "no/such/folder"),
    ],
)
def test_wrong_options_name_what_is_right(options, says, digits_run, capsys):
    assert cli.main(["probe", str(digits_run), *options, "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert says in err and out == ""
