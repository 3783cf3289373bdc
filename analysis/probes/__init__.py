"""What features are good for: probes of frozen backbones, ours, official, timm's or anybody's, and untrained ones.

    python -m analysis.probes <run | weights file | timm name | pixels | random> ... --tasks knn,linear --data photos

`backbone` makes features of images. What they know of the image: `classify` (k-NN, few shots), `heads` (linear probe,
logistic regression). What patches know: `segment` (linear probe, neighbours, class means), `video` (masks propagated),
`discover` (objects by normalised cuts) and `maps` (attention, similarity, components). `masks` reads images with masks;
`tasks` has all of it in one table.
"""

from analysis.probes.backbone import (
    Backbone,
    Features,
    features,
    fit,
    image_features,
    load_backbone,
    load_backbones,
    prepared,
)
from analysis.probes.classify import accuracy_interval, few_shot_accuracy, knn_accuracy
from analysis.probes.discover import average_precision, maskcut, normalized_cut, tokencut
from analysis.probes.heads import linear_probe, logistic_regression
from analysis.probes.maps import class_attention, foreground, patch_similarity, pca_rgb
from analysis.probes.masks import load_masks, load_videos
from analysis.probes.results import table
from analysis.probes.segment import Confusion, knn_segmenter, linear_segmenter, prototype_segmenter
from analysis.probes.tasks import evaluate, existing
from analysis.probes.video import boundary_f, davis_scores, propagate, region_similarity, transfer_iou

__all__ = [
    "Backbone",
    "Confusion",
    "Features",
    "accuracy_interval",
    "average_precision",
    "boundary_f",
    "class_attention",
    "davis_scores",
    "evaluate",
    "existing",
    "features",
    "few_shot_accuracy",
    "fit",
    "foreground",
    "image_features",
    "knn_accuracy",
    "knn_segmenter",
    "linear_probe",
    "linear_segmenter",
    "load_backbone",
    "load_backbones",
    "load_masks",
    "load_videos",
    "logistic_regression",
    "maskcut",
    "normalized_cut",
    "patch_similarity",
    "pca_rgb",
    "prepared",
    "propagate",
    "prototype_segmenter",
    "region_similarity",
    "table",
    "tokencut",
    "transfer_iou",
]
