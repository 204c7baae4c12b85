"""Robots that the loop can drive, all by the interface of `rlspec.deploy.arm.interfaces.Robot`."""
