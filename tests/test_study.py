"""The studies: what is varied is what the axis says, and nothing else."""

from pathlib import Path

import numpy as np

from weakunet import study


def test_disturbed_counts_are_off_by_one_in_the_fraction_asked_for_and_never_negative():
    counts = np.arange(4000) % 5
    for fraction in (0.0, 0.3, 1.0):
        off = study.disturb(counts, fraction, seed=1) - counts
        assert set(np.abs(off)) <= {0, 1}
        assert abs((off != 0).mean() - fraction) < 0.03
        assert (counts + off >= 0).all()
    assert abs(off[counts > 0].mean()) < 0.05  # as often too high as too low
    assert not np.array_equal(study.disturb(counts, 0.3, 1), study.disturb(counts, 0.3, 2))


def test_fewer_scans_are_trained_for_the_same_number_of_steps():
    steps = {v.n_train * v.settings.epochs for v in study.variants("scans", 1, Path("out"))}
    assert steps == {800 * 24}


def test_studies_share_their_common_network():
    folders = [
        {v.folder for v in study.variants(s, 1, Path("out"))} for s in list(study.STUDIES)[:3]
    ]
    assert len(set.intersection(*folders)) == 1
    assert [len(own) for own in folders] == [5, 3, 5]
