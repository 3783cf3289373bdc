"""The toy worlds of the theory.

`energies` are losses of points on a sphere, `landscape` finds their minima, Hessians and saddles, and `atlas` compares
the minima of neighboring losses. `linear_encoders` optimizes and trains linear encoders, and `collapse_boundary` finds
where total collapse stops being stable. `injected_collapse` makes features with a collapse of known size, and
`sampling` draws samples of a known population.
"""
