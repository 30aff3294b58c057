"""What the student writes and what is drawn for its teacher."""
