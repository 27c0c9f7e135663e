"""The phantom is seeded, honest, and does not tell its count by anything but its lesions."""

import make_phantom
import numpy as np
import pytest
from helpers import exit_code, refusal
from scipy import ndimage

from weakunet import preprocess
from weakunet.data import phantom
from weakunet.data.cohort import read_cohort
from weakunet.data.load import load_scan
from weakunet.data.slices import in_slice
from weakunet.data.volumes import read_volume
from weakunet.detection.detect import detect_lesions
from weakunet.evaluation.metrics import match_detections


@pytest.fixture(scope="module")
def tiny():
    """300 prepared scans."""
    return phantom.simulate_cohort("tiny", {"train": 300}, seed=11)["train"]


@pytest.mark.parametrize("preset", phantom.PRESETS)
def test_every_scan_is_of_the_preset_size_and_prepared(preset):
    scans = phantom.simulate_cohort(preset, {"val": 1 if preset == "paper" else 6}, seed=0)["val"]
    shape = phantom.PRESETS[preset].shape
    if preset == "slab":
        shape = (7, *shape[1:])  # 2.4 mm are 3 slices, above and below
    for scan in scans:
        assert scan.volume.array.shape == shape
        assert preset == "slab" or all(size % 4 == 0 for size in shape)
        assert scan.volume.array.dtype == np.float32
        assert scan.volume.array.min() >= 0 and scan.volume.array.max() == 1
        np.testing.assert_allclose(scan.volume.spacing_mm, (0.8, 0.49, 0.49), rtol=1e-6)
        assert scan.count == len(scan.centres_zyx) <= phantom.PRESETS[preset].max_count


def test_a_scan_does_not_depend_on_how_many_others_are_drawn():
    few = phantom.simulate_cohort("tiny", {"test": 2}, seed=5)["test"][1]
    many = phantom.simulate_cohort("tiny", {"train": 3, "test": 4}, seed=5)
    np.testing.assert_array_equal(few.volume.array, many["test"][1].volume.array)
    np.testing.assert_array_equal(few.centres_zyx, many["test"][1].centres_zyx)
    assert np.any(few.volume.array != many["train"][1].volume.array)
    other_seed = phantom.simulate_cohort("tiny", {"test": 2}, seed=6)["test"][1]
    assert np.any(few.volume.array != other_seed.volume.array)


def test_counts_spread_as_a_negative_binomial():
    rng = np.random.default_rng(0)
    counts = [phantom.draw_count(rng, 5.0, 1000) for _ in range(20000)]
    assert np.mean(counts) == pytest.approx(5.0, abs=0.15)
    assert np.var(counts) == pytest.approx(5.0 + 5.0**2 / 1.8, rel=0.06)


def test_smooth_noise_has_unit_variance_everywhere():
    rng = np.random.default_rng(0)
    fields = np.stack(
        [phantom.smooth_noise(rng, (6, 9, 8), (0.8, 0.5, 0.5), 1.5) for _ in range(4000)]
    )
    np.testing.assert_allclose(fields.var(axis=0), 1, atol=0.15)
    neighbours = np.mean(fields[:, 2, 3, 4] * fields[:, 2, 3, 5])
    assert 0.9 < neighbours < 1  # exp(-(0.5 / 1.5)^2 / 4) = .97


def test_lesions_are_bright_apart_and_in_the_mask():
    inside = np.zeros((24, 40, 40), bool)
    inside[6:18, 10:30, 10:30] = True
    spacing = np.array([0.8, 0.5, 0.5])
    added, centres = phantom.draw_lesions(np.random.default_rng(1), 12, inside, spacing)
    assert len(centres) == 12
    nearest = np.round(centres).astype(int)
    assert inside[tuple(nearest.T)].all()
    assert (added[tuple(nearest.T)] > 0.15).all()  # half a voxel off the axis at most
    distances = np.linalg.norm((centres[:, None] - centres) * spacing, axis=2)
    assert distances[~np.eye(12, dtype=bool)].min() >= 2.5
    # tubes of mean radius .7 and length 2.9 mm: 12 * (pi r^2 (L - 2r) + 4/3 pi r^3) = 45 mm^3
    assert 30 < (added / 0.33).sum() * spacing.prod() < 70
    voxels = np.argwhere(added > 0)
    away = np.linalg.norm((voxels[:, None] - centres) * spacing, axis=2).min(axis=1)
    assert away.max() < 2 + 0.4 + 0.6  # half the length, the bend, a voxel


