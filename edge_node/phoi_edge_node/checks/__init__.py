"""What ``phoi doctor`` looks at. Each check ends in plain words and, if need be, what to do."""
