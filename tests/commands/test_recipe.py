"""Recipes: every one of the repository is valid and complete but for what only its user knows; faults are named."""

from pathlib import Path

import pytest
import transformers

from resect.commands.recipe import FILES, FILL, read_recipe
from resect.config import make_config, make_contrast_config
from resect.errors import UserError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
GIVEN = {"model": "m", "revision": "r", "harmful": "h"}


def test_both_papers_models_have_one():
    assert {p.stem for p in RECIPES} == {"qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b", "ministral-3b", "ministral-14b", "qwen3.5-2b"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_valid_and_leaves_open_what_its_user_knows(path):
    recipe = read_recipe(path)
    make = {"sra": make_config, "contrast": make_contrast_config}[recipe.study]
    make(dict(recipe.settings))
    assert hasattr(transformers, recipe.architecture)
    left = {name for name, value in recipe.sources.items() if str(value).startswith(FILL)}
    assert left == {"model", "revision", *FILES[recipe.study]}
    with pytest.raises(UserError, match="leaves model to fill in"):
        recipe.filled({})
    with pytest.raises(UserError, match=r"leaves revision to fill in .*give --revision"):
        recipe.filled({"model": "m"})
    filled = recipe.filled({**GIVEN, **dict.fromkeys(FILES[recipe.study], "f")})
    assert filled == {"model": "m", "revision": "r", "dtype": "bfloat16", **dict.fromkeys(FILES[recipe.study], "f")}


TEXT = 'format = "resect.recipe/1"\nstudy = "sra"\narchitecture = "A"\nmodel = "m"\nrevision = "r"\nharmful = "h"\nharmless = "b"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = ", "is not valid TOML"),
        ('format = "resect.recipe/2"', "its format must be 'resect.recipe/1'"),
        (TEXT.replace('"sra"', '"sro"'), "Unknown study 'sro'; did you mean 'sra'"),
        (TEXT + "harmles = 1\n", "Unknown recipe field 'harmles'"),
        (TEXT.replace('revision = "r"\n', ""), "has no revision"),
        (TEXT.replace('architecture = "A"\n', ""), "has no architecture"),
        (TEXT.replace('"h"', "3"), "harmful in recipe .* must be a text, found 3"),
    ],
)
def test_a_faulty_recipe_is_named(tmp_path, text, message):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(path)


def test_a_folder_needs_no_revision(tmp_path):
    recipe = read_recipe(RECIPES[0])
    given = dict.fromkeys(FILES[recipe.study], "f")
    assert "revision" not in recipe.filled({"model": str(tmp_path), **given})
    assert recipe.filled({"model": str(tmp_path), "revision": "r", **given})["revision"] == "r"


def test_a_missing_recipe_and_a_given_value(tmp_path):
    with pytest.raises(UserError, match="Cannot read recipe"):
        read_recipe(tmp_path / "none.toml")
    path = tmp_path / "r.toml"
    path.write_text(TEXT)
    assert read_recipe(path).filled({"model": "other", "dtype": None})["model"] == "other"
