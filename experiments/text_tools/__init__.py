"""Tools for the text generator: pages that look inside a trained model, and its export."""
