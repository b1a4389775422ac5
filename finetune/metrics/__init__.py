"""Automatic metrics of generated replies: thin names over well-kept libraries.

    report = evaluate(predictions, ["f1", "bleu_4", "distinct_2"], Resources())
    report.values["f1"], report.unavailable, report.markdown()

Figures that come from a model's losses and latents (`perplexity`, `latent`) take plain sums and arrays.
"""

from finetune.metrics.catalogue import METRICS, Metric, check_names
from finetune.metrics.prediction import Prediction, read_predictions, write_predictions
from finetune.metrics.report import Report, table
from finetune.metrics.resources import Resources
from finetune.metrics.scoring import by_history, by_session, evaluate, evaluate_by

__all__ = [
    "METRICS",
    "Metric",
    "Prediction",
    "Report",
    "Resources",
    "by_history",
    "by_session",
    "check_names",
    "evaluate",
    "evaluate_by",
    "read_predictions",
    "table",
    "write_predictions",
]
