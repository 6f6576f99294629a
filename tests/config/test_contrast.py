"""Settings of the contrast study: every one is read somewhere, wrong ones are named."""

import ast
from pathlib import Path

import pytest

import resect
from resect.config import ContrastConfig, dump_toml, make_contrast_config
from resect.config.contrast import BASELINES, ORGANISM, QUICK, VARIANTS
from resect.errors import UserError
from resect.studies import contrast_arms, contrast_verdicts

SOURCE = Path(resect.__file__).parent


@pytest.fixture(scope="module")
def read_names():
    """Every attribute that is read of a thing called config in what the contrast study runs."""
    names = set()
    shared = ("behaviour", "lab", "curves", "scores")
    for path in [*SOURCE.glob("studies/contrast*.py"), *(SOURCE / "studies" / f"{name}.py" for name in shared)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "config":
                names.add(node.attr)
    return names


@pytest.mark.parametrize("name", sorted(ContrastConfig.model_fields))
def test_every_setting_is_read_by_the_study_and_says_what_it_does(read_names, name):
    assert name in read_names
    assert ContrastConfig.model_fields[name].description


def test_the_names_of_the_settings_are_those_of_the_study():
    assert set(VARIANTS) == {*contrast_arms.VARIANTS, "random"}
    assert set(contrast_verdicts.QUESTIONS) == {*BASELINES, *VARIANTS} - {"unmatched"}


@pytest.mark.parametrize("preset", [ORGANISM, QUICK, {**ORGANISM, **QUICK}])
def test_presets_are_valid_and_change_something(preset):
    config = make_contrast_config(preset)
    assert config != ContrastConfig()
    assert "weights" in dump_toml(config.model_dump())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weigths": [1.0]}, "Unknown setting 'weigths'; did you mean 'weights'?"),
        ({"baselines": ["mached"]}, "Unknown baseline 'mached'; did you mean 'matched'?"),
        ({"variants": ["raw"]}, "Unknown variant 'raw'"),
        ({"baselines": []}, "baselines must name at least one"),
        ({"methods": []}, "methods must name at least one"),
        ({"weights": [0.5, 0.5]}, r"weights must name each value once; got \[0.5, 0.5\]"),
        ({"weights": []}, "weights must hold at least one number, all above 0"),
        ({"curve_weights": [-1.0]}, "curve_weights must hold at least one number, all above 0"),
        ({"shares": [1.5]}, r"shares must lie between 0 and 1; got \[1.5\]"),
        ({"sizes": [1]}, r"sizes must be at least 2; got \[1\]"),
        ({"position": 2}, "position 2 is not allowed"),
        ({"finalists": 0}, "Setting 'finalists' is wrong"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(UserError, match=message):
        make_contrast_config(settings)
