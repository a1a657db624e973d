"""Event files: what lies in the folder, how it is read, and what of it is new."""
