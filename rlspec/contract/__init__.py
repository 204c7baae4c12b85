"""What trainer, server and robot agree on. Imports nothing of rlspec but its errors."""
