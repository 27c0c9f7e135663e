# %% [markdown]
# # 8. What a network learns from a count
#
# **Question.** All that the network is told about a scan is one number. How can it learn to count
# from that, and why does it so often learn to predict the mean count and nothing else?
#
# **You will see** what the squared error asks for; what three poolings can tell about a number of
# spots; how large the features of an untrained network are beside what they say; and four small
# networks, watched while they learn. The last picture shows who learns, who is late, and who
# cannot count far.
#
# **Takes** about 60 seconds on 2 cores, nearly all of it training. Lesson 5 explains the network.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np

from weakunet.data import phantom
from weakunet.evaluation.metrics import count_metrics
from weakunet.figures.drawing import LINES
from weakunet.layers.globalpool3d import GlobalPool3D, globalmax_backward, globalmax_forward
from weakunet.layers.loss import mse_backward, mse_forward
from weakunet.layers.optim import Adadelta, adadelta_update
from weakunet.model import WeakUNet
from weakunet.training.augment import draw_transform, warp

# %% [markdown]
# ## The scans
#
# The tiny phantom, two voxels less on each side (all lesions are still inside): 200 scans to train
# on, 60 to watch.

# %%
print("\n## The scans")
SEED, EDGE, BLOCK = 1, 2, 8
cohort = phantom.simulate_cohort("tiny", {"train": 200, "val": 60}, SEED)
volumes, counts = {}, {}
for split, scans in cohort.items():
    inner = (slice(EDGE, -EDGE),) * 3
    volumes[split] = np.stack([scan.volume.array[inner] for scan in scans])[:, None]
    counts[split] = np.array([scan.count for scan in scans], np.float32)
    centres = np.concatenate([scan.centres_zyx for scan in scans]) - EDGE
    assert (centres >= 0).all() and (centres <= np.subtract(volumes[split].shape[2:], 1)).all()
print(f"{volumes['train'].shape}; training counts 0 to {counts['train'].max():.0f}", end=", ")
print(f"mean {counts['train'].mean():.2f}")

# %% [markdown]
# ## What the loss asks for
#
# The mean squared error L = 1/N sum (y - t)^2 of predicted counts y and true counts t, and its
# gradient. Somebody who knows nothing of a scan does best to predict the mean of the counts: then
# the error is their variance. That is the bar. R2 says how far one is above it,
#
#     R2 = 1 - error / variance        1: perfect, 0: no better than the mean, below 0: worse
#
# and r is the correlation of y and t, which does not care whether y has the right size.


# %%
print("\n## What the loss asks for")


def mse_by_hand(y, t):
    return ((y - t) ** 2).mean(), 2 * (y - t) / len(y)


t = counts["val"]
constants = np.linspace(0, 6, 601, dtype=np.float32)
errors = [mse_by_hand(np.full_like(t, c), t)[0] for c in constants]
print(f"the best constant is {constants[np.argmin(errors)]:.2f}, the mean is {t.mean():.2f};")
print(f"its error is {min(errors):.2f}, the variance is {t.var():.2f}")
y = t + np.float32(0.5)
assert np.isclose(mse_by_hand(y, t)[0], mse_forward(y, t))
assert np.allclose(mse_by_hand(y, t)[1], mse_backward(y, t))

# %% [markdown]
# ## What a pooled map can tell
#
# Suppose a feature map is already as good as can be: 1 at each lesion, 0 elsewhere. What is left of
# it after the pooling? The maximum says that there IS one, and then nothing more: it saturates. The
# mean adds up, and so does the mean of local maxima, as long as no two lesions share a block.
#
# Backward, the maximum sends all of its gradient to one voxel of a map (ties go to the first).


# %%
print("\n## What a pooled map can tell")


def globalmax_backward_by_hand(dy, x):
    """dy (C,), x (C, D, H, W) -> dx: dy at each map's maximum, 0 elsewhere"""
    dx = np.zeros((len(x), x[0].size))
    dx[np.arange(len(x)), x.reshape(len(x), -1).argmax(axis=1)] = dy
    return dx.reshape(x.shape)


rng = np.random.default_rng(SEED)
x, dy = rng.integers(0, 4, (2, 3, 4, 5)).astype(float), np.array([1.0, 2.0])  # with ties
argmax = globalmax_forward(x[None])[1]
assert np.array_equal(
    globalmax_backward_by_hand(dy, x), globalmax_backward(dy[None], argmax, (1, *x.shape))[0]
)

