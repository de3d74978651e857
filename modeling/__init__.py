"""The networks, their losses, and how they generate."""
