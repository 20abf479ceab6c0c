"""The logged numbers of a run as one picture, a panel for each number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

UNINTERESTING = ("epoch", "step", "learning_rate", "grad_norm", "runtime", "per_second", "flos", "train_")


def draw_curves(history: Iterable[dict], path: str | Path, references: dict[str, float] | None = None) -> Path | None:
    """Training and evaluation curves of a `log_history`; None where matplotlib is not installed.

    Parameters
    ----------
    history
        What `Trainer` logged.
    path
        Of the picture.
    references
        Name of a number -> a level to draw beside its curve, such as a baseline's.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    curves = curves_of(history)
    names = sorted({name.removeprefix("eval_") for name in curves})
    columns = min(4, max(len(names), 1))
    figure = Figure(figsize=(4 * columns, 3 * -(-len(names) // columns)), layout="constrained")
    for panel, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // columns), columns, panel + 1, title=name, xlabel="step")
        for key, style in ((name, "-"), (f"eval_{name}", "o-")):
            if key in curves:
                axes.plot(
                    *zip(*curves[key], strict=True),
                    style,
                    markersize=3,
                    label="held out" if "eval" in key else "training",
                )
        if references and name in references:
            axes.axhline(references[name], linestyle="--", color="grey", label="nearest class mean")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    return Path(path)


def curves_of(history: Iterable[dict]) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of every logged number worth a look."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if not any(part in name for part in UNINTERESTING):
                curves.setdefault(name, []).append((entry["step"], value))
    return curves
