"""What a rule is composed of: filters, second moments, bases, clipping, pairs of LoRA factors, lengths of a step."""