spots = np.zeros((9, 1, 12, 28, 28))  # map n has n spots
for n, place in enumerate(rng.choice(spots[0].size, 8, replace=False), start=1):
    spots[n:].reshape(9 - n, -1)[:, place] = 1
pooled = {mode: GlobalPool3D(mode, BLOCK).forward(spots)[:, 0] for mode in ("max", "mean", "lmax")}
for mode, of_n in pooled.items():
    print(f"{mode:4s} of 0 to 8 spots, relative to one:", *(f"{v:.0f}" for v in of_n / of_n[1]))

# %% [markdown]
# ## The step
#
# Adadelta, the paper's optimizer: each weight has its own step size, from running averages of its
# squared gradients and of its squared steps.


# %%
print("\n## The step")


def adadelta_by_hand(w, g, avg_g2, avg_s2, rho=0.95, eps=1e-6):
    avg_g2 = rho * avg_g2 + (1 - rho) * g**2
    step = -np.sqrt(avg_s2 + eps) / np.sqrt(avg_g2 + eps) * g
    return w + step, avg_g2, rho * avg_s2 + (1 - rho) * step**2


by_hand = np.ones(3), np.zeros(3), np.zeros(3)
library = [a.copy() for a in by_hand]
for _ in range(5):
    g = rng.standard_normal(3)
    by_hand = adadelta_by_hand(by_hand[0], g, *by_hand[1:])
    adadelta_update(library[0], g, *library[1:], 1.0, 0.95, 1e-6)
assert np.allclose(by_hand, library)

# %% [markdown]
# ## The first weights of the last layer
#
# The count is y = w . x + b, with x the pooled maps. The paper draws w from a Gaussian. Look at x
# in an untrained network: it is large, and nearly the same in every scan. A step that makes all
# features a little larger or smaller moves ALL predictions together, and much more than a lesion
# moves one of them. So the first thing that the loss can gain is the right mean; and until the
# features have changed, there is little else to gain.
#
# `model.start` sets w positive and such that the mean prediction (here, of 32 scans) is the mean
# count from the beginning, with b = 0. Then a feature that answers to lesions adds to the count,
# and there is no sign to be found first.

# %%
print("\n## The first weights of the last layer")
NETWORKS = {  # the pooling, and how the last layer starts
    "local maxima, start": ("lmax", "start"),
    "local maxima, Gaussian": ("lmax", "Gaussian"),
    "maximum, start": ("max", "start"),
    "mean, start": ("mean", "start"),
}


def untrained(pooling, first):
    # region=False: blocks side by side, and the count of the whole box, as written out above
    rng = np.random.default_rng([SEED, 0])
    model = WeakUNet((8, 8, 8), pooling=pooling, block=BLOCK, region=False, rng=rng)
    if first == "start":
        model.start((volumes["train"][i : i + 1] for i in range(32)), counts["train"].mean())
    return model


for name, how in NETWORKS.items():
    model = untrained(*how)
    x = model.global_pool.forward(model.features(volumes["val"]))
    error = mse_forward(model.predict(volumes["val"])[0], counts["val"])
    ratio = (x.mean(axis=0) / x.std(axis=0)).mean()
    print(f"{name:22s}: features are {ratio:4.1f} times their spread over scans,", end=" ")
    print(f"the error is {error:5.2f}")

# %% [markdown]
# ## Watch them learn
#
# 600 steps of 4 scans each, randomly mirrored and shifted; a smaller step at the end. After every
# 50 steps, R2 and r of the 60 other scans.

# %%
print("\n## Watch them learn")
STEPS, BATCH, EVERY = 600, 4, 50


def judge(model):
    figures = count_metrics(counts["val"], model.predict(volumes["val"])[0])
    return figures["count_r2"], figures["count_r"]


