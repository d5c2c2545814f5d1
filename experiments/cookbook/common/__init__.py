"""What the programs of the cookbook share: data, pictures, and how a result is told."""
