"""`membart slurm`: submit a pipeline, look at it, cancel it; and the preflight that its jobs call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(metavar="PIPELINE.yaml", help="See slurm/README.md.", show_default=False)
]


@app.command()
def submit(
    pipeline: File,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the sbatch lines, submit nothing.")
    ] = False,
) -> None:
    """Submit what of a pipeline is neither done nor in the queue, each job waiting for what it needs."""
    from tools.slurm import chain, queue, record, sbatch, site
    from tools.slurm.pipeline import check, load

    wanted = load(pipeline)
    check(wanted, pipeline)
    here = pipeline.resolve().parent
    tasks = chain.tasks(wanted, here)
    submission = sbatch.Submission(wanted, site.read(wanted.site), here, tuple(tasks))
    sent_before = record.read(wanted.folder)
    active = record.active(wanted.folder, queue.entries()) if sent_before else {}
    jobs = chain.plan(tasks, active)
    if dry_run:
        print("\n".join(sbatch.dry(submission, jobs)) or "nothing to do")
        return
    for task in tasks:
        if task.done or task.key in active:
            print(f"{task.stage} {task.name}: {'done' if task.done else f'job {active[task.key].job}'}")
    for sent in sbatch.submit(submission, jobs) if jobs else []:
        print(f"{sent.stage} {sent.name}: submitted as {sent.job}{f'_{sent.number}' if sent.number else ''}")
    print(f"look at it with: membart slurm status {pipeline}")


@app.command()
def status(pipeline: File) -> None:
    """Show the chain: job, state, step, loss and time left of every part."""
    from tools.slurm import chain, queue, record
    from tools.slurm import status as state
    from tools.slurm.pipeline import load

    wanted = load(pipeline)
    tasks = chain.tasks(wanted, pipeline.resolve().parent)
    sent = record.latest(wanted.folder)
    print(state.table(state.rows(tasks, sent, queue.entries() if sent else {})))


@app.command()
def cancel(
    pipeline: File,
    save: Annotated[
        bool, typer.Option("--save", help="Let what trains save first: it ends at its next step.")
    ] = False,
) -> None:
    """Cancel a pipeline's jobs; `membart slurm submit` goes on from the last checkpoints."""
    from tools.slurm import chain, queue, record
    from tools.slurm.pipeline import FINETUNE, PRETRAIN, load

    wanted = load(pipeline)
    entries = queue.entries() if record.read(wanted.folder) else {}
    active = record.active(wanted.folder, entries)
    ends: list[str] = []
    said: list[str] = []
    for task in chain.tasks(wanted, pipeline.resolve().parent):
        if task.key not in active:
            continue
        entry = entries[active[task.key].job, active[task.key].number]
        if save and entry.state == "RUNNING" and task.stage in (PRETRAIN, FINETUNE) and task.run.is_dir():
            switch = task.run / "control" / "stop"
            switch.parent.mkdir(exist_ok=True)
            switch.touch()
            said.append(f"{task.stage} {task.name}: job {entry.id} ends when it has saved")
        else:
            ends.append(entry.id)
            said.append(f"{task.stage} {task.name}: job {entry.id} cancelled")
    queue.cancel(reversed(ends))
    print("\n".join(said) if active else "no job of this pipeline is in the queue")


@app.command()
def preflight(
    folder: Annotated[Path, typer.Argument(help="Where every node's verdict goes; shared by all nodes.")],
    run: Annotated[Path, typer.Option(help="The run folder of the job.")],
    program: Annotated[
        list[str], typer.Argument(metavar="-- PROGRAM [WORD]...", help="What will be started.")
    ],
) -> None:
    """Examine this node, one process a rank: the job scripts call it under srun before training."""
    import sys

    from tools.slurm.preflight.rank import examine

    sys.exit(examine(folder, run, program))
