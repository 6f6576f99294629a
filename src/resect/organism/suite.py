"""The organism's own suite: its test prompts, and its capabilities with their right answers."""

from resect.organism.language import Language
from resect.prompts import PromptSet
from resect.prompts.suite import Grade, Suite


def own_suite(language: Language) -> Suite:
    """Return what an organism is scored on where no suite file is given: everything of its language that tuning never saw."""
    benign = (*language.harmless("test"), *language.matched("test"))
    questions = tuple(prompt for prompts in language.capabilities().values() for prompt in prompts)
    grades: tuple[Grade, ...] = tuple("code" if p.category == "code" else "exact" for p in questions)
    return Suite(
        harmful=language.harmful("test"),
        harmless=PromptSet("harmless", benign, "organism"),
        questions=PromptSet("question", questions, "organism"),
        grades=grades,
        texts=language.texts(),
    )
