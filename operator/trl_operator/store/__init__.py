"""What the watches saw of jobs, their workloads and pods, kept small, and which job to look at when."""
