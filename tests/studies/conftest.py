"""One small study of the shipped organism, prepared once for all tests here."""

import pytest
import torch

from resect.config import make_config
from resect.organism.shipped import load_organism
from resect.studies import sra
from resect.studies.inputs import from_organism
from resect.studies.steps import Steps

SETTINGS = {
    "arms": ["standard", "projected", "sra"],
    "extract_prompts": 32,
    "validation_prompts": 16,
    "test_prompts": 24,
    "capability_prompts": 4,
    "lams": [0.1, 1.0],
    "lam_sweep": [0.1, 10.0],
    "strengths": [1.0, 1.5, 2.0],
    "curve_strengths": [0.5, 1.0, 2.0],
    "windows": [[0.0, 1.0]],
    "source_layers": [0.8],
    "passes": 2,
    "max_new_tokens": 24,
    "opening_tokens": 12,
    "kl_tokens": 4,
}


@pytest.fixture(scope="session")
def organism():
    torch.set_num_threads(1)
    return load_organism()


@pytest.fixture(scope="session")
def configured():
    """A function: the small settings with changes."""

    def config(**changes):
        return make_config(SETTINGS | changes)

    return config


@pytest.fixture(scope="session")
def inputs(organism, configured):
    return from_organism(organism, config=configured())


@pytest.fixture(scope="session")
def bench(inputs, configured, tmp_path_factory):
    """The base observed, the materials gathered; not to be changed."""
    return sra.prepare(inputs, configured(), Steps(tmp_path_factory.mktemp("bench")))


@pytest.fixture(scope="session")
def picked(bench):
    """What validation chose for each arm."""
    return {arm: sra.select_arm(bench, arm) for arm in bench.config.arms}


@pytest.fixture(scope="session")
def result(inputs, configured, tmp_path_factory):
    """The whole small study."""
    return sra.run(inputs, configured(), Steps(tmp_path_factory.mktemp("result")))
