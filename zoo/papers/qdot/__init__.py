"""What the map of QDOT is worth: beside no map, cloning, implicit Q-learning, and an adversarial regulariser."""
