"""The critic server: reward model and critic in a process of their own, and the actor's side of the wire."""
