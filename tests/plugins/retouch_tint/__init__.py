"""A method as a stranger would write one: colour that is fitted in steps and laid over the upper rows."""
