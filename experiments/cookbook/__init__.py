"""All programs of the cookbook one after the other, or those named, and one table of scores."""
