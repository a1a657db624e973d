"""The pages of the board, a module each; they show what `reading` has read."""
