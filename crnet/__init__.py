"""CRNet (Liu et al., CVPR 2020) as a reproducible benchmark and ablation suite for few-shot segmentation."""

__version__ = "0.1.0"
