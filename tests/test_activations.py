import pytest
import torch

from resect.activations import capture
from resect.edit.hooks import applied
from resect.edit.plan import make_plan
from resect.errors import UserError
from resect.models.chat import Rendered, render
from resect.models.writers import find_writers

PROMPTS = ["hi", "a prompt that is much longer than that one", "of middling length", "x" * 50]


def reference(model, row):
    """Outputs of all blocks for one prompt alone, [layer, token, d_model]."""
    got = []
    handles = [b.register_forward_hook(lambda _m, _a, o: got.append(o[0] if isinstance(o, tuple) else o)) for b in model.blocks]
    with torch.no_grad():
        model.network(input_ids=torch.tensor([row.ids]))
    for handle in handles:
        handle.remove()
    return torch.cat(got)


@torch.no_grad()
def test_rows_are_those_of_each_prompt_alone_under_any_padding_and_batch_size(tiny, family):
    model = tiny(family)
    rendered = render(model.tokenizer, PROMPTS)
    alone = [reference(model, r) for r in rendered]
    columns = {"last": [-1] * 4, "last_user": [r.last_user for r in rendered], -3: [-3] * 4}
    expected = {position: torch.stack([h[:, c] for h, c in zip(alone, at, strict=True)]) for position, at in columns.items()}
    expected["mean"] = torch.stack([h.mean(1) for h in alone])
    for position, rows in expected.items():
        assert float((rows[0] - rows[1]).norm()) > 1e-2
        for side, batch_tokens in (("left", 1), ("left", 8192), ("right", 8192)):
            got = capture(model, rendered, position=position, batch_tokens=batch_tokens, side=side)
            assert got.rows.shape == (4, 2, 32)
            assert got.rows.dtype == torch.float32
            assert float(((got.rows - rows).norm(dim=2) / rows.norm(dim=2)).max()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["deepseek_v4", "qwen4_exp"])
def test_of_several_streams_a_row_is_the_mean(tiny, name):
    """An axis after the tokens in one family, the features themselves in the other."""
    model = tiny(name)
    rendered = render(model.tokenizer, PROMPTS[:2])
    last = torch.stack([reference(model, r).reshape(2, len(r.ids), 4, 32)[:, -1] for r in rendered])
    assert float((last[:, :, 0] - last[:, :, 1]).norm()) > 1e-2
    # Each prompt alone: compressed attention cuts chunks from the left edge, padding included.
    torch.testing.assert_close(capture(model, rendered, batch_tokens=1).rows, last.mean(2), atol=1e-4, rtol=1e-4)


def test_layers_in_the_order_asked_for_and_no_further(tiny):
    model = tiny("qwen3")
    rendered = render(model.tokenizer, PROMPTS)
    ran = []
    model.blocks[1].register_forward_hook(lambda *_: ran.append("block 1"))
    model.network.lm_head.register_forward_hook(lambda *_: ran.append("logits"))
    first = capture(model, rendered, layers=[0])
    assert ran == []
    both = capture(model, rendered, layers=[1, 0])
    assert set(ran) == {"block 1"}
    assert both.layers == (1, 0)
    assert torch.equal(both.rows[:, 1:], first.rows)
    # No hook of ours stays: one of the test's own is on the block, and a full pass runs through.
    assert len(model.blocks[0]._forward_hooks) == 0
    model.network(input_ids=torch.tensor([rendered[0].ids]))
    assert ran[-1] == "logits"


def test_an_applied_edit_is_seen(tiny):
    model = tiny("gemma3")
    rendered = render(model.tokenizer, PROMPTS)
    writers = find_writers(model)
    unit = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    vectors = unit.expand(2, 1, 32)
    embedded = [model.network.get_input_embeddings()(torch.tensor(r.ids[-1])) for r in rendered]
    with applied(model, writers, make_plan(writers, vectors, torch.ones(2))):
        edited = capture(model, rendered).rows
    # The blocks add nothing along the direction, so the stream keeps the embedding's component.
    expected = torch.stack(embedded) @ unit
    torch.testing.assert_close(edited[:, 1] @ unit, expected, atol=1e-4, rtol=1e-4)
    assert float((capture(model, rendered).rows[:, 1] @ unit - expected).abs().max()) > 1e-2


def test_values_that_are_not_finite_name_the_layer_and_the_count(tiny):
    model = tiny("qwen3")
    rendered = render(model.tokenizer, PROMPTS)
    model.blocks[1].mlp.down_proj.weight[3] = float("nan")
    with pytest.raises(UserError, match=r"after layer 1 hold NaN or infinity in 4 of 128 values .*float32"):
        capture(model, rendered)
    assert capture(model, rendered, layers=[0]).rows.isfinite().all()


def test_padding_that_is_not_finite_does_not_matter_to_the_mean(tiny):
    model = tiny("gpt2")
    rendered = [Rendered(ids=(9, 10, 11)), Rendered(ids=(9, 10, 11, 12, 13))]
    expected = capture(model, rendered, position="mean", batch_tokens=1).rows

    def poison(_module, _args, output):
        # Longest first: the second row of the batch is the short prompt, and its first two columns are padding.
        assert output.shape[:2] == (2, 5)
        output = output.clone()
        output[1, :2] = float("nan")
        return output

    handle = model.blocks[1].register_forward_hook(poison)
    poisoned = capture(model, rendered, position="mean", layers=[1], side="left")
    handle.remove()
    torch.testing.assert_close(poisoned.rows, expected[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, "Layer 2 does not exist: the model has 2 blocks; layers go from 0 to 1"),
        ({"layers": [-1]}, "Layer -1 does not exist"),
        ({"layers": [0, 0]}, "named twice"),
        ({"layers": []}, "No layers are given"),
        ({"position": -99}, "Position -99 lies before prompt 0, which has"),
        ({"position": 0}, "Position 0 is not allowed"),
        ({"position": "lst"}, "Unknown position 'lst'; did you mean 'last'"),
    ],
)
def test_mistakes(tiny, options, message):
    model = tiny("llama")
    with pytest.raises(UserError, match=message):
        capture(model, render(model.tokenizer, PROMPTS), **options)


def test_no_prompts(tiny):
    with pytest.raises(UserError, match="no prompts"):
        capture(tiny("llama"), [])
