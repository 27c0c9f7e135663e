"""FreeSurfer's numbers and names of the structures in its label images, and groups of them.

After FreeSurferColorLUT.txt: aseg.mgz (subcortical), aparc+aseg.mgz and wmparc.mgz (1000 and 2000
plus the gyrus: left and right cortex; 3000 and 4000: the white matter below), brainstemSsLabels.mgz
(Midbrain to SCP). Structures without a name here are asked for by number.
"""

PAIRS = {
    "Cerebral-White-Matter": (2, 41),
    "Cerebral-Cortex": (3, 42),
    "Lateral-Ventricle": (4, 43),
    "Inf-Lat-Vent": (5, 44),
    "Cerebellum-White-Matter": (7, 46),
    "Cerebellum-Cortex": (8, 47),
    "Thalamus": (10, 49),
    "Caudate": (11, 50),
    "Putamen": (12, 51),
    "Pallidum": (13, 52),
    "Hippocampus": (17, 53),
    "Amygdala": (18, 54),
    "Accumbens-area": (26, 58),
    "VentralDC": (28, 60),
    "vessel": (30, 62),
    "choroid-plexus": (31, 63),
    "UnsegmentedWhiteMatter": (5001, 5002),
}
SINGLES = {
    "3rd-Ventricle": 14,
    "4th-Ventricle": 15,
    "Brain-Stem": 16,
    "CSF": 24,
    "5th-Ventricle": 72,
    "WM-hypointensities": 77,
    "non-WM-hypointensities": 80,
    "Optic-Chiasm": 85,
    "Midbrain": 173,
    "Pons": 174,
    "Medulla": 175,
    "SCP": 178,
    "CC_Posterior": 251,
    "CC_Mid_Posterior": 252,
    "CC_Central": 253,
    "CC_Mid_Anterior": 254,
    "CC_Anterior": 255,
}
GYRI = (  # Desikan and Killiany's, in FreeSurfer's order; the first is number 1
    "bankssts caudalanteriorcingulate caudalmiddlefrontal corpuscallosum cuneus entorhinal "
    "fusiform inferiorparietal inferiortemporal isthmuscingulate lateraloccipital "
    "lateralorbitofrontal lingual medialorbitofrontal middletemporal parahippocampal paracentral "
    "parsopercularis parsorbitalis parstriangularis pericalcarine postcentral posteriorcingulate "
    "precentral precuneus rostralanteriorcingulate rostralmiddlefrontal superiorfrontal "
    "superiorparietal superiortemporal supramarginal frontalpole temporalpole transversetemporal "
    "insula"
).split()

GROUPS = {
    "basal-ganglia": ("Caudate", "Putamen", "Pallidum", "Accumbens-area"),
    "hippocampus": ("Hippocampus",),
    "midbrain": ("Midbrain",),
    "centrum-semiovale": ("Cerebral-White-Matter", "WM-hypointensities", "UnsegmentedWhiteMatter"),
}


def _names():
    names = {number: name for name, number in SINGLES.items()}
    for name, numbers in PAIRS.items():
        names |= zip(numbers, (f"Left-{name}", f"Right-{name}"), strict=True)
    for i, gyrus in enumerate(GYRI, start=1):
        for tissue, base in (("ctx", 1000), ("wm", 3000)):
            names[base + i] = f"{tissue}-lh-{gyrus}"
            names[base + 1000 + i] = f"{tissue}-rh-{gyrus}"
    return names


NAMES = dict(sorted(_names().items()))  # number -> name
NUMBERS = {name.lower(): [number] for number, name in NAMES.items()}  # name -> numbers
NUMBERS |= {name.lower(): list(numbers) for name, numbers in PAIRS.items()}  # both sides
NUMBERS |= {"left-thalamus-proper": [10], "right-thalamus-proper": [49]}  # as called before 7.0


def describe(number):
    """`11 Left-Caudate`, or the number alone if it has no name here."""
    return f"{number} {NAMES[number]}" if number in NAMES else str(number)
