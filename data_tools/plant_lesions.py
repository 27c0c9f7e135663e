"""Plant lesions into a real scan: a cohort with real anatomy and known lesion centres.

    python data_tools/plant_lesions.py --scan ch2better.nii.gz --roi aal.nii.gz \\
        --labels 71 72 73 74 75 76 --invert --spacing-mm 0.9 --out planted
    python -m weakunet.preprocess --data planted/cohort.csv --out prepared

Every planted scan is the given one, cut around the region of interest, with a smooth random warp,
bright tubes in the region (weakunet.data.phantom.draw_lesions; counts as in the phantom), partial
volume, a bias field, Rician noise and a gain. Lesions are dark in T1-weighted scans: `--invert`
inverts the scan first (1 - image / its 99th percentile, clipped), which resembles T2 in the basal
ganglia. With `--moved` a scan is the whole head in its own contrast, rotated and shifted in the
world as if each had lain differently in the scanner, so it must be registered. One person's anatomy
is not a cohort: use it to try the whole path, not to measure how well a network generalises to
other people. The example's files come with Debian's package mricron-data.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

import numpy as np
from make_phantom import add_cohort_arguments, require_new, write_scans
from scan_tools import box_grid
from scipy import ndimage
from scipy.spatial.transform import Rotation

from weakunet.data import volumes
from weakunet.data.phantom import draw_count, draw_lesions, scan_rng, smooth_noise
from weakunet.data.prepare import DILATION_VOX, dilate_mask, invert_contrast
from weakunet.data.rigid import resample, resample_image
from weakunet.util.cli import InputError, command, new_parser

MARGIN_VOX = 2  # shown around the box that preprocessing crops
WARP_MM, WARP_SMOOTH_MM = 0.7, 12.0  # sd of the displacement and how smooth it is
BIAS, BIAS_SMOOTH_MM = 0.05, 25.0
FLUID = 0.5  # brighter voxels of the region count as fluid
NOISE = 0.02  # sd of the noise, of the scan's full scale
CONTRAST = (0.35, 0.60)  # of the lesions, of the full scale
TURN_DEG, SHIFT_MM = 12.0, 20.0  # --moved: at most, about and along each axis


def read_region(path, labels):
    """Read the region of interest as a Volume of bool: a mask, or the voxels of `labels`."""
    if labels:
        image = volumes.read_labels(path)
        region = volumes.Volume(np.isin(image.array, labels), image.affine)
    else:
        region = volumes.read_mask(path)
    if not region.array.any():
        raise InputError(f"{path}: no voxel of the region; check the mask or --labels")
    return region


def grid_around(region, spacing_mm):
    """An empty grid around what preprocessing crops to, with `spacing_mm` (z, y, x)."""
    inside_mm = volumes.index_to_world(region, np.argwhere(region.array))
    step_mm = np.array(spacing_mm)[::-1]
    low_mm = inside_mm.min(axis=0) - (DILATION_VOX + MARGIN_VOX) * step_mm
    high_mm = inside_mm.max(axis=0) + (DILATION_VOX + MARGIN_VOX) * step_mm
    shape = np.ceil((high_mm - low_mm) / step_mm).astype(int)[::-1] + 1
    affine = np.diag([*step_mm, 1.0])
    affine[:3, 3] = low_mm
    return volumes.Volume(np.zeros(shape, np.float32), affine)


def full_scale(image, inside, invert, path):
    """Scale a scan so that the 99th percentile around the region is 1; `invert` it first."""
    if invert:
        image = invert_contrast(image, inside)
    high = np.percentile(image[inside], 99)
    if high <= image[inside].min():
        raise InputError(f"{path}: constant inside the region; check that the two fit together")
    return np.maximum(image / high, 0)


def plant(rng, image, roi, spacing_mm, mean_count, max_count, turn_back=False):
    """Make one planted scan from a scan of full scale 1.

    Parameters: image (D, H, W), roi (D, H, W) bool, spacing_mm (z, y, x); turn_back: bright to dark
    Returns: raw image and region (D, H, W), the lesions' middles (n, 3) in voxels.
    """
    shape = image.shape
    moved = [
        i + WARP_MM / step * smooth_noise(rng, shape, spacing_mm, WARP_SMOOTH_MM)
        for i, step in zip(np.indices(shape, np.float32), spacing_mm, strict=True)
    ]
    image = ndimage.map_coordinates(image, moved, order=1, mode="nearest")
    roi = ndimage.map_coordinates(roi.astype(np.uint8), moved, order=0) > 0
    count = draw_count(rng, mean_count, max_count)
    tissue = roi & (image < FLUID)  # a bright lesion in the ventricle would not be seen
    lesions, centres = draw_lesions(rng, count, tissue, spacing_mm, contrast=CONTRAST)
    image = image + ndimage.gaussian_filter(lesions, 0.5)
    if turn_back:
        image = np.maximum(1 - image, 0)
    image *= 1 + BIAS * smooth_noise(rng, shape, spacing_mm, BIAS_SMOOTH_MM)
    noise_re, noise_im = NOISE * rng.standard_normal((2, *shape), dtype=np.float32)
    gain = 1000 * rng.uniform(0.8, 1.2)
    return gain * np.hypot(image + noise_re, noise_im), roi, centres


def draw_motion(rng):
    """A rigid motion (4, 4) of the world about its origin, in mm."""
    motion = np.eye(4)
    turns = rng.uniform(-TURN_DEG, TURN_DEG, 3)
    motion[:3, :3] = Rotation.from_euler("xyz", turns, degrees=True).as_matrix()
    motion[:3, 3] = rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
    return motion


def parse_arguments(argv):
    parser = new_parser(__doc__)
    parser.add_argument("--scan", type=Path, required=True, help="the scan (NIfTI, MGH)")
    parser.add_argument("--roi", type=Path, required=True, help="mask or label image, on any grid")
    parser.add_argument("--labels", type=int, nargs="+", help="labels of --roi that count")
    parser.add_argument("--invert", action="store_true", help="dark to bright, for T1 scans")
    parser.add_argument("--spacing-mm", type=float, help="voxel size (default: the scan's own)")
    parser.add_argument("--moved", action="store_true", help="whole heads, to be registered")
    add_cohort_arguments(parser, (120, 30, 30))
    about = "mean number of lesions per scan"
    parser.add_argument("--mean-count", type=float, default=5.0, help=about)
    about = "maximum number of lesions per scan"
    parser.add_argument("--max-count", type=int, default=20, help=about)
    return parser.parse_args(argv)


@command
def main(argv=None):
    """Write the planted cohort the arguments ask for."""
    args = parse_arguments(argv)
    require_new(args.out)
    scan = volumes.read_volume(args.scan)
    region = read_region(args.roi, args.labels)
    spacing_mm = (args.spacing_mm,) * 3 if args.spacing_mm else scan.spacing_mm
    grid = box_grid(scan, spacing_mm[::-1]) if args.moved else grid_around(region, spacing_mm)
    image = volumes.Volume(resample_image(scan, grid, order=1), grid.affine)
    roi = volumes.Volume(resample(region, grid, order=0), grid.affine)
    if not roi.array.any() or not image.array.any():
        raise InputError(f"{args.roi}: does not lie in {args.scan}; check their affines")
    around = dilate_mask(roi.array)
    whole = full_scale(image.array, around, args.invert, args.scan)
    settings = args.mean_count, args.max_count, args.moved and args.invert

    def make(split, i):
        rng = scan_rng(args.seed, split, i)
        raw, mask, centres_zyx = plant(rng, whole, roi.array, spacing_mm, *settings)
        motion = draw_motion(rng) if args.moved else np.eye(4)
        affine = motion @ image.affine  # the voxels stay, the axes turn with the head
        centres_mm = volumes.move_points(motion, volumes.index_to_world(image, centres_zyx))
        return volumes.Volume(raw, affine), volumes.Volume(mask, affine), centres_mm

    write_scans(args, make, "planting")


if __name__ == "__main__":
    main()
