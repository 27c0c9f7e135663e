"""The steps of section 2.1, one picture each."""

from weakunet.figures.drawing import new_figure, save_figure, show_slice


def preprocess_figure(path, steps, spacing_mm):
    """The middle axial slice of every step of section 2.1; steps: name -> (D, H, W), in order."""
    rows = -(-len(steps) // 4)
    figure = new_figure(11, 3.1 * rows)
    axes = figure.subplots(rows, 4, squeeze=False).reshape(-1)
    for panel, (name, array) in zip(axes, steps.items(), strict=False):
        low, high = float(array.min()), float(array.max())
        show_slice(panel, array[len(array) // 2], spacing_mm, low, high)
        panel.set_title(f"{name}: {low:.3g} to {high:.3g}", fontsize=9)
        panel.set_xlabel("x (mm)", fontsize=9)
        panel.set_ylabel("y (mm)", fontsize=9)
        panel.tick_params(labelsize=8)
    for panel in axes[len(steps) :]:
        panel.axis("off")
    save_figure(figure, path)
