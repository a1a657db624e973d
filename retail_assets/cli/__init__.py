"""The command `retail-assets`: what it prints, and what only it needs. No rule is written here."""
