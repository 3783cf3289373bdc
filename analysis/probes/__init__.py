"""What features are good for: probes of frozen backbones, ours, official, timm's or anybody's, and untrained ones.

    python -m analysis.probes <run | weights file | timm name | pixels | random> ... --tasks knn,linear --data photos

`backbone` makes features of images; `classify` (k-NN, few shots) and `heads` (linear probe, logistic regression) say
what they know of the image.
"""

from analysis.probes.backbone import (
    Backbone,
    Features,
    features,
    image_features,
    load_backbone,
    load_backbones,
    prepared,
)
from analysis.probes.classify import accuracy_interval, few_shot_accuracy, knn_accuracy
from analysis.probes.heads import linear_probe, logistic_regression

__all__ = [
    "Backbone",
    "Features",
    "accuracy_interval",
    "features",
    "few_shot_accuracy",
    "image_features",
    "knn_accuracy",
    "linear_probe",
    "load_backbone",
    "load_backbones",
    "logistic_regression",
    "prepared",
]
