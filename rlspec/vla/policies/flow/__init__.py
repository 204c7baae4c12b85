"""`rlspec_flow`: actions by flow matching, with the bridge and the backbone of `rlspec_adapter`."""
