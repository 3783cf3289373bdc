"""Functions of features: every diagnostic, in the room of its kind.

`moments` (streams of features), `spectra` (ranks, entropies, isotropy), `rates` (coding rates), `collapse` (to a point,
of patches, of prototypes; LiDAR), `alignment_uniformity`, `covariance` (VICReg's and Barlow Twins' terms), `frames`
(coherence, potentials, tight frames), `classes` (neural collapse), `neighbors` (k-NN, overlap), `intrinsic_dimension`,
`similarity` (CKA, RSA), `mutual_information`, `normality`, `uncertainty` (jackknife, references). `inputs` checks what
a diagnostic is given, and `pair_tiles` visits pairs of rows in tiles.
"""
