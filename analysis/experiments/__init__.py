"""The toy worlds of the theory: points on a sphere, linear encoders, collapsed features, samples, an atlas."""
