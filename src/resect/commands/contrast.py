"""`resect contrast`: settings and files in, run folder, answers and report out."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resect import artifacts
from resect.cache import open_cache
from resect.commands import console
from resect.commands.inputs import FILE, FORMAT, check_architecture, needed, open_organism
from resect.config import ContrastConfig, make_contrast_config
from resect.config.contrast import ORGANISM
from resect.errors import UserError
from resect.models.load import load_model
from resect.organism.shipped import names_organism
from resect.report.build import build_contrast_report
from resect.report.contrast_notes import notes
from resect.report.contrast_read import read_contrast
from resect.report.contrast_table import contrast_table
from resect.run import finish, run_contrast
from resect.studies.contrast_inputs import ContrastInputs, from_organism, from_sides, split_sides


@dataclass(frozen=True)
class ContrastSources:
    """Where a contrast run's inputs come from, as the user named them."""

    model: str
    harmful: str | None = None
    matched: str | None = None
    unmatched: str | None = None
    dtype: str = "auto"
    revision: str | None = None

    @property
    def organism(self) -> bool:
        """Whether the model is an organism, which brings its own prompts."""
        return names_organism(self.model)

    def prepare(self, config: ContrastConfig, *, device: str, trust_remote_code: bool) -> Callable[[], ContrastInputs]:
        """Read the prompt files at once, so that their mistakes show first, and return the function that loads the model.

        Raises:
            UserError: prompt files missing, malformed, unfit for a contrast, or given for an organism.
        """
        if self.organism:
            if self.harmful or self.matched or self.unmatched:
                raise UserError("An organism brings its own prompts; leave out --harmful, --matched and --unmatched.")
            organism = open_organism(self.model)
            return lambda: from_organism(organism, config=config)
        harmful, matched, unmatched = (needed(getattr(self, name), name) for name in ("harmful", "matched", "unmatched"))
        if not config.predict_categories:
            split_sides(harmful, matched, unmatched, config)  # what is wrong with the files shows before the model is loaded

        def load() -> ContrastInputs:
            model = load_model(self.model, dtype=self.dtype, revision=self.revision, device=device, trust_remote_code=trust_remote_code)
            return from_sides(model, harmful=harmful, matched=matched, unmatched=unmatched, config=config)

        return load

    def save(self, run: Path) -> None:
        """Write `sources.json` into a run folder."""
        artifacts.write_json(run / FILE, {"format": FORMAT, **asdict(self)})


def resolve(sources: ContrastSources, given: dict[str, Any]) -> ContrastConfig:
    """Return the checked settings: those of organisms stand below what was given."""
    return make_contrast_config({**(ORGANISM if sources.organism else {}), **given})


def run_study(
    sources: ContrastSources,
    given: dict[str, Any],
    *,
    out: Path,
    device: str = "auto",
    trust_remote_code: bool = False,
    no_cache: bool = False,
    as_json: bool = False,
    architecture: str | None = None,
) -> None:
    """Run the study into a folder with its report, and show the table and the answers; `architecture` is what the model has to be."""
    config, cache = resolve(sources, given), None if no_cache else open_cache()
    console.quiet_libraries()
    load = sources.prepare(config, device=device, trust_remote_code=trust_remote_code)
    with console.progress("contrast study", total=250) as step:
        step("loading")
        inputs = load()
        check_architecture(inputs.model, architecture)
        result = run_contrast(inputs, config, out, on_step=step, cache=cache)
        sources.save(out)
        step("report")
        page = build_contrast_report(out, cache=cache)
        finish(out)
    if as_json:
        console.show_json(result.document)
        return
    console.show(contrast_table(result.document))
    for note in notes(read_contrast(out)):
        console.say(f"Note: {note}")
    for answer in result.document["verdicts"]:
        place = "one layer" if answer["place"] == "single" else "anywhere"
        console.say(f"{answer['title']} ({place}): {answer['answer']}.")
    console.say(f"Report: {page}")
