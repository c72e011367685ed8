"""What `kunlun bench` runs: operators and whole training steps, verified before they are timed."""
