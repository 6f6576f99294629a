"""Where an edited model goes: a new folder, which stands hidden beside its place until it is whole. Nothing here needs torch."""

from pathlib import Path

from resect.errors import UserError

JOB, JOURNAL = "job.json", ".resect"
"""Of an unfinished streamed output: which job it belongs to, and what is known of each finished shard. Neither stays in a finished one."""


def partial_of(out: Path) -> Path:
    """Return the hidden folder that becomes `out`."""
    return out.with_name(f".{out.name}.partial")


def check_free(out: Path) -> None:
    """Raise `UserError` unless nothing, or an empty folder, is at `out`."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} exists and is not a folder; choose another name for the edited model.")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"The folder {out} exists and is not empty, and nothing is overwritten; choose another or empty it.")


def check_out(folder: Path, out: Path) -> Path:
    """Return the output as an absolute path; raises `UserError` if something is there, or if it lies in the model's folder or around it."""
    out = Path(out).expanduser().absolute()
    check_free(out)
    source, target = folder.resolve(), out.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise UserError(
            f"The output {out} and the model {folder} lie in one another, and a model is never edited in place; choose another."
        )
    return out
