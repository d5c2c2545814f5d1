"""The base of all methods: the scan, masks, checks, and the custom primitive."""
