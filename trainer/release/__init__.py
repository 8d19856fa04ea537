"""Champion selection: challenge, promotion, rollback and retention of finished runs."""
