"""What a policy may call while it answers: functions, or the methods of an environment."""
