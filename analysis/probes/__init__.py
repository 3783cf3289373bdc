"""What frozen features are good for, of any backbone: ours, the official ones, timm's, anybody's, or an untrained one.

`backbone` makes features of images. What they tell of an image is measured in `image` (few shots, linear probe,
logistic regression; the k-NN classifier is `measures.neighbors.knn_accuracy`). What the features of patches tell is
measured in `segmentation` (linear probe, nearest neighbors, class means), `video` (masks carried from frame to frame)
and `discovery` (objects by normalized cuts), and shown by `maps` (attention, similarity, principal components). `masks`
reads images and videos with masks. `tasks` puts everything in one table, as the command `simdino probe` does, and
`results` prints it.
"""
