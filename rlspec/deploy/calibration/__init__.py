"""What a robot knows of its room: the box of its workspace, and where its cameras are."""
