"""Every knob of a study, one study a file; the resolved values are saved beside the results as `run.toml`."""

from resect.config.base import StudyConfig, only
from resect.config.contrast import ContrastConfig, make_contrast_config
from resect.config.files import dump_toml, load_config
from resect.config.sra import ARMS, SRAConfig, make_config

__all__ = [
    "ARMS",
    "ContrastConfig",
    "SRAConfig",
    "StudyConfig",
    "dump_toml",
    "load_config",
    "make_config",
    "make_contrast_config",
    "only",
]
