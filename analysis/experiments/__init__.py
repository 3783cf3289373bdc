"""The toy worlds of the theory: points on a sphere, linear encoders, and samples, in which every number can be checked."""
