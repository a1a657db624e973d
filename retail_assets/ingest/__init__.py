"""Outside data into the lake, exactly once: each in one transaction with its ledger entry."""
