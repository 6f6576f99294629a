"""Are the engine's responses those of plain greedy decoding, token for token? Counted over organisms, random networks, edits and shortcuts.

    python benchmarks/equality.py --organisms runs/zoo/organisms        # trains what is not there; the last line is JSON

Models: an organism of each architecture with its own prompts, and tiny random Llama, Gemma 3, GPT-OSS, Qwen3.5 and Qwen3-VL (families.py)
with prompts of random tokens, some of whose tokens end a turn. Edits: every arm of the SRA study at strength 1 (organisms), a random
direction at strengths 0.5, 1 and 2 (random networks), each in all layers and in the upper half alone. The reference is
`network.generate(do_sample=False)` on one prompt at a time. Against it stand the ways of the engine: no shortcut; all of them, responses
of earlier edits being known; the same once more, when those of all edits are known; small batches; a cache of fixed length; and one edit a
row where the edit allows it. All prompts of a model begin alike (a system prompt; random tokens), which all ways but the first and the last
feed once where the network's cache allows it. Where tokens differ, both logits are read (`generation/ties.py`): closer than 1e-4 of the
largest, the difference is a tie. Bars: no difference that is no tie, and fewer ties than 1 in 10,000 tokens. Writes
benchmarks/results/equality.json.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import families
import torch
from zoo import Member

from resect.commands.study import ORGANISM_SETTINGS
from resect.config import SRAConfig, make_config
from resect.edit.plan import EditPlan, make_plan
from resect.edit.rows import applied_rows
from resect.generation import respond
from resect.generation.ties import Ids, partings
from resect.models.chat import Rendered
from resect.models.load import wrap
from resect.models.prefix import shared_prefix
from resect.organism import architectures, words
from resect.organism.shipped import Organism, is_organism, load_organism
from resect.organism.tokenizer import make_tokenizer
from resect.organism.training import train_organism
from resect.studies.arms import ARMS, Choice, recipe, softnesses
from resect.studies.behaviour import observe
from resect.studies.inputs import from_organism, gamma_atom
from resect.studies.lab import Lab
from resect.studies.materials import gather
from resect.studies.steps import Steps

RESULTS = Path(__file__).parent / "results" / "equality.json"
RANDOM = ("llama", "gemma3_text", "gpt_oss", "qwen3_5_text", "qwen3_vl")
SYSTEM = "you are a helpful assistant ."
BEGINNING = 12
"""Random tokens that the prompts of a random network begin with."""
SMALL_BATCH = 256
FIXED = ("retire", "prefix", "static_cache")
ALLOWED = 1e-4  # ties a token
Plans = Mapping[str, EditPlan]


@dataclass(frozen=True)
class Case:
    """A model with its bench, prompts and edits."""

    name: str
    lab: Lab[SRAConfig]
    prompts: tuple[Rendered, ...]
    plans: Plans
    tokens: int


def organism_case(organism: Organism, count: int) -> Case:
    """Return an organism with the arms of the study, on harmful and harmless prompts of the test split."""
    config = make_config(ORGANISM_SETTINGS | {"test_prompts": count // 2, "system": SYSTEM})
    inputs = from_organism(organism, config=config)
    lab, plans = Lab(inputs.model, config), {"base": EditPlan(())}
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(Path(folder))
        materials, atom = gather(lab, inputs, observe(lab, inputs, steps), steps), gamma_atom(inputs, config)
    for name, arm in ARMS.items():
        softness = softnesses(arm, config)[0]
        made = recipe(arm, materials, config, softness=softness, gamma_atom=atom)
        for where, first in (("all layers", 0), ("upper half", lab.layers // 2)):
            plans[f"{name}, {where}"] = made.plan(
                lab.writers, Choice(None, first, lab.layers - 1, 1.0, softness, next(iter(made.profiles)))
            )
    prompts = lab.render([*inputs.harmful.test, *inputs.harmless.test])
    return Case(f"organism {organism.architecture}", lab, prompts, plans, config.max_new_tokens)


def random_case(family: str, count: int) -> Case:
    """Return a tiny random network with a random direction at rising strengths, on prompts of random tokens."""
    network, _ = families.build(family)
    model = wrap(network, make_tokenizer((*words.SPECIAL, *map(str, range(100)))), name=family)
    vocabulary, draw = len(model.tokenizer), random.Random(family)
    # One token in eight ends a turn, so that rows end at different steps.
    network.generation_config.eos_token_id = sorted(draw.sample(range(vocabulary), vocabulary // 8))
    lab, plans = Lab(model, make_config(ORGANISM_SETTINGS)), {"base": EditPlan(())}
    vectors = torch.randn(lab.layers, 1, model.d_model, generator=torch.Generator().manual_seed(1))
    for gamma in (0.5, 1.0, 2.0):
        for where, first in (("all layers", 0), ("upper half", lab.layers // 2)):
            plans[f"{gamma:g}, {where}"] = make_plan(lab.writers, vectors, gamma * (torch.arange(lab.layers) >= first))
    beginning = draw.choices(range(vocabulary), k=BEGINNING)
    prompts = (Rendered((*beginning, *draw.choices(range(vocabulary), k=draw.randint(1, 24))), None) for _ in range(count))
    return Case(f"random {family}", lab, tuple(prompts), plans, 24)


def plainly(case: Case, plan: EditPlan) -> list[Ids]:
    """Return the reference: `generate` on each prompt alone, the prompt cut off."""
    network, model, found = case.lab.model.network, case.lab.model, []
    with case.lab.edited(plan):
        for prompt in case.prompts:
            ids = torch.tensor([prompt.ids])
            options = {"eos_token_id": sorted(model.end_ids), "pad_token_id": model.pad_id, "max_new_tokens": case.tokens}
            out = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
            found.append(tuple(out[0, len(prompt.ids) :].tolist()))
    return found


def ways(case: Case) -> dict[str, Callable[[EditPlan], list[Ids]]]:
    """Return the engine's ways to the responses under an edit."""
    lab = case.lab
    plain, fixed = (Lab(lab.model, lab.config.model_copy(update={"shortcuts": names})) for names in ((), FIXED))

    def by(bench: Lab[SRAConfig], budget: int) -> Callable[[EditPlan], list[Ids]]:
        def act(plan: EditPlan) -> list[Ids]:
            options: dict[str, Any] = {"max_new_tokens": case.tokens, "batch_tokens": budget, "shortcuts": bench.shortcuts}
            with bench.edited(plan) if plan.edits else nullcontext(), bench.scoring():
                return [r.ids for r in respond(bench.model, case.prompts, drafts=bench.drafts, **options)]

        return act

    budget = lab.config.batch_tokens
    known = {"all": by(lab, budget), "all, again": by(lab, budget), "small batches": by(lab, SMALL_BATCH)}
    return {"no shortcut": by(plain, budget), **known, "fixed cache": by(fixed, budget)}


