"""An evaluation for people: a table beside the paper's figures, the run's report, its MLflow run."""

from __future__ import annotations

from pathlib import Path

from finetune.evaluate import Evaluation
from finetune.fitted import Fitted
from finetune.metrics import papers
from finetune.metrics.prediction import Prediction
from finetune.metrics.report import table as by_metric
from pretrain.report import Section, save_section
from pretrain.tracking import METRICS_FILE, read_records, sync
from pretrain.tracking.metrics_file import MetricsFile

FOLDER = "evaluation"


def table(family: str, found: Evaluation) -> str:
    """Markdown: every figure beside the paper's, sessions, samples, and what could not be measured."""
    facts = found.facts
    theirs: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(source.partition(":")[0] for source in facts["sources"]):
        theirs |= papers.beside(family, name)
    parts = [
        f"# {family}: {facts['split']} split\n",
        f"{facts['replies']:,} replies of {facts['dialogues']:,} dialogues ({', '.join(facts['sources'])}), "
        f"memory {facts['memory']}, context {facts['context_tokens']} tokens, model {facts['model']}\n",
        found.metrics.with_values(found.figures).markdown(theirs),
        *(["The paper's models are far larger, and trained on whole data sets.\n"] if theirs else []),
    ]
    if found.by_session:
        parts.append(by_metric({f"session {number}": row for number, row in found.by_session.items()}))
    if found.predictions:
        parts.append("\n".join(["Samples:", "", *(_sample(one) for one in found.predictions[:5])]) + "\n")
    return "\n".join(parts)


def _sample(one: Prediction) -> str:
    heard = one.context[-1] if one.context else ""
    return f"- `{heard}` -> `{' / '.join(one.replies)}` (reference: `{one.references[0]}`)"


def publish(fitted: Fitted, split: str, found: Evaluation, text: str) -> Path:
    """Leave the figures with the run that trained the model; returns the folder for the files.

    An exported model has no run: only the folder beside it is named.
    """
    if not (fitted.place / "state.json").is_file():
        return fitted.place / FOLDER / split
    run_dir, step = fitted.place.parent.parent, int(fitted.place.name.removeprefix("step-"))
    save_section(run_dir, f"evaluation-{split}", Section(f"Evaluation on the {split} split", text=text))
    figures = {**found.figures, **found.metrics.values}
    metrics = MetricsFile(run_dir / METRICS_FILE)
    # The best checkpoint may be older than the last record, and records do not go back.
    step = max([step, *(record.step for record, _ in read_records(run_dir / METRICS_FILE) if record)])
    metrics.append(step, f"evaluation-{split}", {f"{split}/{name}": value for name, value in figures.items()})
    metrics.close()
    if fitted.recipe.tracking.mlflow:
        sync(run_dir)
    return run_dir / FOLDER / split
