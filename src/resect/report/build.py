"""Run folders become pages. A page is a function of its run folder alone, so one that was drawn before is taken from the cache."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache as once
from importlib.metadata import version
from pathlib import Path

from resect.artifacts import write_text
from resect.cache import Cache, Kept, Key, remember
from resect.digests import digest
from resect.models.identity import own_code
from resect.report import contrast_read, read

_DRAWN_BY = ("altair", "vl-convert-python", "jinja2", "markupsafe")


def build_report(run: Path, *, cache: Cache | None = None) -> Path:
    """Return the path of `report.html`, written into the folder of an SRA run from the files that are there; same files, same bytes.

    Raises:
        UserError: if the folder is not a finished run, or a file in it cannot be read.
    """
    found = read.read_run(run)

    def draw() -> str:
        from resect.report.sra import render_sra  # altair takes half a second to import

        return render_sra(found)

    return _write(run, draw, files=read.FILES, model=found.evaluation["model"], cache=cache)


def build_contrast_report(run: Path, *, cache: Cache | None = None) -> Path:
    """Return the path of `report.html`, written into the folder of a contrast run from `contrast.json`; same file, same bytes.

    Raises:
        UserError: if the folder is not a finished contrast run, or a file in it cannot be read.
    """
    found = contrast_read.read_contrast(run)

    def draw() -> str:
        from resect.report.contrast import render_contrast

        return render_contrast(found)

    return _write(run, draw, files=contrast_read.FILES, model=found.document["model"]["name"], cache=cache)


def _write(run: Path, draw: Callable[[], str], *, files: Sequence[str], model: str, cache: Cache | None) -> Path:
    path = run / "report.html"
    key = Key(_made_of(run, files), model) if cache else None
    write_text(path, remember(cache, key, lambda: Kept(draw()), step="report").value)
    return path


def _made_of(run: Path, files: Sequence[str]) -> str:
    """Return a hash over all that a page is drawn from: files of the run, resect's code, and the versions of what draws."""
    found = {name: (run / name).read_bytes() for name in files if (run / name).is_file()}
    return digest(["report", {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}, _drawing()])


@once
def _drawing() -> dict[str, str]:
    own = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(__file__).parent.iterdir()) if p.is_file()}
    return {"resect": own_code(), **own, **{name: version(name) for name in _DRAWN_BY}}
