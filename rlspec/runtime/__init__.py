"""What every kind of training run needs around its loop: its beginning, interruption, devices and silence."""
