"""What may reach the motors: the filter, the watchdog, the gate and the emergency stop."""
