"""What several stages share: building objects, training, scoring, run folders, search jobs."""
