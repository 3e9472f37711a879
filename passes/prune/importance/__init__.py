"""What each unit of a group is worth: one criterion, one file; numpy only."""
