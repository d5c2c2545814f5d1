"""The loop of a layer as one Pallas kernel, for TPUs and GPUs."""