def test_lesion_is_listed_for_a_slice_if_half_its_contrast_is_seen_there():
    inside = np.zeros((9, 12, 12), bool)
    inside[1:8, 5:7, 5:7] = True
    seen = 0
    for seed in range(120):
        arguments = (1, inside, (0.8, 0.49, 0.49))
        rng = np.random.default_rng(seed)
        added, centres = phantom.draw_lesions(rng, *arguments, contrast=(1, 1), slice_index=4)
        visible = added[4].max() >= 0.5
        assert len(centres) == visible
        seen += visible
        if visible:
            middle = (4, *ndimage.center_of_mass(added[4]))
            np.testing.assert_allclose(centres, [middle], atol=1e-6)
    assert 30 < seen < 90


def test_lesions_are_fewer_where_there_is_no_room():
    inside = np.zeros((5, 5, 5), bool)
    inside[2, 2, 2] = True
    added, centres = phantom.draw_lesions(np.random.default_rng(0), 3, inside, (1, 1, 1))
    assert len(centres) == 1 and added.max() > 0
    added, centres = phantom.draw_lesions(np.random.default_rng(0), 3, inside & False, (1, 1, 1))
    assert centres.shape == (0, 3) and added.max() == 0


@pytest.mark.parametrize("preset", ["tiny", "standard"])
def test_more_fluid_than_trimming_takes_away(preset):
    """With less than 1 % fluid the trimmed level, and so the gain, would follow the lesions."""
    _, roi, tissue = phantom._template(phantom.PRESETS[preset].shape)
    assert (roi & ~tissue).sum() > 0.02 * roi.sum()


def test_intensities_find_about_forty_percent_of_the_lesions(tiny):
    found = lesions = 0
    for scan in tiny[:60]:
        centres = detect_lesions(scan.volume.array, scan.count).centres_zyx
        found += len(match_detections(centres, scan.centres_zyx, radius=3))
        lesions += scan.count
    assert 0.33 < found / lesions < 0.48


@pytest.fixture(scope="module")
def sliced():
    """80 prepared scans of which one slice is counted."""
    return phantom.simulate_cohort("slice", {"train": 80}, seed=2)["train"]


def test_sliced_scans_list_what_is_in_the_slice(sliced):
    for scan in sliced:
        assert scan.slice_index == 10
        np.testing.assert_allclose(scan.centres_zyx[:, 0], 10, atol=1e-6)
    assert 2.2 < np.mean([scan.count for scan in sliced]) < 3.8


def test_intensities_find_about_forty_percent_of_the_lesions_in_the_slice(sliced):
    hits = 0
    for scan in sliced:
        cut, image = in_slice(scan, scan.volume.array)
        found = detect_lesions(image, cut.count).centres_zyx
        hits += len(match_detections(found, cut.centres_zyx, radius=3))
    assert 0.33 < hits / sum(scan.count for scan in sliced) < 0.51