def train(model):
    """Train; returns rows (step, R2, r)."""
    rng = np.random.default_rng([SEED, 1])
    n = len(counts["train"])
    order = np.concatenate([rng.permutation(n) for _ in range(STEPS * BATCH // n)])
    optimizer, history = Adadelta(model.params, eps=1e-6), [(0, *judge(model))]
    for step, chosen in enumerate(order.reshape(STEPS, BATCH)):
        optimizer.lr = 1.0 if step < 0.7 * STEPS else 0.3 if step < 0.9 * STEPS else 0.1
        scans = volumes["train"][chosen, 0]
        moved = np.stack([warp(scan, draw_transform(rng, scan.shape)) for scan in scans])
        y = model.forward(moved[:, None])
        model.backward(mse_backward(y, counts["train"][chosen]))
        optimizer.step(model.grads)
        if (step + 1) % EVERY == 0:
            history.append((step + 1, *judge(model)))
    return np.array(history)


histories, predictions = {}, {}
print(f"after every {2 * EVERY} steps:")
for name, how in NETWORKS.items():
    model = untrained(*how)
    histories[name] = train(model)
    predictions[name] = model.predict(volumes["val"])[0]
    print(f"{name:22s}  R2", *(f"{r2:5.2f}" for _, r2, _ in histories[name][::2]))
    print(f"{'':22s}   r", *(f"{r:5.2f}" for *_, r in histories[name][::2]))

# %% [markdown]
# Watch r and R2 together. For a long time the error is about that of the mean, whether a network
# will learn or never will. But r tells them apart: it rises first, because a feature that answers
# to lesions comes before the last layer gives it the right size. While r stays low there is nothing
# to scale: the network has collapsed to the mean, or has not left it yet. (Late is not lost: see
# whether r still rises at the end. The mean's push reaches every voxel alike, lesson 9; what
# answers to lesions is hardly singled out.)
#
# What varies? Data, first weights and order follow SEED, and on another computer the last digits
# differ. Then another network may come first, or take off later: with the maximum, r may lie low
# for half of the steps and rise within a hundred. Before you believe an order, train several seeds.
#
# ## The picture
#
# Left and middle: R2 and r of the 60 scans. Right: what scans with so many lesions are given; small
# dots are scans, large marks their means. The maximum flattens: 8 maps, each of which says little
# more than "there is one", run out of ways to count further. The mean predicts nearly the same for
# every scan.

# %%
print("\n## The picture")
figure, panels = plt.subplots(1, 3, figsize=(15, 5.4), layout="constrained")
shift = np.random.default_rng(0).uniform(-0.25, 0.25, len(counts["val"]))
groups = [counts["val"] == n for n in range(6)]
groups += [(counts["val"] >= 6) & (counts["val"] <= 7), counts["val"] >= 8]
groups = [own for own in groups if own.any()]
for k, name in enumerate(NETWORKS):
    colour, line, marker = LINES[k]
    style = {"color": colour, "linestyle": line, "marker": marker}
    steps, r2, r = histories[name].T
    panels[0].plot(steps, r2, label=name, **style)
    panels[1].plot(steps, r, **style)
    panels[2].plot(counts["val"] + shift, predictions[name], marker, color=colour, ms=3, alpha=0.4)
    true, given = ([of[own].mean() for own in groups] for of in (counts["val"], predictions[name]))
    panels[2].plot(true, given, markersize=9, **style)
for panel, name in zip(panels[:2], ("R2", "r"), strict=True):
    panel.axhline(0, color="grey", linestyle=":")
    panel.set(title=f"{name} of the predicted count", xlabel="step", ylim=(-0.5, 1))
panels[0].text(STEPS, -0.02, "answering the mean count", color="dimgrey", ha="right", va="top")
panels[0].legend(frameon=False, loc="upper left")
largest = counts["val"].max()
panels[2].plot([0, largest], [0, largest], color="grey", linestyle=":")
panels[2].text(0.7 * largest, 0.8 * largest, "right", color="dimgrey", ha="right")
panels[2].axhline(counts["train"].mean(), color="grey", linestyle=":")
panels[2].text(largest, counts["train"].mean(), "the mean", color="dimgrey", ha="right", va="top")
panels[2].set(title="after training", xlabel="true count (lesions)", ylabel="predicted (lesions)")

few, many = counts["val"] <= 2, counts["val"] >= 6
print(f"scans of 6 or more lesions have {counts['val'][many].mean():.1f} on average")
for name, predicted in predictions.items():
    print(f"{name:22s}: they are given {predicted[many].mean():.1f}", end=", ")
    print(f"those of at most 2 {predicted[few].mean():.1f}")
for name, predicted in predictions.items():
    error = mse_forward(predicted, counts["val"])
    print(f"{name:22s}: squared error {error:.2f}; of the mean count: {counts['val'].var():.2f}")
lesson.save(figure, "08_counting")

# %% [markdown]
# **Try.** Another SEED. Twice as many STEPS for the Gaussian start: is it late, or lost? Then write
# the loss, the pooling's backward pass and the optimizer yourself: exercise set `08_counting`.
