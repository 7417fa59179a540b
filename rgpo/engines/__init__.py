"""Gates inside the trainers of other frameworks; nothing here yet."""
