"""Names in an adapter file: PEFT reads them by the rules by which transformers renames the tensors of a checkpoint."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

ROOT = "base_model.model."
"""What PEFT puts before the names of the network."""


def file_names(adapted: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under names that PEFT reads as the given ones, for its model with such an adapter.

    Most names are read as they stand. Some rules of transformers, written for the names of its checkpoints, hit those of the network as
    well (`mlp.shared_expert.` with a dot that stands for any letter, say): there the rule read backwards gives the name to write. A name
    for which no single rule does stays as it is, and PEFT will miss it.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    config = adapted.peft_config["default"]

    def read(names: Iterable[str]) -> set[str]:
        values = {name: torch.empty(tensors.get(name, torch.empty(0)).shape, device="meta") for name in names}
        return set(convert_peft_adapter_state_dict_for_transformers(model=adapted, peft_config=config, adapter_state_dict=values))

    misread = set(tensors) - read(tensors)
    mapping = get_model_conversion_mapping(adapted.get_base_model())
    rules = [rule.reverse_transform() for rule in mapping if isinstance(rule, WeightRenaming)]
    written = {}
    for name, value in tensors.items():
        backwards = [ROOT + rule.rename_source_key(name.removeprefix(ROOT))[0] for rule in rules] if name in misread else []
        written[next((old for old in backwards if read([old]) == {name}), name)] = value
    return written
