"""Leadership: at most one process acts as leader, whatever stops, sleeps or wakes."""
