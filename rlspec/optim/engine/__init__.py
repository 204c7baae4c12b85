"""The optimizer that runs compositions, in the shape of torch's own."""
