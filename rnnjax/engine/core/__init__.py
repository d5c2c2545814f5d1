"""What every way of running a cell needs: the scan, masks, checks, and the custom primitive."""
