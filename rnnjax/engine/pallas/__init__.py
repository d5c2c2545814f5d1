"""The loop of a layer as one Pallas kernel, for a TPU and a GPU."""
