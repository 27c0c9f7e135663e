"""Pictures of counts: agreement of predicted and true ones, and what learning to count depends on.

Series are told apart by line and marker as well as by colour.
"""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from weakunet.evaluation.metrics import count_metrics
from weakunet.figures.drawing import line_style, new_figure, save_figure

JITTER = 0.18  # of the true counts


def counts_agreement(path, true, predicted):
    """Predicted against true counts, and their differences after Bland and Altman (1986).

    On the right: difference against mean, the mean difference (bias) and the 95 % limits of
    agreement, bias +- 1.96 standard deviations. On the left, true counts are jittered so that equal
    scans do not hide each other, and the axis says so.

    Parameters: true, predicted (n,), counts, not rounded.
    """
    true, predicted = np.asarray(true, float), np.asarray(predicted, float)
    figure = new_figure(10.4, 5.0)
    scatter, differences = figure.subplots(1, 2)
    shifted = true + np.random.default_rng(0).uniform(-JITTER, JITTER, len(true))
    style = line_style(0, linestyle="none", markersize=7, alpha=0.65, markeredgecolor="white")
    scatter.plot(shifted, predicted, label=f"scans ({len(true)})", **style)
    differences.plot((true + predicted) / 2, predicted - true, **style)
    ends = np.concatenate([true, predicted, [0, 1]])
    limits = (ends.min() - 0.7, ends.max() + 0.7)
    scatter.plot(limits, limits, color="grey", linestyle="--", label="identity", zorder=1)
    scatter.set(xlim=limits, ylim=limits, aspect="equal", ylabel="predicted count (lesions)")
    scatter.set_xlabel(f"true count (lesions), jittered by up to ±{JITTER}")
    agreement = count_metrics(true, predicted)
    named = {"count_r2": "R²", "count_icc": "ICC(A,1)", "count_mae": "MAE", "count_mse": "MSE"}
    title = "   ".join(f"{name} {agreement[key]:.2f}" for key, name in named.items())
    scatter.set_title(title, fontsize=10)
    scatter.legend(loc="upper left", fontsize=9)
    _limits_of_agreement(differences, predicted - true)
    for panel in (scatter, differences):
        panel.grid(alpha=0.3)
    save_figure(figure, path)


def _limits_of_agreement(panel, difference):
    panel.axhline(0, color="grey", linewidth=0.8)
    panel.set(xlabel="mean of true and predicted (lesions)", ylabel="predicted − true (lesions)")
    if len(difference) < 2:
        return
    bias, reach = difference.mean(), 1.96 * difference.std(ddof=1)
    for value, line in ((bias, "-"), (bias - reach, "--"), (bias + reach, "--")):
        panel.axhline(value, color="black", linestyle=line)
        text = f"{value:+.2f}".replace("-", "−")
        panel.text(1.01, value, text, transform=panel.get_yaxis_transform(), va="center")
    panel.set_title("solid: bias   dashed: 95 % limits of agreement", fontsize=10)
    furthest = 1.15 * max(abs(difference).max(), abs(bias) + reach, 0.5)
    panel.set_ylim(-furthest, furthest)


def study_lines(path, study, x_label, rows, log_x=False):
    """Draw a study: count and localisation, each a line per series with bars over the seeds.

    Parameters: study, the title; rows, one per network: (series, x, R2 of the count, TPR at the
    true count); log_x, a logarithmic x axis, labelled at the values studied.
    """
    series = list(dict.fromkeys(name for name, *_ in rows))
    figure = new_figure(7.8, 4.0)
    figure.get_layout_engine().set(w_pad=0.1)
    labels = ("R2 of the count (validation)", "TPR at the true count (validation)")
    for column, (panel, label) in enumerate(zip(figure.subplots(1, 2), labels, strict=True), 2):
        for k, name in enumerate(series):
            x = sorted({row[1] for row in rows if row[0] == name})
            values = [[row[column] for row in rows if row[:2] == (name, at)] for at in x]
            mean, low, high = (np.array([f(v) for v in values]) for f in (np.mean, min, max))
            style = line_style(k, markersize=7, capsize=3)
            panel.errorbar(x, mean, yerr=abs(np.stack([mean - low, high - mean])), **style)
        panel.set(xlabel=x_label, ylabel=label)
        panel.margins(x=0.08)
        values = sorted({row[1] for row in rows})
        if all(isinstance(value, int) for value in values):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log_x:
            panel.set_xscale("log")
            panel.set_xticks(values, [f"{value:g}" for value in values])
            panel.minorticks_off()
        panel.set_ylim(min(0, panel.get_ylim()[0]), 1)
        panel.grid(alpha=0.3)
    handles = [Line2D([], [], label=name, **line_style(k)) for k, name in enumerate(series)]
    if len(series) > 1:
        style = {"ncols": min(3, len(series)), "frameon": False, "handlelength": 4}
        figure.legend(handles=handles, loc="outside lower center", **style)
    figure.suptitle(study, fontsize=11)
    save_figure(figure, path)
