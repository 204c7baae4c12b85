"""LIBERO (five suites of a Panda arm at a table) through hf-libero, without prompts, logs or writes at home."""
