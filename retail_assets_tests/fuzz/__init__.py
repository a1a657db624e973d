"""Coverage-guided fuzzing: harnesses that are run in processes of their own."""
