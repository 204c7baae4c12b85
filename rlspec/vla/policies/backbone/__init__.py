"""What `rlspec_adapter` and `rlspec_flow` share: the vision-language backbone and the bridge to its layers."""
