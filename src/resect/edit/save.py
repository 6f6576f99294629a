"""An edited model on disk: an ordinary Hugging Face folder that appears whole or not at all."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from resect import artifacts
from resect.edit.output import check_free, partial_of
from resect.edit.proof import FILE
from resect.errors import UserError
from resect.models.checkpoint import open_checkpoint
from resect.models.keys import unmade
from resect.models.load import ChatModel

log = logging.getLogger(__name__)

# Of a vision-language model, what `save_pretrained` of network and tokenizer leaves out.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json")


def save_edited(model: ChatModel, out: Path, *, card: str, proof: Mapping[str, Any] | None = None) -> None:
    """Write network (safetensors), configuration, generation settings, tokenizer, proof and `card` as README.md to the new folder `out`.

    If the model came from a local folder, its processor files are copied. Raises what `new_folder` raises.
    """
    with new_folder(out) as folder:
        _write(model, folder)
        describe(folder, card=card, proof=proof)


def describe(folder: Path, *, card: str, proof: Mapping[str, Any] | None) -> None:
    """Write the card as README.md into a folder, and the edit proof, if there is one, beside it."""
    (folder / "README.md").write_text(card, encoding="utf-8")
    if proof is not None:
        artifacts.write_json(folder / FILE, proof)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a hidden folder beside `out` to write to, which becomes `out` at the end of the `with` block; after a failure nothing is left.

    Raises:
        UserError: if `out` exists and is not an empty folder, or cannot be written (disk full, no permission).
    """
    out = Path(out).expanduser().absolute()
    check_free(out)
    partial = partial_of(out)
    try:
        # A run that was killed may have left one behind.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The edited model cannot be saved to {out}: {error}; free space or choose another folder, nothing was left there."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(model: ChatModel, folder: Path) -> None:
    model.network.save_pretrained(folder)
    if unmade(model.network, open_checkpoint(folder).tensors):
        # The names of older checkpoints, which transformers writes where it knows them, are not always those that it reads.
        model.network.save_pretrained(folder, save_original_format=False)
    lost = unmade(model.network, open_checkpoint(folder).tensors)
    if lost:
        raise UserError(
            f"{type(model.network).__name__} cannot be saved so that it is read back: {lost[0]} would be lost ({len(lost)} in all); save "
            "the edit as an adapter instead."
        )
    model.tokenizer.save_pretrained(folder)
    source = Path(model.name)
    if source.is_dir():
        for name in PROCESSOR_FILES:
            if (source / name).is_file() and not (folder / name).exists():
                shutil.copyfile(source / name, folder / name)
                log.info("copied %s", name)
