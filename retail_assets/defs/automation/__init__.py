"""Everything that starts by itself: jobs, schedules and sensors."""
