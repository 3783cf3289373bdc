"""The toy worlds of the theory: energies on the sphere and their landscape, linear encoders, injected collapse, sampling."""
