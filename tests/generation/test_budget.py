import torch

from resect.generation import budget
from resect.generation.budget import fitting, free_bytes, out_of_memory, predicted
from resect.models.chat import Rendered

PROMPTS = [Rendered(tuple(range(10, 26)), 15)] * 64


def bytes_of(model, tokens):
    return predicted(model, (tokens // 16, 16, False), 8)


def test_the_budget_is_halved_until_its_batch_is_predicted_to_fit(tiny, monkeypatch):
    model = tiny("qwen3")
    found = {}
    for free in (1 << 40, 1 << 20, 1 << 18):
        monkeypatch.setattr(budget, "free_bytes", lambda _device, free=free: free)
        found[free] = fitting(model, PROMPTS, batch_tokens=1024, new=8)
        if found[free] > 32:
            assert bytes_of(model, found[free]) <= 0.8 * free
    assert 1024 == found[1 << 40] > found[1 << 20] > found[1 << 18] >= 16  # never below one prompt
    assert bytes_of(model, 2 * found[1 << 20]) > 0.8 * (1 << 20)


def test_where_nothing_is_told_or_predicted_the_budget_stays(tiny, monkeypatch):
    model = tiny("qwen3")
    monkeypatch.setattr(budget, "free_bytes", lambda _device: None)
    assert fitting(model, PROMPTS, batch_tokens=1024, new=8) == 1024
    monkeypatch.setattr(budget, "free_bytes", lambda _device: 1)
    monkeypatch.setattr(budget, "predicted", lambda *_: 0)
    assert fitting(model, PROMPTS, batch_tokens=1024, new=8) == 1024
    assert fitting(model, [], batch_tokens=1024, new=8) == 1024


def test_free_memory_and_its_end_are_told():
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 1 << 20
    assert free_bytes(torch.device("meta")) is None
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
