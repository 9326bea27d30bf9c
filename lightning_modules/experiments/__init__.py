"""Many runs: recipes, lotteries with their controls, and work on tickets."""
