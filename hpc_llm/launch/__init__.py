"""Names that batch scripts copied by users still call; what they did lives in supervise/ now."""
