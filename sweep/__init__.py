"""Everything that spends compute: config -> plan -> execute -> ledger."""
