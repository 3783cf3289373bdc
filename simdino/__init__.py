"""A compact, instrumented implementation of SimDINO and of DINO as its baseline."""
