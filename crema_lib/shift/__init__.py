"""What happens away from home: other hospitals, groups, noise and missing leads; what shows it without labels, and what helps."""
