"""`transformers.pipeline` on the same trained weights, as its users call it.

transformers has no DINOv3 classifier, so one is made here in the shape of its DINOv2 classifier:
class token and mean patch token behind the model's last norm, then a linear layer, which is what
our last exit is. The image processor is the model's own where torchvision can be imported; else
the library's Pillow processor, with the same size and scaling, whose filter is the bundle's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade_bench.peers.contender import Absent, Contender, Given, Labels, Logits
from cascade_runtime.preprocess import Pixels

if TYPE_CHECKING:
    from cascade_train.exits import CascadeModel

NAME = "transformers pipeline"
INSTALL = "pip install 'cascade-edge[compile]'"


def contenders(given: Given) -> list[Contender | Absent]:
    if find_spec("transformers") is None:
        return [Absent(NAME, f"transformers is not installed; {INSTALL}")]
    if given.preprocess.crop != "none":
        return [Absent(NAME, f"it has no crop {given.preprocess.crop!r} as the bundle has")]
    import torch

    from cascade_train.exits import normalize

    torch.set_num_threads(given.threads)
    processor = image_processor(given)
    found: list[Contender | Absent] = []
    for precision, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        model = classifier(given.network, given.classes).to(dtype)
        pipe = pipeline(model, processor)

        def forward(pixels: Pixels, model: Any = model) -> Logits:
            with torch.no_grad():
                images = normalize(torch.from_numpy(pixels)).to(model.dtype)
                logits: Logits = model(images).logits.float().numpy()
            return logits

        note = f"eager, {type(processor).__name__}"
        found.append(Contender(f"{NAME} {precision}", note, _classify(pipe, given), forward))
    return found


def _classify(pipe: Any, given: Given) -> Callable[[Sequence[Path], int], Labels]:
    def classify(files: Sequence[Path], batch: int) -> Labels:
        answers = pipe([str(file) for file in files], batch_size=batch, top_k=1)
        labels = [given.classes.index(answer[0]["label"]) for answer in answers]
        return np.array(labels, dtype=np.int8)

    return classify


def pipeline(model: Any, processor: Any) -> Any:
    """The pipeline; told nothing, since it warns of lists of files that it is given whole."""
    import transformers

    transformers.AutoModelForImageClassification.register(
        type(model.config), type(model), exist_ok=True
    )
    return transformers.pipeline(
        "image-classification", model=model, image_processor=processor, device="cpu"
    )


def classifier(network: CascadeModel, classes: tuple[str, str]) -> Any:
    """The network up to its last exit as a transformers model with the same weights.

    Attention is what transformers takes by default, not the eager one that exports are made with.
    """
    import torch
    from transformers import DINOv3ViTModel, DINOv3ViTPreTrainedModel
    from transformers.modeling_outputs import ImageClassifierOutput

    from cascade_train.exits import ExitHeads

    class DINOv3ViTForImageClassification(DINOv3ViTPreTrainedModel):  # type: ignore[no-untyped-call]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.dinov3 = DINOv3ViTModel(config)
            self.classifier = torch.nn.Linear(2 * config.hidden_size, config.num_labels)
            self.post_init()  # type: ignore[no-untyped-call]

        def forward(self, pixel_values: Any, **more: Any) -> Any:
            tokens = self.dinov3(pixel_values, **more).last_hidden_state
            patches = tokens[:, 1 + self.config.num_register_tokens :]
            features = torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)
            return ImageClassifierOutput(logits=self.classifier(features))

    backbone, head = network.backbone, network.exits.heads[-1]
    assert isinstance(head, ExitHeads)
    config = copy.deepcopy(backbone.config)
    config._attn_implementation = None  # the default
    config.num_hidden_layers = network.exit_blocks[-1]
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    model: Any = DINOv3ViTForImageClassification(config)
    state = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.startswith("norm.") and _within(name, config.num_hidden_layers)
    }
    state |= {f"norm.{name}": tensor for name, tensor in head.norm.state_dict().items()}
    model.dinov3.load_state_dict(state)
    model.classifier.load_state_dict(head.classifier.state_dict())
    return model.eval()


def _within(name: str, blocks: int) -> bool:
    """Whether a weight is in the first `blocks` blocks, or in none."""
    parts = name.split(".")
    return parts[:2] != ["model", "layer"] or int(parts[2]) < blocks


def image_processor(given: Given) -> Any:
    """An image processor of the library's with the size, filter and scaling of the network."""
    from PIL import Image

    from cascade_train.exits import MEAN, STD

    spec = given.preprocess
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    settings: dict[str, Any] = {
        "size": {"height": spec.height, "width": spec.width},
        "resample": filters[spec.resize],
        "image_mean": MEAN,
        "image_std": STD,
    }
    if find_spec("torchvision") is not None:
        from transformers import DINOv3ViTImageProcessor

        return DINOv3ViTImageProcessor(**settings)
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(**settings)
