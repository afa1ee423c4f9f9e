"""What the figures share: one look, one place where they go."""

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # figures are written, never shown
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
FIGURES = Path(os.environ.get("OPTLAYER_FIGURES", ROOT / "docs" / "figures"))

INK, MUTED, FAINT = "#22262e", "#8a8f99", "#e3e6ea"
BLUE, RED, GREEN, GOLD, VIOLET = "#2f6db5", "#d1495b", "#3a8f6a", "#e0a030", "#7a5ba8"

plt.rcParams.update(
    {
        "figure.dpi": 160,
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlepad": 8,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=[BLUE, RED, GREEN, GOLD, VIOLET]),
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "mathtext.fontset": "cm",
    }
)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure, close it, and name the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Software": None})
    plt.close(figure)
    print(f"figure: {shown(path)}")
    return path


def shown(path: Path) -> str:
    """The path as a reader of the repository would write it."""
    return path.name if path.parent != FIGURES else f"docs/figures/{path.name}"
