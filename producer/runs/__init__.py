"""One module a verb: opening runs, following them, controlling them. Knows no terminal."""
