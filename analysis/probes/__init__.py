"""What features are good for: probes of frozen backbones, ours, official, timm's or anybody's, and untrained ones.

    python -m analysis.probes <run | weights file | timm name | pixels | random> ... --tasks knn,linear --data photos

`analysis.probes.backbone` makes features of images, `analysis.probes.classify` classifies them.
"""

from analysis.probes.backbone import Backbone, Features, features, image_features, load_backbone
from analysis.probes.classify import knn_accuracy

__all__ = ["Backbone", "Features", "features", "image_features", "knn_accuracy", "load_backbone"]
