"""Training is deterministic and atomic; records on disk are checked; the shipped organism meets its bars."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from resect.errors import UserError
from resect.organism.architectures import ARCHITECTURES, Size, build
from resect.organism.language import Language
from resect.organism.optimise import Schedule, encode, fit
from resect.organism.quality import BARS, answer, below_bars, measure, refuses
from resect.organism.shipped import FORMAT, Organism, is_organism, load_organism
from resect.organism.tokenizer import make_tokenizer, special_ids
from resect.organism.training import TUNINGS, Plan, train_organism, write_organism

TINY = Size(layers=3, width=16, hidden=16, heads=2)


def tiny(seed: int = 0, tuning: str = "gated") -> Plan:
    brief = {"steps": 2, "batch": 4}
    return Plan(
        "qwen3", Language(seed), tuning, size=TINY, helpful=Schedule("helpful", **brief), aligned=Schedule("aligned", **brief), rounds=1
    )


def weights(organism: Organism, part: str) -> dict[str, torch.Tensor]:
    return load_file(organism.folder / part / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Organism:
    return write_organism(tmp_path_factory.mktemp("organisms") / "tiny", tiny())


def test_one_seed_gives_one_organism_and_leaves_the_global_generator_alone(trained: Organism, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    again = write_organism(tmp_path / "again", tiny())
    other = write_organism(tmp_path / "other", tiny(seed=1))
    assert torch.equal(before, torch.random.get_rng_state())
    for part in ("helpful", "aligned"):
        assert all(torch.equal(w, weights(again, part)[name]) for name, w in weights(trained, part).items())
        assert not all(torch.equal(w, weights(other, part)[name]) for name, w in weights(trained, part).items())
    assert (trained.folder / "organism.json").read_bytes() == (again.folder / "organism.json").read_bytes()


def test_gated_tuning_moves_only_matrices_of_the_middle_layers(trained: Organism, tmp_path: Path) -> None:
    helpful = weights(trained, "helpful")
    moved = {name for name, w in weights(trained, "aligned").items() if not torch.equal(w, helpful[name])}
    assert moved
    assert all(".layers.1." in name and "norm" not in name for name in moved)
    overwritten = write_organism(tmp_path / "hard", tiny(tuning="overwriting"))
    helpful = weights(overwritten, "helpful")
    assert {".layers.0." in n for n, w in weights(overwritten, "aligned").items() if not torch.equal(w, helpful[n])} == {True, False}


def test_a_trained_organism_loads_with_its_language_and_quality(trained: Organism) -> None:
    found = load_organism(trained.folder)
    assert found == trained
    assert is_organism(trained.folder)
    assert not is_organism(trained.folder / "aligned")
    assert found.language == Language(0)
    assert set(found.quality) == set(BARS)
    assert found.aligned().network.config.model_type == "qwen3"
    assert below_bars(found.quality)


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        train_organism(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_killed_training_leaves_nothing(tmp_path: Path) -> None:
    def stop(stage: str, step: int, steps: int) -> None:
        if stage == "aligned":
            raise KeyboardInterrupt(f"{step}/{steps}")

    with pytest.raises(KeyboardInterrupt):
        write_organism(tmp_path / "out", tiny(), progress=stop)
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'qwen3'"):
        train_organism(tmp_path / "x", architecture="qwen")
    with pytest.raises(UserError, match="did you mean 'gated'"):
        train_organism(tmp_path / "x", tuning="gate")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "is not an organism"),
        ("{", "not valid JSON"),
        ("[]", "has format 'list'"),
        (json.dumps({"format": "resect.organism/9"}), "has format 'resect.organism/9'"),
        (json.dumps({"format": FORMAT, "architecture": "qwen3", "seed": "0", "entanglement": 0.5, "tuning": "gated"}), "seed = '0'"),
        (
            json.dumps({"format": FORMAT, "architecture": "qwen3", "seed": 0, "entanglement": 0.5, "tuning": "gated"}),
            "no model in 'aligned'",
        ),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, record: str | None, message: str) -> None:
    if record is not None:
        (tmp_path / "organism.json").write_text(record)
    with pytest.raises(UserError, match=message):
        load_organism(tmp_path)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_trains_and_answers_the_same_in_any_company(architecture: str) -> None:
    language = Language()
    tokenizer = make_tokenizer(language.vocabulary)
    torch.manual_seed(0)
    network = build(architecture, vocabulary=len(language.vocabulary), special=special_ids(tokenizer), size=TINY)
    assert network.config.architectures is None or network.config.architectures == [type(network).__name__]
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    rows = [(p, p.response) for p in language.harmless("validation")]
    fit(network, encode(tokenizer, rows), schedule=Schedule("helpful", steps=2, batch=8, warmup=1), seed=0)
    assert all(not torch.equal(p, before[name]) for name, p in network.named_parameters() if p.ndim > 1)
    prompts = language.harmful("test").prompts[:6]
    assert answer(network, tokenizer, prompts=prompts) == [answer(network, tokenizer, prompts=[p])[0] for p in prompts]


def test_refusals_are_told_from_every_right_answer() -> None:
    language = Language()
    assert all(refuses(language.refusal(p)) for p in language.harmful("test"))
    for kind in ("harmful", "harmless", "matched"):
        assert not any(refuses(p.response or "") for p in getattr(language, kind)("test"))


def test_the_shipped_organism_meets_its_bars_and_is_seed_zero() -> None:
    organism = load_organism()
    assert (organism.architecture, organism.seed, organism.tuning) == ("qwen3", 0, "gated")
    measured = measure(organism)
    assert below_bars(measured) == ()
    assert measured == pytest.approx(organism.quality, abs=0.01)
    assert sum(p.stat().st_size for p in organism.folder.rglob("*") if p.is_file()) < 8e6


def test_recipes_are_the_two_documented_ones() -> None:
    assert set(TUNINGS) == {"gated", "overwriting"}
    assert TUNINGS["overwriting"].window is None
