"""Settings: every one is read somewhere, wrong ones are named, and the saved file gives them back."""

import ast
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import resect
from resect.config import ARMS, SRAConfig, dump_toml, load_config, make_config
from resect.errors import UserError
from resect.studies import arms

SOURCE = Path(resect.__file__).parent
NAMES = sorted(SRAConfig.model_fields)


@pytest.fixture(scope="module")
def read_names():
    """Every attribute that is read of a thing called config, and every text constant, outside the module of the settings."""
    names = set()
    for path in SOURCE.rglob("*.py"):
        if path.parent == SOURCE / "config":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] == "config":
                names.add(node.attr)
    # These two are read by the name of an arm's knob.
    return names | {arm.knob for arm in arms.ARMS.values()}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_read_by_the_code(read_names, name):
    assert name in read_names


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_says_what_it_does(name):
    assert SRAConfig.model_fields[name].description


def test_the_arms_of_the_settings_are_those_of_the_study():
    assert tuple(arms.ARMS) == ARMS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": [1.0]}, "Unknown setting 'strength'; did you mean 'strengths'?"),
        ({"arms": ["srra"]}, "Unknown arm 'srra'; did you mean 'sra'?"),
        ({"arms": []}, r"arms must name at least one arm, each once; got \[\]\."),
        ({"arms": ["sra", "sra"]}, "arms must name at least one arm, each once"),
        ({"position": 3}, "position 3 is not allowed; use last, last_user, mean or a negative integer"),
        ({"strengths": [0.0]}, "strengths must hold at least one number, all above 0"),
        ({"curve_strengths": []}, "curve_strengths must hold at least one number, all above 0"),
        ({"lams": [-1.0]}, "lams must hold at least one number, and lams and lam_sweep none below 0"),
        ({"windows": [[0.5, 0.5]]}, "windows must be pairs of depths with 0 <= first < last <= 1"),
        ({"source_layers": [2.0]}, "source_layers are depths between 0 and 1"),
        ({"source": "single", "source_layers": []}, "source_layers are depths between 0 and 1, at least one if source is single"),
        ({"text_context": 512, "text_stride": 600}, r"text_stride 600 must be below text_context 512\."),
        ({"passes": 0}, "Setting 'passes' is wrong: .*greater than or equal to 1; got 0"),
        ({"max_refusal": 2}, "Setting 'max_refusal' is wrong"),
        ({"gamma_rule": "steep"}, "Setting 'gamma_rule' is wrong"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        make_config(settings)
    assert "\n" not in str(caught.value)


def test_settings_cannot_be_changed_after_the_check():
    with pytest.raises(ValueError, match="frozen"):
        make_config({}).seed = 1  # type: ignore[misc]


@given(
    seed=st.integers(-(2**40), 2**40),
    system=st.none()
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\r"), min_size=1, max_size=20),
    lams=st.lists(st.floats(0, 1e6), min_size=1, max_size=4),
    position=st.sampled_from(["last", "last_user", "mean"]) | st.integers(-50, -1),
    keep_text=st.booleans(),
)
def test_the_saved_settings_give_the_same_settings(seed, system, lams, position, keep_text):
    config = make_config({"seed": seed, "system": system, "lams": lams, "position": position, "keep_text": keep_text})
    assert make_config(tomllib.loads(dump_toml(config.model_dump()))) == config


def test_settings_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read settings file .*none\.toml: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = ")
    with pytest.raises(UserError, match=r"Settings file .*bad\.toml is not valid TOML"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "good.toml").write_text("seed = 3\nwindows = [[0.0, 0.5]]\n")
    assert make_config(load_config(tmp_path / "good.toml")).windows == ((0.0, 0.5),)
