"""The shape of the code: every rule that style alone would let slip. What may differ is listed here, with the reason."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC, TESTS = ROOT / "src" / "resect", ROOT / "tests"
MODULES = sorted(p.relative_to(SRC).as_posix() for p in SRC.rglob("*.py") if p.name != "__init__.py")
TREES = {name: ast.parse((SRC / name).read_text(encoding="utf-8")) for name in MODULES}

MOST_LINES_A_FUNCTION = 55
MOST_LINES_A_MODULE = 300

# Modules without a test file of their own name: the file that tests them instead, why, and which they are.
TESTED_IN: dict[str, tuple[str, tuple[str, ...]]] = {
    "cleaning/test_covariance.py": (
        "one hard term each, checked beside the covariance",
        ("cleaning/harmless_mean.py", "cleaning/nullspace.py"),
    ),
    "cleaning/test_ridge.py": ("the control of the ridge", ("cleaning/random_atoms.py",)),
    "directions/test_mean_difference.py": ("the value that every method returns", ("directions/values.py",)),
    "directions/test_bootstrap.py": ("what is resampled", ("directions/samples.py",)),
    "directions/test_methods.py": ("the control, beside the real ones", ("directions/random.py",)),
    "directions/test_som.py": ("a map with one neuron a class", ("directions/class_means.py",)),
    "directions/test_whitened.py": ("the covariances that whitening solves with", ("directions/scatter.py",)),
    "edit/test_algebra.py": ("the table of axes that the algebra reads", ("layout.py",)),
    "edit/test_stream.py": (
        "one tensor and one file of a checkpoint, tested by streaming whole ones",
        ("edit/pieces.py", "edit/shards.py"),
    ),
    "edit/test_copies.py": ("how files are copied, and where to", ("edit/disk.py", "edit/output.py")),
    "evaluation/test_verdicts.py": ("a verdict is markers and degeneracy together", ("evaluation/degenerate.py", "evaluation/markers.py")),
    "evaluation/test_forced.py": ("collects what teacher forcing yields", ("evaluation/logprobs.py",)),
    "generation/test_engine.py": (
        "what the engine decodes with",
        ("generation/decoding.py",),
    ),
    "evaluation/judges/test_endpoint.py": (
        "what a judge at an endpoint asks with and pays from",
        ("evaluation/judges/budget.py", "evaluation/judges/transport.py"),
    ),
    "evaluation/judges/test_markers.py": ("what every judge is, shown by the first", ("evaluation/judges/values.py",)),
    "models/test_checkpoint.py": ("the files are checked as the checkpoint is opened", ("models/files.py",)),
    "models/test_load.py": ("where a model comes from is checked by loading it", ("models/source.py",)),
    "models/test_writers.py": (
        "parts of the search for writers, proven as a whole",
        ("models/decompose.py", "models/forward.py", "models/producers.py", "models/trace.py"),
    ),
    "organism/test_language.py": (
        "parts of the language, tested through its prompts",
        ("organism/forms.py", "organism/registry.py", "organism/tasks.py", "organism/words.py", "organism/tokenizer.py"),
    ),
    "organism/test_training.py": (
        "parts of training, tested by training",
        ("organism/architectures.py", "organism/optimise.py", "organism/quality.py", "organism/shipped.py"),
    ),
    "prompts/test_loading.py": ("readers of one format each, tested through load_prompts", ("prompts/files.py",)),
    "report/test_build.py": (
        "parts of the page, tested by building pages",
        (
            "report/charts_capability.py",
            "report/charts_layers.py",
            "report/figures.py",
            "report/page.py",
            "report/proof.py",
            "report/provenance.py",
            "report/svg.py",
            "report/tables.py",
        ),
    ),
    "report/test_sentences.py": (
        "what the sentences are made from",
        (
            "report/charts.py",
            "report/charts_passes.py",
            "report/read.py",
            "report/table.py",
            "report/theme.py",
            "report/values.py",
        ),
    ),
    "config/test_sra.py": ("what every study's settings rest on", ("config/base.py", "config/files.py")),
    "report/test_contrast.py": (
        "parts of the page of the contrast study",
        (
            "report/contrast_charts.py",
            "report/contrast_errors.py",
            "report/contrast_notes.py",
            "report/contrast_paper.py",
            "report/contrast_read.py",
            "report/contrast_table.py",
            "report/contrast_tables.py",
        ),
    ),
    "studies/test_contrast_verdicts.py": ("the tests that verdicts count", ("studies/contrast_scores.py",)),
    "e2e/test_contrast.py": ("the command as a user runs it", ("commands/contrast.py",)),
    "studies/test_sra.py": ("what the steps of the study share", ("studies/bench.py",)),
    "e2e/test_cache.py": ("what the commands show and remove", ("cli/cache.py", "commands/cache.py")),
    "e2e/test_directions_files.py": ("files in and out through the command line", ("commands/convert.py",)),
    "e2e/test_evaluate.py": (
        "checkpoints scored through the command line",
        (
            "commands/evaluate.py",
            "commands/evaluation_table.py",
            "commands/judges.py",
            "organism/suite.py",
            "studies/suite.py",
        ),
    ),
    "e2e/test_inspect.py": ("what the command shows", ("commands/inspect.py", "commands/memory.py")),
    "test_cli.py": (
        "parts of the command line, tested through it",
        ("cli/application.py", "cli/evaluate.py", "cli/models.py", "cli/organism.py", "cli/stages.py", "cli/studies.py"),
    ),
    "test_readme.py": (
        "the README's commands run whole studies through them",
        (
            "stages.py",
            "commands/apply.py",
            "commands/card.py",
            "commands/chat.py",
            "commands/edits.py",
            "commands/inputs.py",
            "commands/options.py",
            "commands/organism.py",
            "commands/stages.py",
            "commands/streamed.py",
            "studies/scores.py",
        ),
    ),
}
# Test files about the project as a whole.
CROSS_CUTTING = {"edit/test_forms.py", "test_cli.py", "test_structure.py", "test_vocabulary.py", "test_readme.py"}

# Values are frozen; what has state says so here.
STATEFUL = {
    ("studies/lab.py", "Lab"): "what is remembered: rendered prompts, responses as drafts, lower layers",
    ("models/lower.py", "_Kept"): "what one batch left behind, gathered block by block",
}
# The maths and the plan: public signatures name every axis, but for what crosses a file's boundary.
MATHS = ("directions/", "cleaning/", "edit/algebra.py", "edit/plan.py", "edit/strength.py", "edit/oblique.py")
ANY_SHAPE = {
    ("edit/plan.py", "gain"): "a Protocol's property: jaxtyping would check it on every isinstance",
    ("edit/plan.py", "to_tensors"): "a mapping of factors of different ranks",
    ("edit/plan.py", "from_tensors"): "the same, read back",
}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def mirror(module: str) -> str:
    folder, _, name = module.rpartition("/")
    return f"{folder}/test_{name}" if folder else f"test_{name}"


def test_every_module_has_its_test_file_or_a_reason() -> None:
    elsewhere = {module for _, modules in TESTED_IN.values() for module in modules}
    missing = [m for m in MODULES if not (TESTS / mirror(m)).is_file() and m not in elsewhere]
    assert not missing, f"add tests/{mirror(missing[0])}, or list the module in TESTED_IN with a reason; missing: {missing}"


def test_no_reason_is_stale() -> None:
    for place, (reason, modules) in TESTED_IN.items():
        assert reason
        assert (TESTS / place).is_file(), f"tests/{place} is listed in TESTED_IN and is not there"
        for module in modules:
            assert module in MODULES, f"{module} is listed in TESTED_IN and is not there"
            assert not (TESTS / mirror(module)).is_file(), f"{module} has its own test file now; take it out of TESTED_IN"


def test_every_test_file_mirrors_a_module() -> None:
    found = {p.relative_to(TESTS).as_posix() for p in TESTS.rglob("test_*.py")}
    strays = {f for f in found if not f.startswith("e2e/")} - {mirror(m) for m in MODULES} - CROSS_CUTTING
    assert not strays


@pytest.mark.parametrize("module", MODULES)
def test_functions_and_modules_are_short(module: str) -> None:
    lines = len((SRC / module).read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES_A_MODULE, f"{module} has {lines} lines; split it"
    for function in functions(TREES[module]):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= MOST_LINES_A_FUNCTION, f"{module}: {function.name} has {length} lines; split it"


def dataclasses_of(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    for node in ast.walk(tree):
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            text = ast.unparse(decorator)
            if text.split("(")[0].split(".")[-1] == "dataclass":
                assert isinstance(node, ast.ClassDef)
                yield node.name, "frozen=True" in text


def test_dataclasses_are_frozen() -> None:
    open_ones = {(m, name) for m, tree in TREES.items() for name, frozen in dataclasses_of(tree) if not frozen}
    assert open_ones == set(STATEFUL)


def bare_tensors(annotation: ast.AST) -> Iterator[ast.AST]:
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in {"Float", "Int", "Bool"}:
        return
    if isinstance(annotation, ast.Name | ast.Attribute) and ast.unparse(annotation) in {"Tensor", "torch.Tensor"}:
        yield annotation
        return
    for child in ast.iter_child_nodes(annotation):
        yield from bare_tensors(child)


def public_annotations(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    owners = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
    for owner in owners:
        for node in owner.body:
            if isinstance(node, ast.AnnAssign):
                yield ast.unparse(node.target), node.annotation
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                yield from ((node.name, a.annotation) for a in arguments if a.annotation)
                if node.returns:
                    yield node.name, node.returns


def test_public_tensors_of_the_maths_name_their_axes() -> None:
    modules = [m for m in MODULES if m.startswith(MATHS)]
    bare = {(m, name) for m in modules for name, annotation in public_annotations(TREES[m]) if any(bare_tensors(annotation))}
    assert bare == set(ANY_SHAPE)


def test_nothing_but_the_console_prints() -> None:
    printing = {m for m, tree in TREES.items() if calls(tree, "print")}
    assert not printing, "library code is quiet; terminal output goes through commands/console.py"
    consoles = {m for m, tree in TREES.items() if re.search(r"\bConsole\(", ast.unparse(tree))}
    assert consoles == {"commands/console.py"}
    showing = {m for m, tree in TREES.items() if re.search(r"\.print\(", ast.unparse(tree))}
    assert all(m.startswith("commands/") for m in showing)


def test_layers_are_read_by_hooks_and_never_from_hidden_states() -> None:
    """`hidden_states` may only be the name of the argument with which transformers hands a block its input."""
    allowed = re.compile(r"""kwargs\[['"]hidden_states['"]\]|k != ['"]hidden_states['"]""")
    for module, tree in TREES.items():
        text = allowed.sub("", "\n".join(ast.unparse(n) for n in tree.body if not isinstance(n, ast.Expr)))
        assert "output_hidden_states" not in text, module
        assert not re.search(r"\.hidden_states\b|\bhidden_states\s*\[", text), module


def test_randomness_has_an_explicit_source() -> None:
    """A global seed is set only inside `fork_rng`, which puts the caller's generator back."""
    for module, tree in TREES.items():
        forked = [n for n in ast.walk(tree) if isinstance(n, ast.With) and "fork_rng(" in ast.unparse(n.items[0].context_expr)]
        inside = {id(c) for block in forked for c in calls(block, "torch.manual_seed")}
        assert all(id(c) in inside for c in calls(tree, "torch.manual_seed")), f"{module} seeds torch for everybody"
        assert not calls(tree, "random.seed"), module
        assert not calls(tree, "np.random.seed"), module


def test_no_pickle_anywhere() -> None:
    for module, tree in TREES.items():
        imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}, module
        assert not calls(tree, "torch.load"), module
        assert not calls(tree, "torch.save"), module


def test_annotations_are_real_objects() -> None:
    """Postponed annotations would switch off the shape checks of the test run."""
    assert not [m for m, tree in TREES.items() if "from __future__ import annotations" in ast.unparse(tree)]


def test_the_probes_of_this_file_can_fail() -> None:
    loose = ast.parse("@dataclass\nclass A:\n    x: Tensor\n\ndef f(a: dict[str, Tensor]) -> Float[Tensor, 'k']:\n    print(a)\n")
    assert list(dataclasses_of(loose)) == [("A", False)]
    assert [name for name, annotation in public_annotations(loose) if any(bare_tensors(annotation))] == ["f", "x"]
    assert len(calls(loose, "print")) == 1
