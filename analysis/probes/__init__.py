"""What frozen features are good for: probes of backbones, ours, official, timm's or anybody's, and untrained ones.

`backbone` makes features of images. What they know of the image: `image` (few shots, linear probe, logistic
regression; k-NN is `measures.neighbors.knn_accuracy`). What patches know: `segmentation` (linear probe, neighbors,
class means), `video` (masks propagated), `discovery` (objects by normalized cuts), `maps` (attention, similarity,
components). `masks` reads images with masks; `tasks` has all of it in one table, as `simdino probe`.
"""
