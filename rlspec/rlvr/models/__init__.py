"""Language models: built, loaded from a folder, a GGUF file or the hub, adapted, and what memory they need."""
