"""One page to look at: what was cut, what it gave, and how it was made."""
