"""weakunet: where the lesions are, learned from nothing but how many there are (GP-Unet).

The package in reading order. Behind each place the most lines it may have, which .ci/lines.py holds
it to: whoever needs more raises the number on purpose, in the same change.

    layers/        1430  one layer per file: equation, numpy pair, small class; its CUDA beside it
    layers/conv/   2540  the one hard layer: the plain pair, the fast one, the CUDA ladder
    model.py        330  the network: forward, backward and heatmap written out
    gpu/            440  which device holds an array, and how a kernel is started there
    data/          1500  scans and counts: volumes, cohort tables, section 2.1, simulated scans
    training/      1048  settings, random transforms, the training step and loop, checkpoints
    detection/      430  from heatmap and count to detections; test-time augmentation
    evaluation/     620  sensitivity, false positives, FROC, confidence intervals: one evaluator
    compare/       1040  the paper's six methods and the fully supervised upper bound; statistics
    figures/        930  every picture, and the report
    bench/         1020  how fast it is beside PyTorch; whether a GPU computes what numpy does
    util/           580  one-line errors, whole files, processes, parts, resuming
    *.py            760  the commands: train, predict, evaluate, preprocess, study
"""
