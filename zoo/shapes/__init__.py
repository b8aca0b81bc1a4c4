"""The shapes world: scenes, their captions, their pictures, and a checker that reads a picture back."""
