"""One page about a certified model: what is proved of it, how that came about, and how to check it.

content gathers the facts, figures draws them, page writes them down. Needs jinja2 and matplotlib, the extra "report".
"""

from lightning_lipschitz.report.content import Content, Subject, gather
from lightning_lipschitz.report.figures import draw_all
from lightning_lipschitz.report.history import readable
from lightning_lipschitz.report.page import require_libraries, write_page
from lightning_lipschitz.report.predictions import PredictionLog, Predictions, predict

__all__ = [
    "Content",
    "PredictionLog",
    "Predictions",
    "Subject",
    "draw_all",
    "gather",
    "predict",
    "readable",
    "require_libraries",
    "write_page",
]