def together(case: Case) -> dict[str, list[Ids]]:
    """Return the responses under all edits, one edit a row."""
    plans = list(case.plans.items())
    with applied_rows(case.lab.model, case.lab.writers, [plan for _, plan in plans for _ in case.prompts]) as rows:
        said = respond(case.lab.model, list(case.prompts) * len(plans), max_new_tokens=case.tokens, edits=rows)
    count = len(case.prompts)
    return {name: [r.ids for r in said[i * count : (i + 1) * count]] for i, (name, _) in enumerate(plans)}


def measure(case: Case) -> dict[str, Any]:
    """Return how many responses and tokens were compared, and where they part."""
    expected = {name: plainly(case, plan) for name, plan in case.plans.items()}
    found = {way: {name: act(plan) for name, plan in case.plans.items()} for way, act in ways(case).items()}
    found["one edit a row"] = together(case)
    shared = shared_prefix(case.lab.model, [p.ids for p in case.prompts], new=case.tokens)
    parted = [row for way, arms in found.items() for name, said in arms.items() for row in _parted(case, way, name, expected[name], said)]
    return {
        "edits": len(case.plans),
        "prompts": len(case.prompts),
        "responses": sum(len(arm) for arm in expected.values()),
        "distinct_responses": len({ids for arm in expected.values() for ids in arm}),
        "fed_once": 0 if shared is None else len(shared),
        "tokens": sum(len(ids) for arm in expected.values() for ids in arm),
        "ways": list(found),
        "ties": [row for row in parted if row["tie"]],
        "differences": [row for row in parted if not row["tie"]],
    }


def _parted(case: Case, way: str, name: str, expected: Sequence[Ids], said: Sequence[Ids]) -> list[dict[str, Any]]:
    with case.lab.edited(case.plans[name]):
        found = partings(case.lab.model, case.prompts, expected, said)
    return [{"way": way, "edit": name, "tie": p.tie, "gap": p.gap} | asdict(p) for p in found]


def organisms(folder: Path) -> list[Organism]:
    """Return an organism of each architecture: the shipped one, and those of the zoo, trained if they are not in the folder."""
    found = [load_organism()]
    for architecture in architectures.ARCHITECTURES:
        if architecture == found[0].architecture:
            continue
        place = folder / Member("architectures", architecture).name
        if not is_organism(place):
            train_organism(place, architecture=architecture)
        found.append(load_organism(place))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--organisms", type=Path, default=Path("runs") / "zoo" / "organisms")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    makers = [lambda o=o: organism_case(o, options.prompts) for o in organisms(options.organisms)]
    makers += [lambda f=f: random_case(f, options.prompts) for f in RANDOM]
    rows: dict[str, dict[str, Any]] = {}
    for make in makers:
        case = make()
        rows[case.name] = row = measure(case)
        compared = row["tokens"] * len(row["ways"])
        print(
            f"{case.name}: {row['tokens']} tokens in {row['responses']} responses under {row['edits']} edits, {compared} compared, ", end=""
        )
        print(f"{len(row['ties'])} ties, {len(row['differences'])} differences", flush=True)
    tokens = sum(row["tokens"] * len(row["ways"]) for row in rows.values())
    total: dict[str, Any] = {"tokens": sum(row["tokens"] for row in rows.values()), "compared": tokens}
    total |= {name: sum(len(row[name]) for row in rows.values()) for name in ("ties", "differences")}
    total["met"] = total["differences"] == 0 and total["ties"] < ALLOWED * tokens
    options.out.write_text(json.dumps(total | {"models": rows}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(total))


if __name__ == "__main__":
    main()
