"""What starts without anybody asking: jobs, schedules and sensors."""
