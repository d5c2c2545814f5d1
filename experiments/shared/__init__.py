"""What the programs stand on: how a run begins and ends, its report and pictures, texts, data."""
