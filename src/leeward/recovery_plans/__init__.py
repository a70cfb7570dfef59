"""Recovery plans, decisions only: whether one makes sense, its order, what its run's times say."""
