"""The chosen score answers as the exit's gate, in training's network and in what ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cascade_train.checkpoint import load_exact, save_tensors
from cascade_train.exits import CascadeModel
from cascade_train.gates import attach_scores, new_scores


def test_attached_score_answers_and_detached_one_is_gone(
    model: CascadeModel, pixels: Tensor, tmp_path: Path
) -> None:
    keys = list(model.state_dict())
    before = model(pixels)
    scores = new_scores(model)
    for score in scores:
        score.mix.copy_(torch.tensor([1.0, 0.0]))
    save_tensors(tmp_path / "scores.safetensors", dict(scores.state_dict()))
    loaded = new_scores(model)
    load_exact(loaded, tmp_path / "scores.safetensors")
    attach_scores(model, loaded)
    hidden: list[Tensor] = []
    hooks = [
        h.register_forward_pre_hook(lambda _, a: hidden.append(a[0])) for h in model.exits.heads
    ]
    after = model(pixels)
    for hook in hooks:
        hook.remove()
    for head, tokens, old, new in zip(model.exits.heads, hidden, before, after, strict=True):
        margin = (new.logits[:, 1] - new.logits[:, 0]).abs()
        assert torch.equal(new.gate, margin)
        assert torch.equal(new.logits, old.logits)
        assert torch.equal(head.answer(tokens)[1], margin)
    attach_scores(model, None)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(pixels)[0].gate, before[0].gate)


def test_joint_gate_shapes_the_backbone(model: CascadeModel, pixels: Tensor) -> None:
    for head in model.exits.heads:
        head.joint_gate = True
    model(pixels)[-1].gate.sum().backward()
    assert model.backbone.embeddings.patch_embeddings.weight.grad.abs().sum() > 0


def test_every_stage_exports_and_answers_with_the_attached_score(
    model: CascadeModel, tmp_path: Path
) -> None:
    import onnxruntime

    from cascade_compile.export import export_stages

    scores = new_scores(model)
    for score in scores:
        score.mix.copy_(torch.tensor([0.5, 0.25]))
        score.weight.normal_(0, 0.1)
    attach_scores(model, scores)
    image = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(image))
    feed = {"pixels": image}
    for path, out in zip(export_stages(model, 32, tmp_path), wanted, strict=True):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        found = dict(zip(names, session.run(names, feed), strict=True))
        np.testing.assert_allclose(found["gate"], out.gate.numpy(), atol=1e-4)
        feed = {"tokens_in": found.get("tokens")}
