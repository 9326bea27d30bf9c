"""What a config and its options say: parsing them, and a sentence for what is wrong with them."""
