"""Bytes counted by hand, and fused kernels against the real ones."""

from contextlib import nullcontext

import torch

from resect.models.live import FusedKernels, Live


def test_live_counts_what_is_there_at_once():
    old = torch.zeros(9000)
    with Live() as live:
        seen = old[10:].view(-1)
        first = torch.zeros(1000, dtype=torch.float64)
        view = first[10:]
        del first
        second = torch.zeros(500, dtype=torch.float64)
        assert live.now == 12000
        del view
        third = torch.zeros(100, dtype=torch.float64)
    assert (live.now, live.peak) == (4800, 12000)
    del second, third, seen


def attended(device, *, fused):
    """Attention with gradients: bytes held before and after the backward pass, and which inputs got a gradient."""
    query, key, value = (torch.zeros(2, 3, 50, 8, device=device, requires_grad=wanted) for wanted in (True, False, True))
    with FusedKernels() if fused else nullcontext(), Live() as live:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        held = live.now
        gradients = torch.autograd.grad(out.sum(), [query, value])
    return held, [tuple(g.shape) for g in gradients]


def test_fused_attention_holds_what_the_real_kernel_holds():
    held, shapes = attended("meta", fused=True)
    assert (held, shapes) == attended("cpu", fused=False)
    assert held < 2 * 3 * 50 * 50 * 4
