"""One small study of the shipped organism, prepared once for all tests here."""

import pytest
import torch

from resect.config import make_config, make_contrast_config
from resect.organism.shipped import load_organism
from resect.studies import contrast, sra
from resect.studies.contrast_inputs import from_organism as from_organism_contrast
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


CONTRAST = {
    "baselines": ["unmatched", "matched", "paired", "other_topics", "dealt"],
    "methods": ["mean_difference", "class_means"],
    "extract_prompts": 42,
    "validation_prompts": 12,
    "test_prompts": 20,
    "weights": [0.8, 1.2],
    "curve_weights": [1.0, 2.0],
    "pair_layers": 2,
    "paper_prompts": 6,
    "finalists": 1,
    "audit_cells": 3,
    "shares": [0.0, 1.0],
    "sizes": [18],
    "max_new_tokens": 24,
    "opening_tokens": 12,
}


@pytest.fixture(scope="session")
def contrast_config():
    """A function: the small settings of a contrast study with changes."""

    def config(**changes):
        return make_contrast_config(CONTRAST | changes)

    return config


@pytest.fixture(scope="session")
def contrast_inputs(organism, contrast_config):
    return from_organism_contrast(organism, config=contrast_config())


@pytest.fixture(scope="session")
def desk(contrast_inputs, contrast_config, tmp_path_factory):
    """The base observed, activations taken; not to be changed."""
    return contrast.prepare(contrast_inputs, contrast_config(), Steps(tmp_path_factory.mktemp("desk")))


FEW_ARMS = {"baselines": ["unmatched", "matched"], "variants": ["raw_norm", "random"], "pair_layers": 0}


@pytest.fixture(scope="session")
def contrasted(organism, contrast_config, tmp_path_factory):
    """A whole contrast study of few arms: result, inputs, settings, folder."""
    folder, config = tmp_path_factory.mktemp("contrasted"), contrast_config(**FEW_ARMS)
    inputs = from_organism_contrast(organism, config=config)
    return contrast.run(inputs, config, Steps(folder)), inputs, config, folder
