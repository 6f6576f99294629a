"""One palette for light and dark: charts are drawn in the light colours and each becomes a CSS variable that has both."""

from dataclasses import dataclass

# name -> (light, dark); every light colour is used once, because it is the key by which an SVG colour becomes its variable.
# Hues follow Okabe and Ito, so they stay apart for colour-blind readers; shape and dash repeat the distinction.
PALETTE: dict[str, tuple[str, str]] = {
    "ink": ("#1a1d21", "#eceef1"),
    "muted": ("#5b626b", "#a6adb7"),
    "axis": ("#8d949e", "#6d747e"),
    "grid": ("#e6e8eb", "#2c3138"),
    "card": ("#ffffff", "#1b1e23"),
    "page": ("#f5f6f8", "#121417"),
    "alarm": ("#b3261e", "#ff8a80"),
    "alarm-page": ("#fdecea", "#3a1a18"),
    "good": ("#00694a", "#4fd6a5"),
    "link": ("#0b57a4", "#8ab8f0"),
    "arm-base": ("#23272e", "#dfe2e6"),
    "arm-standard": ("#d55e00", "#ff8f3f"),
    "arm-projected": ("#0072b2", "#58b0ee"),
    "arm-sra": ("#008060", "#35cfa0"),
    "arm-whitened": ("#a8478c", "#e78acb"),
    "arm-combined": ("#9a7400", "#f0c541"),
    "arm-oblique": ("#5a4fb0", "#a9a0f5"),
    "arm-standard_sra_strength": ("#9a8578", "#b59d8e"),
    "arm-sra_flat": ("#7b8f88", "#93ada4"),
    "arm-random_atoms": ("#6f7680", "#b9c0ca"),
    "spare-1": ("#3f8fa8", "#6fc6e0"),
    "spare-2": ("#8c5a3c", "#d09a78"),
    "spare-3": ("#667a1e", "#b3cc5a"),
    "role-target": ("#c2410c", "#ff9357"),
    "role-shield": ("#1d6fa5", "#6fbcf2"),
    "role-confound": ("#747b85", "#aeb5bf"),
    "refuse": ("#2f62a8", "#6f9fe0"),
    "comply": ("#e3a53d", "#e0a63f"),
    "evasive": ("#9dbbe0", "#3c5a85"),
    "degenerate": ("#8a3a6c", "#c873a8"),
    "truncated": ("#b8bec6", "#69707a"),
    "unscored": ("#dfe2e7", "#3d434b"),
}
SHAPES = {
    "base": "square",
    "standard": "triangle-up",
    "projected": "diamond",
    "sra": "circle",
    "whitened": "triangle-down",
    "combined": "cross",
    "oblique": "square",
    "standard_sra_strength": "triangle-right",
    "sra_flat": "triangle-left",
    "random_atoms": "diamond",
}
_SPARE_SHAPES = ("square", "triangle-right", "triangle-left")
ROLES = ("target", "shield", "confound")
VERDICTS = ("refuse", "evasive", "comply", "degenerate", "truncated", "unscored")
BINS = 17
_ENDS = {"light": ((11, 83, 148), (247, 247, 247), (189, 76, 0)), "dark": ((92, 178, 255), (38, 42, 48), (255, 148, 61))}


@dataclass(frozen=True)
class Style:
    """How an arm is drawn."""

    colour: str
    shape: str
    dash: tuple[int, ...]


def arm_styles(arms: list[str], controls: set[str]) -> dict[str, Style]:
    """Return a style for each arm; unknown names take spare colours in order, controls are dashed."""
    spare = [arm for arm in arms if f"arm-{arm}" not in PALETTE]
    styles = {}
    for arm in arms:
        index = spare.index(arm) % 3 if arm in spare else 0
        colour = PALETTE[f"spare-{index + 1}" if arm in spare else f"arm-{arm}"][0]
        styles[arm] = Style(colour, SHAPES.get(arm, _SPARE_SHAPES[index]), (4, 3) if arm in controls else (1, 0))
    return styles


def _mix(a: tuple[int, ...], b: tuple[int, ...], *, share: float) -> str:
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in zip(a, b, strict=True))


def diverging(theme: str) -> list[str]:
    """Return the colours of the diverging scale, from the negative end through neutral to the positive end."""
    low, middle, high = _ENDS[theme]
    half = BINS // 2
    return [_mix(low, middle, share=i / half) for i in range(half)] + [_mix(middle, high, share=i / half) for i in range(half + 1)]


def variables(theme: str) -> dict[str, str]:
    """Return every CSS variable of a theme (`light` or `dark`) with its colour."""
    index = ("light", "dark").index(theme)
    named = {name: pair[index] for name, pair in PALETTE.items()}
    return named | {f"d{i}": colour for i, colour in enumerate(diverging(theme))}


def css_variables() -> str:
    """Return the CSS that defines the variables for light and, where the reader prefers it, dark."""
    blocks = {theme: "".join(f"--{name}:{colour};" for name, colour in variables(theme).items()) for theme in ("light", "dark")}
    return f":root{{color-scheme:light dark;{blocks['light']}}}\n@media (prefers-color-scheme:dark){{:root{{{blocks['dark']}}}}}"
