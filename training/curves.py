"""Plot the logged losses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

UNINTERESTING = ("epoch", "step", "learning_rate", "grad_norm", "runtime", "per_second", "flos", "train_")


def draw_curves(history: Iterable[dict], path: Path, references: dict[str, float] | None = None) -> None:
    """Plot a `log_history`, a panel for each name, with a dashed line where `references` has a baseline's value.

    Nothing is drawn where nothing was logged, or where matplotlib is not installed.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if not any(part in name for part in UNINTERESTING):
                curves.setdefault(name, []).append((entry["step"], value))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    if not curves:
        return
    names = sorted({name.removeprefix("eval_") for name in curves})
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    for panel, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, panel, title=name, xlabel="step")
        for key, style, label in ((name, "-", "training"), (f"eval_{name}", "o-", "held out")):
            if key in curves:
                axes.plot(*zip(*curves[key], strict=True), style, markersize=3, label=label)
        if references and name in references:
            axes.axhline(references[name], linestyle="--", color="grey", label="nearest class mean")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)
