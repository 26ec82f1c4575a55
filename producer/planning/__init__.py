"""What a migration would store, free and take, before it is begun. Opens no run and changes nothing."""
