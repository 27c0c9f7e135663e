"""The simulated cohorts of the comparison and the networks that fit them."""

from dataclasses import dataclass

FIRST_SEED = 70  # fresh test scans: the seeds below were looked at while the recipe was chosen
POOLS = ("lmax", "max")


@dataclass(frozen=True)
class Cohort:
    """A simulated cohort and the networks that fit it."""

    phantom: str
    n: dict  # split -> scans
    settings: dict  # of every network, see Settings
    seeds: int
    small_first: bool = False  # train on the quick cohort first and start from those weights


QUICK = {"train": 800, "val": 100, "test": 30}
COHORTS = {
    "quick": Cohort("tiny", QUICK, {}, 5),
    # In a larger scan a lesion is a smaller part of the pooled features, and when learning takes
    # off is a matter of luck: after 1 to 8 epochs. From small scans' weights it is there at once.
    "standard": Cohort("standard", QUICK, {"epochs": 8}, 5, small_first=True),
    "paper": Cohort(
        "paper",
        {"train": 1289, "val": 323, "test": 30},
        {"channels": (32, 64, 128), "convs_per_level": 2, "batch": 1, "flips": "yx"},
        1,
        small_first=True,
    ),
}
