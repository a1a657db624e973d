"""What people look at: the board, `retail-assets dashboard`."""
