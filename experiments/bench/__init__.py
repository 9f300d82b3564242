"""Speed, measured side by side: ours, the peers, and a tight loop that does the least that must be done."""
