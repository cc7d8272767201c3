"""Publishing quarantined records again: as they are if they can be read now, or with values that a person corrected."""
