"""The paper on reinforcement learning as a Wasserstein gradient flow (Dus 2026): what it shows, computed here."""
