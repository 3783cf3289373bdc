"""The toy worlds of the theory: energies and their landscape, linear encoders, injected collapse, sampling, atlas."""