def test_left_side_of_two_is_the_right_one_mirrored():
    kind = phantom.PRESETS["paper"]
    _, roi, tissue = phantom._template(kind.shape, kind.sides, kind.ventricle)
    margin = phantom.MARGIN_VOX
    assert np.array_equal(tissue, tissue[:, :, ::-1])
    assert not roi[:, :, roi.shape[2] // 2].any()  # two regions
    assert (roi & ~tissue).sum() > 0.02 * roi.sum()  # fluid, as above
    counted = kind.slice_index + margin
    assert np.array_equal(roi[counted], tissue[counted])  # none of it in the slice


def global_features(scan):
    """What a network could count by without looking at any one place."""
    image = scan.volume.array
    inside = image[image > 0.05]
    return [image.mean(), inside.mean(), inside.size, *np.percentile(inside, [1, 5, 10, 25, 50])]


def cross_validated_r2(features, counts, folds=10):
    fold = np.arange(len(counts)) % folds
    predicted = np.empty(len(counts))
    for k in range(folds):
        train = fold != k
        scale = features[train].mean(axis=0), features[train].std(axis=0)
        design = np.column_stack([np.ones(len(counts)), (features - scale[0]) / scale[1]])
        w = np.linalg.lstsq(design[train], counts[train], rcond=None)[0]
        predicted[~train] = design[~train] @ w
    return 1 - np.mean((predicted - counts) ** 2) / np.var(counts)


def test_nothing_but_the_lesions_tells_the_count(tiny):
    counts = np.array([scan.count for scan in tiny], float)
    features = np.array([global_features(scan) for scan in tiny])
    for column in features.T:
        assert abs(np.corrcoef(column, counts)[0, 1]) < 0.15
    assert cross_validated_r2(features, counts) < 0.05
    # the check itself can see a leak: a gain that follows the count
    leaking = features * (1 - 0.02 * counts[:, None])
    assert cross_validated_r2(leaking, counts) > 0.2


def test_files_prepare_to_the_simulated_cohort(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    numbers = "--train 2 --val 1 --test 1 --seed 4".split()
    assert exit_code(make_phantom.main, "--out", raw, *numbers) == 0
    table = read_cohort(tmp_path / "raw" / "cohort.csv")
    assert [scan.split for scan in table] == ["train", "train", "val", "test"]
    assert read_volume(table[0].image).array.shape > phantom.PRESETS["tiny"].shape
    assert exit_code(preprocess.main, "--data", raw / "cohort.csv", "--out", out) == 0
    simulated = phantom.simulate_cohort("tiny", {"train": 2}, seed=4)["train"]
    for row, scan in zip(read_cohort(tmp_path / "out" / "cohort.csv"), simulated, strict=False):
        prepared = load_scan(row)
        np.testing.assert_allclose(prepared.volume.array, scan.volume.array, atol=1e-5)
        np.testing.assert_allclose(prepared.volume.affine, scan.volume.affine, atol=1e-6)
        np.testing.assert_allclose(prepared.centres_zyx, scan.centres_zyx, atol=0.01)
        assert prepared.count == scan.count


@pytest.mark.parametrize("preset, options", [("slice", []), ("slab", ["--slab-mm", "2.4"])])
def test_files_of_a_sliced_preset_name_the_slice(tmp_path, preset, options):
    few = ["--preset", preset, "--train", "1", "--val", "0", "--test", "0"]
    make_phantom.main(["--out", str(tmp_path / "raw"), *few])
    raw = str(tmp_path / "raw" / "cohort.csv")
    preprocess.main(["--data", raw, "--out", str(tmp_path / "out"), "--jobs", "1", *options])
    (simulated,) = phantom.simulate_cohort(preset, {"train": 1}, seed=0)["train"]
    (row,) = read_cohort(tmp_path / "out" / "cohort.csv")
    prepared = load_scan(row)
    assert (row.slice_z_mm, prepared.slice_index) == (0.4, simulated.slice_index)
    np.testing.assert_allclose(prepared.centres_zyx, simulated.centres_zyx, atol=0.01)
    np.testing.assert_allclose(prepared.volume.array, simulated.volume.array, atol=1e-5)
    assert prepared.count == simulated.count


def test_make_phantom_refuses_a_folder_that_holds_a_cohort(tmp_path, capsys):
    (tmp_path / "cohort.csv").write_text("subject,image,count\n")
    assert "cohort.csv" in refusal(capsys, make_phantom.main, "--out", tmp_path)
