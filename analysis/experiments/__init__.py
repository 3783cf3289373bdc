"""The toy worlds of the theory."""
