"""Tables and figures: of runs and recipes, of lotteries, and of what a network costs."""
