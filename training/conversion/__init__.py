"""Our model out of other people's weights: their checkpoints one by one, and all parts joined."""
