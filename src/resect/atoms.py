"""Concept atoms: named pairs of prompt sets whose mean difference is a concept direction.

Source: arXiv 2601.08489 (roles target, shield, confound) and arXiv 2601.16034, section 3.2 (antagonist prompts).
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

from resect.errors import UserError, unknown_name

Role = Literal["target", "shield", "confound"]
FORMAT = "resect.atom/1"
_FIELDS = {"format", "name", "role", "description", "source", "positive", "negative"}


@dataclass(frozen=True)
class Atom:
    """One concept: prompts that carry it and antagonists that look alike without it.

    `role` decides what cleaning does with it: `shield` (a capability) and `confound` (a style) are kept,
    so they enter the scatter S; `target` (meaning that refusal is made of) is only reported.
    """

    name: str
    role: Role
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for side, prompts in (("positive", self.positive), ("negative", self.negative)):
            if len(prompts) < 2:
                raise UserError(f"Atom {self.name!r} has {len(prompts)} {side} prompts; at least 2 are needed, 48 are advised.")
        shared = sorted(set(self.positive) & set(self.negative))
        if shared:
            raise UserError(f"Atom {self.name!r} has {shared[0]!r} on both sides; a prompt may stand on one side only.")

    @property
    def kept(self) -> bool:
        """Whether cleaning protects this concept."""
        return self.role != "target"


def parse_atom(data: Mapping[str, Any], *, where: str) -> Atom:
    """Return the atom described by a TOML table; raises `UserError` naming `where` for a wrong or missing field."""
    unknown = sorted(set(data) - _FIELDS)
    if unknown:
        raise unknown_name(f"field in {where}", unknown[0], _FIELDS)
    if data.get("format") != FORMAT:
        raise UserError(f"{where} has format {data.get('format')!r}; an atom file starts with format = {FORMAT!r}.")
    for field in ("name", "role"):
        if not isinstance(data.get(field), str) or not data[field]:
            raise UserError(f"{where} needs a text field {field!r}; found {data.get(field)!r}.")
    if data["role"] not in get_args(Role):
        raise unknown_name(f"role in {where}", data["role"], get_args(Role))
    for field in ("positive", "negative"):
        prompts = data.get(field)
        if not isinstance(prompts, list) or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise UserError(f"{where} needs {field!r} as a list of non-empty texts.")
    return Atom(
        name=data["name"],
        role=cast(Role, data["role"]),
        positive=tuple(data["positive"]),
        negative=tuple(data["negative"]),
        description=str(data.get("description", "")),
        source=str(data.get("source", "")),
    )


def load_atom(path: Path) -> Atom:
    """Return the atom of one TOML file (`docs/formats.md`); raises `UserError` if it is missing or malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot read atom file {path}: {error.strerror}; give a TOML file or a folder of them.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"Atom file {path} is not UTF-8 text; save it as UTF-8.") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"Atom file {path} is not valid TOML: {error}.") from error
    return parse_atom(data, where=f"atom file {path}")


def load_atoms(path: Path) -> tuple[Atom, ...]:
    """Return the atoms of a file, or of all `*.toml` files of a folder in name order."""
    paths = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not paths:
        raise UserError(f"Folder {path} has no atom files; expected at least one *.toml.")
    return check_registry(load_atom(p) for p in paths)


def shipped_atoms() -> tuple[Atom, ...]:
    """Return the registry that comes with resect, in name order."""
    folder = files("resect") / "data" / "atoms"
    entries = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return check_registry(parse_atom(tomllib.loads(f.read_text(encoding="utf-8")), where=f"shipped atom {f.name}") for f in entries)


def check_registry(atoms: Iterable[Atom]) -> tuple[Atom, ...]:
    """Return the atoms as a tuple; raises `UserError` if two share a name or none is a shield or a confound."""
    registry = tuple(atoms)
    names = [a.name for a in registry]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"Two atoms are named {twice[0]!r}; names must be unique, rename one.")
    if not any(a.kept for a in registry):
        raise UserError("No atom has role 'shield' or 'confound', so there is nothing to protect; add one, or skip the cleaning.")
    return registry
