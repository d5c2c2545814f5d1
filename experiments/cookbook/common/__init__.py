"""What several programs of the cookbook share: agents, images, and how dynamics are taken apart."""
