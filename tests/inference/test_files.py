"""Image files are found, decoded and predicted in order, and one that cannot be read stops nothing."""

from helpers.greys import by_brightness, grey

from mlpmixer.inference.files import find_images, predict_files
from mlpmixer.inference.prediction import Failure, Prediction


def test_images_are_found_in_order_and_once(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a.png", ".hidden/x.png", "b/.x.png", "photo[1].png"):
        grey(tmp_path / name, 0)
    (tmp_path / "notes.txt").write_text("x")
    at = str(tmp_path)
    everything = [f"{at}/a.png", f"{at}/photo[1].png", f"{at}/b/1.jpg", f"{at}/b/2.PNG"]
    assert list(find_images([at])) == everything
    assert list(find_images([at, f"{at}/b", f"{at}/b/../a.png"])) == everything
    assert list(find_images([f"{at}/b/*"])) == [f"{at}/b/1.jpg", f"{at}/b/2.PNG"]
    assert sorted(find_images([f"{at}/**/*"])) == sorted(everything)
    assert list(find_images([f"{at}/photo[1].png"])) == [f"{at}/photo[1].png"]  # a name before it is a pattern
    assert list(find_images([f"{at}/notes.txt"])) == [f"{at}/notes.txt"]  # a named file is taken at its word


def test_one_folder_pattern_or_path_will_do(tmp_path):
    paths = [grey(tmp_path / f"{i}.png", 0) for i in range(3)]
    for one in (str(tmp_path), tmp_path, f"{tmp_path}/*.png"):
        assert list(find_images(one)) == list(find_images([one])) == paths
        assert [p.name for p in predict_files(by_brightness(), one)] == paths
    assert [p.name for p in predict_files(by_brightness(), [tmp_path / "1.png"])] == [paths[1]]


def test_files_without_a_suffix_are_images_by_their_content(tmp_path):
    path = grey(tmp_path / "photo.png", 0)
    (tmp_path / "photo.png").rename(tmp_path / "photo")
    (tmp_path / "README").write_text("words")
    path = path.removesuffix(".png")
    assert list(find_images([str(tmp_path)])) == list(find_images([f"{tmp_path}/*"])) == [path]


def test_missing_sources_are_failures_in_place(tmp_path):
    path = grey(tmp_path / "a.png", 0)
    (tmp_path / "empty").mkdir()
    missing, pattern, empty, found = find_images([f"{tmp_path}/no.png", f"{tmp_path}/*.gif", f"{tmp_path}/empty", path])
    assert isinstance(missing, Failure) and "no such file" in missing.reason
    assert isinstance(pattern, Failure) and "matches" in pattern.reason
    assert isinstance(empty, Failure) and "no image files" in empty.reason
    assert found == path


def test_circular_links_are_walked_once(tmp_path):
    path = grey(tmp_path / "a" / "x.png", 0)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    assert list(find_images([str(tmp_path)])) == [path]


def test_unreadable_files_do_not_stop_the_rest(tmp_path):
    paths = [grey(tmp_path / f"{i}.png", 255 * (i % 2)) for i in range(7)]
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "5.png").write_bytes((tmp_path / "4.png").read_bytes()[:30])
    results = list(predict_files(by_brightness(), find_images([str(tmp_path), f"{tmp_path}/none.png"]), batch_size=3))
    assert [r.name for r in results] == [*paths, f"{tmp_path}/none.png"]  # input order
    assert [i for i, r in enumerate(results) if isinstance(r, Failure)] == [2, 5, 7]
    assert [r.label for r in results if isinstance(r, Prediction)] == ["dark", "bright", "bright", "dark", "dark"]


def test_a_batch_of_unreadable_files(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    (result,) = predict_files(by_brightness(), [str(tmp_path / "x.png")])
    assert isinstance(result, Failure) and result.reason
    assert list(predict_files(by_brightness(), [])) == []


def test_results_stream(tmp_path):
    path = grey(tmp_path / "x.png", 0)
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield path

    results = predict_files(by_brightness(), endless(), batch_size=4)
    assert next(results).label == "dark"
    assert asked <= 8  # two batches
    results.close()
