"""What the user named on the command line (model, prompt files, atoms) and its way into a study's inputs and back from a run folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from resect import artifacts
from resect.atoms import Atom, check_registry, load_atoms, shipped_atoms
from resect.config import SRAConfig
from resect.errors import UserError
from resect.models.load import ChatModel, load_model
from resect.organism.shipped import SHIPPED, Organism, is_organism, load_organism, names_organism
from resect.prompts import PromptSet, load_prompts
from resect.run import open_folder, settings
from resect.studies.inputs import StudyInputs, from_organism, from_prompts
from resect.studies.scores import TEXT

FILE = "sources.json"
FORMAT = "resect.sources/1"

LoadInputs = Callable[[], StudyInputs]


@dataclass(frozen=True)
class Sources:
    """Where a run's inputs come from, as the user named them; kept in the run folder for the later stages.

    Device and trust in remote code are not kept: they belong to a machine and to a person.
    """

    model: str
    harmful: str | None = None
    harmless: str | None = None
    atoms: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    text: str | None = None
    dtype: str = "auto"
    revision: str | None = None

    @property
    def organism(self) -> bool:
        """Whether the model is an organism, which brings its own prompts."""
        return names_organism(self.model)

    def prepare(self, config: SRAConfig, *, device: str = "auto", trust_remote_code: bool = False) -> LoadInputs:
        """Read the prompt files at once, so that their mistakes show first, and return the function that loads the model.

        Raises:
            UserError: prompt files missing, malformed, or given for an organism.
        """
        if self.organism:
            if self.harmful or self.harmless or self.questions or self.text or self.atoms:
                raise UserError(
                    "An organism brings its own prompts and atoms; leave out the prompt files, --atoms, --questions and --text."
                )
            organism = open_organism(self.model)
            return lambda: from_organism(organism, config=config)
        harmful, harmless = (needed(source, name) for source, name in ((self.harmful, "harmful"), (self.harmless, "harmless")))
        atoms = _atoms(self.atoms)
        questions = _question_files(self.questions)
        texts = load_prompts(self.text, name="text").texts if self.text else ()

        def load() -> StudyInputs:
            model = load_model(self.model, dtype=self.dtype, revision=self.revision, device=device, trust_remote_code=trust_remote_code)
            return from_prompts(model, harmful=harmful, harmless=harmless, atoms=atoms, config=config, questions=questions, texts=texts)

        return load

    def save(self, run: Path) -> None:
        """Write `sources.json` into a run folder."""
        artifacts.write_json(run / FILE, {"format": FORMAT, **asdict(self)})


def open_run(sources: Sources, inputs: StudyInputs, config: SRAConfig, run: Path) -> None:
    """Make the run folder or check that it holds this run, and keep the sources in it."""
    open_folder(run, settings(inputs, config))
    sources.save(run)


def read_sources(run: Path) -> Sources:
    """Return the sources that a run folder was made from; raises `UserError` if they are missing or malformed."""
    values = artifacts.read_json(run / FILE)
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise UserError(f"{run / FILE} is not of format {FORMAT!r}; make the run folder again with: resect activations")
    try:
        values |= {name: tuple(values[name]) for name in ("atoms", "questions")}
        return Sources(**values)
    except (TypeError, KeyError) as error:
        raise UserError(f"{run / FILE} has wrong fields ({error}); make the run folder again with: resect activations") from error


def open_organism(model: str) -> Organism:
    """Return the organism that a model argument names, with the number of threads that suits it."""
    # Measured: on a busy two-core machine two threads a tiny matrix product made the study a hundred times slower than one.
    torch.set_num_threads(1)
    return load_organism(Path(model) if is_organism(Path(model)) else SHIPPED)


def open_model(model: str, **load: Any) -> ChatModel:
    """Return the model that an argument names; of an organism the safety-tuned one."""
    return open_organism(model).aligned() if names_organism(model) else load_model(model, **load)


def check_architecture(model: ChatModel, wanted: str | None) -> None:
    """Check that a model is of the architecture that a recipe is for; raises `UserError` if it is another."""
    found = type(model.network).__name__
    if wanted is not None and found != wanted:
        raise UserError(f"The recipe is for {wanted} and the model is a {found}; give the model it is for, or write another recipe.")


def needed(source: str | None, name: str) -> PromptSet:
    """Return the prompts of an option that must be given; raises `UserError` if it is not, or what `load_prompts` raises."""
    if source is None:
        raise UserError(f"--{name} is missing; give a prompt file (jsonl, csv, parquet, txt) or a Hub id owner/name:split:column.")
    return load_prompts(source, name=name)


def _atoms(paths: tuple[str, ...]) -> tuple[Atom, ...]:
    return check_registry(a for path in paths for a in load_atoms(Path(path))) if paths else shipped_atoms()


def _question_files(items: Sequence[str]) -> dict[str, PromptSet]:
    """Return question files by name; raises `UserError` if two share one, since only one of them would be measured."""
    files = [_question_file(item) for item in items]
    names = [name for name, _ in files]
    clash = next((name for name in names if names.count(name) > 1 or name == TEXT), None)
    if clash is not None:
        raise UserError(f"Two measurements would be named {clash!r}; name the files apart with --questions NAME=PATH.")
    return dict(files)


def _question_file(item: str) -> tuple[str, PromptSet]:
    name, equals, path = item.partition("=")
    source = path if equals else item
    return (name if equals else Path(source).stem), load_prompts(source, name=name if equals else None)
