import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LagunaConfig

from resect.edit.adapter import make_adapter, save_adapter, with_adapter
from resect.edit.hooks import applied
from resect.edit.plan import make_plan
from resect.models.load import wrap
from resect.models.writers import find_writers

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = torch.randint(6, 260, (2, 12), generator=torch.Generator().manual_seed(5))
VECTORS = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(6))


@torch.no_grad()
def logits(network):
    return network(input_ids=IDS, use_cache=False).logits


def test_names_are_written_so_that_peft_reads_them_as_the_networks(tiny, tmp_path):
    """A loading rule of this family, `mlp.shared_expert.`, hits the network's own `mlp.shared_experts` and doubles its last dot."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "head_dim": 8}
    config = LagunaConfig(
        vocab_size=260, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, **sizes
    )
    model = wrap(AutoModelForCausalLM.from_config(config), tiny("qwen3").tokenizer, name="laguna")
    writers = find_writers(model)
    plan = make_plan(writers, VECTORS, torch.ones(2))
    with applied(model, writers, plan):
        hooked = logits(model.network)
    adapter = make_adapter(model, writers, plan)
    save_adapter(model, adapter, tmp_path / "adapter", card="")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        written = set(file.keys())
    shared = {name for name in adapter.tensors if ".shared_experts." in name}
    assert shared
    assert set(adapter.tensors) - written == shared
    assert torch.allclose(logits(with_adapter(model, tmp_path / "adapter").network), hooked, atol=1e-5)
