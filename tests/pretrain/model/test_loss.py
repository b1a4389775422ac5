"""The chunked vocabulary loss is the plain one, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.model import MemBartForConditionalGeneration
from pretrain.model import loss as loss_module
from pretrain.model.loss import VocabularyHead, summed_cross_entropy
from tests.pretrain.model import case

VOCAB, WIDTH = 50, 12
Made = dict[str, Tensor]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows of logits at a time, so that the last block is a shorter one."""
    monkeypatch.setattr(loss_module, "_BLOCK_ELEMENTS", 4 * VOCAB)


def make(dtype: torch.dtype = torch.float64) -> Made:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(VOCAB, (3, 7), generator=generator)
    labels[1, 2:5] = -100
    return {
        "hidden": torch.randn(3, 7, WIDTH, generator=generator).to(dtype).requires_grad_(),
        "weight": torch.randn(VOCAB, WIDTH, generator=generator).to(dtype).requires_grad_(),
        "labels": labels,
        "bias": torch.randn(VOCAB, generator=generator).to(dtype),
    }


def gradients(made: Made, form: str, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    loss = summed_cross_entropy(**made, form=form)
    (scale * loss).backward()
    return loss.detach(), made["hidden"].grad, made["weight"].grad


@pytest.mark.parametrize("with_bias", [True, False])
def test_forms_agree(with_bias: bool) -> None:
    found = []
    for form in ("plain", "chunked"):
        made = make()
        made["bias"] = made["bias"] if with_bias else None
        found.append(gradients(made, form, scale=0.37))
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=0, atol=1e-12)
    labels = make()["labels"]
    logits = make()["hidden"] @ make()["weight"].T + (make()["bias"] if with_bias else 0)
    scored = torch.log_softmax(logits.detach(), -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found[1][0], -(scored * (labels >= 0)).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_in_half_precision_the_sum_is_kept_in_float32(form: str) -> None:
    exact = gradients(make(), "plain")
    made = make(torch.bfloat16)
    made["hidden"] = made["hidden"].detach().repeat(60, 1, 1).requires_grad_()
    made["labels"] = made["labels"].repeat(60, 1)
    loss, hidden_grad, weight_grad = gradients(made, form)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(60 * exact[0].item(), rel=2e-3)
    assert hidden_grad.dtype == weight_grad.dtype == torch.bfloat16
    torch.testing.assert_close(weight_grad.double(), 60 * exact[2], rtol=0.05, atol=2.0)


@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_under_autocast_products_are_in_half_and_gradients_in_full_precision(form: str) -> None:
    exact = gradients(make(torch.float32), "plain")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, hidden_grad, weight_grad = gradients(make(torch.float32), form)
    assert loss.dtype == hidden_grad.dtype == weight_grad.dtype == torch.float32
    assert loss.item() == pytest.approx(exact[0].item(), rel=1e-2)
    assert not torch.equal(hidden_grad, exact[1])
    torch.testing.assert_close(weight_grad, exact[2], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_no_labels_no_loss_but_a_gradient(form: str) -> None:
    made = make()
    made["labels"] = torch.full_like(made["labels"], -100)
    loss, hidden_grad, weight_grad = gradients(made, form)
    assert loss == 0
    assert not hidden_grad.any()
    assert not weight_grad.any()


def test_frozen_weights_get_no_gradient() -> None:
    made = make()
    made["weight"].requires_grad_(False)
    _, hidden_grad, weight_grad = gradients(made, "chunked")
    assert hidden_grad.any()
    assert weight_grad is None
    with torch.no_grad():
        assert summed_cross_entropy(**made) == summed_cross_entropy(**make()).detach()


def test_a_second_backward_is_refused() -> None:
    loss = summed_cross_entropy(**make())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that any operation produced."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_the_logits_never_exist_as_a_whole() -> None:
    largest = {}
    for form in ("plain", "chunked"):
        made = make()
        made["hidden"] = made["hidden"].detach().repeat(40, 1, 1).requires_grad_()
        made["labels"] = made["labels"].repeat(40, 1)
        with LargestTensor() as seen:
            gradients(made, form)
        largest[form] = seen.elements
    rows = int((made["labels"] >= 0).sum())
    assert largest["plain"] >= rows * VOCAB
    assert largest["chunked"] <= made["hidden"].numel()


def test_the_model_takes_either_form(
    build: Callable[..., MemBartForConditionalGeneration], batch: dict[str, Tensor]
) -> None:
    step, found = case.steps()[0], []
    for form in ("plain", "chunked"):
        model = build(loss_impl=form)
        loss = model.token_loss(model.encode(**batch), step["decoder_input_ids"], step["labels"])
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
        rows = model.token_loss(
            model.encode(**batch), step["decoder_input_ids"], step["labels"], per_row=True
        )
        torch.testing.assert_close(rows.sum(), loss, rtol=1e-12, atol=0)
        assert rows.shape == (3,)
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=0, atol=1e-11)


def test_new_words_keep_the_head_that_knows_the_loss(
    build: Callable[..., MemBartForConditionalGeneration], batch: dict[str, Tensor]
) -> None:
    model = build()
    model.resize_token_embeddings(64, mean_resizing=False)
    assert isinstance(model.lm_head, VocabularyHead)
    assert model.lm_head.weight is model.model.shared.weight is model.model.encoder.embed_tokens.weight
    step = case.steps()[0]
    loss = model.token_loss(model.encode(**batch), step["decoder_input_ids"], step["labels"])
    out = model(**batch, decoder_input_ids=step["decoder_input_ids"], labels=step["labels"])
    assert out.logits.shape[-1] == 64
    torch.testing.assert_close(loss / (step["labels"] >= 0).sum(), out.loss, rtol=1e-12, atol=0)
