"""The paper's claims and their ledger."""
